"""Adapters by name: the adapter of each text of a call, which stays with it in every batch."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from transformer_jax.errors import UserError
from transformer_jax.run import Run, check_chosen, check_name

AdapterNames = str | Sequence[str | None] | None  # one for all texts, or one for each; "" or None in a list: no adapter


def choose_adapters(run: Run, names: AdapterNames, num_texts: int) -> Run:
    """The run in which each text of a call has its adapter; `of_texts` takes that of a batch.

    All names together are computed in one batch. The result for a text does not depend on the names of the others.

    Raises:
      UserError: a name that the run does not have, with those that it has; not as many names as texts; no names, and
        the run has adapters by name.
    """
    if names is None:
        check_chosen(run)
        return run
    if run.adapter:
        raise UserError("adapter_names: the run has one adapter, without a name, for all texts. Omit adapter_names.")
    if isinstance(names, str):
        names = [names] * num_texts
    if isinstance(names, bytes) or not isinstance(names, Sequence | np.ndarray):
        raise UserError(f"adapter_names: must be a string or a list of strings, not of type {type(names).__name__}.")
    chosen = ["" if name is None else name for name in names]
    if wrong := [type(name).__name__ for name in chosen if not isinstance(name, str)]:
        raise UserError(f"adapter_names: must be strings, not of type {wrong[0]}.")
    if len(chosen) != num_texts:
        raise UserError(f"adapter_names: {len(chosen)} of them, and {num_texts} texts. Give one for each.")
    index = {name: i for i, name in enumerate(["", *run.adapters])}
    rows = tuple(index[check_name(run, name)] for name in chosen)
    if not run.adapters:
        return run
    return dataclasses.replace(run, adapter=run.stacked_adapters, adapters={}, adapter_rows=rows or (0,))


def of_texts(run: Run, indices: Sequence[int] | np.ndarray, num_rows: int = 0) -> Run:
    """The run for a batch of the texts with these indices, and of rows of padding up to `num_rows`."""
    if not run.adapter_rows:
        return run
    rows = [run.adapter_rows[i] for i in indices]
    return dataclasses.replace(run, adapter_rows=(*rows, *[0] * (num_rows - len(rows))))
