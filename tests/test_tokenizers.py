import json
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_jax import tokenizers
from transformer_jax.errors import UserError
from transformer_jax.tokenizers import (
    TOKENIZERS,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    PairTokenizer,
    UnigramTokenizer,
    WordPieceTokenizer,
    subwords,
)

SAMPLE = "The quick brown fox\njumps over the lazy dog;\n\n  the dog's näive 狐 sleeps, 1009 times: <eos> <pad>.\n" * 3
BPE = BPETokenizer.train(SAMPLE, 307)
SUBWORDS = {
    "bpe": BPE,
    "wordpiece": WordPieceTokenizer.train(SAMPLE, 563),
    "unigram": UnigramTokenizer.train(SAMPLE, 307),
}
TRAINED = {"char": CharTokenizer.train(SAMPLE), "byte": ByteTokenizer(), **SUBWORDS}
UNICODE = st.text()  # every character but lone surrogates
ANY_STR = UNICODE | st.text(st.characters(categories=["Cs"], include_characters="aé狐😀"))

kinds = pytest.mark.parametrize("kind", TOKENIZERS)
subword_kinds = pytest.mark.parametrize("kind", SUBWORDS)
lightly = settings(max_examples=150, deadline=None, database=None)


def saved_and_loaded(tokenizer):
    return tokenizers.tokenizer_from_dict(json.loads(json.dumps(tokenizer.to_dict())))


@subword_kinds
@lightly
@given(text=UNICODE)
def test_subwords_decode_to_exactly_the_encoded_unicode_text(kind, text):
    tokenizer = SUBWORDS[kind]
    assert tokenizer.decode(tokenizer.encode(text)) == text


@lightly
@given(ANY_STR)
def test_bytes_decode_to_exactly_the_encoded_string_even_lone_surrogates(text):
    assert ByteTokenizer().decode(ByteTokenizer().encode(text)) == text


@lightly
@given(ANY_STR)
def test_a_saved_character_tokenizer_decodes_to_exactly_the_encoded_string(text):
    tokenizer = saved_and_loaded(CharTokenizer.train(text))
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text


@subword_kinds
@lightly
@given(text=UNICODE)
def test_a_saved_and_loaded_subword_tokenizer_gives_equal_ids(kind, text):
    np.testing.assert_array_equal(saved_and_loaded(SUBWORDS[kind]).encode(text), SUBWORDS[kind].encode(text))


@subword_kinds
def test_subwords_are_learned_up_to_the_requested_vocabulary_size(kind):
    tokenizer = SUBWORDS[kind]
    smallest, largest = {"bpe": (307, 307), "wordpiece": (563, 563), "unigram": (260, 307)}[kind]
    assert smallest <= tokenizer.vocab_size <= largest
    assert len(tokenizer.encode(SAMPLE)) < len(ByteTokenizer().encode(SAMPLE))


def test_wordpiece_repeatedly_takes_the_longest_matching_piece():
    tokenizer = WordPieceTokenizer(("ab", "abc", "\u2581de", "\u2581cde"))
    ids = {piece: i for i, piece in enumerate([*tokenizer._alphabet(), *tokenizer.learned], 3)}
    assert tokenizer.encode("abcde").tolist() == [ids["abc"], ids["\u2581de"]]
    assert tokenizer.encode("abab").tolist() == [ids["ab"], ids["\u2581a"], ids["\u2581b"]]


def test_unigram_takes_the_likeliest_segmentation_not_the_longest_piece():
    tokenizer = UnigramTokenizer(("a -3.0", "b -3.0", "c -3.0", "ab -4.0", "abc -8.0", "bc -4.5"))
    segmentations = {text: [tokenizer.decode([i]) for i in tokenizer.encode(text)] for text in ("abc", "ab", "abab")}
    assert segmentations == {"abc": ["ab", "c"], "ab": ["ab"], "abab": ["ab", "ab"]}


def test_a_pair_encodes_sources_with_one_tokenizer_and_targets_with_the_other():
    pair = saved_and_loaded(PairTokenizer.of(TRAINED["char"], BPE))
    assert (pair.source.vocab_size, pair.vocab_size) == (TRAINED["char"].vocab_size, 307)
    np.testing.assert_array_equal(pair.encode_source("the dog"), TRAINED["char"].encode_source("the dog"))
    np.testing.assert_array_equal(pair.encode_target("the dog"), BPE.encode_target("the dog"))
    assert pair.decode(pair.encode("näive 狐")) == "näive 狐"


