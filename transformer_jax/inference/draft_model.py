"""Whom a run asks for drafts of what it writes: a smaller run, or the text so far. What is done with them: sampling."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

from transformer_jax.errors import UserError
from transformer_jax.inference.generation_config import GenerationConfig
from transformer_jax.run import Run, open_run, step_function
from transformer_jax.sampling.logits_processors import check
from transformer_jax.tokenizers.token_bytes import token_bytes


@dataclasses.dataclass(frozen=True)
class DraftSource:
    """Where drafts come from, and how many tokens each has."""

    run: Run | None  # None: from the text
    prompt_lookup: int  # so many tokens are looked up in the text; 0: a run is asked
    num_draft: int

    @property
    def step(self) -> Any:
        """The step function of the run that is asked, or None."""
        return None if self.run is None else step_function(self.run)


def make_draft_source(decoding: GenerationConfig, run: Run) -> DraftSource | None:
    """What the settings say of drafts; None: there are to be none.

    Raises:
      UserError: linear attention, which takes no token back; a draft that cannot be opened, or that is another kind of
        model, or has another vocabulary, another tokenizer or a shorter context.
    """
    if decoding.prompt_lookup:
        _check_slots("prompt_lookup", decoding.prompt_lookup, "the model", run)
        return DraftSource(None, decoding.prompt_lookup, decoding.num_draft)
    if decoding.draft:
        draft = _open(decoding.draft, _stamp(decoding.draft))
        _check_slots("draft", decoding.draft, "the model", run)
        _check_slots("draft", decoding.draft, "the draft", draft)
        _check_fits(decoding.draft, draft, run)
        return DraftSource(draft, 0, decoding.num_draft)
    return None


@functools.lru_cache(maxsize=2)
def _open(path: str, stamp: int) -> Run:
    return open_run(path)


def _stamp(path: str) -> int:
    """Something that changes with what a folder has: a draft is read once for many texts, but not an old one."""
    folder = Path(path).expanduser()
    inner = folder / "checkpoints"
    return next((one.stat().st_mtime_ns for one in (inner, folder) if one.is_dir()), 0)


def _check_slots(field: str, value: Any, whose: str, run: Run) -> None:
    rule = f"{whose} has linear attention, a sum from which refused tokens cannot be taken back. Leave it away"
    check(run.config.decoder.attention != "linear", field, value, rule)


def _check_fits(path: str, draft: Run, run: Run) -> None:
    kinds = [type(one.model).__name__ for one in (draft, run)]
    check(kinds[0] == kinds[1], "draft", path, f"is a {kinds[0]}, and must be a {kinds[1]}, as the model")
    sizes = [one.config.decoder.vocab_size for one in (draft, run)]
    check(
        sizes[0] == sizes[1],
        "draft",
        path,
        f"has a vocabulary of {sizes[0]} tokens, and the model one of {sizes[1]}. Take one of the same",
    )
    check(
        _mean_the_same(draft, run),
        "draft",
        path,
        "has another tokenizer than the model. Take a model that was trained with the same",
    )
    for side in ("encoder", "decoder"):
        contexts = [getattr(one.config, side, one.config).max_len for one in (draft, run)]
        check(
            contexts[0] >= contexts[1],
            "draft",
            path,
            f"has a context of {contexts[0]} tokens, and must have the model's {contexts[1]} or more",
        )


def _mean_the_same(draft: Run, run: Run) -> bool:
    """Whether ids are the same tokens; files of tokenizers may differ in what does not matter here."""
    if draft.tokenizer == run.tokenizer:
        return True
    try:
        return draft.tokenizer is not None and token_bytes(draft.tokenizer) == token_bytes(run.tokenizer)
    except UserError:  # bytes that are not known
        return False
