"""Batches of running text: order of windows, training and evaluation batches, the corpus."""

import concurrent.futures
import functools
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.text_files import TEXT, lightly, parts_of, text_config, write
from hypothesis import given
from hypothesis import strategies as st

import transformer_jax as tj
from train.config import TokenizerConfig
from train.data.batch_sampler import WindowSampler, _epoch_starts
from train.data.batches import eval_batches, load_corpus, make_tokenizer, prefetch, window_batch
from transformer_jax.errors import UserError
from transformer_jax.tokenizers import ByteTokenizer, CharTokenizer

FIXTURES = Path(__file__).parent / "fixtures"
ORDER = WindowSampler(num_tokens=211, max_len=7, batch_size=3, seed=5)  # 29 windows, 9 steps an epoch, 2 windows over
TOKENS = np.arange(211, dtype=np.int32)  # each token is its own position


# Order of training examples


def epoch_of(order, epoch):
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    return np.stack([order.starts(step) for step in steps])


def test_an_epoch_visits_windows_once_on_one_grid():
    for epoch in range(13):
        starts = epoch_of(ORDER, epoch)
        assert starts.shape == (9, 3) and starts.dtype == np.int64
        assert len(np.unique(starts)) == 27
        assert len(np.unique(starts % 7)) == 1


@lightly
@given(st.integers(1, 13), st.integers(1, 5), st.integers(0, 97), st.integers(0, 2**40), st.integers(0, 10**6))
def test_windows_stay_within_the_text_and_no_target_is_repeated_in_an_epoch(max_len, batch, extra, seed, epoch):
    order = WindowSampler((batch + 1) * max_len + extra, max_len, batch, seed)
    targets = epoch_of(order, epoch).reshape(-1, 1) + np.arange(1, max_len + 1)
    assert targets.min() >= 1 and targets.max() < order.num_tokens
    assert len(np.unique(targets)) == targets.size
    assert order.num_windows - len(targets) < batch  # the skipped windows would not fill a batch


def test_epochs_differ_in_order_and_offset():
    epochs = [epoch_of(ORDER, epoch) for epoch in range(29)]
    assert {int(starts[0, 0]) % 7 for starts in epochs} == set(range(7))
    orders = {tuple(np.argsort(starts.ravel())) for starts in epochs}
    assert len(orders) == 29


def test_seeds_differ_and_a_step_is_the_same_on_a_fresh_object():
    steps = [23, 2, 11, 41]
    wanted = [ORDER.starts(step).copy() for step in steps]
    _epoch_starts.cache_clear()
    np.testing.assert_array_equal([WindowSampler(211, 7, 3, 5).starts(step) for step in reversed(steps)], wanted[::-1])
    assert not np.array_equal([WindowSampler(211, 7, 3, 11).starts(step) for step in steps], wanted)


def test_threads_get_the_same_order_as_one_after_the_other():
    wanted = [ORDER.starts(step) for step in range(97)]
    _epoch_starts.cache_clear()
    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        np.testing.assert_array_equal(list(pool.map(ORDER.starts, range(97))), wanted)


def test_the_shared_order_is_read_only():
    with pytest.raises(ValueError, match="read-only"):
        ORDER.starts(2)[0] = 0


def test_the_smallest_text_is_one_batch_and_a_shorter_one_is_refused():
    assert WindowSampler(28, 7, 3, 5).steps_per_epoch == 1
    with pytest.raises(UserError) as error:
        WindowSampler(27, 7, 3, 5)
    for part in ("train.batch_size=3", "model.max_len=7", "needs 28 tokens", "has 27", "smaller", "more text"):
        assert part in str(error.value)


# Training batches


def assert_equal_batches(batches, wanted):
    batches, wanted = list(batches), list(wanted)
    assert len(batches) == len(wanted)
    for batch, other in zip(batches, wanted, strict=True):
        np.testing.assert_array_equal(batch["tokens"], other["tokens"])
        np.testing.assert_array_equal(batch["is_token"], other["is_token"])


batch_of = functools.partial(window_batch, TOKENS, ORDER)


def test_a_training_batch_holds_consecutive_tokens_from_its_starts():
    batch = batch_of(19)
    assert batch["tokens"].dtype == np.int32 and batch["is_token"].dtype == bool
    assert batch["is_token"].shape == (3, 8) and batch["is_token"].all()
    np.testing.assert_array_equal(batch["tokens"], ORDER.starts(19)[:, None] + np.arange(8))


def test_the_prefetched_batches_come_in_the_order_of_steps():
    assert_equal_batches(prefetch(batch_of, 0, 31), [batch_of(step) for step in range(31)])  # three and a half epochs


@pytest.mark.parametrize("start_step", [1, 9, 23, 30, 31])
def test_batches_from_a_later_step_are_the_tail_of_the_batches_from_the_first(start_step):
    whole = list(prefetch(batch_of, 0, 31))
    assert_equal_batches(prefetch(batch_of, start_step, 31), whole[start_step:])


# Evaluation batches


