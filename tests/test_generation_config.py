"""GenerationConfig as data and as flags of the sample command; the bytes of tokens."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import assert_is_one_error, command, process

import transformer_jax as tj
from transformer_jax import sampling
from transformer_jax.errors import UserError
from transformer_jax.inference.generation_config import NAMES, RANGES
from transformer_jax.nn.kv_cache import CACHE_TYPES
from transformer_jax.tokenizers import PairTokenizer, train_tokenizer
from transformer_jax.tokenizers.token_bytes import settled_text, token_bytes

FIXTURES = Path(__file__).parent / "fixtures"
TEXT = "the cat sät on a mat, 狐 and €5 😀 dogs ran over green hills.\n" * 3
SETTINGS = {
    "method": "beam",
    "max_new_tokens": 7,
    "seed": 3,
    "num_samples": 2,
    "temperature": 0.7,
    "top_k": 5,
    "top_p": 0.9,
    "min_p": 0.1,
    "typical_p": 0.8,
    "repetition_penalty": 1.2,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "no_repeat_ngram_size": 3,
    "bad_words": ["a b", "c"],
    "suppress": [5, "x"],
    "min_new_tokens": 2,
    "logit_bias": [[3, 1.5], ["a", -2.0]],
    "choices": ["yes", "no"],
    "stop": ["\n", "狐"],
    "num_beams": 6,
    "length_penalty": 0.5,
    "length_normalization": "mean",
    "stopping": "first",
    "num_groups": 2,
    "diversity": 0.5,
}


# GenerationConfig


def test_a_generation_config_survives_json_and_has_no_field_set_by_default():
    config = tj.GenerationConfig.from_dict(SETTINGS)
    again = tj.GenerationConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config != tj.GenerationConfig() and hash(again) == hash(config)
    changed = {name for name, value in config.to_dict().items() if value != tj.GenerationConfig().to_dict()[name]}
    assert changed == SETTINGS.keys()
    assert tj.GenerationConfig(temperature=np.float32(2), logit_bias={3: 1}) == tj.GenerationConfig(
        temperature=2, logit_bias=((3, 1),)
    )


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"temprature": 1.0}, "temprature: no such field. Did you mean temperature?"),
        ({"temperature": "hot"}, "temperature='hot': must be of type float"),
        ({"top_k": 1.5}, "top_k=1.5: must be of type"),
        ({"stop": "end"}, "stop='end': must be a list"),
        ({"stop": [""]}, "stop="),
        ({"suppress": [1.5]}, "suppress="),
        ({"logit_bias": [[1]]}, "logit_bias="),
        ({"choices": ["a"], "regex": "b"}, "give one of them"),
        ({"on_overflow": "cut"}, "error, re-prefill, slide"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "at most max_new_tokens=8"),
        ({"length_normalization": "none"}, "gnmt, mean"),
        ({"method": "beam", "num_samples": 9}, "at most num_beams=4"),
        ({"method": "beam", "on_overflow": "re-prefill"}, "stays within the context"),
        ({"top_p": float("nan")}, "top_p=nan"),
    ],
)
def test_an_invalid_setting_is_refused_in_one_line_that_names_it(settings, words):
    with pytest.raises(UserError) as error:
        tj.GenerationConfig.from_dict(settings)
    assert words in str(error.value) and "\n" not in str(error.value)


PROCESSORS = {
    "temperature": sampling.Temperature,
    "top_k": sampling.TopK,
    "top_p": sampling.TopP,
    "min_p": sampling.MinP,
    "typical_p": sampling.TypicalP,
    "repetition_penalty": sampling.RepetitionPenalty,
    "presence_penalty": sampling.PresencePenalty,
    "frequency_penalty": sampling.FrequencyPenalty,
    "no_repeat_ngram_size": sampling.NoRepeatNgram,
}
EDGES = (-1e9, -1001, -1000, -1, 0, 1e-7, 1e-6, 9e-4, 1e-3, 0.5, 1, 1.001, 2, 1000, 1001, 1e6, 1.1e6)


def test_a_config_refuses_the_numbers_that_its_logits_processors_refuse_in_the_same_line():
    assert RANGES.keys() == PROCESSORS.keys()
    for name, processor in PROCESSORS.items():
        default = getattr(tj.GenerationConfig(), name)
        greedy = 0 if name == "temperature" else None  # a config turns it into method="greedy"
        values = [x for x in map(type(default), EDGES) if x not in (default, greedy)]
        refused = {}
        for value in values:
            for build in (functools.partial(processor, value), lambda: tj.GenerationConfig(**{name: value})):  # noqa: B023
                try:
                    build()
                except UserError as error:
                    refused.setdefault(value, []).append(str(error))
        assert refused and len(refused) < len(set(values)), name
        for value, (of_processor, *of_config) in refused.items():
            assert of_config == [of_processor] and f"{name}={value!r}: " in of_processor


@pytest.mark.parametrize("method", ["sample", "greedy"])
def test_a_temperature_of_0_is_the_greedy_method(method):
    assert tj.GenerationConfig(method=method, temperature=0, top_k=5) == tj.GenerationConfig(method="greedy", top_k=5)
    with pytest.raises(UserError, match="temperature=0.0: must be from 1e-6"):
        tj.GenerationConfig(method="beam", temperature=0)


def test_the_names_that_a_field_may_have_are_those_of_the_tables_that_need_jax():
    assert NAMES["cache_type"] == tuple(CACHE_TYPES)
    assert NAMES["length_normalization"] == tuple(sampling.LENGTH_PENALTIES)
    assert NAMES["stopping"] == tuple(sampling.STOPPING)
    assert NAMES["method"] == (*sampling.METHODS, "beam")


def test_flags_are_checked_without_importing_jax():
    code = (
        "import sys, transformer_jax.commands.sample as s; s.GenerationConfig(top_k=3); assert 'jax' not in sys.modules"
    )
    done = process("-c", code)
    assert done.returncode == 0, done.stderr


# Bytes


@pytest.mark.parametrize("kind", ["char", "byte", "bpe", "wordpiece", "unigram"])
def test_the_bytes_of_a_text_are_those_of_its_tokens(kind):
    tokenizer = train_tokenizer(kind, 570, TEXT)
    known = token_bytes(tokenizer)
    assert len(known) == tokenizer.vocab_size and known[:3] == (b"",) * 3 and all(known[3:])
    assert b"".join(known[i] for i in tokenizer.encode(TEXT)).decode() == TEXT
    assert token_bytes(PairTokenizer.of(train_tokenizer("byte", 0, ""), tokenizer)) == known


@pytest.mark.parametrize("name, head", [("gpt2", ""), ("llama", " "), ("t5", " ")])
def test_the_bytes_of_a_text_are_those_of_its_tokens_for_pretrained_tokenizers(name, head):
    tokenizer = tj.from_pretrained(FIXTURES / name).tokenizer
    text = "the cat sat"
    data = b"".join(token_bytes(tokenizer)[i] for i in tokenizer.encode(text))
    assert data.decode() in (text, head + text)


def test_a_tokenizer_without_bytes_of_its_tokens_is_refused():
    for name in ("bert", "marian"):
        with pytest.raises(UserError, match="bytes of its tokens are not known"):
            token_bytes(tj.from_pretrained(FIXTURES / name).tokenizer)


@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_settled_text_only_grows_and_never_ends_within_a_character(kind):
    tokenizer, random = train_tokenizer(kind, 300, TEXT), np.random.default_rng(0)
    for ids in (tokenizer.encode("é狐😀\ud800"[: 4 if kind == "byte" else 3]), *random.integers(3, 259, (101, 7))):
        texts = [settled_text(tokenizer, ids[:n]) for n in range(len(ids) + 1)] + [tokenizer.decode(ids)]
        assert all(after.startswith(before) for before, after in zip(texts, texts[1:], strict=False))


# The command


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--method=beams"], ["method='beams'", "sample, greedy, beam"]),
        (["--output=xml"], ["--output=xml"]),
        (["--logit_bias=the"], ["--logit_bias", "the:2.5"]),
        (["--prompt=a", "--interactive"], ["--prompt and --interactive"]),
        (["--prompts_file=/no/such"], ["--prompts_file=/no/such"]),
        (["--min_p=3"], ["min_p=3.0"]),
        (["--max_new_tokens=500", "--prompt=a"], ["max_new_tokens=500", "on_overflow=re-prefill"]),
        (["--choices=a", "--regex=b"], ["regex='b'"]),
        (["--weights=int4"], ["--weights=int4", "model or int8"]),
        (["--draft=a", "--prompt_lookup=2"], ["prompt_lookup=2"]),
        (["--max_new_tokens=500", "--on_overflow=slide", "--prompt=a"], ["model.window=0", "on_overflow=re-prefill"]),
    ],
)
def test_a_wrong_flag_of_the_sample_command_is_an_error_of_one_line(flags, words):
    assert_is_one_error(command("sample", f"--run_dir={FIXTURES / 'gpt2'}", *flags), *words)


def test_a_text_can_be_generated_again_from_its_json_line(tmp_path):
    (tmp_path / "prompts").write_text("the cat\nthis\n")
    done = command(
        "sample",
        f"--run_dir={FIXTURES / 'gpt2'}",
        f"--prompts_file={tmp_path / 'prompts'}",
        "--output=jsonl",
        "--max_new_tokens=5",
        "--num_samples=2",
        "--seed=3",
        "--top_k=7",
        "--logit_bias=5:1.5",
        "--suppress=9",
        "--stop=zz",
        "--weights=int8",
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["weights"] for line in lines} == {"int8"}
    run = tj.quantize(tj.from_pretrained(FIXTURES / "gpt2"))
    again = tj.complete(run, ["the cat", "this"], tj.GenerationConfig.from_dict(lines[0]["settings"]))
    assert [line["prompt"] for line in lines] == ["the cat"] * 2 + ["this"] * 2
    for line, completion in zip(lines, again, strict=True):
        assert (line["text"], tuple(line["tokens"]), line["finish"]) == (
            completion.text,
            completion.tokens,
            completion.finish,
        )
        assert line["log_prob"] == pytest.approx(completion.log_prob, abs=1e-4) and line["step"] == 0


def test_the_interactive_mode_answers_line_by_line_and_survives_an_error():
    done = command(
        "sample",
        f"--run_dir={FIXTURES / 'gpt2'}",
        "--interactive",
        "--max_new_tokens=4",
        "--method=greedy",
        stdin="the cat\n\nthis\n",
    )
    run = tj.from_pretrained(FIXTURES / "gpt2")
    answers = ["".join(tj.stream(run, text, max_new_tokens=4, method="greedy")) for text in ("the cat", "this")]
    assert done.stdout == "".join(answer + "\n" for answer in answers), done.stderr
    assert "error: prompt=''" in done.stderr


def test_a_benchmark_reports_seconds_and_tokens():
    done = command("sample", f"--run_dir={FIXTURES / 'gpt2'}", "--benchmark", "--max_new_tokens=5", "--prompt=this")
    measured = json.loads(done.stdout)
    assert measured.keys() == {
        "prefill_seconds",
        "decode_seconds",
        "tokens_per_second",
        "compile_seconds",
        "num_tokens",
    }
    assert all(value > 0 for value in measured.values())
