"""Tokenizers of Hugging Face folders: special tokens at both ends, tokens that the model does not know, prompts."""

import json
import shutil
from pathlib import Path

import pytest
import tokenizers as hugging_face
from helpers.arrays import random_like
from helpers.commands import command

import transformer_jax as tj
from transformer_jax.inference.predict import encode_words
from transformer_jax.models import GPT, SequenceClassifier, TokenTagger, parameter_shapes
from transformer_jax.run import open_tokenizer
from transformer_jax.tokenizers import ByteTokenizer, CharTokenizer, PairTokenizer

FIXTURES = Path(__file__).parent / "fixtures"
EXTRA = "<extra>"  # a token that is added to a tokenizer, and not to its model

ENDS = {  # a template of tokenizers, and what it adds before and after a text
    "<s> $A": (["<s>"], []),
    "$A </s>": ([], ["</s>"]),
    "<s> $A </s>": (["<s>"], ["</s>"]),
    "<s> <s> $A": (["<s>", "<s>"], []),
    "<s> </s> $A </s> </s> <s>": (["<s>", "</s>"], ["</s>", "</s>", "<s>"]),
    "$A": ([], []),
}
LAYOUTS = {  # parts of tokenizer.json
    "byte-level": {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}},
    "prefix space": {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}},
    "metaspace": {"pre_tokenizer": {"type": "Metaspace", "replacement": "Ġ", "prepend_scheme": "always"}},
    "prepended": {"normalizer": {"type": "Prepend", "prepend": "Ġ"}},
    "stripped": {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}},
}


def folder_with(tmp_path, name, **parts):
    """A copy of a fixture with other parts of its tokenizer.json, and without the class that would replace them."""
    folder = Path(shutil.copytree(FIXTURES / name, tmp_path / name))
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | parts))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return folder


