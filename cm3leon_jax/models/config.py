"""The values of the transformer, and of the mesh it lies on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cm3leon_jax.config_part import AFTER_IMPORT, AT_RESUME, Layers, Part, require
from cm3leon_jax.ranges import NonNegative, OneOf, Positive, PositiveInt, Range


@dataclass(frozen=True)
class ModelConfig(Part):
    """The transformer (arXiv 2309.02591, section 2.3)."""

    num_layers: Layers = 24
    model_dim: PositiveInt = 1024
    num_heads: PositiveInt = 16
    # Heads of keys and values, each for a group of query heads (arXiv 2305.13245); None: num_heads.
    num_key_value_heads: PositiveInt | None = None
    # Width of a head; None: model_dim / num_heads.
    head_size: PositiveInt | None = None
    # None: four times model_dim.
    ffn_dim: PositiveInt | None = None
    # "gelu" is the exact one, "gelu_tanh" its usual approximation.
    activation: Annotated[str, OneOf("relu", "gelu", "gelu_tanh", "silu")] = "relu"
    # Multiplies the activation with a second matmul: with "silu", SwiGLU (arXiv 2002.05202, section 2).
    gated: bool = False
    # "layer", or "rms", which neither centers nor shifts (arXiv 1910.07467).
    norm: Annotated[str, OneOf("layer", "rms")] = "layer"
    # "layer" or "rms" normalizes every query and key head before the dot product, for stability at high learning rates
    # (arXiv 2302.05442, section 2.1); with one learned scale for all heads, or one per head (Chameleon,
    # arXiv 2405.09818, section 2.3).
    query_key_norm: Annotated[str, OneOf("none", "layer", "rms")] = "none"
    query_key_norm_per_head: bool = False
    # "xla" runs everywhere; "splash" is the fused one for TPUs, "tokamax" that for GPUs; "auto" takes the fused one
    # where there is one.
    attention: Annotated[str, OneOf("auto", "xla", "splash", "tokamax"), AT_RESUME] = "auto"
    # The paper has neither biases nor learned scales and shifts after its layer norms; OPT has both.
    biases: bool = False
    # Biases of the projections to queries, keys and values alone (Qwen2, arXiv 2407.10671, section 2.2).
    query_key_value_biases: bool = False
    norm_scale_and_bias: bool = False
    # Where the norm of each sublayer is: on its "input" (with a final norm after the last layer), on its "output"
    # before it is added (Chameleon-34B; a final norm, too), or on the "sum" (OPT-350M).
    norm_position: Annotated[str, OneOf("input", "output", "sum")] = "input"
    # Width of the token embeddings; None: model_dim. Others are projected to and from it (OPT-350M).
    embedding_dim: PositiveInt | None = None
    # Whether the embedding table is the LM head as well, as in the paper and in OPT.
    tied_embeddings: bool = True
    # "learned": a table of absolute positions, the paper's; "rotary": queries and keys are rotated by their position
    # (arXiv 2104.09864), which makes "one row up" the same step everywhere in an image; "learned+rotary": both.
    positions: Annotated[str, OneOf("learned", "rotary", "learned+rotary")] = "learned"
    # Adds a second position embedding: the raster position of the code that a token predicts. A code that moved to the
    # end of a masked document has lost its position otherwise. The paper has none.
    image_position_embedding: bool = False
    # Half of the rotary pairs are rotated by the image position instead (as in arXiv 2409.12191, section 2.1): so the
    # same position in two images is always the same distance, and copying from a neighbor is soon learned.
    rotary_image_positions: bool = False
    # Wavelengths of the rotary pairs go up to 2 pi times about this many tokens.
    rotary_base: Annotated[float, Range(above=1)] = 10_000.0
    # How they were stretched for rows longer than the first ones of pretraining: "linear", all of them (arXiv
    # 2306.15595); "llama3", those of pairs that turn seldom (Llama 3.1).
    rotary_scaling: Annotated[str, OneOf("none", "linear", "llama3")] = "none"
    # By how much.
    rotary_scaling_factor: Annotated[float, Range(at_least=1)] = 8.0
    # Of "llama3": a pair that turns around at most rotary_low_freq_factor times in rotary_original_length tokens has
    # the whole factor, one that does at least rotary_high_freq_factor times has none, others are in between.
    rotary_low_freq_factor: Positive = 1.0
    rotary_high_freq_factor: Positive = 4.0
    rotary_original_length: PositiveInt = 8192
    layer_norm_epsilon: Positive = 1e-5
    init_std: Annotated[NonNegative, AFTER_IMPORT] = 0.006
    position_init_std: Annotated[NonNegative, AFTER_IMPORT] = 0.0002
    # The type of activations; parameters are float32.
    compute_dtype: Annotated[str, OneOf("bfloat16", "float32"), AFTER_IMPORT] = "bfloat16"
    # What the backward pass computes again: "full", each layer from its input; "save_attention", all but attention,
    # whose inputs and output are kept; "save_dots", all but the matmuls; "none", nothing.
    remat: Annotated[str, OneOf("full", "save_attention", "save_dots", "none"), AT_RESUME] = "full"
    scan_layers: Annotated[bool, AT_RESUME] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            "rotary" not in self.positions or self.head_dim % 2 == 0,
            f"model.positions is {self.positions!r}, which rotates pairs, but a head is {self.head_dim} wide",
        )
        require(
            self.head_size is not None or self.model_dim % self.num_heads == 0,
            f"model.model_dim {self.model_dim} does not divide into model.num_heads {self.num_heads}",
        )
        require(
            not (self.biases and self.query_key_value_biases),
            "model.biases has those of model.query_key_value_biases, and others: set one of the two",
        )
        require(
            self.rotary_low_freq_factor < self.rotary_high_freq_factor,
            f"model.rotary_low_freq_factor {self.rotary_low_freq_factor:g} is not below model.rotary_high_freq_factor "
            f"{self.rotary_high_freq_factor:g}",
        )
        require(
            self.num_heads % self.key_value_heads == 0,
            f"model.num_heads {self.num_heads} does not divide into model.num_key_value_heads {self.key_value_heads}",
        )
        require(
            self.query_key_norm != "none" or not self.query_key_norm_per_head,
            "model.query_key_norm_per_head needs model.query_key_norm: set it to 'layer' or 'rms'",
        )
        require(
            not self.rotary_image_positions or ("rotary" in self.positions and self.image_position_embedding),
            "model.rotary_image_positions rotates by image position: it needs rotary positions and "
            "model.image_position_embedding",
        )

    @property
    def head_dim(self) -> int:
        return self.head_size or self.model_dim // self.num_heads

    @property
    def key_value_heads(self) -> int:
        return self.num_key_value_heads or self.num_heads

    @property
    def hidden_dim(self) -> int:
        """Width of the feed-forward layer."""
        return self.ffn_dim or 4 * self.model_dim

    @property
    def token_dim(self) -> int:
        """Width of the token embeddings."""
        return self.embedding_dim or self.model_dim


@dataclass(frozen=True)
class MeshConfig(Part):
    """The size of each mesh axis; one of them may be -1, which takes the devices that are left."""

    # Copies of the parameters; None: one per slice, or more where the topology needs them (models/sharding.py).
    replica: Annotated[int, Range(at_least=1, other=-1)] | None = None
    # Devices with different data over which each copy is sharded.
    fsdp: Annotated[int, Range(at_least=1, other=-1)] = -1
    # Devices with the same data over which the work of each layer is sharded.
    tensor: Annotated[int, Range(at_least=1, other=-1)] = 1
