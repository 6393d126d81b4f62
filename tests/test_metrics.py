import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from train import flops
from train.data.batches import eval_batches
from train.evaluation import evaluate
from train.losses import causal_lm
from train.metrics import MetricsLog, bits_per_byte, read_metrics, text_metrics
from train.plot import draw_loss
from train.step import eval_step
from transformer_jax.config import TransformerConfig
from transformer_jax.inference.score import perplexity
from transformer_jax.models import GPT

NUMBERS = {
    "loss_sum": np.float32(6.0),
    "weight_sum": np.float32(4.0),
    "grad_norm": np.float32(0.5),
    "consecutive_skips": np.int32(0),
    "skipped_steps": np.int32(2),
}


@pytest.fixture
def open_log(tmp_path):
    logs = []

    def open_log(first_step=0, tensorboard=False):
        logs.append(MetricsLog(tmp_path, first_step, 50, tensorboard))
        return logs[-1]

    yield open_log
    for log in logs:
        log.close()


def write_lines(path, *lines):
    (path / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")


def line(step, split="train", loss=1.5):
    return json.dumps({"step": step, "split": split, "loss": loss}) + "\n"


# Numbers


def test_perplexity_is_the_number_of_equally_likely_tokens():
    assert perplexity(math.log(64)) == pytest.approx(64)
    assert perplexity(0.0) == 1.0
    assert math.isfinite(perplexity(1e9))


def test_bits_per_byte_do_not_depend_on_the_tokenizer():
    assert bits_per_byte(math.log(256), 1.0) == pytest.approx(8)  # a uniform guess among all bytes
    assert bits_per_byte(3 * math.log(256), 3.0) == pytest.approx(8)  # the same, for tokens of three bytes
    assert bits_per_byte(math.log(2), 2.0) == pytest.approx(0.5)


# metrics.jsonl


def test_each_event_is_a_line_of_json(open_log, tmp_path):
    log = open_log()
    log.train(10, NUMBERS, 0.25)
    log.val(10, {"loss": math.log(16)} | text_metrics(math.log(16), 2.0))
    log.close()
    train, val = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert (train["step"], train["split"], train["loss"], train["learning_rate"]) == (10, "train", 1.5, 0.25)
    assert (train["perplexity"], train["grad_norm"], train["skipped_steps"]) == (pytest.approx(math.exp(1.5)), 0.5, 2)
    assert val == {
        "step": 10,
        "split": "val",
        "loss": pytest.approx(math.log(16)),
        "perplexity": pytest.approx(16),
        "bits_per_byte": pytest.approx(2),
    }


def test_nan_and_infinity_become_null(open_log, tmp_path):
    log = open_log(tensorboard=True)
    log.train(10, NUMBERS | {"weight_sum": np.float32(0), "grad_norm": np.float32("inf")}, 0.25)
    log.val(10, {"loss": math.nan} | text_metrics(math.nan, 2.0))
    log.close()
    train, val = read_metrics(tmp_path / "metrics.jsonl")
    assert train["loss"] is train["perplexity"] is train["grad_norm"] is None
    assert val["loss"] is val["bits_per_byte"] is None
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_only_lines_after_the_resumed_step_are_dropped(open_log, tmp_path):
    kept = [line(5), line(10), line(10, "val")]
    write_lines(tmp_path, *kept, line(11), line(20), line(20, "val"))
    log = open_log(first_step=10)
    log.train(15, NUMBERS, 0.25)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text.startswith("".join(kept))
    assert [event["step"] for event in read_metrics(tmp_path / "metrics.jsonl")] == [5, 10, 10, 15]


BAD_LINES = {
    "not UTF-8": b'{"step": 7, "split": "tr\xff", "loss": 1.5}',
    "null": b"null",
    "a list": b"[5, 1.5]",
    "a number": b"5",
    "no step": b'{"split": "train", "loss": 1.5}',
    "no split": b'{"step": 7, "loss": 1.5}',
    "no loss": b'{"step": 7, "split": "train"}',
    "a step in words": b'{"step": "7", "split": "train", "loss": 1.5}',
    "a true step": b'{"step": true, "split": "train", "loss": 1.5}',
    "a fraction of a step": b'{"step": 7.0, "split": "train", "loss": 1.5}',
    "a step below 0": b'{"step": -7, "split": "train", "loss": 1.5}',
    "a step without end": b'{"step": ' + b"9" * 400 + b', "split": "train", "loss": 1.5}',
    "a step of NaN": b'{"step": NaN, "split": "train", "loss": 1.5}',
    "a loss of NaN": b'{"step": 7, "split": "train", "loss": NaN}',
    "a loss in words": b'{"step": 7, "split": "train", "loss": "low"}',
    "an infinite number": b'{"step": 7, "split": "train", "loss": 1.5, "grad_norm": 1e999}',
    "a split that is a number": b'{"step": 7, "split": 3, "loss": 1.5}',
    "a cut in the middle": b'{"step": 7, "split"',
    "two lines in one": b'{"step": 7, "split": "train", "loss": 1.5}{"step": 8, "split": "train", "loss": 1.5}',
    "zeros": bytes(4096),
    "nested without end": b"[" * 100_000,
    "a huge line": b"x" * 3_000_000,
}


@pytest.mark.parametrize("bad", BAD_LINES.values(), ids=BAD_LINES)
def test_a_line_that_is_no_event_is_left_out_and_counted(open_log, tmp_path, capsys, bad):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        line(5).encode() + bad + b"\n" + line(10).encode() + b"\n\r\n" + bad + b"\n" + line(10, "val").encode()
    )
    assert [(event["step"], event["split"]) for event in read_metrics(path)] == [
        (5, "train"),
        (10, "train"),
        (10, "val"),
    ]
    warning = f"warning: {path}: lines left out because they are no events of a run: 2\n"
    assert capsys.readouterr().err == warning
    draw_loss(tmp_path)
    assert capsys.readouterr().err == warning
    open_log(first_step=10).train(15, NUMBERS, 0.25)
    assert capsys.readouterr().err == warning
    assert path.read_text().startswith(line(5) + line(10) + line(10, "val"))
    assert len(read_metrics(path)) == 4 and capsys.readouterr().err == ""


