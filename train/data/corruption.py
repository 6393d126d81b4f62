"""Corruption for denoising objectives: masked tokens (BERT) and corrupted spans (T5), from a random generator."""

import numpy as np


def mask_tokens(
    tokens: np.ndarray, random: np.random.Generator, fraction: float, mask_id: int, vocab_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mask a fraction of the tokens: 80 % become the mask, 10 % a random token, 10 % are kept (BERT).

    Devlin et al. 2019, section 3.1.

    Args:
      tokens: [B, T] int.
      fraction: probability that a token is chosen as a target.
      vocab_size: random tokens are drawn below it.
    Returns:
      The corrupted tokens, int32 [B, T], and the chosen positions, bool [B, T].
    """
    is_chosen = random.random(tokens.shape) < fraction
    choice = random.random(tokens.shape)
    random_tokens = random.integers(0, vocab_size, tokens.shape)
    corrupted = np.where(choice < 0.8, mask_id, np.where(choice < 0.9, random_tokens, tokens))
    return np.where(is_chosen, corrupted, tokens).astype(np.int32), is_chosen


def num_masked(length: int, fraction: float, mean_span: float) -> tuple[int, int]:
    """Number of corrupted tokens among `length`, and of their spans: the same for every row, so that shapes are too."""
    num_tokens = int(np.clip(round(length * fraction), 1, length - 1))
    num_spans = int(np.clip(round(num_tokens / mean_span), 1, min(num_tokens, length - num_tokens)))
    return num_tokens, num_spans


def corrupt_spans(
    tokens: np.ndarray, random: np.random.Generator, fraction: float, mean_span: float, first_sentinel: int, ends: tuple
) -> tuple[np.ndarray, np.ndarray]:
    """Replace random spans by sentinels; the target lists each sentinel with its span. Raffel et al. 2020, 3.1.4.

        the cat sat on the mat today    source   the cat <0> the <1> today </s>
                                        target   <s> <0> sat on <1> mat </s>

    Args:
      tokens: [B, T] int.
      fraction: share of the tokens to corrupt.
      mean_span: mean length of a span, in tokens.
      first_sentinel: id of <0>, the others follow.
      ends: (id of <s>, id of </s>).
    Returns:
      source [B, T - corrupted + spans + 1] and target [B, corrupted + spans + 2], int32.
    """
    num_tokens, num_spans = num_masked(tokens.shape[1], fraction, mean_span)
    sources, targets = [], []
    for row in tokens:
        corrupted_lengths = _random_partition(random, num_tokens, num_spans)
        kept_lengths = _random_partition(random, len(row) - num_tokens, num_spans)
        source: list[int] = []
        target: list[int] = [ends[0]]
        position = 0
        for i, (num_kept, num_corrupted) in enumerate(zip(kept_lengths, corrupted_lengths, strict=True)):
            source += [*row[position : position + num_kept], first_sentinel + i]
            position += num_kept
            target += [first_sentinel + i, *row[position : position + num_corrupted]]
            position += num_corrupted
        sources.append([*source, ends[1]])
        targets.append([*target, ends[1]])
    return np.array(sources, np.int32), np.array(targets, np.int32)


def _random_partition(random: np.random.Generator, total: int, num_parts: int) -> np.ndarray:
    """Draw `num_parts` lengths of at least 1 that add up to `total`, all such partitions equally likely."""
    cuts = np.sort(random.choice(total - 1, num_parts - 1, replace=False)) + 1
    return np.diff([0, *cuts, total])
