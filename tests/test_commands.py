"""Commands train and sample: flags, exit codes, one-line errors, stdout and stderr."""

import functools

import numpy as np
import pytest
from helpers.commands import assert_is_one_error, command, process

import transformer_jax as tj
from train.config import Config
from train.loop import run as train
from transformer_jax.errors import UserError
from transformer_jax.schema import config_fields

MAX_LEN = 13
NUM_STEPS = 70
RECIPE = "--config=configs/gpt_char.py"
TEXT = "the cat sat on a mat while old dogs ran over green hills and rivers sang.\n" * 11


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def run_dir(data, tmp_path_factory):
    """A tiny run over characters, trained long enough that it never samples the end token."""
    config = Config.from_dict(
        {
            "data": {"source": "text", "path": str(data)},
            "tokenizer": {"kind": "char"},
            "model": {"max_len": MAX_LEN, "num_layers": 1, "d_model": 10, "num_heads": 2, "init_std": 0.3},
            "optimizer": {"warmup_steps": 1, "peak_lr": 0.03, "schedule": "constant"},
            "train": {"num_steps": NUM_STEPS, "batch_size": 3, "tensorboard": False},
        }
    )
    return train(config, tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def run(run_dir):
    return tj.load(run_dir)


# Wrong flags and settings of training


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--config.model.num_layer=3"], ["config.model.num_layer: no such field", "mean config.model.num_layers?"]),
        (["--config.optimizer.lr=3"], ["config.optimizer.lr: no such field. Did you mean config.optimizer.peak_lr?"]),
        (
            ["--noconfig.train.num_steps"],
            ["--noconfig.train.num_steps: stands alone", "--config.train.num_steps=VALUE"],
        ),
        (["--config.modle.num_layers=3"], ["config.modle.num_layers", "config.model.num_layers?"]),
        (["--config.model=3"], ["--config.model: is a section"]),
        (["--num_steps=3"], ["'num_steps'", "transformer_jax train --config="]),
        (["--config.train.num_steps=many"], ["num_steps", "many"]),
        (["--config.train.num_steps=1.5"], ["num_steps", "1.5"]),
        (["--config.optimizer.peak_lr=fast"], ["peak_lr", "fast"]),
        (["--config.train.tensorboard=perhaps"], ["tensorboard", "perhaps"]),
        (["more"], ["'more': belongs to no flag"]),
        (["--config.train.num_steps=3", "--", "more"], ["'more'"]),
        (["--config=configs/no_such_recipe.py"], ["--config=configs/no_such_recipe.py", "no such file", "gpt_char"]),
        (["--config="], ["--config=: there is no such file", "gpt_char"]),
        (["--config=configs/gpt_char.py", "--config=configs/demo.py"], ["--config: was given twice"]),
        (["--workdir="], ["--workdir: is missing"]),
    ],
)
def test_a_wrong_training_flag_is_one_line_and_creates_no_file(tmp_path, flags, words):
    workdir = tmp_path / "run"
    recipe = [] if flags[0].startswith("--config=") else [RECIPE]
    assert_is_one_error(command("train", *recipe, f"--workdir={workdir}", *flags), *words)
    assert not list(tmp_path.iterdir())


