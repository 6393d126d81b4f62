"""Bugs in layers, blocks, heads and their answers, in the form of mutants.py."""

# ruff: noqa: E501
A, P, L = "nn.attention", "nn.positions", "nn.layers"
PATTERN = ("pattern", {})

MUTANTS_OF_LAYERS = {
    "window of the wrong kind": ("config", '] == "local":', '] != "local":', PATTERN),
    "local base scaled as the global one": (
        "config",
        'scaling = "none" if self.local_rope_theta else self.rope_scaling',
        "scaling = self.rope_scaling",
        PATTERN,
    ),
    "no positions means positions": (
        A,
        "has_positions = self.layer_config.has_positions and not self.is_cross",
        "has_positions = not self.is_cross",
        ("pattern", {"global_positions": False}),
    ),
    "the rest of a head rotated": (
        P,
        "num_rotated = config.rotary_dim or x_BTNH.shape[-1]",
        "num_rotated = x_BTNH.shape[-1]",
        PATTERN,
    ),
    "rotations by the longest row": (
        "nn.rope_scaling",
        "jnp.max(positions_BT, axis=1)[:, None, None, None] + 1",
        "jnp.max(positions_BT) + 1",
        ("rope", {}),
    ),
    "long factors one token early": (
        "nn.rope_scaling",
        "_row_lengths(positions) > config.rope_original_max_len",
        "_row_lengths(positions) >= config.rope_original_max_len",
        ("rope", {}),
    ),
    "dropout of an adapter not rescaled": ("nn.adapters", "x / (1.0 - rate)", "x", ("adapter", {})),
    "dropout of an adapter at every rate": ("nn.dropout", "(rate * 2.0**32)", "(rate * 2.0**31)", ("adapter", {})),
    "rank of an adapter checked against one side": (
        "models.adapters",
        "1 <= spec.rank <= min(fan_in, fan_out)",
        "1 <= spec.rank <= fan_in",
        ("adapter", {}),
    ),
    "IA3 scales outputs of the second layer": (
        "models.adapters",
        '"ia3_in" if name.endswith("/down")',
        '"ia3_in" if name.endswith("/up")',
        ("adapter", {}),
    ),
    "gradient of an int8 product without its scales": (
        "nn.quantization",
        "(dy * kernel.scales[:, 0])",
        "dy",
        ("int8_base", {}),
    ),
    "int8 kernel by rows": (
        "models.quantization",
        "matrix.reshape(fan_in, -1).T",
        "matrix.reshape(-1, fan_in)",
        ("int8_base", {}),
    ),
    "remat keeps everything": ("nn.blocks", 'if self.remat != "block":', "if True:", ("remat", {"kind": "block"})),
    "remat of attention keeps everything": (
        A,
        "(jax.checkpoint(attend) if self.remat else attend)(q, k, v)",
        "attend(q, k, v)",
        ("remat", {"kind": "attention"}),
    ),
    "remat without dropout": (
        "nn.blocks",
        "nn.remat(lambda block, x: block(x, *args))(block, x)",
        "nn.remat(lambda block, x: block(x, *args[:-1]))(block, x)",
        ("remat", {"kind": "block"}),
    ),
    "norm of the output after the sum": (
        "nn.blocks",
        "out = out if out_norm is None else out_norm(out)\n        x = x + self.drop(out, deterministic)",
        "x = x + self.drop(out, deterministic)\n        x = x if out_norm is None else out_norm(x)",
        PATTERN,
    ),
    "one plus scale forgotten": (L, "factor = 1.0 + scale if self.plus_one else scale", "factor = scale", PATTERN),
    "output biased as queries": (A, "num_in=2, use_bias=config.out_bias, ", "num_in=2, ", PATTERN),
    "GELU variants confused": (
        L,
        "return x * _normal_distribution(x), x",
        "return jax.nn.gelu(x, approximate=True), x",
        ("numbers", {}),
    ),
    "RMSNorm subtracts the mean": (
        L,
        "return (normalize(flat, self.epsilon) * factor)",
        "return (normalize(flat - flat.mean(-1, keepdims=True), self.epsilon) * factor)",
        ("numbers", {}),
    ),
    "post-norm missing": (
        "nn.blocks",
        '"post": NormPlacement(of_sum=True)',
        '"post": NormPlacement()',
        ("post_norm", {}),
    ),
    "parallel reads in turn": (
        "nn.blocks",
        "y = self._before(self.feed_forward_norm, x if parallel is None else parallel)",
        "y = self.attention_norm(x)",
        ("parallel", {}),
    ),
    "T5 logits not scaled": ("models.embed", "x = x * config.d_model**-0.5", "pass", ("scaled_logits", {})),
    "padding in the mean": (
        "models.encoder",
        "jnp.maximum(jnp.sum(weights, axis=1), 1.0)",
        "x.shape[1]",
        ("pooling", {"pooling": "mean"}),
    ),
    "padding wins the maximum": (
        "models.encoder",
        "jnp.where(is_token[:, :, None], x, jnp.finfo(jnp.float32).min), axis=1, k",
        "x, axis=1, k",
        ("pooling", {"pooling": "max"}),
    ),
    "the first place, padding or not": (
        "models.encoder",
        "jnp.argmax(is_token, axis=1)[:, None, None]",
        "jnp.zeros((x.shape[0], 1, 1), int)",
        ("pooling", {"pooling": "first"}),
    ),
    "source padding seen": (
        "nn.blocks",
        "Mask(is_key=source.is_token) if source else None",
        "Mask() if source else None",
        ("source", {}),
    ),
    "packed texts begin before the prefix ends": (
        "models.embed",
        "positions = P + segment_positions(segments)",
        "positions = segment_positions(segments)",
        ("prefixes", {}),
    ),
    "a soft prompt is padding": (
        "models.embed",
        "((0, 0), (length - is_token.shape[1], 0)), constant_values=True)",
        "((0, 0), (length - is_token.shape[1], 0)), constant_values=False)",
        ("prefixes", {}),
    ),
    # Adapters in one batch
    "LoRA beside DoRA normalized": (
        "models.adapters",
        '"magnitude": jnp.nan',
        '"magnitude": 1.0',
        ("adapter_rows", {}),
    ),
    "no IA3 is zero": ("models.adapters", '"ia3_out": 1.0', '"ia3_out": 0.0', ("adapter_rows", {})),
    "adapters of beams interleaved": (
        "nn.adapters",
        "jnp.repeat(rows, num_rows // len(rows))",
        "jnp.tile(rows, num_rows // len(rows))",
        ("adapter_rows", {}),
    ),
    "adapters stay while texts are sorted": (
        "inference.adapter_names",
        "[run.adapter_rows[i] for i in indices]",
        "list(run.adapter_rows[: len(indices)])",
        ("adapter_rows", {}),
    ),
    # Looking inside
    "a lens without the final norm": (
        "inference.recording",
        "(module.norm(x) if module.norm else x), None",
        "x, None",
        ("looking", {"norm_placement": "sandwich"}),
    ),
    "a mean of padding": (
        "inference.interventions",
        "is_token.astype(jnp.float32)",
        "jnp.ones((B, T))",
        ("looking", {"norm_placement": "sandwich"}),
    ),
    "weights are stored without their root": (
        "explorer.pack",
        "np.sqrt(np.clip(each.weights, 0, 1))",
        "np.clip(each.weights, 0, 1)",
        ("packed_weights", {}),
    ),
    "the empty half is stored": (
        "explorer.pack",
        "np.tril(np.ones((T, S), bool))",
        "np.triu(np.ones((T, S), bool))",
        ("packed_weights", {}),
    ),
    # Answers of heads
    "labels of a text compete": (
        "inference.predict",
        '"multi_label_classification": jax.nn.sigmoid',
        '"multi_label_classification": jax.nn.softmax',
        ("answers", {}),
    ),
    "sigmoid of a number": ("inference.predict", "lambda logits: logits", "jax.nn.sigmoid", ("answers", {})),
    "every label is given": ("inference.predict", "if p > THRESHOLD", "if p > 0.0", ("answers", {})),
    "a string is its characters": ("inference.texts", "return [texts]", "return list(texts)", ("answers", {})),
}
