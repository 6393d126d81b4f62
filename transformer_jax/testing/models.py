"""Laws of models, for functions of tokens; with a `jax.tree_util.Partial` over parameters also laws of gradients."""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.testing.laws import close, differs, equal, finite

B, T = 3, 7
NO_PADDING = np.ones((B, T), bool)


def check_causal_lm(apply: Callable, *, vocab_size: int, has_positions: bool | None = None) -> None:
    """Check the laws of a causal language model, which predicts each next token.

    Args:
      apply: (tokens [B, T] int, is_token [B, T] bool) -> logits [B, T, V], for lengths up to 11. As a
        `jax.tree_util.Partial` over its parameters, their gradients are checked, too.
      vocab_size: number of token ids to draw from.
      has_positions: True if the order of tokens counts; None: not checked.
    """
    tokens = _tokens(vocab_size)
    logits = np.asarray(apply(tokens, NO_PADDING))
    for t in range(1, T):
        other = tokens.copy()
        other[:, t:] = (other[:, t:] + 1) % vocab_size
        equal(
            f"no position attends to a later one (tokens from {t} on changed)",
            apply(other, NO_PADDING)[:, :t],
            logits[:, :t],
        )
        differs(f"a token changes its own position ({t})", apply(other, NO_PADDING)[:, t], logits[:, t])
    if isinstance(apply, jax.tree_util.Partial):
        t = T // 2
        truncated = np.where(np.arange(T) < t, tokens, 0)
        gradients, expected = (_gradient_of_first(apply, x, t) for x in (tokens, truncated))
        for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
            close("no gradient comes from a later token", a, b)
    if has_positions is not None:
        swapped = tokens[:, [1, 0, *range(2, T)]]
        later = apply(swapped, NO_PADDING)[:, 2:]
        if has_positions:
            differs("the order of the tokens counts", later, logits[:, 2:])
        else:
            close("without positions the order does not count", later, logits[:, 2:])
    _check_rows(apply, tokens, logits, vocab_size)


def check_encoder(apply: Callable, *, vocab_size: int, has_positions: bool | None = None) -> None:
    """Check the laws of a bidirectional encoder.

    Args:
      apply: (tokens [B, T] int, is_token [B, T] bool) -> [B, T, ...], for lengths up to 11; see check_causal_lm.
      vocab_size: number of token ids to draw from.
      has_positions: False: a permutation of the tokens permutes the result; True: it does not; None: not checked.
    """
    tokens = _tokens(vocab_size)
    out = np.asarray(apply(tokens, NO_PADDING))
    for t in (0, T - 1):
        other = tokens.copy()
        other[:, t] = (other[:, t] + 1) % vocab_size
        differs(
            f"every position attends to every other (token {t} changed)",
            apply(other, NO_PADDING)[:, T // 2],
            out[:, T // 2],
        )
    order = np.array([5, 2, 0, 6, 1, 4, 3])
    permuted = apply(tokens[:, order], NO_PADDING)
    if has_positions:
        differs("the order of the tokens counts", permuted, out[:, order])
    elif has_positions is False:
        close("without positions a permutation permutes", permuted, out[:, order])
    _check_rows(apply, tokens, out, vocab_size)


def _check_rows(apply, tokens, out, vocab_size):
    """Check the laws of rows that hold for every model: other rows and padding do not change a row's result."""
    equal("the same call gives the same result", apply(tokens, NO_PADDING), out)
    order = np.array([2, 0, 1])
    close("rows are independent", apply(tokens[order], NO_PADDING), out[order])
    close("a row alone equals the row in a batch", apply(tokens[1:2], NO_PADDING[1:2]), out[1:2])
    for left, right in ((0, 4), (4, 0), (1, 3)):
        name = f"padding, {left} on the left and {right} on the right,"
        is_token = np.pad(NO_PADDING, ((0, 0), (left, right)))
        for filler in (0, vocab_size - 1):
            padded = np.pad(tokens, ((0, 0), (left, right)), constant_values=filler)
            close(f"{name} changes nothing (filled with {filler})", apply(padded, is_token)[:, left : left + T], out)
    ragged = NO_PADDING.copy()
    ragged[0, 4:] = ragged[1, :3] = ragged[2] = False  # padding on the right, on the left, a row of padding only
    mixed = apply(tokens, ragged)
    finite("values are finite, also in a row of padding", mixed)
    close("padding in another row changes nothing", mixed[0, :4], apply(tokens[:, :4], NO_PADDING[:, :4])[0])
    if isinstance(apply, jax.tree_util.Partial):
        gradient = jax.grad(lambda apply: jnp.sum(jnp.sin(apply(tokens, ragged))), allow_int=True)(apply)
        finite("gradients are finite, also with a row of padding", gradient)


def check_cache(
    apply: Callable, extend: Callable, make_cache: Callable, *, vocab_size: int, bit_equal: bool = False
) -> None:
    """Check that chunks with a KV cache give the logits of one full pass: all ways to split, padding anywhere.

    Args:
      apply: (tokens, is_token) -> logits [B, T, V].
      extend: (tokens, is_token, cache) -> (logits of these tokens [B, T, V], cache).
      make_cache: number of rows -> an empty cache of capacity 9.
      vocab_size: number of token ids to draw from.
      bit_equal: True: equal to the bit; False: close.
    """
    same = equal if bit_equal else close
    length = 5
    tokens = _tokens(vocab_size)[:, :length]
    ragged = np.ones((B, length), bool)
    ragged[1, :2] = ragged[2, 1] = ragged[2, 3:] = False  # left; within and right
    for is_token in (np.ones((B, length), bool), ragged):
        expected = np.asarray(apply(tokens, is_token))
        for splits in _all_splits(length):
            cache = make_cache(B)
            chunks = []
            for first, end in itertools.pairwise((0, *splits, length)):
                logits, cache = extend(tokens[:, first:end], is_token[:, first:end], cache)
                chunks.append(np.asarray(logits))
            law = f"split at {list(splits)}, chunks with a cache equal one full pass"
            same(law, np.concatenate(chunks, axis=1), expected, is_token[:, :, None])


def _all_splits(length):
    for num in range(length):
        yield from itertools.combinations(range(1, length), num)


def check_packing(apply: Callable, *, vocab_size: int) -> None:
    """Check that texts packed into a row give the same result as each text alone.

    Args:
      apply: (tokens [B, T] int, segments [B, T] int) -> [B, T, ...], for lengths up to 7.
      vocab_size: number of token ids to draw from.
    """
    tokens = _tokens(vocab_size)
    segments = np.array([[1, 1, 1, 2, 2, 3, 3], [1, 2, 2, 2, 2, 2, 3], [1] * 7])
    packed = np.asarray(apply(tokens, segments))
    for row, first, end in ((0, 0, 3), (0, 3, 5), (0, 5, 7), (1, 0, 1), (1, 1, 6), (2, 0, 7)):
        alone = apply(tokens[row : row + 1, first:end], np.ones((1, end - first), int))
        close(
            f"a packed text equals the text alone (row {row}, tokens {first} to {end - 1})",
            packed[row, first:end],
            alone[0],
        )


def _tokens(vocab_size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocab_size, (B, T))


def _gradient_of_first(apply: Callable, tokens: np.ndarray, t: int) -> Callable:
    return jax.grad(lambda apply: jnp.sum(jnp.sin(apply(tokens, NO_PADDING)[:, :t])), allow_int=True)(apply)
