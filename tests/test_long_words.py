"""Words of any length, such as base64 or DNA: training splits them, or its time would grow with their square."""

import numpy as np
import pytest

from transformer_jax.tokenizers import BPETokenizer, UnigramTokenizer, subwords

SAMPLE = "The quick brown fox\njumps over the lazy dog. " * 7


@pytest.mark.parametrize("cls", [BPETokenizer, UnigramTokenizer])
def test_no_piece_is_learned_that_is_longer_than_a_word_of_the_training(cls, monkeypatch):
    text = SAMPLE + "abcdefghijk" * 101
    assert max(map(len, cls.train(text, 307).pieces())) > 5
    monkeypatch.setattr(subwords, "MAX_TRAINING_WORD_CHARS", 5)
    assert max(map(len, cls.train(text, 307).pieces())) <= 5


def test_bpe_learns_no_piece_of_more_than_a_thousand_bytes():
    tokenizer = BPETokenizer.train("a" * 5003, 307)
    assert max(map(len, tokenizer.pieces())) <= subwords.MAX_TRAINING_WORD_CHARS
    assert tokenizer.decode(tokenizer.encode("a" * 5003)) == "a" * 5003


def test_training_on_words_of_normal_length_does_not_depend_on_the_limit(monkeypatch):
    tokenizer = BPETokenizer.train(SAMPLE, 307)
    monkeypatch.setattr(subwords, "MAX_TRAINING_WORD_CHARS", 10**5)
    assert BPETokenizer.train(SAMPLE, 307) == tokenizer


def test_bpe_dropout_segments_a_long_word_in_parts_and_a_shorter_one_at_once(monkeypatch):
    monkeypatch.setattr(subwords, "MAX_TRAINING_WORD_CHARS", 7)
    dropout = BPETokenizer.train(SAMPLE, 307).with_dropout(0.3, 5)
    parts = [dropout.encode(part) for part in ("jumpsov", "erthela", "zydog")]
    np.testing.assert_array_equal(dropout.encode("jumpsoverthelazydog"), np.concatenate(parts))


def test_bpe_dropout_merges_pair_by_pair_as_in_the_paper():
    tokenizer = BPETokenizer.train(SAMPLE, 367)
    ranks = {tuple(merge.split(" ")): i for i, merge in enumerate(tokenizer.learned)}
    for seed in range(53):
        for word in ("quickbrownfox", "overoverthelazy", "aa", "q"):
            random = np.random.default_rng([seed, *word.encode()])
            pieces = list(word)
            while True:
                is_kept = random.random(len(pieces) - 1) >= 0.2
                pairs = [(ranks.get((pieces[i], pieces[i + 1])), i) for i in range(len(pieces) - 1) if is_kept[i]]
                found = [(rank, i) for rank, i in pairs if rank is not None]
                if not found:
                    break
                i = min(found)[1]
                pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
            assert tokenizer.with_dropout(0.2, seed)._segment(word) == pieces