def test_good_lines_of_an_edited_file_are_kept(open_log, tmp_path):
    strange = {"step": 9, "split": "train", "loss": 2, "note": "é \u2028 \x0c \u0085 \ud800", "list": [{"a": 0.1}]}
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + line(5).encode().rstrip() + b"\r\n" + json.dumps(strange).encode() + b"\n")
    open_log(first_step=10)
    assert [json.loads(text) for text in path.read_text().split("\n")[:-1]] == [json.loads(line(5)), strange]


def test_a_link_beside_the_log_is_not_written_through(open_log, tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "metrics.tmp").symlink_to("mine")
    (tmp_path / "metrics.jsonl").symlink_to("mine")
    open_log().train(15, NUMBERS, 0.25)
    assert (tmp_path / "mine").read_text() == "mine"
    assert [event["step"] for event in read_metrics(tmp_path / "metrics.jsonl")] == [15]


@pytest.mark.parametrize("length", range(1, len(line(10)) - 1, 7))
def test_a_line_that_a_kill_cut_off_is_dropped(open_log, tmp_path, length):
    write_lines(tmp_path, line(5), line(10)[:length])
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 5, "split": "train", "loss": 1.5}]
    open_log(first_step=10).train(15, NUMBERS, 0.25)
    assert [json.loads(text)["step"] for text in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [5, 15]


def test_a_last_line_that_lacks_only_its_newline_is_kept(open_log, tmp_path):
    write_lines(tmp_path, line(5), line(10).rstrip())
    open_log(first_step=10).train(15, NUMBERS, 0.25)
    assert [json.loads(text)["step"] for text in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [5, 10, 15]


def test_a_missing_metrics_file_has_no_events(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


# The loss curve


def test_the_loss_curve_is_a_png(tmp_path):
    write_lines(tmp_path, line(1, loss=3.0), line(2, loss=None), line(3), line(3, "val", 1.75))
    path = draw_loss(tmp_path)
    assert path == tmp_path / "loss.png" and path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_a_run_without_events_has_a_loss_curve_too(tmp_path):
    assert draw_loss(tmp_path).stat().st_size > 0


# Evaluation


def test_evaluation_does_not_depend_on_the_batch_size():
    max_len, vocab_size = 7, 23
    config = TransformerConfig(
        vocab_size=vocab_size, max_len=max_len, num_layers=1, d_model=13, num_heads=2, head_dim=5, init_std=0.3
    )
    model = GPT(config)
    tokens = np.random.default_rng(0).integers(3, vocab_size, 101, dtype=np.int32)
    params = jax.jit(model.init)(jax.random.key(0), tokens[None, :max_len])["params"]
    step = jax.jit(functools.partial(eval_step, model=model, loss_fn=causal_lm))
    losses = [evaluate(step, params, eval_batches(tokens, max_len, rows))["loss"] for rows in (1, 3, 17)]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-6)
    # The same window by window: each predicts max_len tokens, the last one the remaining tokens.
    apply, nats = jax.jit(model.apply), []
    for start in range(0, len(tokens) - 1, max_len):
        window = tokens[start : start + max_len + 1]
        padded = np.zeros((1, max_len), np.int32)
        padded[0, : len(window) - 1] = window[:-1]
        logits = np.asarray(apply({"params": params}, padded)[0], np.float64)
        nats += [np.log(np.exp(row).sum()) - row[target] for row, target in zip(logits, window[1:], strict=False)]
    assert len(nats) == len(tokens) - 1
    np.testing.assert_allclose(losses[0], np.mean(nats), rtol=1e-5)


# Cost of a model


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_parameters_and_operations_equal_a_count_by_hand(tie_embeddings):
    config = TransformerConfig(
        vocab_size=10, max_len=3, num_layers=1, d_model=4, num_heads=2, d_ff=8, tie_embeddings=tie_embeddings
    )
    params = jax.eval_shape(GPT(config).init, jax.random.key(0), jnp.zeros((2, 3), jnp.int32))["params"]
    kernels = 4 * (4 * 4) + 2 * (4 * 8)  # query, key, value, out; up, down
    biases = 4 * 4 + 8 + 4
    norms = 3 * 2 * 4
    unembed = 0 if tie_embeddings else 4 * 10
    assert flops.count_params(params) == kernels + biases + norms + 10 * 4 + 3 * 4 + unembed
    assert flops.num_bytes(params) == 4 * flops.count_params(params)
    # 6 for each weight, the output projection included; 12 for each of 3 positions, 2 heads and 2 numbers of a head
    assert flops.flops_per_token(params, config) == 6 * (kernels + 10 * 4) + 12 * 3 * 2 * 2
    frozen = {"stack": params.pop("stack")}  # no gradient of these weights, but of their inputs
    assert flops.flops_per_token(params, config, frozen) == 4 * kernels + 6 * 10 * 4 + 12 * 3 * 2 * 2


def test_tensorboard_has_every_number_by_step_and_drops_what_is_written_again(open_log, tmp_path):
    log = open_log(first_step=10, tensorboard=True)
    log.val(15, {"loss": 1.5, "accuracy": math.nan})
    log.close()
    [file] = (tmp_path / "tensorboard").iterdir()
    data = file.read_bytes()
    events = []
    while data:  # length, checksum, event, checksum
        size = int.from_bytes(data[:8], "little")
        events.append(event_pb2.Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    version, start, loss = events
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (11, event_pb2.SessionLog.START)
    [value] = loss.summary.value
    assert (loss.step, value.tag, value.simple_value) == (15, "val/loss", 1.5)
