"""Draft models for speculative decoding, and the checks of drafts."""

import functools
from pathlib import Path

from transformer_jax.errors import UserError, check
from transformer_jax.inference.generation_config import GenerationConfig
from transformer_jax.inference.prefix import prefix_tokens, with_prefix
from transformer_jax.nn.rope_scaling import LENGTH_DEPENDENT
from transformer_jax.pretrained import open_run
from transformer_jax.run import Run
from transformer_jax.tokenizers.token_bytes import token_bytes


def open_draft_model(config: GenerationConfig, run: Run) -> Run | None:
    """Open the draft model that a generation config asks for; None: prompt lookup, or no speculative decoding.

    Raises:
      UserError: linear attention, which cannot forget a refused token; rotations that depend on the length; a draft
        model that cannot be opened, is another kind of model, or has another vocabulary, another tokenizer or a shorter
        context.
    """
    if config.prompt_lookup:
        _check_can_rewind("prompt_lookup", config.prompt_lookup, "the model", run)
    if config.draft:
        draft = _open(config.draft, _modification_time(config.draft), tuple(prefix_tokens(run).tolist()))
        _check_can_rewind("draft", config.draft, "the model", run)
        _check_can_rewind("draft", config.draft, "the draft", draft)
        _check_compatible(config.draft, draft, run)
        return draft
    return None


@functools.lru_cache(maxsize=2)
def _open(path: str, modified: int, before: tuple[int, ...]) -> Run:
    """The draft model after the text `before`, kept for later texts.

    `modified` is part of the cache's key, so that a new one is opened.
    """
    return with_prefix(open_run(path), before or None)


def _modification_time(path: str) -> int:
    """Modification time of a run's checkpoints or of a folder, in nanoseconds; 0 if there is none."""
    folder = Path(path).expanduser()
    candidates = (folder / "checkpoints", folder)
    return next((candidate.stat().st_mtime_ns for candidate in candidates if candidate.is_dir()), 0)


def _check_can_rewind(field: str, value: str | int, owner: str, run: Run) -> None:
    rule = f"{owner} has linear attention, a sum from which refused tokens cannot be removed. Omit {field}"
    check(run.config.decoder.attention != "linear", field, value, rule)
    scaling = run.config.decoder.rope_scaling
    rule = f"{owner} has rope_scaling={scaling}, whose rotations depend on the length, drafts included. Omit {field}"
    check(scaling not in LENGTH_DEPENDENT, field, value, rule)


def _check_compatible(path: str, draft: Run, run: Run) -> None:
    kind = type(run.model).__name__
    draft_kind = type(draft.model).__name__
    check(draft_kind == kind, "draft", path, f"is a {draft_kind}, and must be a {kind} like the model")
    size = run.config.decoder.vocab_size
    draft_size = draft.config.decoder.vocab_size
    rule = f"has a vocabulary of {draft_size} tokens, and the model one of {size}. Take one of the same"
    check(draft_size == size, "draft", path, rule)
    rule = "has another tokenizer than the model. Take a model that was trained with the same"
    check(_has_same_tokens(draft, run), "draft", path, rule)
    for side in ("encoder", "decoder"):
        context = getattr(run.config, side).max_len
        draft_context = getattr(draft.config, side).max_len
        rule = f"has a context of {draft_context} tokens, and must have the model's {context} or more"
        check(draft_context >= context, "draft", path, rule)


def _has_same_tokens(draft: Run, run: Run) -> bool:
    """True if ids mean the same tokens in both runs; other differences between their tokenizers do not matter."""
    if draft.tokenizer == run.tokenizer:
        return True
    if draft.tokenizer is None or run.tokenizer is None:
        return False
    try:
        return token_bytes(draft.tokenizer) == token_bytes(run.tokenizer)
    except UserError:  # the bytes of its tokens are not known
        return False
