"""generation_config.json: special ids and logits processors that are part of a pre-trained model."""

import dataclasses
from typing import Any

from transformer_jax import sampling
from transformer_jax.errors import UserError
from transformer_jax.huggingface.families import FAMILIES
from transformer_jax.huggingface.files import PretrainedError
from transformer_jax.models import GPT, Model, Seq2Seq
from transformer_jax.sampling import GenerationDefaults
from transformer_jax.sampling.logits_processors import LogitsProcessor


def read_generation_defaults(config: dict, generation: dict, vocab_size: int) -> GenerationDefaults:
    """Convert generation_config.json, or config.json of a folder from before that file existed.

    The logits processors are in the order in which the reference library applies them. The choice of a token
    (temperature, top_k, num_beams, ...) is up to the caller, and is not read.

    Raises:
      PretrainedError: ids that are not integers, numbers of another type or out of range.
    """
    family = FAMILIES.get(str(config.get("model_type")))
    # Special tokens that config.json does not name are those of the family; generation_config.json replaces both.
    own = _Values({**(family.token_ids if family else {}), **config}, vocab_size)
    values = _Values(generation, vocab_size) if generation else own
    eos_ids = values.ids("eos_token_id")
    try:
        processors = _processors(values, eos_ids)
    except PretrainedError:
        raise
    except UserError as error:
        raise PretrainedError(f"generation_config.json: {error}") from error
    start_id = values.first_id("decoder_start_token_id", values.first_id("bos_token_id", -1))
    if start_id < 0 and family and family.is_seq2seq:
        names = ("decoder_start_token_id", "bos_token_id", "pad_token_id")  # T5 starts with its padding
        found = [i for name in names for i in own.ids(name)]
        if not found:
            raise PretrainedError("config.json: decoder_start_token_id: is missing or not in the vocabulary. Add it.")
        start_id = found[0]
    return GenerationDefaults(eos_ids, values.first_id("pad_token_id", 0), start_id, tuple(processors))


def write_generation_defaults(
    defaults: GenerationDefaults, config: dict, generation: dict, model: Model, bos_id: int, is_new: bool
) -> tuple[dict, dict]:
    """Return config.json and generation_config.json that have the special ids of `defaults`; the inverse of reading.

    Both files stay as they are if they have them already.

    Args:
      bos_id: id of the token at the beginning of a text; -1: there is none.
      is_new: True for a model that was not loaded from a Hugging Face folder.
    Raises:
      PretrainedError: logits processors that the files do not have.
    """
    decoder = model.config.decoder
    eos_ids = [i for i in defaults.eos_ids if i >= 0]
    wanted = dataclasses.replace(defaults, eos_ids=tuple(eos_ids))
    if not is_new and read_generation_defaults(config, generation, decoder.vocab_size) == wanted:
        return config, generation
    ids: dict[str, object] = {
        "pad_token_id": config["pad_token_id"] if "pad_token_id" in config and is_new else defaults.pad_id,
        "eos_token_id": eos_ids[0] if len(eos_ids) == 1 else eos_ids or None,
    }
    if is_new:
        ids["bos_token_id"] = bos_id if bos_id >= 0 else None
    if isinstance(model, Seq2Seq):
        ids["decoder_start_token_id"] = defaults.start_id if defaults.start_id >= 0 else None
    config = config | ids
    if generation or (is_new and isinstance(model, GPT | Seq2Seq)):
        generation = generation | ids
    if is_new and generation:
        generation["max_length"] = decoder.max_len
    restored = read_generation_defaults(config, generation, decoder.vocab_size)
    if restored.processors != defaults.processors:
        names = ", ".join(type(processor).__name__ for processor in defaults.processors) or "none"
        raise PretrainedError(
            f"generation_defaults.processors: are {names}, and generation_config.json of the run has others. Give "
            "logits processors to tj.generate instead."
        )
    return config, generation


def _processors(values: "_Values", eos_ids: tuple[int, ...]) -> list[LogitsProcessor]:
    """The logits processors in the order in which they apply."""
    first_ids = values.ids("forced_bos_token_id")
    last_ids = values.ids("forced_eos_token_id")
    suppressed = values.ids("suppress_tokens")
    suppressed_first = values.ids("begin_suppress_tokens")
    penalty = values.number("repetition_penalty", 1.0, int, float)
    ngram_size = values.number("no_repeat_ngram_size", 0, int)
    # A bad word that is eos alone would let no text end.
    bad_words = tuple(word for word in values.words("bad_words_ids") if len(word) > 1 or word[0] not in eos_ids)
    min_length = values.number("min_length", 0, int)
    min_new_tokens = values.number("min_new_tokens", 0, int)
    processors: list[LogitsProcessor] = []
    if penalty != 1:
        processors.append(sampling.RepetitionPenalty(penalty))
    if ngram_size != 0:
        processors.append(sampling.NoRepeatNgram(ngram_size))
    if bad_words:
        processors.append(sampling.BadWords(bad_words))
    if min_length > 0 and eos_ids:
        processors.append(sampling.MinLength(min_length, eos_ids, True))
    if min_new_tokens > 0 and eos_ids:
        processors.append(sampling.MinLength(min_new_tokens, eos_ids))
    if first_ids:
        processors.append(sampling.ForceFirst(first_ids[0]))
    if last_ids:
        processors.append(sampling.ForceLast(last_ids[0]))
    if suppressed:
        processors.append(sampling.Suppress(suppressed))
    if suppressed_first:
        # If the first token is forced, the second is the first one that is chosen.
        processors.append(sampling.SuppressFirst(suppressed_first, int(bool(first_ids))))
    if values.number("renormalize_logits", False, bool):
        processors.append(sampling.Renormalize())
    return processors


class _Values:
    """Fields of generation_config.json with their types checked."""

    def __init__(self, values: dict, vocab_size: int):
        self.values = values
        self.vocab_size = vocab_size

    def ids(self, name: str) -> tuple[int, ...]:
        """One id or a list of ids; ids outside the vocabulary are defaults of a larger one, and are dropped."""
        value = self.values.get(name)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(i) is int for i in ids):
            raise PretrainedError(f"generation_config.json: {name}={ids!r:.80}: must be token ids.")
        return tuple(i for i in ids if self._is_known(i))

    def first_id(self, name: str, default: int) -> int:
        """One id, or the first of a list."""
        return (*self.ids(name), default)[0]

    def number(self, name: str, default: float, *types: type) -> Any:
        """A number of one of the types."""
        value = default if self.values.get(name) is None else self.values[name]
        if type(value) not in types:
            raise PretrainedError(f"generation_config.json: {name}={value!r:.80}: must be a number.")
        return value

    def words(self, name: str) -> tuple[tuple[int, ...], ...]:
        """A list of lists of ids, without those that the vocabulary cannot spell."""
        words = self.values.get(name) or []
        if not isinstance(words, list) or not all(isinstance(word, list) and word for word in words):
            raise PretrainedError(f"generation_config.json: {name}={words!r:.80}: must be lists of ids.")
        if not all(type(i) is int for word in words for i in word):
            raise PretrainedError(f"generation_config.json: {name}={words!r:.80}: must be token ids.")
        return tuple(tuple(word) for word in words if all(self._is_known(i) for i in word))

    def _is_known(self, i: int) -> bool:
        return 0 <= i < self.vocab_size
