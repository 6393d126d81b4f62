"""generation_config.json: which tokens begin, end, are forced and are suppressed."""

from typing import Any

from transformer_jax.interop.files import PretrainedError
from transformer_jax.sampling import Rules


def read_rules(config: dict, generation: dict, vocab_size: int) -> Rules:
    """The rules of a folder. Before there was a generation_config.json, they stood in config.json.

    Raises:
      PretrainedError: ids that are no numbers.
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

    return Rules(
        eos_ids=ids("eos_token_id"), pad_id=one("pad_token_id", 0),
        start_id=one("decoder_start_token_id", one("bos_token_id")),
        first_id=one("forced_bos_token_id"), last_id=one("forced_eos_token_id"),
        never=ids("suppress_tokens") + _single_words(values.get("bad_words_ids"), vocab_size),
        never_first=ids("begin_suppress_tokens"),
    )  # fmt: skip


def _single_words(words: Any, vocab_size: int) -> tuple[int, ...]:
    """Of bad words those of one token, which is what models are shipped with (Marian's padding)."""
    words = words or []
    if not isinstance(words, list) or not all(isinstance(word, list) for word in words):
        raise PretrainedError(f"generation_config.json: bad_words_ids={words!r:.80}: must be lists of ids.")
    single = tuple(word[0] for word in words if len(word) == 1)
    if not all(type(i) is int for i in single):
        raise PretrainedError(f"generation_config.json: bad_words_ids={words!r:.80}: must be token ids.")
    return tuple(i for i in single if 0 <= i < vocab_size)
