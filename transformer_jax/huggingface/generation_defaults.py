"""generation_config.json: which tokens begin and end a text, and what may come when."""

from typing import Any

from transformer_jax import sampling
from transformer_jax.errors import UserError
from transformer_jax.huggingface.files import PretrainedError
from transformer_jax.sampling import GenerationDefaults


def read_generation_defaults(config: dict, generation: dict, vocab_size: int) -> GenerationDefaults:
    """The rules of a folder. Before there was a generation_config.json, they stood in config.json.

    The processors stand in the order in which the reference library applies them. How a token is then chosen
    (temperature, top_k, num_beams, ...) is the caller's affair, and not read.

    Raises:
      PretrainedError: ids that are no numbers, numbers that are none or out of range.
    """
    values = generation or config

    def ids(name: str) -> tuple[int, ...]:
        found = values.get(name)
        found = found if isinstance(found, list) else [] if found is None else [found]
        if not all(type(i) is int for i in found):
            raise PretrainedError(f"generation_config.json: {name}={found!r:.80}: must be token ids.")
        return tuple(i for i in found if 0 <= i < vocab_size)  # defaults of a larger vocabulary mean nothing

    def one(name: str, default: int = -1) -> int:
        return (*ids(name), default)[0]

    def number(name: str, default: float, *types: type) -> Any:
        found = default if values.get(name) is None else values[name]
        if type(found) not in types:
            raise PretrainedError(f"generation_config.json: {name}={found!r:.80}: must be a number.")
        return found

    eos_ids, first = ids("eos_token_id"), ids("forced_bos_token_id")
    processors = []

    def add(is_asked: Any, method: type, *arguments: Any) -> None:
        if is_asked:
            processors.append(method(*arguments))

    penalty, ngram = number("repetition_penalty", 1.0, int, float), number("no_repeat_ngram_size", 0, int)
    words = _words(values.get("bad_words_ids"), vocab_size)
    words = tuple(word for word in words if len(word) > 1 or word[0] not in eos_ids)  # else no text would end
    min_length, min_new = number("min_length", 0, int), number("min_new_tokens", 0, int)
    try:
        add(penalty != 1, sampling.RepetitionPenalty, penalty)
        add(ngram != 0, sampling.NoRepeatNgram, ngram)
        add(words, sampling.BadWords, words)
        add(min_length > 0 and eos_ids, sampling.MinLength, min_length, eos_ids, True)
        add(min_new > 0 and eos_ids, sampling.MinLength, min_new, eos_ids)
        add(first, sampling.ForceFirst, *first[:1])
        add(last := ids("forced_eos_token_id"), sampling.ForceLast, *last[:1])
        add(never := ids("suppress_tokens"), sampling.Suppress, never)
        # Where the first token is forced, the one after it is the first that could be another.
        add(never := ids("begin_suppress_tokens"), sampling.SuppressFirst, never, int(bool(first)))
    except UserError as error:
        raise PretrainedError(f"generation_config.json: {error}") from error
    add(number("renormalize_logits", False, bool), sampling.Renormalize)
    start_id = one("decoder_start_token_id", one("bos_token_id"))
    return GenerationDefaults(eos_ids, one("pad_token_id", 0), start_id, tuple(processors))


def _words(words: Any, vocab_size: int) -> tuple[tuple[int, ...], ...]:
    """The bad words that the vocabulary can write."""
    words = words or []
    if not isinstance(words, list) or not all(isinstance(word, list) and word for word in words):
        raise PretrainedError(f"generation_config.json: bad_words_ids={words!r:.80}: must be lists of ids.")
    if not all(type(i) is int for word in words for i in word):
        raise PretrainedError(f"generation_config.json: bad_words_ids={words!r:.80}: must be token ids.")
    return tuple(tuple(word) for word in words if all(0 <= i < vocab_size for i in word))
