"""Laws of models, for functions of tokens; a `jax.tree_util.Partial` over parameters is asked for gradients, too."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.testing.laws import close, differs, equal, finite

B, T = 3, 7
EVERY = np.ones((B, T), bool)


def check_causal_lm(apply: Callable, *, vocab_size: int, has_positions: bool | None = None) -> None:
    """The laws of a model that predicts each next token.

    Args:
      apply: (tokens [B, T] int, is_token [B, T] bool) -> logits [B, T, V], for lengths up to 11. As a
        `jax.tree_util.Partial` over its parameters it is asked for their gradients, too.
      vocab_size: ids to draw tokens from.
      has_positions: whether the order of tokens counts; None: not asked.
    """
    tokens = _tokens(vocab_size)
    logits = np.asarray(apply(tokens, EVERY))
    for t in range(1, T):
        other = tokens.copy()
        other[:, t:] = (other[:, t:] + 1) % vocab_size
        equal(f"no token sees a later one (tokens from {t} on changed)", apply(other, EVERY)[:, :t], logits[:, :t])
        differs(f"a token is seen in its own place ({t})", apply(other, EVERY)[:, t], logits[:, t])
    if isinstance(apply, jax.tree_util.Partial):
        t = T // 2
        early, late = (_gradient_of_early(apply, x, t) for x in (tokens, np.where(np.arange(T) < t, tokens, 0)))
        for a, b in zip(jax.tree.leaves(early), jax.tree.leaves(late), strict=True):
            close("no gradient comes from a later token", a, b)
    if has_positions is not None:
        swapped = tokens[:, [1, 0, *range(2, T)]]
        after = apply(swapped, EVERY)[:, 2:]
        if has_positions:
            differs("the order of the tokens counts", after, logits[:, 2:])
        elif has_positions is False:
            close("without positions the order does not count", after, logits[:, 2:])
    _check_rows(apply, tokens, logits, vocab_size)


def check_encoder(apply: Callable, *, vocab_size: int, has_positions: bool | None = None) -> None:
    """The laws of a model that looks both ways.

    Args:
      apply: (tokens [B, T] int, is_token [B, T] bool) -> [B, T, ...], for lengths up to 11; see check_causal_lm.
      vocab_size: ids to draw tokens from.
      has_positions: False: a permutation of the tokens permutes the result; True: it does not; None: not asked.
    """
    tokens = _tokens(vocab_size)
    out = np.asarray(apply(tokens, EVERY))
    for t in (0, T - 1):
        other = tokens.copy()
        other[:, t] = (other[:, t] + 1) % vocab_size
        differs(f"every token sees every other (token {t} changed)", apply(other, EVERY)[:, T // 2], out[:, T // 2])
    order = np.array([5, 2, 0, 6, 1, 4, 3])
    permuted = apply(tokens[:, order], EVERY)
    if has_positions:
        differs("the order of the tokens counts", permuted, out[:, order])
    elif has_positions is False:
        close("without positions a permutation permutes", permuted, out[:, order])
    _check_rows(apply, tokens, out, vocab_size)


def _check_rows(apply, tokens, out, vocab_size):
    """What holds for every model: nothing outside a row and nothing in its padding changes what the row means."""
    equal("the same call gives the same", apply(tokens, EVERY), out)
    order = np.array([2, 0, 1])
    close("rows go by themselves", apply(tokens[order], EVERY), out[order])
    close("a row alone is as in a batch", apply(tokens[1:2], EVERY[1:2]), out[1:2])
    for left, right in ((0, 4), (4, 0), (1, 3)):
        name = f"padding, {left} on the left and {right} on the right,"
        is_token = np.pad(EVERY, ((0, 0), (left, right)))
        for filler in (0, vocab_size - 1):
            padded = np.pad(tokens, ((0, 0), (left, right)), constant_values=filler)
            close(f"{name} changes nothing (filled with {filler})", apply(padded, is_token)[:, left : left + T], out)
    ragged = EVERY.copy()
    ragged[0, 4:] = ragged[1, :3] = ragged[2] = False  # padding right, padding left, a row of nothing else
    mixed = apply(tokens, ragged)
    finite("values are finite, a row of padding too", mixed)
    close("a batch mate's padding changes nothing", mixed[0, :4], apply(tokens[:, :4], EVERY[:, :4])[0])
    if isinstance(apply, jax.tree_util.Partial):
        gradient = jax.grad(lambda apply: jnp.sum(jnp.sin(apply(tokens, ragged))), allow_int=True)(apply)
        finite("gradients are finite, a row of padding too", gradient)


def check_cache(
    apply: Callable, extend: Callable, make_cache: Callable, *, vocab_size: int, bit_equal: bool = False
) -> None:
    """Reading piece by piece with a cache is reading all at once: every way to cut T tokens, padding anywhere.

    Args:
      apply: (tokens, is_token) -> logits [B, T, V].
      extend: (tokens, is_token, cache) -> (logits of these tokens [B, T, V], cache).
      make_cache: number of rows -> an empty cache with room for 9 tokens.
      vocab_size: ids to draw tokens from.
      bit_equal: whether not a bit may differ.
    """
    same = equal if bit_equal else close
    length = 5
    tokens = _tokens(vocab_size)[:, :length]
    ragged = np.ones((B, length), bool)
    ragged[1, :2] = ragged[2, 1] = ragged[2, 3:] = False  # left; within and right
    for is_token in (np.ones((B, length), bool), ragged):
        expected = np.asarray(apply(tokens, is_token))
        for cuts in _all_cuts(length):
            cache, parts = make_cache(B), []
            for first, last in itertools.pairwise((0, *cuts, length)):
                part, cache = extend(tokens[:, first:last], is_token[:, first:last], cache)
                parts.append(np.asarray(part))
            name = f"cut at {list(cuts)}, reading in pieces is reading at once"
            same(name, np.concatenate(parts, axis=1), expected, is_token[:, :, None])


def _all_cuts(length):
    for num in range(length):
        yield from itertools.combinations(range(1, length), num)


def check_packing(apply: Callable, *, vocab_size: int) -> None:
    """Texts packed into a row are as each alone.

    Args:
      apply: (tokens [B, T] int, segments [B, T] int) -> [B, T, ...], for lengths up to 7.
      vocab_size: ids to draw tokens from.
    """
    tokens = _tokens(vocab_size)
    segments = np.array([[1, 1, 1, 2, 2, 3, 3], [1, 2, 2, 2, 2, 2, 3], [1] * 7])
    packed = np.asarray(apply(tokens, segments))
    for row, first, last in ((0, 0, 3), (0, 3, 5), (0, 5, 7), (1, 0, 1), (1, 1, 6), (2, 0, 7)):
        alone = apply(tokens[row : row + 1, first:last], np.ones((1, last - first), int))
        close(f"packed is as alone (row {row}, tokens {first} to {last - 1})", packed[row, first:last], alone[0])


def _tokens(vocab_size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocab_size, (B, T))


def _gradient_of_early(apply: Any, tokens: np.ndarray, t: int) -> Any:
    return jax.grad(lambda apply: jnp.sum(jnp.sin(apply(tokens, EVERY)[:, :t])), allow_int=True)(apply)