@kinds
def test_a_saved_and_loaded_tokenizer_equals_the_original(kind):
    tokenizer = TRAINED[kind]
    loaded = saved_and_loaded(tokenizer)
    assert loaded == tokenizer and loaded.kind == kind and loaded.vocab_size == tokenizer.vocab_size
    np.testing.assert_array_equal(loaded.encode(SAMPLE), tokenizer.encode(SAMPLE))


@kinds
def test_ids_are_int32_in_the_vocabulary_and_text_never_becomes_a_special_id(kind):
    tokenizer = TRAINED[kind]
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    for text in (SAMPLE, "<eos>", "<pad>", "<eos><pad>  <eos>"):
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int32 and ids.ndim == 1
        assert ids.min() >= 3 and ids.max() < tokenizer.vocab_size
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("kind", sorted(set(TOKENIZERS) - {"wordpiece"}))  # its pieces exist twice, see CONTINUATION
def test_every_id_of_text_decodes_to_a_different_text(kind):
    tokenizer = TRAINED[kind]
    texts = [tokenizer.decode([i]) for i in range(3, tokenizer.vocab_size)]
    assert all(texts)
    complete = [text for text in texts if "\N{REPLACEMENT CHARACTER}" not in text]
    assert len(set(complete)) == len(complete)


@kinds
def test_decode_skips_special_ids(kind):
    tokenizer = TRAINED[kind]
    ids = tokenizer.encode("the 狐")
    mixed = [1, *ids[:2], 0, *ids[2:], 2, 0]
    assert tokenizer.decode(mixed) == "the 狐"
    assert tokenizer.decode([0, 1, 2]) == "" == tokenizer.decode([])


@kinds
def test_an_empty_text_encodes_to_an_empty_int32_array(kind):
    ids = TRAINED[kind].encode("")
    assert ids.shape == (0,) and ids.dtype == np.int32


@kinds
@pytest.mark.parametrize("offset", [-1, 0])
def test_the_error_names_an_id_outside_the_vocabulary(kind, offset):
    tokenizer = TRAINED[kind]
    wrong = offset if offset < 0 else tokenizer.vocab_size
    with pytest.raises(UserError, match=rf"id {wrong} at position 1:.*vocab_size={tokenizer.vocab_size}"):
        tokenizer.decode([5, wrong, 7])
    assert tokenizer.decode([tokenizer.vocab_size - 1])


@pytest.mark.parametrize("ids", [[[3, 5], [7, 11]], [3.5], 3])
def test_decode_accepts_only_one_sequence_of_integers(ids):
    with pytest.raises(UserError, match="integers \\[T\\]"):
        BPE.decode(ids)


def test_bytes_that_are_not_utf8_decode_to_replacement_characters():
    ids = np.array([ord("a"), 0xFF, ord("b"), 0xE7, 0x8B]) + 3
    assert ByteTokenizer().decode(ids) == "a\ufffdb\ufffd"
    assert BPE.decode([BPE.encode("狐")[0], *BPE.encode("b")]) == "\ufffdb"


def test_the_error_for_an_unknown_character_names_its_position_and_a_fix():
    position = r"'é' \(U\+00E9\) at position 7 \(line 2, column 4\)"
    with pytest.raises(UserError, match=position + ".*kind=byte or bpe, or remove it"):
        CharTokenizer.train("abc\n").encode("abc\nabcé\né")


def test_the_bpe_error_for_a_lone_surrogate_names_its_position():
    position = r"'\\udc80' \(U\+DC80\) at position 3 \(line 2, column 2\)"
    for use in (BPE.encode, lambda text: BPETokenizer.train(text, 307)):
        with pytest.raises(UserError, match=position):
            use("a\nb\udc80c")


@pytest.mark.parametrize("vocab_size", [-1, 0, 258])
def test_bpe_refuses_a_vocabulary_without_room_for_all_bytes(vocab_size):
    with pytest.raises(UserError, match=rf"tokenizer.vocab_size={vocab_size}: .*at least 259"):
        BPETokenizer.train(SAMPLE, vocab_size)


def test_bpe_with_room_for_bytes_alone_gives_one_token_per_byte():
    tokenizer = BPETokenizer.train(SAMPLE, 259)
    assert tokenizer.vocab_size == 259
    assert len(tokenizer.encode(SAMPLE)) == len(SAMPLE.encode())


