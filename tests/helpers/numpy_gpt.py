"""A GPT of local and global layers in NumPy, float64, from the formulas: the twin of the compiled model."""

import numpy as np

# As Gemma 2 and 3, and a little more: heads that are rotated in part, and biases of queries, keys and values alone.
GEMMA = dict(
    num_layers=4,
    layer_pattern="local,local,local,global",
    local_window=3,
    positions="rotary",
    rope_theta=500.0,
    rope_scaling="linear",
    rope_factor=4.0,
    local_rope_theta=30.0,
    rotary_dim=2,
    norm="rmsnorm_plus_one",
    norm_placement="sandwich",
    qk_norm="head",
    feed_forward="geglu_tanh",
    attention_softcap=2.0,
    logit_softcap=5.0,
    scale_embeddings=True,
    num_kv_heads=2,
    out_bias=False,
    mlp_bias=False,
)


def norm(config, params, x):
    rms = np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + config.norm_epsilon)
    return x / rms * (1 + params["scale"])


def rotate(x, theta, num_rotated, factor):
    """Rotate pairs (i, i + half) of the first numbers of each head of x [T, N, H] by t / factor / theta^(2i/num)."""
    x, half = x.copy(), num_rotated // 2
    for t in range(len(x)):
        for i in range(half):
            angle = t / factor / theta ** (2 * i / num_rotated)
            a, b = x[t, :, i].copy(), x[t, :, i + half].copy()
            x[t, :, i] = a * np.cos(angle) - b * np.sin(angle)
            x[t, :, i + half] = b * np.cos(angle) + a * np.sin(angle)
    return x


def attention(config, params, x, kind):
    """Causal attention of one text x [T, D], a query and a head at a time."""
    q, k, v = (
        np.einsum("td,dnh->tnh", x, params[name]["kernel"]) + params[name]["bias"] for name in ("query", "key", "value")
    )
    q, k = (
        norm(config, params[f"{name}_norm"], y if config.qk_norm == "head" else y.reshape(len(y), 1, -1)).reshape(
            y.shape
        )
        for name, y in (("query", q), ("key", k))
    )
    is_local = kind == "local"
    if config.local_positions if is_local else config.global_positions:
        theta = config.local_rope_theta if is_local else config.rope_theta
        factor = 1.0 if is_local else config.rope_factor
        q, k = (rotate(y, theta, config.rotary_dim, factor) for y in (q, k))
    out = np.zeros_like(q)
    for t, n in np.ndindex(q.shape[:2]):
        first = max(0, t - config.local_window + 1) if is_local else 0
        kv_head = n * config.num_kv_heads // config.num_heads
        scores = k[first : t + 1, kv_head] @ q[t, n] / np.sqrt(config.head_dim)
        weights = np.exp(config.attention_softcap * np.tanh(scores / config.attention_softcap))
        out[t, n] = weights / weights.sum() @ v[first : t + 1, kv_head]
    return np.einsum("tnh,nhd->td", out, params["out"]["kernel"])


def feed_forward(params, x):
    gate, up = (x @ params[name]["kernel"] for name in ("gate", "up"))
    gelu = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
    return gelu * up @ params["down"]["kernel"]


def numpy_gpt(config, params, tokens):
    """Logits [B, T, V] of tokens [B, T] from the parameters {"params": ...} of a GPT with a config such as GEMMA."""
    table = np.asarray(params["params"]["embed"]["tokens"]["embedding"], np.float64)
    stack = as_numpy(params["params"]["stack"])
    kinds = config.layer_pattern.split(",")
    logits = []
    for text in tokens:
        x = table[text] * np.sqrt(config.d_model)
        for i in range(config.num_layers):
            block = stack[f"block_{i}"]
            y = attention(config, block["attention"], norm(config, block["attention_norm"], x), kinds[i % len(kinds)])
            x = x + norm(config, block["attention_out_norm"], y)
            y = feed_forward(block["feed_forward"], norm(config, block["feed_forward_norm"], x))
            x = x + norm(config, block["feed_forward_out_norm"], y)
        scores = norm(config, stack["norm"], x) @ table.T
        logits.append(config.logit_softcap * np.tanh(scores / config.logit_softcap))
    return np.array(logits)


def as_numpy(tree):
    return {key: as_numpy(x) for key, x in tree.items()} if isinstance(tree, dict) else np.asarray(tree, np.float64)
