"""What was asked of an accelerator, and what benchmarks/accelerator.py measured: one line each."""

ASKED = {  # part, figure: at least
    ("training", "rounds/times_as_fast_as_torch"): 1.1,
    ("training", "rounds/model_flops_utilization"): 0.45,  # the goal is 0.6
    ("decoding", "gpt2_greedy_1/times_as_fast_as_transformers"): 2.0,
    ("decoding", "gpt2_greedy_1/share_of_bandwidth"): 0.5,
}


def find(tree: dict, name: str):
    """The figure at "a/b", or None."""
    for key in name.split("/"):
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def checks_of(tree: object, name: str = "") -> list[tuple[str, bool]]:
    """Every check in a tree of figures, by its path: those with a field `passed`, and whatever failed to run."""
    if not isinstance(tree, dict):
        return []
    if "passed" in tree or "failed" in tree:
        return [(name, bool(tree.get("passed")))]
    return [check for key, value in tree.items() for check in checks_of(value, f"{name}/{key}".lstrip("/"))]


def verdicts(results: dict, device: str) -> list[str]:
    """Lines for people: the checks that failed, and each asked figure of the parts that ran."""
    lines = []
    for part, result in results.items():
        checks = checks_of(result["figures"])
        failed = [name for name, passed in checks if not passed]
        if checks:
            lines.append(f"{part}: {len(checks) - len(failed)} of {len(checks)} checks passed")
            lines += [f"  FAILED {name}" for name in failed]
    for (part, name), least in ASKED.items():
        if part not in results:
            continue
        value = find(results[part]["figures"], name)
        if value is None:
            lines.append(f"{part}: {name} not measured, asked {least}")
        elif device == "gpu":
            lines.append(f"{part}: {name} {value}, asked {least}: {'pass' if value >= least else 'MISS'}")
        else:
            lines.append(f"{part}: {name} {value} (asked of a GPU: {least}; this is a CPU)")
    return lines