def test_a_file_without_get_config_is_refused_as_a_recipe(tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text("settings = 3\n")
    done = command("train", f"--config={recipe}", f"--workdir={tmp_path / 'run'}")
    assert_is_one_error(done, "--config", "get_config")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("missing", ["--config", "--workdir"])
def test_a_missing_required_flag_is_named_with_an_example(tmp_path, missing):
    flags = {"--config": "configs/gpt_char.py", "--workdir": str(tmp_path / "run")}
    done = command("train", *(f"{name}={value}" for name, value in flags.items() if name != missing))
    assert_is_one_error(done, f"{missing}: is missing", "transformer_jax train --config=")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--config.optimizer.peak_lr=nan"], ["optimizer.peak_lr=nan", "finite"]),
        (["--config.model.d_model=13", "--config.model.num_heads=2"], ["model.d_model=13", "num_heads=2", "12 or 14"]),
        (["--config.data.source=text", "--config.data.path=/no/such/text"], ["data.path", "/no/such/text"]),
        (
            ["--config.data.source=text", "--config.data.path={data}", "--config.train.batch_size=97"],
            ["train.batch_size=97", "the training text has"],
        ),
    ],
)
def test_an_invalid_setting_is_one_line_and_changes_no_file(tmp_path, data, flags, words):
    workdir = tmp_path / "run"
    done = command("train", RECIPE, f"--workdir={workdir}", *(flag.format(data=data) for flag in flags))
    assert_is_one_error(done, *words)
    assert not workdir.exists() or [file.name for file in workdir.iterdir()] == [".lock"]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"data": {"source": "text", "path": ""}}, "data.path"),
        ({"data": {"source": "text", "path": "{empty}"}}, "empty"),
        ({"data": {"source": "web"}}, "data.source='web'.*python_docs"),
        ({"model": {"num_heads": 4, "num_kv_heads": 3}}, "model.num_kv_heads=3: must divide model.num_heads=4"),
        ({"model": {"norm": "batchnorm"}}, "model.norm='batchnorm'.*layernorm, layernorm_no_bias"),
        ({"model": {"vocab_size": 5}}, "model.vocab_size=5.*Take 0"),
        ({"train": {"batch_size": 4, "accumulation": 3}}, "train.accumulation=3: must divide train.batch_size=4"),
        ({"train": {"parallel": "tpu"}}, "train.parallel='tpu'.*jit, pmap"),
        ({"optimizer": {"name": "sgd"}}, "optimizer.name='sgd'.*adamw, muon"),
        ({"checkpoint": {"keep": 0}}, "checkpoint.keep=0: must be at least 1"),
    ],
)
def test_an_invalid_setting_raises_an_error_with_its_name_in_python(tmp_path, data, changes, words):
    (tmp_path / "empty").write_text("")
    sections = {
        "data": {"source": "text", "path": str(data)},
        "model": {"num_layers": 1, "d_model": 8, "max_len": 7},
        "train": {"batch_size": 3, "tensorboard": False},
    }
    for section, fields in changes.items():
        fields = {k: v.format(empty=tmp_path / "empty") if isinstance(v, str) else v for k, v in fields.items()}
        sections[section] = sections.get(section, {}) | fields
    with pytest.raises(UserError, match=words):
        train(sections, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_workdir_that_is_a_file_is_refused(data):
    with pytest.raises(UserError, match="workdir=.*cannot be written to"):
        train({"data": {"source": "text", "path": str(data)}}, data)
    assert data.read_text() == TEXT


# Wrong flags of sampling


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--num_sample=3"], ["'num_sample'", "num_samples?"]),
        (["--top_k=many"], ["top_k", "many"]),
        (["To be"], ["'To be': belongs to no flag", "quotes"]),
        (["--prompt=a", "--prompt_file=-"], ["--prompt and --prompt_file"]),
        (["--prompt_file=/no/such/file"], ["--prompt_file=/no/such/file"]),
        (["--run_dir="], ["--run_dir: is missing"]),
        (["--run_dir=/no/such/run"], ["run_dir=/no/such/run: there is no such directory"]),
        (["--run_dir=configs"], ["no checkpoints here"]),
        (["--checkpoint=7"], ["checkpoint=7", "Choose latest, best or one of"]),
        (["--prompt=the cät"], ["'ä'", "U+00E4", "position 5"]),
    ],
)
def test_a_wrong_sampling_flag_is_one_line(run_dir, flags, words):
    done = command("sample", f"--run_dir={run_dir}", *flags)
    lines = done.stderr.splitlines(keepends=True)
    if lines[0].startswith(str(run_dir)):  # the run was loaded, and printed, before the prompt was checked
        done.stderr = "".join(lines[1:])
    assert_is_one_error(done, *words)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"prompt": ""}, "prompt='': must have at least one character"),
        ({"prompt": "a" * (MAX_LEN + 1)}, f"prompt: {MAX_LEN + 1} tokens, and the model's context is {MAX_LEN}"),
        ({"temperature": -0.5}, "temperature=-0.5: must be from 1e-6 .*greedy"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"top_k": -1}, "top_k=-1"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"method": "beams"}, "method='beams': unknown. Choose one of: sample, greedy, beam"),
        ({"max_new_tokens": 0}, "max_new_tokens=0: must be at least 1"),
        ({"num_samples": 0}, "num_samples=0: must be at least 1"),
    ],
)
def test_generate_refuses_an_invalid_argument(run, options, words):
    with pytest.raises(UserError, match=words):
        tj.generate(run, **{"prompt": "the", "max_new_tokens": 5} | options)


@pytest.mark.parametrize(
    "tokens, is_token, words",
    [
        (np.zeros(3, int), None, r"tokens: must be integers \[B, T\]"),
        (np.zeros((2, 3)), None, r"tokens: must be integers \[B, T\], not float64"),
        (np.zeros((2, 3), int), np.ones((3, 2), bool), "is_token: must have the shape of its tokens"),
        (np.full((2, 3), -1), None, "must lie between 0 and"),
        (np.full((2, 3), 999), None, "not between 999 and 999"),
        (np.zeros((2, MAX_LEN + 1), int), None, f"model.max_len={MAX_LEN}"),
    ],
)
def test_logits_refuse_tokens_of_a_wrong_type_shape_or_range(run, tokens, is_token, words):
    with pytest.raises(UserError, match=words):
        tj.logits(run, tokens, is_token)


def test_an_unknown_command_gets_a_list_of_the_commands():
    assert_is_one_error(command("smaple"), "'smaple': no such command", "sample")


@pytest.mark.parametrize(
    "words",
    [("train", RECIPE, "--workdir={}", "--config.train.num_steps=many"), ("sample", "--run_dir={}", "--top_k=many")],
    ids=["train", "sample"],
)
def test_a_wrong_flag_ends_the_process_with_code_2_before_jax_is_imported(words, tmp_path):
    program = "import sys; from transformer_jax.__main__ import run; code = run(); assert 'jax' not in sys.modules; "
    words = [word.format(tmp_path / "run") for word in words]
    assert_is_one_error(process("-c", f"{program} sys.exit(code)", *words), "many")
    if words[0] == "train":
        assert_is_one_error(process("-m", "train", *words[1:]), "many")