def test_bpe_has_the_requested_vocabulary_size_or_what_the_text_yields():
    assert BPE.vocab_size == 307
    assert BPETokenizer.train("abab", 10**12).vocab_size == 260  # "ab" occurs twice, "abab" once
    assert BPETokenizer.train("", 307).vocab_size == 259


def test_two_merges_into_the_same_token_share_its_id():
    tokenizer = tokenizers.tokenizer_from_dict({"kind": "bpe", "learned": ["a b", "b c", "ab c", "a bc"]})
    assert tokenizer.vocab_size == 259 + 3
    assert tokenizer.decode(tokenizer.encode("abc bc")) == "abc bc"


def test_chunks_change_neither_training_nor_encoding_of_long_texts(monkeypatch):
    rng = np.random.default_rng(7)
    text = "".join(rng.choice(list("ab '.1_é狐\n\t\u3000\x1c") + ["  ", "\n\n", "'s"], 5003))
    tokenizer = BPETokenizer.train(text, 5003)
    ids = tokenizer.encode(text)
    monkeypatch.setattr(subwords, "CHUNK_CHARS", 1)
    assert len(subwords._chunks(text)) > 149
    np.testing.assert_array_equal(tokenizer.encode(text), ids)
    assert BPETokenizer.train(text, 5003) == tokenizer


def test_bpe_training_is_reproducible_in_another_process():
    code = (
        "import json, sys; from transformer_jax.tokenizers import BPETokenizer;"
        "print(json.dumps(BPETokenizer.train(json.loads(sys.argv[1]), 307).to_dict()))"
    )
    output = subprocess.run([sys.executable, "-c", code, json.dumps(SAMPLE)], stdout=subprocess.PIPE, check=True).stdout
    assert json.loads(output) == BPE.to_dict()


def test_a_megabyte_without_a_space_is_encoded():
    text = "ab狐" * 200_003
    np.testing.assert_array_equal(BPE.decode(BPE.encode(text)), text)


@pytest.mark.parametrize("kind", ["word", ""])
def test_the_error_for_an_unknown_kind_lists_the_known_ones(kind):
    message = re.escape(f"tokenizer.kind={kind!r}: unknown. Choose one of: char, byte, bpe, wordpiece, unigram.")
    with pytest.raises(UserError, match=message):
        tokenizers.train_tokenizer(kind, 307, SAMPLE)
    with pytest.raises(UserError, match=message):
        tokenizers.tokenizer_from_dict({"kind": kind, "learned": []})


@pytest.mark.parametrize(
    "values",
    [
        None,
        ["byte"],
        {},
        {"kind": "byte"},
        {"kind": ["char"], "learned": []},
        {"kind": "char", "learned": "abc"},
        {"kind": "char", "learned": ["a", 7]},
        {"kind": "char", "learned": ["b", "a"]},
        {"kind": "char", "learned": ["a", "a"]},
        {"kind": "char", "learned": ["a", "bc"]},
        {"kind": "bpe", "learned": {"a b": 0}},
        {"kind": "bpe", "learned": [["a", "b"]]},
        {"kind": "bpe", "learned": ["ab"]},
        {"kind": "bpe", "learned": ["ab c", "a b"]},
        {"kind": "bpe", "learned": ["a b c"]},
        {"kind": "bpe", "learned": BPE.to_dict()["learned"][1:]},
        {"kind": "wordpiece", "learned": ["a"]},
        {"kind": "wordpiece", "learned": ["ab", "ab"]},
        {"kind": "wordpiece", "learned": ["a b"]},
        {"kind": "unigram", "learned": ["ab"]},
        {"kind": "unigram", "learned": ["ab -1", "ab -2"]},
        {"kind": "unigram", "learned": ["ab 1e999"]},
        {"kind": "pair", "learned": ["{"]},
        {"kind": "pair", "learned": ["{}", "{}"]},
    ],
)
def test_malformed_saved_tokenizers_are_refused_in_one_line(values):
    with pytest.raises(UserError, match="saved tokenizer: must hold .*Copy it again") as error:
        tokenizers.tokenizer_from_dict(values)
    assert "\n" not in str(error.value)


@kinds
def test_train_tokenizer_returns_the_requested_kind(kind):
    size = TRAINED[kind].vocab_size
    trained = tokenizers.train_tokenizer(kind, size, SAMPLE)
    assert trained == TRAINED[kind] or (kind in ("wordpiece", "unigram") and trained.kind == kind)  # see subwords.py


