"""What a run writes: continuations of prompts, and targets of sources."""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import sampling
from transformer_jax.cache import make_cache
from transformer_jax.config import UserError, choose
from transformer_jax.models import GPT, Seq2Seq
from transformer_jax.predicting import by_length
from transformer_jax.run import Run, step_function

PROMPT_MULTIPLE = 16  # prompts are padded to multiples of it, so that few lengths are compiled


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
    """Continue one prompt or several, which may differ in length; a Seq2Seq writes the target of each.

    A text may outgrow the model's context: whenever the context is full, its last half is kept and read again, so
    that later tokens are chosen from half a context or more. The longest row says when.

    Args:
      max_new_tokens: tokens to add; fewer where the model ends the text.
      method: "sample" or "greedy"; temperature, top_k (0: all) and top_p (1: all) shape "sample".
      seed: the same seed gives the same texts; sample i of a prompt is the same however many are asked for.
      num_samples: continuations of each prompt.
    Returns:
      The prompt with its continuation, or the target alone, as long as the decoder's context at most. A list, prompt
      by prompt, for several prompts or samples.
    Raises:
      UserError: an empty prompt, one longer than the context, or a number out of range.
    """
    choose(sampling.CHOICES, method, "method")
    methods = (*run.rules.methods, *_shaping(temperature, top_k, top_p))
    if not isinstance(run.model, GPT | Seq2Seq):
        raise UserError(f"a {type(run.model).__name__} writes no text. Ask it with logits.")
    if run.tokenizer is None:
        raise UserError("this model came without a tokenizer that is known here. Give tokens to logits.")
    for name, value in (("max_new_tokens", max_new_tokens), ("num_samples", num_samples)):
        if value < 1:
            raise UserError(f"{name}={value}: must be at least 1.")
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    rows = [row for text in prompts for row in [_encode_prompt(run, text)] * num_samples]
    sample_index = jnp.tile(jnp.arange(num_samples), len(prompts))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), sample_index)
    go_on = _write_targets if isinstance(run.model, Seq2Seq) else _continue
    texts = [run.tokenizer.decode(row) for row in go_on(run, rows, keys, method, methods, max_new_tokens)]
    return texts[0] if isinstance(prompt, str) and num_samples == 1 else texts


def _shaping(temperature: float, top_k: int, top_p: float) -> tuple:
    """Temperature first, then top-k, then top-p; what would change nothing is left away."""
    methods = (sampling.Temperature(temperature),) if temperature != 1 else ()
    methods += (sampling.TopK(top_k),) if top_k != 0 else ()
    return methods + ((sampling.TopP(top_p),) if top_p != 1 else ())


def translate(
    run: Run, texts: Sequence[str], *, num_beams: int = 4, length_penalty: float = 1.0, max_new_tokens: int = 0,
    batch_size: int = 32, progress: Callable[[int], None] | None = None,
) -> list[str]:  # fmt: skip
    """The best target that beam search finds for each source; with one beam the greedy one.

    Sources of about one length are translated together, and what comes back is in the order of `texts`. One that is
    longer than the context is cut, with a warning on stderr.

    Args:
      length_penalty: alpha of Wu et al. 2016, equation 14; above 0 longer targets are favoured.
      max_new_tokens: of a target; 0: twice the length of the source and ten more, the decoder's context at most.
      progress: called with the number of texts done, from time to time.
    Raises:
      UserError: the run is no Seq2Seq.
    """
    if not isinstance(run.model, Seq2Seq):
        raise UserError(f"a {type(run.model).__name__} does not translate. Ask it with generate, or logits.")
    if num_beams < 1 or batch_size < 1 or max_new_tokens < 0:
        raise UserError(
            f"num_beams={num_beams}, batch_size={batch_size}: must be at least 1; max_new_tokens at least 0."
        )
    context = run.config.encoder.max_len
    sources = [run.tokenizer.encode_source(run.prepare(text)) for text in texts]
    if num_cut := sum(len(source) > context for source in sources):
        print(f"warning: {num_cut} of {len(texts)} sources are cut to {context} tokens.", file=sys.stderr)
    sources = [source if len(source) <= context else np.append(source[: context - 1], source[-1]) for source in sources]
    done = {}
    for rows in by_length([len(source) for source in sources], batch_size):
        batch = [sources[i] for i in rows] + [sources[rows[-1]]] * (batch_size - len(rows))  # one shape for all batches
        room = min(max_new_tokens or 2 * _room(batch, run.config.encoder.max_len) + 10, run.config.decoder.max_len)
        for i, tokens in zip(rows, _best(run, batch, num_beams, length_penalty, room), strict=False):
            done[i] = run.tokenizer.decode(tokens)
        if progress:
            progress(len(done))
    return [done[i] for i in range(len(texts))]