# Help


def test_help_lists_every_field_of_a_recipe_with_its_meaning():
    done = command("train", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    for name, field in config_fields(Config).items():
        assert f"--config.{name}={field.default}" in done.stdout and field.metadata["meaning"] in done.stdout


def test_help_lists_every_flag_of_sampling_and_every_command():
    done = command("sample", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    for flag in (
        "run_dir",
        "checkpoint",
        "prompt",
        "prompt_file",
        "max_new_tokens",
        "method",
        "temperature",
        "top_k",
        "top_p",
        "seed",
        "num_samples",
    ):
        assert f"  --{flag}" in done.stdout
    assert "  sample " in command().stdout


# Samples


def test_stdout_has_nothing_but_the_samples(run_dir):
    done = process(
        *("-m", "transformer_jax", "sample"),
        f"--run_dir={run_dir}",
        "--prompt_file=-",
        "--max_new_tokens=20",
        "--num_samples=3",
        "--on_overflow=re-prefill",
        "--temperature=0.8",
        "--top_k=7",
        "--top_p=0.95",
        "--seed=1",
        stdin="the cat",
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"{run_dir}, step {NUM_STEPS}\n"
    texts = done.stdout.removesuffix("\n").split("\n---------------\n")
    assert len(set(texts)) == 3
    for text in texts:
        assert text.startswith("the cat") and set(text) <= set(TEXT) and len(text) == len("the cat") + 20


def test_greedy_text_is_the_same_from_the_command_line_and_python_for_any_seed(run_dir, run, tmp_path):
    (tmp_path / "prompt.txt").write_text("the cat")
    done = command(
        "sample",
        f"--run_dir={run_dir}",
        f"--prompt_file={tmp_path / 'prompt.txt'}",
        "--method=greedy",
        "--max_new_tokens=6",
        "--seed=5",
    )
    expected = tj.generate(run, "the cat", method="greedy", max_new_tokens=6)
    assert done.stdout == expected + "\n", done.stderr
    assert tj.generate(run, "the cat", method="greedy", max_new_tokens=6, seed=7) == expected


def test_greedy_text_equals_the_argmax_of_full_passes(run):
    tokens = np.zeros((1, MAX_LEN), int)
    tokens[0, :7] = run.tokenizer.encode("the cat")
    for t in range(7, MAX_LEN):
        tokens[0, t] = np.argmax(tj.logits(run, tokens)[0, t - 1])
    text = tj.generate(run, "the cat", method="greedy", max_new_tokens=MAX_LEN - 7)
    assert text == run.tokenizer.decode(tokens[0])


def test_samples_are_a_function_of_the_seed(run):
    sample = functools.partial(tj.generate, run, "the", max_new_tokens=9, num_samples=2)
    assert sample(seed=3) == sample(seed=3) != sample(seed=4)


def test_prompts_of_different_lengths_keep_their_order(run):
    prompts = ["a", "the cat"]
    texts = tj.generate(run, prompts, method="greedy", max_new_tokens=6)
    assert texts == [tj.generate(run, prompt, method="greedy", max_new_tokens=6) for prompt in prompts]
    assert all(text.startswith(prompt) for text, prompt in zip(texts, prompts, strict=True))


@pytest.mark.parametrize("length", [1, MAX_LEN])
def test_re_prefill_generates_beyond_the_context(run, length):
    prompt = TEXT[:length]
    text = tj.generate(run, prompt, max_new_tokens=3 * MAX_LEN + 2, seed=1, top_k=5, on_overflow="re-prefill")
    assert text.startswith(prompt) and len(text) == length + 3 * MAX_LEN + 2


# Logits


def test_logits_cover_every_position_and_do_not_depend_on_padding(run):
    B, T, V = 2, 5, run.config.vocab_size
    tokens = np.random.default_rng(0).integers(3, V, (B, T))
    plain = tj.logits(run, tokens)
    assert plain.shape == (B, T, V) and plain.dtype == np.float32
    np.testing.assert_array_equal(tj.logits(run, tokens.tolist()), plain)
    for width in ((0, 2), (2, 0)):
        padded = np.pad(tokens, ((0, 0), width))
        is_token = np.pad(np.ones((B, T), bool), ((0, 0), width))
        logits = np.asarray(tj.logits(run, padded, is_token))[:, width[0] : width[0] + T]
        np.testing.assert_allclose(logits, plain, atol=1e-5)


def test_load_takes_a_checkpoint_by_name_or_step(run_dir):
    assert [tj.load(run_dir, which).step for which in ("latest", "best", NUM_STEPS, str(NUM_STEPS))] == [NUM_STEPS] * 4
    assert tj.load(str(run_dir)).tokenizer.decode(tj.load(run_dir).tokenizer.encode(TEXT)) == TEXT
