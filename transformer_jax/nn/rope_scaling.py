"""Scalings of rotary position embeddings (RoPE), which extend the context: linear, dynamic, llama3, yarn, longrope.

A scaling changes the wavelengths [H/2] of the pairs of a head, for texts longer than those of the training. Those of
"dynamic" and "longrope" depend on the length of the row, in tokens so far: [B, 1, 1, H/2]. A cache keeps the keys as
they were rotated when they came, so such a model decodes past its first context as the reference library does, and
not as in one pass over the whole text.
"""

import math

import jax.numpy as jnp

from transformer_jax.config import TransformerConfig

LENGTH_DEPENDENT = ("dynamic", "longrope")


def _no_scaling(wavelengths, positions, config, layer):
    return wavelengths


def _linear_scaling(wavelengths, positions, config, layer):
    """Position interpolation: positions are divided by the factor. Chen et al. 2023, equation 4."""
    return wavelengths * config.rope_factor


def _llama3_scaling(wavelengths, positions, config, layer):
    """Stretch long wavelengths, keep short ones, interpolate between them. Llama Team 2024, section 3.2."""
    turns = config.rope_original_max_len / wavelengths  # in the context that the model was first trained with
    low = config.rope_low_freq_factor
    high = config.rope_high_freq_factor
    share = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return _mix(wavelengths, share, config.rope_factor)


def _yarn_scaling(wavelengths, positions, config, layer):
    """YaRN: as llama3, but interpolate over the index of the pair. Peng et al. 2023, section 3.2."""
    half = len(wavelengths)

    def index(turns):  # of the pair, a fraction, that makes so many turns in the original context
        return half * math.log(config.rope_original_max_len / (turns * 2 * math.pi)) / math.log(layer.rope_theta)

    first = index(config.rope_high_freq_factor)
    last = index(config.rope_low_freq_factor)
    if config.rope_truncate:
        first = math.floor(first)
        last = math.ceil(last)
    first = max(first, 0)
    last = min(last, 2 * half - 1)
    share = 1.0 - jnp.clip((jnp.arange(half) - first) / (last - first or 0.001), 0.0, 1.0)
    return _mix(wavelengths, share, config.rope_factor)


def _mix(wavelengths, share, factor):
    """Mean of the frequencies of the wavelengths and of the stretched ones; `share` is the weight of the first."""
    return 1.0 / ((1.0 - share) / (factor * wavelengths) + share / wavelengths)


def _dynamic_scaling(wavelengths, positions, config, layer):
    """Dynamic NTK-aware scaling: the base grows with the length of a row past the original context.

    Peng et al. 2023, sections 3.1 and 3.3.
    """
    half = len(wavelengths)
    original = config.rope_original_max_len
    length = jnp.maximum(_row_lengths(positions), original)
    growth = config.rope_factor * length / original - (config.rope_factor - 1)
    return wavelengths * growth ** (half / (half - 1) * (jnp.arange(half) / half))


def _longrope_scaling(wavelengths, positions, config, layer):
    """LongRoPE: a factor for each pair, from another list for rows past the original context. Ding et al. 2024."""
    short = jnp.array(numbers(config.rope_short_factors))
    long = jnp.array(numbers(config.rope_long_factors))
    return wavelengths * jnp.where(_row_lengths(positions) > config.rope_original_max_len, long, short)


def _row_lengths(positions_BT):
    """Tokens of each row so far, [B, 1, 1, 1]."""
    return jnp.max(positions_BT, axis=1)[:, None, None, None] + 1


def attention_factor(config: TransformerConfig) -> float:
    """Factor of rotated queries and keys. Peng et al. 2023, equation 22; Ding et al. 2024, section 3.3."""
    original = config.rope_original_max_len
    if config.rope_attention_factor:
        return config.rope_attention_factor
    if config.rope_factor <= 1 or (config.rope_scaling == "longrope" and original < 2):
        return 1.0
    if config.rope_scaling == "yarn":
        return 0.1 * math.log(config.rope_factor) + 1.0
    return math.sqrt(1 + math.log(config.rope_factor) / math.log(original))


def numbers(text: str) -> list[float]:
    """Parse numbers with commas between them."""
    return [float(number) for number in text.split(",")]


ROPE_SCALINGS = {
    "none": _no_scaling,
    "linear": _linear_scaling,
    "dynamic": _dynamic_scaling,
    "llama3": _llama3_scaling,
    "yarn": _yarn_scaling,
    "longrope": _longrope_scaling,
}