def _best(run: Run, sources: list[np.ndarray], num_beams: int, length_penalty: float, num_new: int) -> list[np.ndarray]:
    """The best target of each source."""
    if num_beams == 1:
        keys = jax.random.split(jax.random.key(0), len(sources))  # the greedy choice does not look at them
        return _write_targets(run, sources, keys, "greedy", run.rules.methods, num_new)
    beams = sampling.beam_search(
        *_begin(run, sources, num_new), run.rules.methods, num_beams=num_beams, max_new_tokens=num_new,
        eos_ids=run.rules.eos_ids, pad_id=run.rules.pad_id, length_penalty=length_penalty,
    )  # fmt: skip
    return _rows(beams.tokens[:, 0], beams.lengths[:, 0])


def _encode_prompt(run: Run, text: str) -> np.ndarray:
    is_source = isinstance(run.model, Seq2Seq)
    tokens = run.tokenizer.encode_source(run.prepare(text)) if is_source else run.tokenizer.encode(text)
    context = getattr(run.config, "encoder", run.config).max_len
    if not len(tokens):
        raise UserError("prompt='': must have at least one character; a new line will do.")
    if len(tokens) > context:
        raise UserError(
            f"prompt: {len(tokens)} tokens, and the model's context is {context}. "
            f"Give at most {context} tokens, say the end of the text."
        )
    return tokens


def _continue(
    run: Run, rows: list[np.ndarray], keys: jax.Array, choice: str, methods: tuple, num_new: int
) -> list[np.ndarray]:
    """The rows with up to `num_new` tokens more, in pieces that fit the context. Methods see what the model sees."""
    context, pad_id = run.config.max_len, run.rules.pad_id
    room = _room(rows, context)
    # A piece needs room - 1 + piece slots: the last token chosen is not read.
    piece = min(num_new, context - room + 1)
    done, is_done = 0, np.zeros(len(rows), bool)
    lengths = jnp.array([len(row) for row in rows], jnp.int32)
    states = sampling.start(methods, jnp.zeros((len(rows), 0), jnp.int32), lengths, num_new)
    while done < num_new and not is_done.all():
        tokens, is_token = _batch(rows, room, pad_id)
        found = sampling.generate(
            step_function(run), make_cache(run.config, len(rows), room + piece - 1), tokens, is_token, keys, done,
            methods, states, max_new_tokens=piece, choice=choice, eos_ids=run.rules.eos_ids, pad_id=pad_id,
        )  # fmt: skip
        new, states = _rows(found.tokens[:, : num_new - done], found.lengths), found.states
        rows = [row if is_done[i] else np.concatenate([row, new[i]]) for i, row in enumerate(rows)]
        is_done |= np.array([len(row) < piece or row[-1] in run.rules.eos_ids for row in new])
        done += piece
        room, piece = max(context // 2, 1), context - max(context // 2, 1) + 1
    return rows


def _rows(tokens: jax.Array, lengths: jax.Array) -> list[np.ndarray]:
    """Each row up to its length."""
    return [row[:length] for row, length in zip(np.asarray(tokens), lengths.tolist(), strict=True)]


def _room(rows: list[np.ndarray], context: int) -> int:
    multiple = min(PROMPT_MULTIPLE, max(1, context // 8))
    return min(-(-max(map(len, rows)) // multiple) * multiple, context)


def _batch(rows: list[np.ndarray], room: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """The last `room` tokens of each row, and where they are, with padding on the left."""
    lengths = np.array([[min(len(row), room)] for row in rows])
    is_token = np.arange(room) >= room - lengths
    tokens = np.full((len(rows), room), pad_id, np.int32)
    tokens[is_token] = np.concatenate([row[-room:] for row in rows])
    return tokens, is_token


@functools.partial(jax.jit, static_argnums=(0, 4))
def _start(model: Seq2Seq, params: Any, source: jax.Array, is_token: jax.Array, capacity: int) -> Any:
    return model.apply({"params": params}, source, is_token, capacity, method="start")


def _begin(run: Run, sources: list[np.ndarray], num_new: int) -> tuple:
    """What decoding wants: the step, a cache that has read the sources, the first token of each, and that it is one."""
    source, is_token = _batch(sources, _room(sources, run.config.encoder.max_len), run.rules.pad_id)
    first = np.full((len(sources), 1), run.rules.start_id, np.int32)
    return step_function(run), _start(run.model, run.params, source, is_token, num_new), first, first >= 0


def _write_targets(
    run: Run, sources: list[np.ndarray], keys: jax.Array, choice: str, methods: tuple, num_new: int
) -> list[np.ndarray]:
    """A target for each source."""
    num_new = min(num_new, run.config.decoder.max_len)
    found = sampling.generate(
        *_begin(run, sources, num_new), keys, 0, methods,
        max_new_tokens=num_new, choice=choice, eos_ids=run.rules.eos_ids, pad_id=run.rules.pad_id,
    )  # fmt: skip
    return _rows(found.tokens, found.lengths)
