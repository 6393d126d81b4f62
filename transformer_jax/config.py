"""TransformerConfig, the shape of a model; and the glossary of dimension letters.

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
from transformer_jax.schema import check_32_bits, setting


@dataclasses.dataclass(frozen=True)
class LayerConfig:
    """Settings of one layer that may differ from those of its neighbours: window, and positions in its attention."""

    window: int  # sliding window; 0: no window
    has_positions: bool  # False: no rotation, bias or relative vectors ("NoPE")
    rope_theta: float  # rotary: base of the wavelengths
    rope_scaling: str  # rotary: name of the scaling of the wavelengths


LAYER_KINDS = ("local", "global")
MAX_LAYERS = 10_000  # more would take hours to compile
NO_LIMIT = 2**20  # max_len of a pre-trained model whose positions have no end


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Shape of a Transformer. Zero means "derive it": after construction no such field is zero.

    Variants are names; each is looked up in the dict of the file that owns the idea
    (`layers.NORMS`, `layers.FEED_FORWARDS`, `positions.POSITIONS`), whose keys are the allowed names.
    """

    vocab_size: int = setting(0, "number of token ids, V; 0: the size of the tokenizer")
    max_len: int = setting(128, "longest sequence, in tokens (context length)")
    num_layers: int = setting(4, "number of blocks, L")
    d_model: int = setting(128, "width of the residual stream, D")
    num_heads: int = setting(4, "number of query heads, N")
    num_kv_heads: int = setting(0, "number of key-value heads, K; 0: num_heads; fewer: grouped-query attention")
    head_dim: int = setting(0, "width of a head, H; 0: d_model / num_heads")
    d_ff: int = setting(0, "feed-forward width, F; 0: 4 d_model (8/3 d_model in multiples of 8 where gated)")
    norm: str = setting(
        "layernorm", "layernorm | layernorm_no_bias | layernorm_no_parameters | rmsnorm | rmsnorm_plus_one"
    )
    norm_epsilon: float = setting(1e-5, "added to the variance before the square root")
    qk_norm: str = setting("none", "none | head | all: RMSNorm of queries and keys, of each head or of all together")
    feed_forward: str = setting("gelu", "relu | gelu | gelu_tanh | silu | squared_relu | swiglu | geglu | geglu_tanh")
    norm_placement: str = setting(
        "pre", "pre | post | sandwich | output | parallel | parallel_two: position of the norms in a block"
    )
    embed_norm: bool = setting(False, "norm after the embedding, as in BERT")
    positions: str = setting("learned", "none | learned | sinusoidal | rotary | t5 | alibi | shaw")
    position_offset: int = setting(0, "learned: unused rows before the first position; 2 in RoBERTa and BART")
    sinusoid_layout: str = setting("pairs", "sinusoidal: pairs (sine, cosine, sine ...) | halves (all sines first)")
    rope_theta: float = setting(10000.0, "rotary: base of the wavelengths")
    rotary_dim: int = setting(0, "rotary: how many numbers of a head are rotated, the first ones; 0: all of head_dim")
    rope_layout: str = setting(
        "halves", "rotary: which pairs of dimensions are rotated together: halves (GPT-NeoX, Llama) | pairs (GPT-J)"
    )
    rope_scaling: str = setting("none", "rotary: none | linear | dynamic | llama3 | yarn | longrope")
    rope_factor: float = setting(1.0, "rotary: factor by which scaling extends the context")
    rope_low_freq_factor: float = setting(
        1.0, "rotary, llama3, yarn (beta_slow): below this many turns per original context, a wavelength is stretched"
    )
    rope_high_freq_factor: float = setting(
        4.0, "rotary, llama3, yarn (beta_fast): above this many turns per original context, a wavelength is kept"
    )
    rope_original_max_len: int = setting(8192, "rotary, dynamic, llama3, yarn, longrope: context length before scaling")
    rope_attention_factor: float = setting(
        0.0, "rotary, yarn, longrope: factor of rotated queries and keys; 0: that of the paper, from rope_factor"
    )
    rope_truncate: bool = setting(True, "rotary, yarn: round the range of the stretched pairs to whole pairs")
    rope_short_factors: str = setting(
        "", "rotary, longrope: factor of each wavelength up to rope_original_max_len tokens, with commas between them"
    )
    rope_long_factors: str = setting("", "rotary, longrope: the same for longer texts")
    relative_buckets: int = setting(32, "t5: number of distance buckets")
    relative_max_distance: int = setting(128, "t5, shaw: all distances from here on are treated alike")
    attention: str = setting("softmax", "softmax | linear")
    backend: str = setting("auto", "auto | reference | xla | blockwise | cudnn: implementation of softmax attention")
    window: int = setting(0, "sliding window: keys at this distance and beyond are masked; 0: no window")
    layer_pattern: str = setting(
        "",
        "kinds of layers, local and global, with commas between them, repeated over the layers, such as "
        "local,local,local,global; empty: all layers are alike",
    )
    local_window: int = setting(0, "layer_pattern: sliding window of the local layers; global layers have none")
    local_rope_theta: float = setting(
        0.0, "layer_pattern, rotary: base of the wavelengths in local layers, unscaled; 0: as in global layers"
    )
    local_positions: bool = setting(True, "layer_pattern: attention of local layers has the positions of `positions`")
    global_positions: bool = setting(True, "layer_pattern: attention of global layers has the positions of `positions`")
    attention_scale: float = setting(0.0, "factor of the attention scores; 0: 1 / sqrt(head_dim); 1 in T5")
    attention_softcap: float = setting(0.0, "attention scores become cap * tanh(scores / cap); 0: no cap")
    qkv_bias: bool = setting(True, "queries, keys and values have a bias")
    out_bias: bool = setting(True, "the output projection of attention has a bias")
    mlp_bias: bool = setting(True, "the linear layers of the feed-forward part have a bias")
    scale_embeddings: bool = setting(False, "multiply embeddings by sqrt(d_model)")
    scale_logits: bool = setting(False, "divide activations by sqrt(d_model) before the output projection, as in T5")
    num_token_types: int = setting(0, "encoder: number of token types, as for BERT's two sentences; 0: none")
    tie_embeddings: bool = setting(True, "use the transposed embedding as output projection")
    logit_bias: bool = setting(False, "add a learned bias to the logits, as in BART and Marian")
    dropout_rate: float = setting(0.0, "probability of dropping an activation while training")
    logit_softcap: float = setting(0.0, "logits become cap * tanh(logits / cap); 0: no cap")
    init_std: float = setting(0.02, "standard deviation of the initial kernels and embeddings")
    zero_init: bool = setting(
        False, "initialize kernels that write to the residual stream with 0, so that a block starts as the identity"
    )
    dtype: str = setting("float32", "float32 | bfloat16: dtype of the computation; parameters stay float32")

    def __post_init__(self):
        self._check_numbers()
        self._derive()
        self._check_heads()
        self._check_positions()
        self._check_layers()
        self._check_choices()

    def _check_numbers(self) -> None:
        check_32_bits(self, "model.")
        if self.num_layers > MAX_LAYERS:
            raise UserError(f"model.num_layers={self.num_layers}: must be at most {MAX_LAYERS:,}.")
        if self.max_len + self.position_offset >= 2**31:
            raise UserError(f"model.position_offset={self.position_offset}: with max_len it must be below 2**31.")
        positive = ("max_len", "num_layers", "d_model", "num_heads", "rope_original_max_len", "relative_max_distance")
        for name in positive:
            if getattr(self, name) < 1:
                raise UserError(f"model.{name}={getattr(self, name)}: must be at least 1.")
        for name in ("norm_epsilon", "rope_theta", "rope_factor", "rope_low_freq_factor", "init_std"):
            if getattr(self, name) <= 0:
                raise UserError(f"model.{name}={getattr(self, name)}: must be above 0.")
        natural = ("vocab_size", "num_kv_heads", "head_dim", "d_ff", "window", "num_token_types", "attention_scale")
        for name in (*natural, "position_offset", "rotary_dim", "local_window", "local_rope_theta"):
            if getattr(self, name) < 0:
                raise UserError(f"model.{name}={getattr(self, name)}: must be 0 (derive it, or none) or more.")
        if self.rope_attention_factor < 0:
            raise UserError(f"model.rope_attention_factor={self.rope_attention_factor}: must be 0 (derive it) or more.")
        for name in ("logit_softcap", "attention_softcap"):
            if getattr(self, name) < 0:
                raise UserError(f"model.{name}={getattr(self, name)}: must be 0 (no cap) or more. Take 15 or 30.")
        if not 0 <= self.dropout_rate < 1:
            raise UserError(f"model.dropout_rate={self.dropout_rate}: must be at least 0 and below 1.")

    def _derive(self) -> None:
        """Replace the zeros that stand for a derived number."""
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

    def _check_heads(self) -> None:
        if self.num_heads % self.num_kv_heads:
            small = [k for k in range(1, math.isqrt(self.num_heads) + 1) if self.num_heads % k == 0]
            raise UserError(
                f"model.num_kv_heads={self.num_kv_heads}: must divide model.num_heads={self.num_heads}. "
                f"Take one of {sorted({*small, *(self.num_heads // k for k in small)})}."
            )

    def _check_positions(self) -> None:
        if self.rotary_dim % 2 or self.rotary_dim > self.head_dim:
            raise UserError(
                f"model.rotary_dim={self.rotary_dim}: must be even, since pairs of numbers are rotated, and at most "
                f"model.head_dim={self.head_dim}. Take {min(self.rotary_dim, self.head_dim) // 2 * 2}."
            )
        if self.positions == "rotary" and self.head_dim % 2 and not self.rotary_dim:
            raise UserError(
                f"model.head_dim={self.head_dim}: rotary positions rotate pairs of dimensions, so it must be even. "
                f"Take {self.head_dim + 1}, or other positions."
            )
        if self.rope_high_freq_factor <= self.rope_low_freq_factor:
            raise UserError(
                f"model.rope_high_freq_factor={self.rope_high_freq_factor}: must be above "
                f"model.rope_low_freq_factor={self.rope_low_freq_factor}. Llama 3 has 4 and 1."
            )
        self._check_rope_scaling()
        if self.positions == "t5" and not 4 <= self.relative_buckets < 2 * self.relative_max_distance:
            raise UserError(
                f"model.relative_buckets={self.relative_buckets}: must be at least 4 and below twice "
                f"model.relative_max_distance={self.relative_max_distance}. T5 has 32 and 128."
            )

    def _check_rope_scaling(self) -> None:
        num_pairs = (self.rotary_dim or self.head_dim) // 2
        scaling = f"with model.rope_scaling={self.rope_scaling!r}"
        if self.rope_scaling == "dynamic" and num_pairs < 2:
            raise UserError(f"model.head_dim={self.head_dim}: must be at least 4 {scaling}, as must model.rotary_dim.")
        if self.rope_scaling == "yarn" and self.rope_theta <= 1:
            raise UserError(f"model.rope_theta={self.rope_theta}: must be above 1 {scaling}. Take 10000.")
        for name in ("rope_short_factors", "rope_long_factors") if self.rope_scaling == "longrope" else ():
            text = getattr(self, name)
            try:
                are_positive = [0 < float(factor) < math.inf for factor in text.split(",")]
            except ValueError:
                are_positive = []
            if len(are_positive) != num_pairs or not all(are_positive):
                raise UserError(
                    f"model.{name}={text!r:.80}: must be {num_pairs} numbers above 0 {scaling}, one for each rotated "
                    "pair, with commas between them."
                )

    def _check_layers(self) -> None:
        if not self.layer_pattern:
            for field in dataclasses.fields(self):
                value = getattr(self, field.name)
                if field.name.startswith(("local_", "global_")) and value != field.default:
                    raise UserError(
                        f"model.{field.name}={value}: is read only with model.layer_pattern. Take {field.default}, or "
                        "a pattern such as 'local,global'."
                    )
            return
        kinds = self.layer_pattern.split(",")
        pattern = f"model.layer_pattern={self.layer_pattern!r:.80}"
        if len(kinds) > self.num_layers:
            raise UserError(f"{pattern}: has {len(kinds)} layers, but model.num_layers={self.num_layers}. Take more.")
        for kind in kinds:
            choose(dict.fromkeys(LAYER_KINDS), kind, "model.layer_pattern: kind")
        if len(set(kinds)) < 2:
            raise UserError(f"{pattern}: must have local and global layers. If all are alike, take model.window.")
        if self.window:
            raise UserError(
                f"model.window={self.window}: must be 0 with model.layer_pattern; local layers have model.local_window."
            )
        if not self.local_window:
            raise UserError(f"model.local_window=0: must be at least 1 with {pattern}.")

    def _check_choices(self) -> None:
        choices = {
            "attention": ("softmax", "linear"),
            "norm_placement": ("pre", "post", "sandwich", "output", "parallel", "parallel_two"),
            "qk_norm": ("none", "head", "all"),
            "dtype": ("float32", "bfloat16"),
        }
        for name, known in choices.items():
            choose(dict.fromkeys(known), getattr(self, name), f"model.{name}")

    def layer(self, i: int) -> LayerConfig:
        """Settings of layer i: those of its kind in `layer_pattern`, or those of every layer."""
        if self.layer_pattern.split(",")[i % self.layer_period] == "local":
            theta = self.local_rope_theta or self.rope_theta
            scaling = "none" if self.local_rope_theta else self.rope_scaling
            return LayerConfig(self.local_window, self.local_positions, theta, scaling)
        return LayerConfig(self.window, self.global_positions, self.rope_theta, self.rope_scaling)

    @property
    def layer_period(self) -> int:
        """Number of layers after which their kinds repeat; 1: all layers are alike."""
        return len(self.layer_pattern.split(","))

    @property
    def encoder(self) -> "TransformerConfig":
        """Config of the side that reads the source: this one; a Seq2SeqConfig has one for each side."""
        return self

    @property
    def decoder(self) -> "TransformerConfig":
        """Config of the side that generates: this one; a Seq2SeqConfig has one for each side."""
        return self
