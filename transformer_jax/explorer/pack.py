"""Packing of the explorer's data: bytes for weights and logits, deflated, as base64 in the page."""

import base64
import json
import zlib

import numpy as np

from transformer_jax.explorer.views import MAX_DENSE, NUM_BINS, Map, Predictions, Views, candidates

LOGIT_STEP = 1 / 1024  # logits are stored as whole steps below the largest of their position


def pack(views: Views) -> dict[str, str]:
    """Pack the data of a page: base64 of deflated bytes by name; "data" is JSON, with the types of the others."""
    arrays = {f"weights_{each.name}": pack_weights(each) for each in views.maps}
    data: dict[str, object] = {
        "model": views.model,
        "name": views.name,
        "sides": views.sides,
        "maps": [_describe(each) for each in views.maps],
        "continuations": [
            {"name": each.name, "tokens": each.tokens, "log_probs": np.round(each.log_probs, 4).tolist()}
            for each in views.continuations
        ],
    }
    if views.predictions:
        arrays |= pack_logits(views.predictions)
        data["predictions"] = {
            "kind": views.predictions.kind,
            "side": views.predictions.side,
            "activation": views.predictions.activation,
            "truth": views.predictions.truth,
            "size": views.predictions.logits.shape[-1],
            "num_candidates": arrays["logits"].shape[-1],
            "num_bins": NUM_BINS,
            "step": LOGIT_STEP,
        }
        data["names"] = views.names
    if views.lens:
        num_layers, num_positions, num_top = views.lens.top.shape
        data["lens"] = {
            "num_layers": num_layers,
            "num_positions": num_positions,
            "num_top": num_top,
            "has_truth": bool(views.lens.truth_ranks.any()),
        }
        last = views.lens.top[-1, -1].tolist(), views.lens.values[-1, -1].tolist()
        data["effects"] = {
            "num_positions": num_positions,
            "num_top": num_top,
            "before": last[0],
            "before_values": last[1],
        }
        arrays |= {f"lens_{name}": _compact(array) for name, array in views.lens._asdict().items()}
    for each in views.maps:
        if each.effects:
            arrays[f"effects_{each.name}"] = _compact(each.effects.by_position)
            arrays[f"effects_{each.name}_top"] = _compact(each.effects.top)
            arrays[f"effects_{each.name}_values"] = _compact(each.effects.values)
    data["arrays"] = {name: array.dtype.name for name, array in arrays.items()}
    blocks = {"data": json.dumps(data).encode("ascii")}
    blocks |= {name: array.astype(array.dtype.newbyteorder("<")).tobytes() for name, array in arrays.items()}
    return {name: base64.b64encode(zlib.compress(block, 9)).decode("ascii") for name, block in blocks.items()}


def pack_weights(each: Map) -> np.ndarray:
    """Pack weights as round(255 sqrt(w)): to 0.004, small ones finer. Of a causal map the lower half, row by row."""
    L, N, T, S = each.weights.shape
    roots = np.rint(255 * np.sqrt(np.clip(each.weights, 0, 1))).astype(np.uint8)
    if each.is_causal:
        return roots[..., np.tril(np.ones((T, S), bool))]
    return roots


def pack_logits(predictions: Predictions) -> dict[str, np.ndarray]:
    """Logits in steps below the largest: all of a small vocabulary, or the largest and a histogram of the others."""
    if predictions.activation != "softmax":
        return {"logits": predictions.logits}
    below = predictions.logits.max(-1, keepdims=True) - predictions.logits
    if below.shape[-1] <= MAX_DENSE:
        return {"logits": _steps(below)}
    ids = candidates(predictions.logits)
    is_other = np.ones(below.shape, bool)
    np.put_along_axis(is_other, ids, False, axis=-1)
    counts = np.zeros((len(below), NUM_BINS), np.uint32)
    means = np.zeros((len(below), NUM_BINS))
    for row, others in enumerate(below[mask] for below, mask in zip(below, is_other, strict=True)):
        counts[row], edges = np.histogram(others, NUM_BINS)
        sums, _ = np.histogram(others, edges, weights=others)
        means[row] = sums / np.maximum(counts[row], 1)
    truth = predictions.truth
    of_truth = np.array([0 if i is None else value[i] for i, value in zip(truth, below, strict=True)])
    ranks = [1 + int(np.sum(value < mine)) for value, mine in zip(below, of_truth, strict=True)]
    return {
        "logits": _steps(np.take_along_axis(below, ids, -1)),
        "ids": ids.astype(np.uint32),
        "tail_counts": counts,
        "tail_logits": _steps(means),
        "truth_logits": _steps(of_truth),
        "truth_ranks": np.array(ranks, np.uint32),
    }


def _steps(below: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(below / LOGIT_STEP), 0, 65535).astype(np.uint16)


def _compact(array: np.ndarray) -> np.ndarray:
    """Ids as uint32; numbers to four digits, which deflate better."""
    return array.astype(np.uint32) if array.dtype.kind in "iu" else np.round(array, 4).astype(np.float32)


def _describe(each: Map) -> dict[str, object]:
    """Description of a map for the page, without its weights."""
    return {
        "name": each.name,
        "title": each.title,
        "rows": each.rows,
        "columns": each.columns,
        "is_causal": each.is_causal,
        "num_layers": each.weights.shape[0],
        "num_heads": each.weights.shape[1],
        "num_kv_heads": each.num_kv_heads,
        "measure": each.effects.measure if each.effects else "",
        "scores": {name: np.round(values, 4).tolist() for name, values in each.scores().items()},
    }
