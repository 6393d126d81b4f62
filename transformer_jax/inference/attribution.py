"""Direct logit attribution: the parts of the residual stream, heads included, that wrote the logit of a token."""

import jax
import numpy as np

from transformer_jax.config import TransformerConfig
from transformer_jax.errors import UserError
from transformer_jax.inference.capture import Texts, read_inputs
from transformer_jax.inference.recording import Side, forward, sides
from transformer_jax.inference.texts import check_position, token_id
from transformer_jax.models import GPT, Params
from transformer_jax.nn.blocks import NORM_PLACEMENTS
from transformer_jax.run import Run, merge_adapter


def direct_logit_attribution(
    run: Run, text: Texts, token: str | int | None = None, *, target: Texts | None = None, position: int = -1
) -> dict[str, float]:
    """Direct logit attribution: what each part of a model added to a logit. Elhage et al. 2021, "Logits".

    The parts are the embedding, each attention head, the feed-forward layers and the biases: all that is added to the
    residual stream. Every norm on the way is a linear function of its input once its mean and root mean square are
    known, so each part passes through it alone, and the numbers sum to the logit.

    Args:
      text: one text, or token ids [1, T]; the source of a Seq2Seq. target: for a Seq2Seq only.
      token: whose logit, a string that is one token or an id; None: the most likely one.
      position: of the logit, -1: the last.
    Returns:
      Logit by part: "embed", "block_0/attention/head_3", "block_0/attention/bias", "block_0/feed_forward" and so on;
      "bias" is that of the norms and of the logits. With a soft-cap, they sum to the logit before it.
    Raises:
      UserError: a model whose head is not linear, int8 weights, several texts; as `capture`.
    """
    model = run.model
    if not (isinstance(model, GPT) or model.reads_source):
        raise UserError(f"run: is a {type(model).__name__}, whose head is no linear layer. Take a GPT or a Seq2Seq.")
    if any(leaf.dtype == "int8" for leaf in jax.tree.leaves(run.params)):
        raise UserError("run: has int8 weights, whose products are no sums of parts. Take the run before tj.quantize.")
    run = merge_adapter(run)
    side = sides(model)[-1]
    params = run.params["decoder"] if model.reads_source else run.params
    inputs = read_inputs(run, text, target)
    if len(inputs.tokens) != 1:
        raise UserError(f"text: {len(inputs.tokens)} of them, and an attribution is of one. Give one text.")
    blocks = [f"{side.prefix}block_{i}" for i in range(side.config.num_layers)]
    names = [f"{side.prefix}embed", *(f"{block}/feed_forward/out" for block in blocks)]
    names += [f"{block}/{part}/heads" for block in blocks for part in side.attentions]
    out, recorded = forward(model, tuple(names), (), run.variables, inputs.args, {})
    position = check_position(position, out.shape[1])
    row = {name.removeprefix(side.prefix): np.asarray(x[0, position], np.float64) for name, x in recorded.items()}
    chosen = int(out[0, position].argmax()) if token is None else token_id(run, "token", token)
    weights, bias = _unembedding(run, params, side.config, chosen)
    logits = {name: float(part @ weights) for name, part in _residual_parts(side, params, row).items()}
    return logits | {"bias": logits["bias"] + bias}


class _Stream:
    """Residual stream at one position as a sum of named parts, each float64 [D]; "bias" is that of all norms."""

    def __init__(self, embed: np.ndarray):
        self.parts = {"embed": embed, "bias": np.zeros_like(embed)}

    def norm(self, config: TransformerConfig, params: Params) -> None:
        """Pass each part through a norm of the sum."""
        self.parts, bias = _norm_parts(config, params, self.parts)
        self.parts["bias"] = self.parts["bias"] + bias


def _residual_parts(side: Side, params: Params, row: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Parts of the final activations at one position, float64 [D] each, from what was recorded there."""
    config = side.config
    placement = NORM_PLACEMENTS[config.norm_placement]
    stream = _Stream(row["embed"])
    for i in range(config.num_layers):
        block = params["stack"][f"block_{i}"]
        for part in side.attentions:
            name = f"block_{i}/{part}"
            written = _head_parts(name, block[part]["out"], row[f"{name}/heads"])
            if placement.of_output:
                written, bias = _norm_parts(config, block.get(f"{part}_out_norm", {}), written)
                written[f"{name}/bias"] = written.get(f"{name}/bias", 0.0) + bias
            stream.parts |= written
            if placement.of_sum:
                stream.norm(config, block.get(f"{part}_norm", {}))
        stream.parts[f"block_{i}/feed_forward"] = row[f"block_{i}/feed_forward/out"]
        if placement.of_sum:
            stream.norm(config, block.get("feed_forward_norm", {}))
    if config.norm_placement != "post":
        stream.norm(config, params["stack"].get("norm", {}))
    return stream.parts


def _head_parts(name: str, params: Params, heads: np.ndarray) -> dict[str, np.ndarray]:
    """Vectors that each head [N, H] writes by the output projection, and its bias."""
    written = np.einsum("NH,NHD->ND", heads, np.asarray(params["kernel"], np.float64))
    parts = {f"{name}/head_{n}": row for n, row in enumerate(written)}
    return parts | ({f"{name}/bias": np.asarray(params["bias"], np.float64)} if "bias" in params else {})


def _norm_parts(
    config: TransformerConfig, params: Params, parts: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Each part of a sum after the norm of the sum, as far as it is linear, and the bias of the norm."""
    stacked = np.stack(list(parts.values()))
    if config.norm.startswith("layernorm"):
        stacked = stacked - stacked.mean(-1, keepdims=True)
    scale = np.asarray(params.get("scale", 1.0), np.float64) + (config.norm == "rmsnorm_plus_one")
    factor = scale / np.sqrt(np.mean(np.square(stacked.sum(0))) + config.norm_epsilon)
    bias = np.broadcast_to(np.asarray(params.get("bias", 0.0), np.float64), stacked.shape[-1:])
    return dict(zip(parts, stacked * factor, strict=True)), bias


def _unembedding(run: Run, params: Params, config: TransformerConfig, token: int) -> tuple[np.ndarray, float]:
    """Weights [D] and bias of a token's logit, without soft-cap."""
    embed = params.get("embed", {})  # a Seq2Seq with one table for both sides may have nothing there
    if config.tie_embeddings:
        table = run.params["shared"] if "shared" in run.params else embed["tokens"]
        weights = table["embedding"][token]
    else:
        weights = embed["unembed"]["kernel"][:, token]
    factor = config.d_model**-0.5 if config.scale_logits else 1.0
    bias = float(embed["logit_bias"][token]) if config.logit_bias else 0.0
    return np.asarray(weights, np.float64) * factor, bias
