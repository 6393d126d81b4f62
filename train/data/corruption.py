"""What is hidden from a model that learns to fill gaps. Pure functions of the tokens and a random generator."""

import numpy as np


def mask_tokens(
    tokens: np.ndarray, random: np.random.Generator, fraction: float, mask_id: int, vocab_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of `fraction` of the tokens 80 % become the mask, 10 % any token, 10 % stay. Devlin et al. 2019, section 3.1.

    Args:
      tokens: [B, T] int; vocab_size: ids below it may come in the place of a token.
    Returns:
      The tokens with gaps, and which of them were chosen, bool [B, T].
    """
    is_chosen = random.random(tokens.shape) < fraction
    fate = random.random(tokens.shape)
    anything = random.integers(0, vocab_size, tokens.shape)
    gaps = np.where(fate < 0.8, mask_id, np.where(fate < 0.9, anything, tokens))
    return np.where(is_chosen, gaps, tokens).astype(np.int32), is_chosen


def num_masked(length: int, fraction: float, mean_span: float) -> tuple[int, int]:
    """How many of `length` tokens are hidden, and in how many spans: the same for every row, so that shapes are."""
    num_tokens = int(np.clip(round(length * fraction), 1, length - 1))
    return num_tokens, int(np.clip(round(num_tokens / mean_span), 1, min(num_tokens, length - num_tokens)))


def corrupt_spans(
    tokens: np.ndarray, random: np.random.Generator, fraction: float, mean_span: float, first_sentinel: int, ends: tuple
) -> tuple[np.ndarray, np.ndarray]:
    """The source has a sentinel for each span, the target sentinels and spans. Raffel et al. 2020, section 3.1.4.

        the cat sat on the mat today    source   the cat <0> the <1> today </s>
                                        target   <s> <0> sat on <1> mat </s>

    Args:
      tokens: [B, T] int; first_sentinel: id of <0>, the others follow; ends: (id of <s>, id of </s>).
    Returns:
      source [B, T - hidden + spans + 1], target [B, hidden + spans + 2], int32.
    """
    num_tokens, num_spans = num_masked(tokens.shape[1], fraction, mean_span)
    sources, targets = [], []
    for row in tokens:
        hidden = _parts(random, num_tokens, num_spans)
        kept = _parts(random, len(row) - num_tokens, num_spans)
        source, target, at = [], [ends[0]], 0
        for i, (num_kept, size) in enumerate(zip(kept, hidden, strict=True)):
            source += [*row[at : at + num_kept], first_sentinel + i]
            at += num_kept
            target += [first_sentinel + i, *row[at : at + size]]
            at += size
        sources.append([*source, ends[1]])
        targets.append([*target, ends[1]])
    return np.array(sources, np.int32), np.array(targets, np.int32)


def _parts(random: np.random.Generator, total: int, number: int) -> np.ndarray:
    """`total` as a sum of `number` numbers of at least 1, all such sums equally likely."""
    cuts = np.sort(random.choice(total - 1, number - 1, replace=False)) + 1
    return np.diff([0, *cuts, total])
