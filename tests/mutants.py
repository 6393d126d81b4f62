"""Bugs that someone could write: where, what stands there, what would stand there, and the check that must notice.

`test_mutants.py` loads the package with one of them at a time. A check names a function of `mutant_checks.py` and its arguments.
"""

# ruff: noqa: E501
from mutants_costs import MUTANTS_OF_COSTS
from mutants_layers import MUTANTS_OF_LAYERS
from mutants_tokenizers import MUTANTS_OF_TOKENIZERS

A, M, P, L = "nn.attention", "nn.masks", "nn.positions", "nn.layers"
CAUSAL = ("gpt", {})
GROUPED = ("attention", {"backend": "reference"})

MUTANTS = {
    # Masks
    "mask off by one": (M, "<= query_slot[:, None]", "<= query_slot[:, None] + 1", CAUSAL),
    "own token hidden": (M, "<= query_slot[:, None]", "< query_slot[:, None]", ("window", {})),
    "first slot forgotten": (
        M,
        "causal(T, S, self.first_slot + first_query",
        "causal(T, S, first_query",
        ("cache", {}),
    ),
    "padding not masked": (M, "parts.append(padding(slice_axis(self.is_key, 1, first_key, S)))", "pass", CAUSAL),
    "key padding used for queries": (M, "return is_token[:, None, :]", "return is_token[:, :, None]", CAUSAL),
    "segments ignored": (
        M,
        "of_queries[:, :, None] == of_keys[:, None]",
        "of_queries[:, :, None] == of_queries[:, :1, None]",
        ("packing", {}),
    ),
    "window off by one": (M, "jnp.abs(distance) < self.window", "jnp.abs(distance) <= self.window", ("window", {})),
    "window of slots": (
        M,
        "distance = query_positions[:, :, None] - self.key_positions_at(first_key, S)[:, None]",
        "distance = first_query + jnp.arange(T)[None, :, None] - first_key - jnp.arange(S)[None, None]",
        ("cache", {"window": 2}),
    ),
    "causal flag for later slots": (M, "self.first_slot == 0 and T == S", "T == S", ("cudnn", {})),
    "causal flag for positions": (M, "not self.is_by_position and is_same", "is_same", ("cudnn", {})),
    "window flag off by one": ("nn.attention_cudnn", "(window - 1, 0)", "(window, 0)", ("cudnn", {})),
    "window flag beside other masks": (M, "if has_array or rest.is_causal", "if rest.is_causal", ("cudnn", {})),
    "no keys in cuDNN": ("nn.attention_cudnn", 'if arguments["mask"] is None', "if True", ("cudnn", {})),
    # The formula
    "no 1/sqrt(H)": (A, "scale or q_BTNH.shape[-1] ** -0.5", "scale or 1.0", GROUPED),
    "softmax over queries": (
        A,
        "jax.nn.softmax(jnp.where(may_attend, scores_BNTS, SMALLEST), axis=-1)",
        "jax.nn.softmax(jnp.where(may_attend, scores_BNTS, SMALLEST), axis=-2)",
        GROUPED,
    ),
    "nothing to attend is uniform": (
        A,
        "return jnp.where(may_attend, weights_BNTS, 0.0)",
        "return weights_BNTS",
        GROUPED,
    ),
    "heads tiled, not repeated": (
        A,
        "q_BNTH = (q_BTNH * options.scale).swapaxes(1, 2)",
        "q_BNTH = (q_BTNH * options.scale).reshape(B, T, N // K, K, H).transpose(0, 3, 2, 1, 4)",
        GROUPED,
    ),
    "soft-cap after the mask": (
        A,
        "weights_BNTS = jax.nn.softmax(jnp.where(may_attend, scores_BNTS, SMALLEST), axis=-1)\n"
        "    return jnp.where(may_attend, weights_BNTS, 0.0)",
        "capped = jnp.where(may_attend, scores_BNTS, SMALLEST)\n"
        "    return jax.nn.softmax(jnp.tanh(capped / 3) * 3, axis=-1)",
        GROUPED,
    ),
    "soft-cap forgotten in blocks": (
        "nn.attention_blockwise",
        "    if softcap:",
        "    if False:",
        ("twins", {"backend": "blockwise", "softcap": 2.0}),
    ),
    "dropout not rescaled": ("nn.dropout", "x / (1.0 - rate)", "x", ("dropout_mean", {})),
    "dropout at evaluation": (
        A,
        "drops = config.dropout_rate > 0 and not deterministic",
        "drops = config.dropout_rate > 0",
        ("evaluation", {}),
    ),
    "dropout after attention at evaluation": (
        "nn.blocks",
        "x = x + self.drop(out, deterministic)",
        "x = x + self.drop(out, False)",
        ("evaluation", {}),
    ),
    "T5's scale forgotten": (A, "scale=config.attention_scale,", "", ("settings", {})),
    "soft-cap setting forgotten": (A, "softcap=config.attention_softcap,", "", ("settings", {})),
    "window setting forgotten": (
        "nn.blocks",
        "layer_mask = mask.replace(window=kind.window)",
        "layer_mask = mask",
        ("sees_window", {}),
    ),
    # Fast paths
    "slices see a block too few": (
        "nn.attention_cpu",
        "num_keys = last if is_causal else S",
        "num_keys = first + 1 if is_causal else S",
        ("twins", {"backend": "xla"}),
    ),
    "slices lose the softmax's sum": (
        "nn.attention_cpu",
        "weights_RMS * (_product(d_out_RMH, v_block, 2, 2) - dot_RM1)",
        "weights_RMS * _product(d_out_RMH, v_block, 2, 2)",
        ("twins", {"backend": "xla"}),
    ),
    "blocks forget to shrink": (
        "nn.attention_blockwise",
        "out = out * shrink +",
        "out = out +",
        ("twins", {"backend": "blockwise"}),
    ),
    "blocks skip one too many": (
        "nn.attention_blockwise",
        "jnp.clip((first_key - mask.first_slot) // block_T, 0, num_blocks)",
        "jnp.clip((first_key - mask.first_slot) // block_T + 1, 0, num_blocks)",
        ("twins", {"backend": "blockwise"}),
    ),
    "blocks sum biases of one block": (
        "nn.attention_blockwise",
        "d_bias = jax.tree.map(jnp.add, d_bias, d_bias_block)",
        "d_bias = d_bias_block",
        ("bias_twins", {}),
    ),
    # Cache
    "cache slot off by one": ("nn.kv_cache", "(0, first_slot, 0)", "(0, first_slot + 1, 0)", ("cache", {})),
    "K and V swapped": (
        A,
        "return self.key_norm(self.key(source)), self.value(source)",
        "return self.value(source), self.key(source)",
        ("value_passes", {}),
    ),
    "padding counted as tokens": (
        "nn.kv_cache",
        "jnp.sum(is_token, axis=1, keepdims=True, dtype=jnp.int32)",
        "is_token.shape[1]",
        ("cache", {"positions": "learned"}),
    ),
    "beams keep their parents' cache": (
        "nn.kv_cache",
        "*x.shape[1:])[rows].reshape(len(rows) * each",
        "*x.shape[1:])[: len(rows)].reshape(len(rows) * each",
        ("reorder", {}),
    ),
    "beams see each other": ("nn.kv_cache_beams", "jnp.eye(W, dtype=bool)", "jnp.ones((W, W), bool)", ("beams", {})),
    "beams do not take over what they go on from": (
        "nn.kv_cache_beams",
        "self.on_path.reshape(B * W, S)[rows]",
        "self.on_path.reshape(B * W, S)",
        ("beams", {}),
    ),
    "beams count each other's tokens": (
        "nn.kv_cache_beams",
        "num_tokens=self.num_tokens + 1",
        "num_tokens=self.num_tokens + W",
        ("beams", {}),
    ),
    # Sampling
    "top-k keeps one more": (
        "sampling.logits_processors",
        "is_top_k(logits, self.k)",
        "is_top_k(logits, self.k + 1)",
        ("processors", {}),
    ),
    "top-k keeps all equals": (
        "sampling.logits_processors",
        "is_top_k(logits, self.k)",
        "logits >= jnp.min(jnp.where(is_top_k(logits, self.k), logits, jnp.inf), axis=1, keepdims=True)",
        ("processors", {}),
    ),
    "min-p leaves equals out": (
        "sampling.logits_processors",
        "ratio < self.p * (1 - TOLERANCE)",
        "ratio <= self.p",
        ("processors", {}),
    ),
    "top-p compares a rounded sum": (
        "sampling.logits_processors",
        "before < p * (1 - TOLERANCE)",
        "before < p",
        ("processors", {}),
    ),
    "temperature multiplies": (
        "sampling.logits_processors",
        "logits / self.value",
        "logits * self.value",
        ("processors", {}),
    ),
    "the largest of chunks out of order": (
        "sampling.top_k",
        "best = jnp.sort(jax.lax.top_k(jnp.max(chunks, axis=2), k)[1], axis=1)",
        "best = jax.lax.top_k(jnp.max(chunks, axis=2), k)[1]",
        ("processors", {}),
    ),
    "bisected top-k keeps all equals": (
        "sampling.top_k",
        "| (is_tie & (position < end))",
        "| is_tie",
        ("processors", {}),
    ),
    "bisected top-k takes negative numbers in the order of their bits": (
        "sampling.top_k",
        "bits ^= (bits >> 31) & 0x7FFFFFFF",
        "pass",
        ("processors", {}),
    ),
    "a token has the key of its index in the call": (
        "sampling.decode",
        "fold_in_index(params.keys, state.first_index + i)",
        "fold_in_index(params.keys, i)",
        ("decoding", {}),
    ),
    "the newest token is not read before a given turn": (
        "sampling.decode",
        "is_unread = state.cache.num_tokens - spec.num_virtual < lengths[:, None]",
        "is_unread = jnp.zeros(rows.shape, bool)",
        ("decoding", {}),
    ),
    "given tokens overwrite the newest one": (
        "sampling.decode",
        "positions = lengths[:, None] + jnp.arange(given.shape[1])",
        "positions = lengths[:, None] - 1 + jnp.arange(given.shape[1])",
        ("decoding", {}),
    ),
    "linear state not carried": (
        "nn.linear_attention",
        "state.keys + fk.sum(1), state.values + jnp",
        "state.keys + fk.sum(1), jnp",
        ("cache", {"attention": "linear", "positions": "learned"}),
    ),
    "linear attention sees ahead": (
        "nn.linear_attention",
        "is_visible = jnp.tril(jnp.ones((chunk, chunk)))",
        "is_visible = jnp.ones((chunk, chunk))",
        ("gpt", {"attention": "linear", "positions": "learned"}),
    ),
    # Positions
    "positions restart under left padding": (
        P,
        "jnp.cumsum(is_token, axis=1) - 1, 0)",
        "jnp.arange(is_token.shape[1])[None], 0)",
        ("gpt", {"positions": "learned"}),
    ),
    "rotary layouts confused": (
        P,
        "return x[..., 0::2], x[..., 1::2]",
        "return jnp.split(x, 2, axis=-1)",
        ("positions", {"positions": "rotary", "rope_layout": "pairs"}),
    ),
    "rotary turns one half": (P, "second * cos + first * sin", "second * cos", ("positions", {"positions": "rotary"})),
    "keys not turned": (A, "k = self.scheme.rotate(k, positions, config, self.layer_config)", "pass", ("shift", {})),
    "ALiBi rewards distance": (P, "return -jnp.asarray(slopes)", "return jnp.asarray(slopes)", ("alibi", {})),
    "ALiBi slopes in the wrong order": (
        P,
        "return slopes + between[: num_heads - below]",
        "return (slopes + between[: num_heads - below])[::-1]",
        ("alibi", {}),
    ),
    "bias for the wrong head": (
        P,
        "return jnp.moveaxis(table[bucket], -1, 1)",
        "return jnp.moveaxis(table[bucket], -1, 1)[:, ::-1]",
        ("t5", {}),
    ),
    "T5 buckets of the wrong sign": (
        P,
        "far = jnp.maximum(-distance, 0)",
        "far = jnp.maximum(distance, 0)",
        ("t5", {}),
    ),
    "Shaw: values forgotten": (
        A,
        '        out += jnp.einsum("BNTS,BTSH->BTNH", weights_BNTS, vectors_BTSH)',
        "        pass",
        ("shaw", {}),
    ),
    "positions run on across texts": (
        P,
        "return slot - jax.lax.cummax(jnp.where(is_first, slot, 0), axis=1)",
        "return slot",
        ("packing", {"positions": "learned"}),
    ),
    # Lines of text
    "a line ends at U+2028": ("lines", 'lines = text.split("\\n")', 'lines = [*text.splitlines(), ""]', ("lines", {})),
    "a line ends at a lone carriage return": (
        "lines",
        '.replace("\\r\\n", "\\n")',
        '.replace("\\r\\n", "\\n").replace("\\r", "\\n")',
        ("lines", {}),
    ),
    "carriage return left in a line": ("lines", '.replace("\\r\\n", "\\n")', "", ("lines", {})),
    "byte order mark left in a line": ("lines", '.removeprefix("\\ufeff")', "", ("lines", {})),
    "last line without its end forgotten": (
        "lines",
        "return lines if lines[-1] else lines[:-1]",
        "return lines[:-1]",
        ("lines", {}),
    ),
    "answer of two lines": ("lines", 'LINE_BREAKS.sub(" ", text)', "text", ("lines", {})),
    # Metadata of a checkpoint
    "lower case forgotten": ("checkpoints.meta", '"lowercase": self.lowercase', '"lowercase": False', ("metadata", {})),
    "unknown metadata read": (
        "checkpoints.meta",
        "if name not in names and name not in others:",
        "if False:",
        ("metadata", {}),
    ),
    "a copy under another number read": (
        "checkpoints.seal",
        "if type(step) is int and str(step) != folder.name:",
        "if False:",
        ("checkpoint_folders", {}),
    ),
    "hollow folder taken for a checkpoint": (
        "checkpoints.seal",
        "missing = [name for name in _NEEDED if name not in digests]",
        "missing = []",
        ("checkpoint_folders", {}),
    ),
    "deleted while it is read": (
        "checkpoints.lock",
        "fcntl.flock(fd, fcntl.LOCK_SH)",
        "pass",
        ("checkpoint_folders", {}),
    ),
    "seal not flushed": ("checkpoints.seal", "    flush_to_disk(seal)\n", "", ("checkpoint_folders", {})),
    "types of metadata unchecked": (
        "schema",
        "if type(value) is not expected:",
        "if not isinstance(value, expected):",
        ("metadata", {}),
    ),
    # Files and names of somebody else
    "written through a link": (
        "files",
        "os.replace(scratch, path)",
        "path.write_bytes(scratch.read_bytes())",
        ("files", {}),
    ),
    "scratch file through a link": ("files", 'open(scratch, "xb")', 'open(path, "wb")', ("files", {})),
    "names of files unchecked": ("files", "not isinstance(name, str) or name not in known", "False", ("files", {})),
    "control characters sent": ("errors", "if c.isprintable()", "if True", ("files", {})),
} | MUTANTS_OF_LAYERS
MUTANTS |= MUTANTS_OF_COSTS | MUTANTS_OF_TOKENIZERS
