"""TensorFlow Datasets without TensorFlow: prepared as array_record files, read through `as_data_source`.

A split is a list of plain dicts: texts as str, class numbers as their names, sequences as lists.

A dataset of TFDS is a program, which prepares it. A folder of prepared datasets is data: its features.json names the
classes that read it, and only those of TFDS itself are imported.
"""

import contextlib
import os
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np

from transformer_jax.errors import UserError

from ..config import DataConfig

SPLIT_FIELDS = {"train": "train_split", "val": "val_split", "test": "test_split"}
# Builders open files through tf.io.gfile. With this stand-in, most need no TensorFlow.
_GFILE = types.SimpleNamespace(
    GFile=open, Open=open, isdir=os.path.isdir, exists=os.path.exists, listdir=os.listdir, makedirs=os.makedirs
)


def tfds_documents(config: DataConfig) -> tuple[list[str], list[str]]:
    """Load the texts of the training and the validation split; `data.text_field` defaults to "text"."""
    field = config.text_field or "text"
    train, validation = ([row[field] for row in tfds_rows(config, split, (field,))] for split in ("train", "val"))
    return train, validation


def tfds_pairs(config: DataConfig, fields: tuple[str, str], split: str) -> list[tuple[str, str]]:
    """Load pairs of texts; in translation datasets the field of a language is named by its code."""
    names = (config.source_language, config.target_language)
    return [(row[names[0]], row[names[1]]) for row in tfds_rows(config, split, names)]


def tfds_labelled(config: DataConfig, split: str) -> list[tuple[str, str | tuple[str, ...], str]]:
    """Load (text, label, location) of `data.text_field` ("sentence") and `data.label_field` ("label").

    A field that is a sequence has any number of labels.
    """
    text = config.text_field or "sentence"
    label = config.label_field or "label"
    rows = tfds_rows(config, split, (text, label))
    return [
        (
            row[text],
            tuple(dict.fromkeys(map(str, row[label]))) if isinstance(row[label], list) else str(row[label]),
            f"{config.path}, {split} example {i}",
        )
        for i, row in enumerate(rows)
    ]


def tfds_tagged(config: DataConfig, split: str) -> list[tuple[list[str], list[str], str]]:
    """Load (words, tags, location) of `data.text_field` ("tokens") and `data.label_field` ("ner")."""
    words = config.text_field or "tokens"
    tags = config.label_field or "ner"
    rows = tfds_rows(config, split, (words, tags))
    return [(row[words], row[tags], f"{config.path}, {split} example {i}") for i, row in enumerate(rows)]


def tfds_rows(config: DataConfig, split: str, fields: tuple[str, ...]) -> list[dict[str, Any]]:
    """Load some fields of all examples of a split (train, val or test), in the order of the files.

    A dataset that is not yet in `data.tfds_dir` is downloaded and prepared there.

    Raises:
      UserError: no such dataset, split or field; no network; a builder that needs TensorFlow; a folder that names
        classes of others.
    """
    with _own_features_only():
        return _tfds_rows(config, split, fields)


def _tfds_rows(config: DataConfig, split: str, fields: tuple[str, ...]) -> list[dict[str, Any]]:
    if not config.path:
        raise UserError("data.path='': data.source=tfds needs a name. Give one such as tiny_shakespeare or glue/sst2.")
    import tensorflow_datasets as tfds  # here, because it takes a third of a second

    with _as_user_error(config, "cannot be found"):
        directory = os.path.expanduser(config.tfds_dir) if config.tfds_dir else None
        builder = tfds.builder(config.path, data_dir=directory, file_format="array_record")
    if not builder.is_prepared():
        print(f"tfds: downloading and preparing {config.path} in {builder.data_dir}", file=sys.stderr, flush=True)
        with _as_user_error(config, "cannot be prepared"), _files_without_tensorflow(builder):
            builder.download_and_prepare()
    name = getattr(config, SPLIT_FIELDS[split])
    if unknown := next((field for field in fields if field not in builder.info.features), None):
        raise UserError(
            f"data.path={config.path!r}: has no field {unknown!r}. It has: {', '.join(builder.info.features)}."
        )
    with _as_user_error(config, f"has no split data.{SPLIT_FIELDS[split]}={name!r}"):
        rows = builder.as_data_source(split=name)
        return [{field: _plain(row[field], builder.info.features[field]) for field in fields} for row in rows]


@contextlib.contextmanager
def _own_features_only() -> Iterator[None]:
    """Let features.json name no module that would be imported, except those of TFDS."""
    from tensorflow_datasets.core.features.feature import FeatureConnector

    before = vars(FeatureConnector)["cls_from_name"]  # a class method, by which every feature is found, nested ones too

    def checked(name: str) -> type:
        module = name.rpartition(".")[0]
        if not name.startswith("tensorflow_datasets.") and module not in sys.modules:
            raise UserError(f"data.tfds_dir: features.json names the class {name!r:.80}, which TFDS does not have.")
        return before.__func__(FeatureConnector, name)

    setattr(FeatureConnector, "cls_from_name", staticmethod(checked))  # noqa: B010
    try:
        yield
    finally:
        setattr(FeatureConnector, "cls_from_name", before)  # noqa: B010


def _plain(value: Any, feature: Any) -> Any:
    """Convert a value to plain Python."""
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim):
        return [_plain(item, getattr(feature, "feature", None)) for item in value]
    if isinstance(value, bytes):
        return value.decode()
    if hasattr(feature, "int2str"):
        return feature.int2str(int(value))
    return value


@contextlib.contextmanager
def _as_user_error(config: DataConfig, problem: str) -> Iterator[None]:
    """Turn an exception into a UserError: TFDS and the libraries below it raise nearly every kind."""
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"data.path={config.path!r}: this dataset {problem} ({type(error).__name__}: {reason})."
        ) from error


@contextlib.contextmanager
def _files_without_tensorflow(builder: Any) -> Iterator[None]:
    """Replace the `tf` of the builder's module by a stand-in that opens files with Python."""
    names = vars(sys.modules[type(builder).__module__])
    before = names.get("tf")
    if before is not None:
        names["tf"] = types.SimpleNamespace(io=types.SimpleNamespace(gfile=_GFILE))
    try:
        yield
    finally:
        if before is not None:
            names["tf"] = before
