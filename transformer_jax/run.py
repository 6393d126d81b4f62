"""A trained run as plain data, and what can be done with it: functions, no methods."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import sampling
from transformer_jax.cache import make_cache
from transformer_jax.checkpoint import CheckpointError, Checkpoints, abstract
from transformer_jax.config import TransformerConfig, UserError, from_dict
from transformer_jax.models import GPT
from transformer_jax.tokenizers import Tokenizer, tokenizer_from_dict

PROMPT_MULTIPLE = 16  # prompts are padded to multiples of it, so that few lengths are compiled


@dataclasses.dataclass(frozen=True)
class Run:
    """A model with everything that using it needs."""

    model: GPT
    params: Any
    tokenizer: Tokenizer
    config: TransformerConfig
    step: int = 0


def load(run_dir: str | Path, checkpoint: str | int = "latest") -> Run:
    """The run that `python -m train` left in a directory; nothing else is needed.

    Args:
      checkpoint: "latest" sound one, "best" by validation loss, or a step.
    Raises:
      CheckpointError: no run, no such checkpoint, or none that is sound.
    """
    if not Path(run_dir).expanduser().is_dir():
        raise CheckpointError(f"run_dir={run_dir}: there is no such directory. Give the --workdir of a training run.")
    checkpoints = Checkpoints(run_dir)
    step = checkpoints.find(checkpoint)
    meta = checkpoints.meta(step)
    config = from_dict(TransformerConfig, meta["config"]["model"], "model.")
    model = GPT(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    params = checkpoints.restore(step, params=abstract(shapes))["params"]
    return Run(model, params, tokenizer_from_dict(meta["tokenizer"]), config, step)


@functools.partial(jax.jit, static_argnums=0)
def _logits(model: GPT, params: Any, tokens: jax.Array, is_token: jax.Array | None) -> jax.Array:
    return model.apply({"params": params}, tokens, is_token)


@functools.cache  # one function object for a model: jit tells functions apart by identity, and would compile again
def _extend(model: GPT) -> Callable:
    return lambda params, *args: model.apply({"params": params}, *args, last_only=True, method="extend")


def step_function(run: Run) -> jax.tree_util.Partial:
    """`step(tokens, is_token, cache) -> (last logits, cache)`, the parameters being its arguments: for `sampling`."""
    return jax.tree_util.Partial(_extend(run.model), run.params)


def logits(run: Run, tokens: Any, is_token: Any = None) -> jax.Array:
    """Logits of the next token at every place.

    Args:
      tokens: [B, T] ints, T at most the context; is_token: [B, T] bool, False for padding; None: no padding.
    Returns:
      [B, T, V] float32.
    Raises:
      UserError: shapes that do not fit, ids outside the vocabulary, more tokens than the context.
    """
    tokens = np.asarray(tokens)
    if tokens.ndim != 2 or tokens.dtype.kind not in "iu":
        raise UserError(f"tokens: must be integers [B, T], not {tokens.dtype} {list(tokens.shape)}.")
    if is_token is not None and np.shape(is_token) != tokens.shape:
        raise UserError(f"is_token: must be of shape {list(tokens.shape)}, as tokens, not {list(np.shape(is_token))}.")
    if tokens.size and not (0 <= tokens.min() and tokens.max() < run.config.vocab_size):
        top = run.config.vocab_size - 1
        raise UserError(f"tokens: ids must lie between 0 and {top}, not between {tokens.min()} and {tokens.max()}.")
    is_token = None if is_token is None else jnp.asarray(is_token, bool)
    return _logits(run.model, run.params, jnp.asarray(tokens, jnp.int32), is_token)


def generate(
    run: Run,
    prompt: str | Sequence[str],
    *,
    max_new_tokens: int = 200,
    method: str = "sample",
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    num_samples: int = 1,
) -> str | list[str]:
    """Continue one prompt or several, which may differ in length.

    A text may outgrow the model's context: whenever the context is full, its last half is kept and read again, so
    that later tokens are chosen from half a context or more. The longest row says when.

    Args:
      max_new_tokens: tokens to add; fewer where the model ends the text.
      method: "sample" or "greedy"; temperature, top_k (0: all) and top_p (1: all) shape "sample".
      seed: the same seed gives the same texts; sample i of a prompt is the same however many are asked for.
      num_samples: continuations of each prompt.
    Returns:
      The prompt with its continuation. A list, prompt by prompt, for several prompts or samples.
    Raises:
      UserError: an empty prompt, one longer than the context, or a number out of range.
    """
    sampler = sampling.Sampler(method, temperature, top_k, top_p)
    for name, value in (("max_new_tokens", max_new_tokens), ("num_samples", num_samples)):
        if value < 1:
            raise UserError(f"{name}={value}: must be at least 1.")
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    rows = [row for text in prompts for row in [_encode_prompt(run, text)] * num_samples]
    sample_index = jnp.tile(jnp.arange(num_samples), len(prompts))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), sample_index)
    texts = [run.tokenizer.decode(row) for row in _continue(run, rows, keys, sampler, max_new_tokens)]
    return texts[0] if isinstance(prompt, str) and num_samples == 1 else texts


def _encode_prompt(run: Run, text: str) -> np.ndarray:
    tokens = run.tokenizer.encode(text)
    if not len(tokens):
        raise UserError("prompt='': must have at least one character; a new line will do.")
    if len(tokens) > run.config.max_len:
        raise UserError(
            f"prompt: {len(tokens)} tokens, and the model's context is {run.config.max_len}. "
            f"Give at most {run.config.max_len} tokens, say the end of the text."
        )
    return tokens


def _continue(run: Run, rows: list[np.ndarray], keys: jax.Array, sampler: Any, num_new: int) -> list[np.ndarray]:
    """The rows with up to `num_new` tokens more, in pieces that fit the context."""
    context, eos_id, pad_id = run.config.max_len, run.tokenizer.eos_id, run.tokenizer.pad_id
    multiple = min(PROMPT_MULTIPLE, max(1, context // 8))
    room = min(-(-max(map(len, rows)) // multiple) * multiple, context)
    # A piece needs room - 1 + piece slots: the last token chosen is not read.
    piece = min(num_new, context - room + 1)
    done, is_done = 0, np.zeros(len(rows), bool)
    while done < num_new and not is_done.all():
        lengths = np.array([[min(len(row), room)] for row in rows])
        is_token = np.arange(room) >= room - lengths
        tokens = np.full((len(rows), room), pad_id, np.int32)
        tokens[is_token] = np.concatenate([row[-room:] for row in rows])
        new = sampling.generate(
            step_function(run), make_cache(run.config, len(rows), room + piece - 1), tokens, is_token, keys, done,
            max_new_tokens=piece, sampler=sampler, eos_id=eos_id, pad_id=pad_id,
        )  # fmt: skip
        new = np.asarray(new)[:, : num_new - done]
        rows = [row if is_done[i] else np.concatenate([row, new[i]]) for i, row in enumerate(rows)]
        is_done |= (new == eos_id).any(axis=1)
        done += piece
        room, piece = max(context // 2, 1), context - max(context // 2, 1) + 1
    return rows
