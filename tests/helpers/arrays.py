"""What tests of models share: closeness, and parameters that are large enough for all parts to matter."""

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.models import path_names


def close(actual, expected):
    """The same within 1e-5 of the largest number, or of 1 where all are smaller."""
    expected = np.asarray(expected)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max(initial=1))


def random_like(shapes, seed=2, scale=0.3):
    """A pytree of normal numbers, biases and scales of norms included."""
    random = np.random.default_rng(seed)
    # NumPy converts them: JAX would compile that for every shape.
    return jax.tree.map(lambda leaf: jnp.asarray((scale * random.normal(size=leaf.shape)).astype(leaf.dtype)), shapes)


def by_name(params):
    """Leaves of a tree of parameters by their names, "stack/norm/scale"."""
    return {"/".join(path_names(path)): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
