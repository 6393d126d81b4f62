"""Packed documents in the training pipeline: no token is lost, and no document affects another."""

import jax
import numpy as np
import pytest
from helpers.arrays import random_like
from hypothesis import given, settings
from hypothesis import strategies as st

from train.config import DataConfig, TokenizerConfig
from train.data.packing import load_packed, pack, packed_batch, split_pieces
from train.data.sources import load_documents
from train.losses import causal_lm, packed_targets
from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError
from transformer_jax.models import GPT

LENGTH = 13
LESSON = ["the quick fox", "a", "over the lazy dog and back again", "jumps", "it sleeps", "now"]


@settings(max_examples=200, deadline=None, database=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(2, 17))
def test_every_token_of_every_document_is_in_one_row_once(lengths, length):
    documents, first = [], 0
    for n in lengths:
        documents.append(np.arange(first, first + n))
        first += n
    pieces = [piece for document in documents for piece in split_pieces(document, length)]
    rows = pack(pieces, length, pad_id=-7)
    targets = []
    for i, piece in enumerate(pieces):
        row, columns = np.nonzero(rows["segments"] == i)
        assert len(set(row)) == 1 and np.array_equal(columns, np.arange(columns[0], columns[0] + len(piece)))
        np.testing.assert_array_equal(rows["tokens"][row, columns], piece)
        targets += piece[1:].tolist()
    assert sorted(targets) == sorted(token for document in documents for token in document[1:])
    is_target = packed_targets(rows)
    np.testing.assert_array_equal(np.sort(rows["tokens"][:, 1:][is_target]), np.sort(targets))
    assert np.all(rows["tokens"][~rows["is_token"]] == -7)
    # No two rows would fit into one: best fit leaves at most one row that is not more than half full.
    assert sum(rows["is_token"].sum(axis=1) * 2 <= length) <= 1


def test_the_loss_of_packed_documents_is_the_sum_of_their_losses_alone():
    rng = np.random.default_rng(3)
    documents = [rng.integers(3, 31, n) for n in (5, 2, 8, 13, 1, 3, 7)]
    model = GPT(TransformerConfig(vocab_size=31, max_len=LENGTH, num_layers=2, d_model=14, num_heads=2, d_ff=17))
    params = random_like(jax.eval_shape(model.init, jax.random.key(0), np.zeros((2, 5), int))["params"])

    @jax.jit
    def loss(batch):
        return causal_lm(lambda *args, **kwargs: model.apply({"params": params}, *args, **kwargs), batch)[:2]

    def padded(document):  # to one length for all; the padding is no target
        is_token = np.arange(LENGTH)[None] < len(document)
        return {"tokens": np.resize(document, (1, LENGTH)), "is_token": is_token}

    together = packed_batch(pack(documents, LENGTH, 0), np.arange(3), 5, 0)
    assert together["tokens"].shape == (5, LENGTH)  # two rows more than packed
    alone = [loss(padded(document)) for document in documents if len(document) > 1]
    np.testing.assert_allclose(loss(together), np.sum(alone, axis=0), rtol=1e-5)
    seen = {name: value for name, value in together.items() if name != "segments"}
    assert abs(loss(seen)[0] - loss(together)[0]) > 1e-2  # without segments they would attend to each other


def test_files_and_lines_are_documents_and_none_is_in_both_splits(tmp_path):
    for i, text in enumerate(LESSON):
        (tmp_path / f"{i}.txt").write_text(text)
    config = DataConfig(source="text", path=str(tmp_path), documents="files", val_fraction=0.3)
    train, validation = load_documents(config)
    assert len(validation) == 2 and sorted(train + validation) == sorted(LESSON)
    (tmp_path / "all.md").write_text("\n".join(LESSON) + "\n\n")
    lines = DataConfig(source="text", path=str(tmp_path / "all.md"), documents="lines", val_fraction=0.3)
    assert sorted(sum(load_documents(lines), [])) == sorted(LESSON)
    one_file = DataConfig(source="text", path=str(tmp_path / "all.md"), documents="files")
    with pytest.raises(UserError, match="data.documents='files': there are fewer than two files"):
        load_documents(one_file)
    with pytest.raises(UserError, match="data.documents='pages': unknown.*files, lines"):
        DataConfig(documents="pages")


def test_each_document_has_its_beginning_and_its_end(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(LESSON))
    config = DataConfig(source="text", path=str(tmp_path / "a.txt"), documents="lines", val_fraction=0.3)
    packed = load_packed(config, TokenizerConfig(kind="char"), None, LENGTH)
    tokens, segments = packed.train["tokens"], packed.train["segments"]
    assert (tokens == packed.tokenizer.bos_id).sum() == (tokens == packed.tokenizer.eos_id).sum() == 4
    texts = [packed.tokenizer.decode(tokens[segments == i]) for i in range(segments.max() + 1)]
    # A document of more than LENGTH tokens is split into pieces that share a token; short ones are not split.
    assert {text for text in LESSON if len(text) <= LENGTH - 2} & set(load_documents(config)[0]) <= set(texts)
    assert packed.val_bytes_per_token < 1.0  # the end token is a target without bytes
