"""What a model is made of, and the letters that its arrays are described with.

Dimension letters, the same in every file (they are jax.nn's own):

    B  batch                 N  query heads            D  model width (`d_model`)
    T  new / query length    K  key-value heads        F  feed-forward width (`d_ff`)
    S  key length (cache)    G  N // K, queries that   V  vocabulary
                                share one key head     L  layers
                             H  head width (`head_dim`)

T and S differ on purpose: a cached decode step has T = 1 and S = the cache's capacity.
Letters are for arrays; configuration fields are words.
"""

import dataclasses
import math

from transformer_jax.errors import UserError, choose
from transformer_jax.schema import setting


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The shape of a Transformer. Zero means "derive it": after construction no such field is zero.

    Variants are names; each is looked up in the dict of the file that owns the idea
    (`layers.NORMS`, `layers.FEED_FORWARDS`, `positions.POSITIONS`), which also says what is allowed.
    """

    vocab_size: int = setting(0, "token ids the model knows, V; 0: as many as the tokenizer has")
    max_len: int = setting(128, "longest sequence, in tokens: the context")
    num_layers: int = setting(4, "blocks, L")
    d_model: int = setting(128, "width of the residual stream, D")
    num_heads: int = setting(4, "query heads, N")
    num_kv_heads: int = setting(0, "key-value heads, K; 0: num_heads; fewer is grouped-query attention")
    head_dim: int = setting(0, "width of a head, H; 0: d_model / num_heads")
    d_ff: int = setting(0, "feed-forward width, F; 0: 4 d_model (8/3 d_model in multiples of 8 where gated)")
    norm: str = setting("layernorm", "layernorm | rmsnorm")
    norm_epsilon: float = setting(1e-5, "added to the variance before the square root")
    qk_norm: bool = setting(False, "RMSNorm of every query and key, a head at a time")
    feed_forward: str = setting("gelu", "relu | gelu | gelu_tanh | silu | squared_relu | swiglu | geglu | geglu_tanh")
    norm_placement: str = setting("pre", "pre | post | parallel: where the norms of a block stand")
    embed_norm: bool = setting(False, "a norm after the embedding, as BERT has")
    positions: str = setting("learned", "none | learned | sinusoidal | rotary | t5 | alibi | shaw")
    position_offset: int = setting(0, "learned: rows of the table before the first position; RoBERTa and BART have 2")
    sinusoid_layout: str = setting("pairs", "sinusoidal: pairs (sine, cosine, sine ...) | halves (all sines first)")
    rope_theta: float = setting(10000.0, "rotary: base of the wavelengths")
    rope_layout: str = setting("halves", "rotary: halves (GPT-NeoX, Llama) | pairs (GPT-J): what is turned together")
    rope_scaling: str = setting("none", "rotary: none | linear | llama3")
    rope_factor: float = setting(1.0, "rotary: how many times longer the context became by scaling")
    rope_low_freq_factor: float = setting(1.0, "rotary, llama3: waves with fewer turns in a context are stretched")
    rope_high_freq_factor: float = setting(4.0, "rotary, llama3: waves with more turns in a context stay")
    rope_original_max_len: int = setting(8192, "rotary, llama3: the context before it became longer")
    relative_buckets: int = setting(32, "t5: buckets of distances")
    relative_max_distance: int = setting(128, "t5, shaw: distances from here on are one")
    attention: str = setting("softmax", "softmax | linear")
    backend: str = setting("auto", "auto | reference | xla | blockwise | cudnn: how softmax attention is computed")
    window: int = setting(0, "keys at this distance and beyond are not seen; 0: all are")
    attention_scale: float = setting(0.0, "factor of the scores; 0: 1 / sqrt(head_dim); T5 has 1")
    attention_softcap: float = setting(0.0, "scores become cap * tanh(scores / cap); 0: they stay as they are")
    use_bias: bool = setting(True, "biases in the linear layers")
    scale_embeddings: bool = setting(False, "embeddings times sqrt(d_model) on the way in")
    scale_logits: bool = setting(False, "activations over sqrt(d_model) before the output projection, as T5 has")
    num_token_types: int = setting(0, "encoder: kinds of tokens, as BERT's two sentences; 0: none")
    tie_embeddings: bool = setting(True, "the output projection is the embedding, transposed")
    logit_bias: bool = setting(False, "a learned number is added to each logit, as BART and Marian have")
    dropout_rate: float = setting(0.0, "probability of dropping an activation while training")
    logit_softcap: float = setting(0.0, "logits become cap * tanh(logits / cap); 0: they stay as they are")
    init_std: float = setting(0.02, "standard deviation of the initial kernels and embeddings")
    zero_init: bool = setting(False, "kernels that write to the residual stream start at 0: a block does nothing")
    dtype: str = setting("float32", "float32 | bfloat16: type of the computation; parameters stay float32")

    def __post_init__(self):
        positive = ("max_len", "num_layers", "d_model", "num_heads", "rope_original_max_len", "relative_max_distance")
        for name in positive:
            if getattr(self, name) < 1:
                raise UserError(f"model.{name}={getattr(self, name)}: must be at least 1.")
        for name in ("norm_epsilon", "rope_theta", "rope_factor", "rope_low_freq_factor", "init_std"):
            if getattr(self, name) <= 0:
                raise UserError(f"model.{name}={getattr(self, name)}: must be above 0.")
        natural = ("vocab_size", "num_kv_heads", "head_dim", "d_ff", "window", "num_token_types", "attention_scale")
        for name in (*natural, "position_offset"):
            if getattr(self, name) < 0:
                raise UserError(f"model.{name}={getattr(self, name)}: must be 0 (derive it, or none) or more.")
        if not self.head_dim and self.d_model % self.num_heads:
            below = self.d_model // self.num_heads * self.num_heads
            near = " or ".join(str(width) for width in (below, below + self.num_heads) if width)
            raise UserError(
                f"model.d_model={self.d_model}: must be divisible by model.num_heads={self.num_heads}. "
                f"Take d_model {near}, or set model.head_dim."
            )
        derived_d_ff = 4 * self.d_model
        if "glu" in self.feed_forward:  # gated, a third kernel: 8/3 keeps the parameter count (Shazeer 2020, section 2)
            derived_d_ff = math.ceil(8 * self.d_model / 3 / 8) * 8
        derived = {
            "num_kv_heads": self.num_kv_heads or self.num_heads,
            "head_dim": self.head_dim or self.d_model // self.num_heads,
            "d_ff": self.d_ff or derived_d_ff,
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"model.num_kv_heads={self.num_kv_heads}: must divide model.num_heads={self.num_heads}. "
                f"Take one of {[k for k in range(1, self.num_heads + 1) if self.num_heads % k == 0]}."
            )
        if self.positions == "rotary" and self.head_dim % 2:
            raise UserError(
                f"model.head_dim={self.head_dim}: rotary positions turn pairs of numbers, so it must be even. "
                f"Take {self.head_dim + 1}, or other positions."
            )
        if self.rope_high_freq_factor <= self.rope_low_freq_factor:
            raise UserError(
                f"model.rope_high_freq_factor={self.rope_high_freq_factor}: must be above "
                f"model.rope_low_freq_factor={self.rope_low_freq_factor}. Llama 3 has 4 and 1."
            )
        if self.positions == "t5" and not 4 <= self.relative_buckets < 2 * self.relative_max_distance:
            raise UserError(
                f"model.relative_buckets={self.relative_buckets}: must be at least 4 and below twice "
                f"model.relative_max_distance={self.relative_max_distance}. T5 has 32 and 128."
            )
        for name in ("logit_softcap", "attention_softcap"):
            if getattr(self, name) < 0:
                raise UserError(f"model.{name}={getattr(self, name)}: must be 0 (no cap) or more. Take 15 or 30.")
        for name, known in (("attention", ("softmax", "linear")), ("norm_placement", ("pre", "post", "parallel"))):
            choose(dict.fromkeys(known), getattr(self, name), f"model.{name}")
        if not 0 <= self.dropout_rate < 1:
            raise UserError(f"model.dropout_rate={self.dropout_rate}: must be at least 0 and below 1.")
        if self.dtype not in ("float32", "bfloat16"):
            raise UserError(f"model.dtype={self.dtype!r}: unknown. Choose one of: float32, bfloat16.")

    @property
    def encoder(self) -> "TransformerConfig":
        """Config of the side that reads the source: this one; a Seq2SeqConfig has one for each side."""
        return self

    @property
    def decoder(self) -> "TransformerConfig":
        """Config of the side that writes: this one; a Seq2SeqConfig has one for each side."""
        return self