def template(single):
    return json.loads(
        hugging_face.processors.TemplateProcessing(single, None, [("<s>", 0), ("</s>", 2)]).__getstate__()
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("single", ENDS)
def test_special_tokens_at_both_ends_of_a_text_are_told_apart(single, layout, tmp_path):
    tokenizer = open_tokenizer(folder_with(tmp_path, "roberta", post_processor=template(single), **LAYOUTS[layout]))
    before, after = ([{"<s>": 0, "</s>": 2}[token] for token in tokens] for tokens in ENDS[single])
    assert [end.tolist() for end in tokenizer.ends] == [before, after]
    for text in ("the cat", " walking", "", " ", "a"):
        piece = tokenizer.encode_piece(text).tolist()
        assert tokenizer.encode(text).tolist() == [*before, *piece, *after]
        assert tokenizer.encode_prompt(text).tolist() == [*before, *piece]
        assert not {0, 2} & set(piece)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_continuation_has_no_space_that_only_a_first_word_gets(layout, tmp_path):
    tokenizer = open_tokenizer(folder_with(tmp_path, "roberta", **LAYOUTS[layout]))
    assert tokenizer.decode(tokenizer.encode_continuation("cat")) == "cat"
    whole = tokenizer.encode_piece("the dog.cat").tolist()
    start = tokenizer.encode_piece("the dog.").tolist()
    assert [*start, *tokenizer.encode_continuation("cat")] == whole


@pytest.mark.parametrize("name", ["llama", "llama3", "t5", "marian", "gpt2"])
def test_words_are_found_in_an_encoded_sentence_whatever_ends_it_has(name):
    tokenizer = open_tokenizer(FIXTURES / name)
    words = ["The", "cat", "sat", "walking"]
    tokens, starts = encode_words(tokenizer, words, " ")
    ends = [*starts[1:], len(tokens) - len(tokenizer.ends[1])]
    assert [tokenizer.decode(tokens[i:j]).strip() for i, j in zip(starts, ends, strict=True)] == words
    before, after = tokenizer.ends
    assert tokens[: len(before)].tolist() == before.tolist() and starts[0] == len(before)
    assert tokens[len(tokens) - len(after) :].tolist() == after.tolist()


@pytest.mark.parametrize("name", ["llama", "llama3"])
def test_forbidden_strings_are_forbidden_where_a_text_begins_with_bos(name):
    run = tj.from_pretrained(FIXTURES / name)
    word, allowed = " the", {"min_new_tokens": 5, "max_new_tokens": 5, "seed": 1}
    assert " the the the the" in tj.generate(run, "The cat", logit_bias={word: 100.0}, **allowed)
    biased = {"logit_bias": {word: 50.0}, **allowed}
    for forbidden in ({"bad_words": ["the"]}, {"suppress": [word]}):
        assert "the" not in tj.generate(run, "cat", **biased, **forbidden)


def test_bad_words_of_a_tokenizer_that_begins_with_a_space_are_found_inside_words():
    run = tj.from_pretrained(FIXTURES / "llama")
    inside = run.tokenizer.encode_continuation("ing").tolist()
    assert len(inside) == 1 and inside != run.tokenizer.encode_piece("ing").tolist()
    forced = {"logit_bias": [(inside[0], 100.0)], "max_new_tokens": 3, "method": "greedy"}
    assert tj.generate(run, "The c", **forced) == "The cinginging"
    assert "ing" not in tj.generate(run, "The c", **forced, bad_words=["ing"])


def test_a_prompt_ends_without_the_token_that_ends_a_text(tmp_path):
    run = tj.from_pretrained(folder_with(tmp_path, "gpt2", post_processor=template("<s> $A </s>")))
    ids = run.tokenizer.encode("the cat").tolist()
    new = tj.complete(run, ["the cat"], tj.GenerationConfig(max_new_tokens=3, method="greedy"))[0].tokens
    given = tj.generate_tokens(run, [ids[:-1]], max_new_tokens=3, method="greedy")[0].tokens
    assert ids[-1] == 2 and new == given


def test_a_session_begins_once_and_goes_on_without_bos():
    session = tj.Session(tj.from_pretrained(FIXTURES / "llama"))
    session.extend("The c")
    session.extend("at sat")
    assert session.tokens[0] == 1 and session.tokens.count(1) == 1
    assert session.text == "The cat sat"


# Tokens that the model does not know


def with_extra_token(tmp_path, name):
    """A copy of a fixture whose tokenizer has a token more than the model."""
    folder = Path(shutil.copytree(FIXTURES / name, tmp_path / f"{name}_larger"))
    tokenizer = hugging_face.Tokenizer.from_file(str(folder / "tokenizer.json"))
    vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
    fill = [f"<fill{i}>" for i in range(vocab_size - tokenizer.get_vocab_size())]
    tokenizer.add_tokens([*fill, EXTRA])
    assert tokenizer.token_to_id(EXTRA) == vocab_size
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder, vocab_size


def headed(run, kind):
    model = kind(run.config, 3)
    return tj.Run(model, random_like(parameter_shapes(model)), run.tokenizer, run.config)


def test_a_token_that_the_model_does_not_know_is_refused_wherever_text_is_read(tmp_path):
    folder, vocab_size = with_extra_token(tmp_path, "gpt2")
    run = tj.from_pretrained(folder)
    text = f"the {EXTRA}"
    session = tj.Session(run)
    encoder = tj.from_pretrained(with_extra_token(tmp_path, "bert")[0])
    seq2seq = tj.from_pretrained(with_extra_token(tmp_path, "bart")[0])
    calls = [
        lambda: tj.generate(run, text),
        lambda: tj.generate(run, ["the", text]),
        lambda: tj.complete(run, [text], tj.GenerationConfig()),
        lambda: tj.stream(run, text),
        lambda: tj.benchmark(run, text, tj.GenerationConfig()),
        lambda: session.extend(text),
        lambda: tj.score(run, [text]),
        lambda: tj.attention_maps(run, text),
        lambda: tj.generate(run, "the", bad_words=[EXTRA]),
        lambda: tj.generate(run, "the", suppress=[EXTRA]),
        lambda: tj.generate(run, "the", logit_bias={EXTRA: 1.0}),
        lambda: tj.classify(headed(encoder, SequenceClassifier), [text]),
        lambda: tj.tag(headed(encoder, TokenTagger), [text.split()]),
        lambda: tj.translate(seq2seq, [text]),
        lambda: tj.score(seq2seq, [text], ["the"]),
        lambda: tj.score(seq2seq, ["the"], [text]),
        lambda: tj.generate(seq2seq, text),
    ]
    for i, call in enumerate(calls):
        with pytest.raises(tj.UserError, match=rf"token '{EXTRA}' of id \d+, and the model knows") as error:
            call()
        assert "train.resize_vocab=True" in str(error.value) and "\n" not in str(error.value), i
    with pytest.raises(tj.UserError, match=f"logit_bias={vocab_size}: must be a token id below {vocab_size}"):
        tj.generate(run, "the", logit_bias={vocab_size: 1.0})
    assert tj.generate(run, "the", choices=["the"], max_new_tokens=9)  # what does not use the token works


def test_training_from_a_model_with_fewer_ids_than_its_tokenizer_says_how_to_resize(tmp_path):
    folder, vocab_size = with_extra_token(tmp_path, "gpt2")
    (tmp_path / "text.txt").write_text("the cat sat on the mat\n" * 50)
    settings = [f"--config.data.path={tmp_path / 'text.txt'}", "--config.data.source=text"]
    settings += [f"--config.train.init_from={folder}", f"--workdir={tmp_path / 'run'}"]
    done = command("train", "--config=gpt_char", *settings)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert f"train.resize_vocab=True and model.vocab_size={vocab_size + 1}" in done.stderr


def test_ids_that_only_the_model_has_are_generated_without_text():
    config = tj.TransformerConfig(vocab_size=17, max_len=31, num_layers=1, d_model=12, num_heads=2)
    model = GPT(config)
    tokenizer = CharTokenizer.train("the cat")
    run = tj.Run(model, random_like(parameter_shapes(model)), tokenizer, config)
    forced = {"logit_bias": [(tokenizer.vocab_size - 1, 50.0)], "max_new_tokens": 3, "method": "greedy"}
    assert tj.generate(run, "the", **forced) == "thettt"
    rest = list(range(tokenizer.vocab_size))
    assert tj.generate(run, "the", suppress=rest, max_new_tokens=3) == "the"
    session = tj.Session(run)
    session.extend("the")
    assert session.generate(suppress=rest, max_new_tokens=3) == "" and session.text == "the"
    assert len(session.tokens) == 6


def test_the_number_of_ids_counts_those_without_a_token(tmp_path):
    words = {"type": "WordLevel", "unk_token": "a", "vocab": {"a": 0, "cat": 7}}
    folder = folder_with(tmp_path, "gpt2", model=words, added_tokens=[], normalizer=None, pre_tokenizer=None)
    assert open_tokenizer(folder).vocab_size == 8
    words["vocab"]["cat"] = 2**31
    folder = folder_with(tmp_path / "b", "gpt2", model=words, added_tokens=[], normalizer=None, pre_tokenizer=None)
    with pytest.raises(tj.UserError, match="id 2147483648, and only 2 tokens"):
        open_tokenizer(folder)


# Special tokens in prompts


def test_special_tokens_in_prompts_become_ids_only_where_that_is_allowed():
    run = tj.from_pretrained(FIXTURES / "llama")
    prompt, eos = "the end</s> of", run.tokenizer.token_name(2)
    special, plain = run.tokenizer.encode(prompt, True), run.tokenizer.encode(prompt)
    assert eos == "</s>" and 2 in special and 2 not in plain
    settings = {"method": "greedy", "max_new_tokens": 5}
    expected = {
        allowed: tj.generate_tokens(run, [ids], **settings)[0] for allowed, ids in ((True, special), (False, plain))
    }
    assert expected[True].tokens != expected[False].tokens
    for allowed, one in expected.items():
        config = tj.GenerationConfig(allow_special=allowed, **settings)
        assert tj.complete(run, [prompt], config)[0].tokens == one.tokens
        assert "".join(tj.stream(run, prompt, allow_special=allowed, **settings)) == one.text
        assert tj.generate(run, prompt, allow_special=allowed, **settings).endswith(one.text)
        session = tj.Session(run)
        session.extend("the end")
        session.extend("</s> of", allow_special=allowed)
        assert (2 in session.tokens) == allowed
    t5 = tj.from_pretrained(FIXTURES / "t5")
    given = tj.generate_tokens(t5, [t5.tokenizer.encode("Some <extra_id_0>", True)], **settings)[0]
    for allowed in (True, False):
        one = tj.complete(t5, ["Some <extra_id_0>"], tj.GenerationConfig(allow_special=allowed, **settings))[0]
        assert (one.log_probs == given.log_probs) == allowed


def test_the_sample_command_allows_special_tokens_on_request():
    flags = ["--prompt=the end</s> of", "--max_new_tokens=5", "--method=greedy", f"--run_dir={FIXTURES / 'llama'}"]
    run = tj.from_pretrained(FIXTURES / "llama")
    for allowed in (True, False):
        done = command("sample", *flags, f"--allow_special={allowed}")
        expected = tj.generate(run, "the end</s> of", allow_special=allowed, method="greedy", max_new_tokens=5)
        assert done.stdout == expected + "\n", done.stderr


def test_allow_special_is_refused_where_no_text_becomes_a_special_token():
    config = tj.TransformerConfig(vocab_size=259, max_len=31, num_layers=1, d_model=12, num_heads=2)
    model = GPT(config)
    run = tj.Run(model, random_like(parameter_shapes(model)), ByteTokenizer(), config)
    with pytest.raises(tj.UserError, match="allow_special=True: .*'byte' tokenizer.*Omit it"):
        tj.generate(run, "the", allow_special=True)
    with pytest.raises(tj.UserError, match="allow_special=True: .*'byte' tokenizer"):
        PairTokenizer.of(ByteTokenizer(), ByteTokenizer()).encode_source("the", True)
    session = tj.Session(run)
    session.extend("the")
    for call in (session.generate, lambda **settings: tj.generate_tokens(run, [[5]], **settings)):
        with pytest.raises(tj.UserError, match="allow_special=True: is about"):
            call(allow_special=True)