# BPE-dropout


@lightly
@given(text=UNICODE | st.text("the dogbrwnx jumps\n"))
def test_bpe_dropout_at_rate_0_encodes_as_plain_bpe(text):
    np.testing.assert_array_equal(BPE.with_dropout(0.0, 3).encode(text), BPE.encode(text))


@lightly
@given(text=UNICODE | st.text("the dogbrwnx jumps\n"), rate=st.sampled_from([0.1, 0.5, 0.9]))
def test_bpe_dropout_decodes_to_the_same_text(text, rate):
    assert BPE.decode(BPE.with_dropout(rate, 7, 1).encode(text)) == text


def test_bpe_dropout_gives_smaller_pieces_at_higher_rates_down_to_bytes():
    tokenizer = BPETokenizer.train(SAMPLE * 7, 331)
    sizes = [
        np.mean([len(tokenizer.with_dropout(rate, seed).encode(SAMPLE)) for seed in range(11)])
        for rate in (0.0, 0.1, 0.5, 0.9)
    ]
    assert sizes == sorted(set(sizes)) and sizes[0] == len(tokenizer.encode(SAMPLE))
    np.testing.assert_array_equal(tokenizer.with_dropout(1.0).encode(SAMPLE) - 3, BPETokenizer().encode(SAMPLE) - 3)


def test_bpe_dropout_is_a_function_of_word_and_seed_also_across_processes():
    tokenizer = BPE.with_dropout(0.5, 7, 1)
    segmentations = [tokenizer.encode(word).tolist() for word in (" quick", " brown", " lazy")]
    again = BPE.with_dropout(0.5, 7, 1)
    assert [again.encode(word).tolist() for word in (" lazy", " brown", " quick")] == segmentations[::-1]
    assert len({str(BPE.with_dropout(0.5, 7, version).encode(SAMPLE).tolist()) for version in range(13)}) == 13
    code = (
        "import sys, json; from transformer_jax.tokenizers import BPETokenizer; "
        "t = BPETokenizer(tuple(json.loads(sys.argv[1]))).with_dropout(0.5, 7, 1); "
        "print(json.dumps([t.encode(w).tolist() for w in (' quick', ' brown', ' lazy')]))"
    )
    done = subprocess.run([sys.executable, "-c", code, json.dumps(BPE.learned)], capture_output=True, text=True)
    assert json.loads(done.stdout) == segmentations, done.stderr


def test_bpe_dropout_drops_each_merge_at_the_given_rate():
    tokenizer = BPETokenizer(("a b", "ab c"))  # of "abc": both merges, the first alone, or none
    lengths = [len(tokenizer.with_dropout(0.3, seed).encode("abc")) for seed in range(2003)]
    for length, share in ((1, 0.7 * 0.7), (2, 0.7 * 0.3), (3, 0.3)):
        assert abs(lengths.count(length) / 2003 - share) < 4 * (share * (1 - share) / 2003) ** 0.5


def test_bpe_dropout_draws_independently_for_each_word():
    tokenizer = BPETokenizer(("a b", "c d"))
    is_same = [
        len(dropout.encode("ab")) == len(dropout.encode("cd"))
        for dropout in (tokenizer.with_dropout(0.5, seed) for seed in range(503))
    ]
    assert 0.4 < np.mean(is_same) < 0.6


def test_bpe_dropout_of_a_pair_applies_to_both_tokenizers():
    source, target = BPE, BPETokenizer.train(SAMPLE, 290)
    pair = PairTokenizer.of(source, target).with_dropout(0.5, 3)
    for plain, encode in ((source, pair.encode_source), (target, pair.encode_target)):
        np.testing.assert_array_equal(encode(SAMPLE), plain.with_dropout(0.5, 3).encode_source(SAMPLE))
        assert len(encode(SAMPLE)) > len(plain.encode_source(SAMPLE))


@pytest.mark.parametrize("kind", [kind for kind in TOKENIZERS if kind != "bpe"])
def test_dropout_of_a_tokenizer_without_merges_is_refused(kind):
    with pytest.raises(UserError, match=f"tokenizer.dropout=0.1: {kind!r} has no merges.*Take tokenizer.kind=bpe"):
        TRAINED[kind].with_dropout(0.1, 0)
