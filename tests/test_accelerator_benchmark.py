"""The driver of benchmarks/accelerator.py: a part that fails or hangs costs its own figures only; and its text work."""

import gzip
import json
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import accelerator  # noqa: E402
import accelerator_asked  # noqa: E402
import accelerator_trace  # noqa: E402
import report  # noqa: E402

SETTINGS = {"device": "cpu", "seconds": 60}


def run(source, **settings):
    """State and figures of a part whose process runs `source`."""
    figures: dict = {}
    command = [sys.executable, "-c", "import json, os, subprocess, sys, time\n" + source]
    state = accelerator.run_part(
        command, SETTINGS | settings, lambda name, value: accelerator.set_figure(figures, name, value)
    )
    return state, figures


def say(name, value):
    return f"print(json.dumps({{'name': {name!r}, 'value': {value!r}}}), flush=True)\n"


def test_a_part_gets_its_settings_and_its_figures_make_a_tree():
    source = "got = json.loads(input())\n" + say("a/b", 1) + say("a/c/d", [2]) + "print('a message')\n"
    source += "print(json.dumps({'name': 'seconds', 'value': got['seconds']}), flush=True)\n"
    assert run(source) == ("complete", {"a": {"b": 1, "c": {"d": [2]}}, "seconds": 60})


def test_a_part_that_dies_keeps_what_it_reported():
    assert run(say("a", 1) + "os._exit(3)") == ("ended with exit code 3", {"a": 1})


def test_a_part_that_hangs_is_stopped_with_its_children_and_keeps_what_it_reported():
    child = "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    source = child + "print(json.dumps({'name': 'pid', 'value': child.pid}), flush=True)\ntime.sleep(600)\n"
    state, figures = run(source, seconds=5)
    assert state.startswith("stopped after 5 s")
    stat = Path(f"/proc/{figures['pid']}/stat")
    for _ in range(500):  # its end takes a moment; then it is gone, or dead and not yet buried ("Z")
        if not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.02)
    pytest.fail("the child lives on")


@pytest.mark.parametrize("only", ["training", "decoding,checks"])
def test_only_chooses_parts_in_the_order_given(only):
    assert accelerator.parse_args([f"--only={only}"]).parts == only.split(",")


def test_an_unknown_part_is_refused_with_the_names_of_the_others(capsys):
    with pytest.raises(SystemExit):
        accelerator.parse_args(["--only=trainig"])
    assert "'trainig' must be one of checks, training, decoding, profile" in capsys.readouterr().err


def test_the_parts_take_at_most_eight_minutes_together():
    assert sum(accelerator.PARTS.values()) <= 8


def test_a_report_is_whole_whenever_it_is_read(tmp_path, monkeypatch):
    path = report.write(tmp_path / "results" / "a.json", {"figure": 1})
    monkeypatch.setattr(report.os, "replace", lambda *_: sys.exit(143))  # killed while it writes
    with pytest.raises(SystemExit):
        report.write(path, {"figure": 2})
    assert json.loads(path.read_text()) == {"figure": 1}


def test_a_failed_check_and_one_that_could_not_run_are_both_named():
    figures = {
        "dropout": {"passed": True},
        "attention": {"causal": {"xla": {"passed": False}}},
        "resume": {"failed": "x"},
    }
    lines = accelerator_asked.verdicts({"checks": {"figures": figures}}, "gpu")
    assert lines == ["checks: 1 of 3 checks passed", "  FAILED attention/causal/xla", "  FAILED resume"]


@pytest.mark.parametrize(
    "device, value, ending", [("gpu", 1.2, "pass"), ("gpu", 0.3, "MISS"), ("cpu", 1.2, "this is a CPU)")]
)
def test_asked_figures_are_judged_on_a_gpu_only(device, value, ending):
    figures = {"rounds": {"times_as_fast_as_torch": value, "model_flops_utilization": value}}
    lines = accelerator_asked.verdicts({"training": {"figures": figures}}, device)
    assert [line.endswith(ending) for line in lines] == [True, True]


HLO = """HloModule jit_train_steps

%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %dot.1 = f32[8]{0} dot(%p, %p), metadata={op_name="jit(train_steps)/while/body/stack/block_0/up/dot"}
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %gemm_fusion.2 = f32[8]{0} fusion(%a), kind=kCustom, calls=%fused
  %call.3 = (f32[8]{0}, u8[0]{0}) custom-call(%a), custom_call_target="__cudnn$fmhaSoftmax"
  %add.4 = f32[8]{0} add(%a, %a), metadata={op_name="jit(train_steps)/while/body/add"}
  ROOT %while.5 = f32[8]{0} while(%a), condition=%c, body=%b
}
"""


def test_a_trace_is_summed_by_group_without_the_time_of_kernels_inside(tmp_path):
    def event(name, start, duration, tid=2):
        return {
            "ph": "X",
            "pid": 1,
            "tid": tid,
            "name": "kernel",
            "ts": start,
            "dur": duration,
            "args": {"hlo_op": name},
        }

    names = [("process_name", {}, "/device:GPU:0"), ("thread_name", {"tid": 2}, "Stream #1(Compute)")]
    events = [{"ph": "M", "pid": 1, "name": name, "args": {"name": value}, **tid} for name, tid, value in names]
    events += [event("while.5", 0, 100), event("gemm_fusion.2", 10, 40), event("call.3", 50, 30), event("add_4", 85, 5)]
    events += [event("gemm_fusion.2", 0, 1000, tid=9), event("add.4", 150, 50)]  # a line beside the streams; idle time
    with gzip.open(tmp_path / "host.trace.json.gz", "wt") as file:
        json.dump({"traceEvents": events}, file)
    texts = accelerator_trace.instructions(HLO)
    kernels = accelerator_trace.read_kernels(tmp_path, set(texts))
    summary = accelerator_trace.summarize(kernels, texts, num_steps=1)
    assert (summary["ms_per_step"], summary["idle_ms"], summary["kernels_per_step"]) == (0.2, 0.05, 5)
    times = {name: row["ms"] for name, row in summary["groups"].items() if row["ms"]}
    assert times == {"products": 0.04, "attention": 0.03, "optimizer": 0.055, "other": 0.025}