@lightly
@given(st.integers(2, 101), st.integers(1, 13), st.integers(1, 7))
def test_evaluation_has_every_token_but_the_first_as_a_target_once(num_tokens, max_len, batch_size):
    tokens = np.arange(100, 100 + num_tokens, dtype=np.int32)
    targets = []
    for batch in eval_batches(tokens, max_len, batch_size):
        assert batch["tokens"].shape == batch["is_token"].shape == (batch_size, max_len + 1)
        assert batch["tokens"].dtype == np.int32 and batch["is_token"].dtype == bool
        is_token = batch["is_token"]
        assert (batch["tokens"][~is_token] == 0).all() and (batch["tokens"][is_token] >= 100).all()
        assert (np.diff(is_token.astype(int), axis=1) <= 0).all()  # padding is on the right
        assert (is_token[:, 0] == is_token[:, 1]).all()  # a row without targets is empty
        is_target = is_token[:, 1:]
        np.testing.assert_array_equal((batch["tokens"][:, 1:] - batch["tokens"][:, :-1])[is_target], 1)
        targets += batch["tokens"][:, 1:][is_target].tolist()
    assert targets == tokens[1:].tolist()


def test_evaluation_makes_no_batch_of_padding_alone():
    batches = list(eval_batches(TOKENS[:22], max_len=7, batch_size=3))
    assert len(batches) == 1 and batches[0]["is_token"].all()


# The corpus


@pytest.fixture
def corpus_file(tmp_path):
    return write(tmp_path / "a.txt", TEXT + "ß only here")


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
def test_a_corpus_is_the_text_in_two_splits(corpus_file, kind):
    corpus = load_corpus(text_config(corpus_file), TokenizerConfig(kind, 293))
    train, val = parts_of(text_config(corpus_file))
    assert train + val == TEXT + "ß only here"
    assert corpus.train_tokens.dtype == corpus.val_tokens.dtype == np.int32
    assert corpus.tokenizer.kind == kind
    assert corpus.tokenizer.decode(corpus.train_tokens) == train
    assert corpus.tokenizer.decode(corpus.val_tokens) == val
    assert corpus.val_bytes_per_token == pytest.approx(len(val.encode()) / len(corpus.val_tokens))


def test_bpe_learns_nothing_from_the_validation_split(tmp_path):
    learned = []
    for end in ("the same end" * 5, "quite another" * 5):
        file = write(tmp_path / "a.txt", ("What to learn from. " * 31 + end)[:631])
        learned.append(load_corpus(text_config(file), TokenizerConfig("bpe", 293)).tokenizer)
    assert learned[0] == learned[1]


def test_a_given_tokenizer_is_used_instead_of_a_new_one(corpus_file):
    corpus = load_corpus(text_config(corpus_file), TokenizerConfig("bpe", 293), ByteTokenizer())
    assert corpus.tokenizer == ByteTokenizer()
    with pytest.raises(UserError, match="no id for 'F'"):
        load_corpus(text_config(corpus_file), TokenizerConfig(), CharTokenizer.train("abc"))


def test_the_fingerprint_changes_only_with_text_split_and_tokenizer(corpus_file, tmp_path):
    def fingerprint(path=corpus_file, kind="byte", val_fraction=0.1):
        return load_corpus(text_config(path, val_fraction), TokenizerConfig(kind, 293)).fingerprint

    first = fingerprint()
    assert json.loads(json.dumps(first)) == first == fingerprint(write(tmp_path / "b.txt", corpus_file.read_bytes()))
    other_text = fingerprint(write(tmp_path / "c.txt", corpus_file.read_bytes().replace(b"here", b"hero")))
    assert {key for key in first if first[key] != other_text[key]} == {"text_sha256"}
    other_split = fingerprint(val_fraction=0.2)
    assert {key for key in first if first[key] != other_split[key]} == {"train_tokens", "val_tokens"}
    assert first["tokenizer_sha256"] != fingerprint(kind="char")["tokenizer_sha256"]


def test_a_validation_split_of_one_token_is_refused(tmp_path):
    file = write(tmp_path / "a.txt", "0123456789")
    with pytest.raises(
        UserError, match="data.val_fraction=0.1: the validation split has 1 token, and needs at least 2"
    ):
        load_corpus(text_config(file), TokenizerConfig("char"))
    assert len(load_corpus(text_config(file, 0.2), TokenizerConfig("char")).val_tokens) == 2


def test_a_tokenizer_may_come_from_a_file_a_folder_or_a_run(tmp_path):
    gpt2 = tj.from_pretrained(FIXTURES / "gpt2")
    tj.save(gpt2, tmp_path / "run")
    text = "The quick brown fox"
    for path in (FIXTURES / "gpt2" / "tokenizer.json", FIXTURES / "gpt2", tmp_path / "run"):
        tokenizer = make_tokenizer(TokenizerConfig(kind="char", path=str(path)), "another lesson")
        np.testing.assert_array_equal(tokenizer.encode(text), gpt2.tokenizer.encode(text))
        assert tokenizer.eos_id == gpt2.tokenizer.eos_id
    assert make_tokenizer(TokenizerConfig(path=str(FIXTURES / "t5")), "").kind == "sentencepiece"
    for nothing in (tmp_path / "no", FIXTURES / "gpt2" / "config.json"):
        with pytest.raises(UserError, match="tokenizer.path=.*there is no tokenizer"):
            make_tokenizer(TokenizerConfig(path=str(nothing)), "")
