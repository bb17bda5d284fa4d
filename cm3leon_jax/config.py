"""Every value that a run can set: one typed dataclass a part, with its meaning and default.

A config file (`configs/NAME.py`) names only what differs from these defaults; `config_file.py` reads it. The defaults
are the paper's 350M model (arXiv 2309.02591, Table 3) with its 256-pixel image tokenizer. In a path, `{workdir}` stands
for the folder given with `--workdir`. The type of a number says its range (`ranges.py`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated

from cm3leon_jax.data.sources.folder_config import FolderConfig
from cm3leon_jax.errors import UserError
from cm3leon_jax.paths import IsPath, LocalPath, OptionalPath
from cm3leon_jax.ranges import (
    Decay,
    Finite,
    Fraction,
    NonNegative,
    NonNegativeInt,
    Positive,
    PositiveInt,
    Range,
    Seed,
    first_fault,
)

_YEAR = 365 * 86_400
# Layers that are built one after the other, and ids that each get a name: more of them only look like a program that
# hangs, or one that runs out of memory.
Layers = Annotated[int, Range(at_least=1, at_most=10_000)]
Names = Annotated[int, Range(at_least=1, at_most=1 << 22)]


class Part:
    """A part of the config, each number of which lies in the range that its type says."""

    def __post_init__(self) -> None:
        if fault := first_fault(self):
            raise UserError(f"config.{self.name_in_config()}.{fault}")

    @classmethod
    def name_in_config(cls) -> str:
        """The name of the field of `Config` that holds it, such as "image_tokenizer" for ImageTokenizerConfig."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__.removesuffix("Config")).lower()


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(f"config.{message}")


def _one_of(part: str, values: object, name: str, *choices: str) -> None:
    value, listed = getattr(values, name), [repr(choice) for choice in choices]
    _require(value in choices, f"{part}.{name} is {value!r}: {', '.join(listed[:-1])} or {listed[-1]}")


@dataclass(frozen=True)
class CorpusConfig(Part):
    """What is prepared, from where, to where."""

    path: LocalPath = "{workdir}/corpus"
    # A registered seqio Task or Mixture, and the modules whose import registers it; or `folder:PATH` or `tfds:BUILDER`.
    mixture: Annotated[str, IsPath(behind="folder:")] = ""
    modules: tuple[str, ...] = ("cm3leon_jax.data.tasks",)
    train_split: str = "train"
    held_out_split: str = "validation"
    # Examples of a task and split that make a shard, so that each can be written without those before it: by several
    # processes, or after an interruption. With captioned pictures of 1,024 codes these are about 140 million tokens.
    examples_per_shard: PositiveInt = 1 << 17
    # Pictures encoded in one call of the image tokenizer.
    encode_batch_size: PositiveInt = 128
    # Original pictures kept beside each split, to be looked at.
    num_sample_pictures: NonNegativeInt = 32
    # Most of a task's documents that may be skipped because something is odd about them, as a fraction of all.
    max_skipped_fraction: Fraction = 0.1
    # How a folder is read, where the mixture is one.
    folder: FolderConfig = field(default_factory=FolderConfig)


@dataclass(frozen=True)
class VocabularyConfig(Part):
    """The text side of the id space; the number of image codes is the image tokenizer's."""

    path: LocalPath = "{workdir}/vocabulary"
    num_text_tokens: Annotated[int, Range(at_least=256, at_most=1 << 22)] = 56320
    num_masks: Names = 512
    # Documents of the training split from which the BPE is learned.
    num_documents: PositiveInt = 1_000_000


@dataclass(frozen=True)
class ImageTokenizerConfig(Part):
    """The VQGAN: pixels <-> codes (the paper's: 256 pixels, factor 8, 1,024 codes out of 8,192)."""

    path: LocalPath = "{workdir}/image_tokenizer"
    resolution: PositiveInt = 256
    in_channels: Annotated[int, Range(at_least=1, at_most=3)] = 3
    base_channels: PositiveInt = 128
    # One entry a level; each level but the last halves the side.
    channel_multipliers: tuple[PositiveInt, ...] = (1, 1, 2, 4)
    num_res_blocks: Annotated[int, Range(at_least=0, at_most=10_000)] = 2
    # Sides of the feature map at which residual blocks are followed by attention.
    attention_resolutions: tuple[PositiveInt, ...] = ()
    # The two blocks and the attention at the lowest resolution. Without them a code describes its own place alone,
    # which a small transformer on a small corpus learns far sooner than codes that each hold a share of all of it.
    mid_block: bool = True
    # Most groups of a group normalisation; small widths want fewer, since a group of one channel loses its mean.
    norm_groups: PositiveInt = 32
    latent_channels: PositiveInt = 256
    embedding_dim: PositiveInt = 256
    codebook_size: Names = 8192

    def __post_init__(self) -> None:
        super().__post_init__()
        levels = len(self.channel_multipliers)
        _require(1 <= levels <= 16, f"image_tokenizer.channel_multipliers has {levels} entries: one a level, 1 to 16")
        _require(
            self.resolution % self.factor == 0,
            f"image_tokenizer.resolution {self.resolution} is not a multiple of the factor {self.factor}, "
            f"which follows from {levels} channel_multipliers",
        )
        _require(self.in_channels in (1, 3), f"image_tokenizer.in_channels is {self.in_channels}: 1 (grey) or 3 (RGB)")

    @property
    def factor(self) -> int:
        """Pixels a code covers, along one side."""
        return 2 ** (len(self.channel_multipliers) - 1)

    @property
    def grid(self) -> int:
        """Codes along one side of a picture."""
        return self.resolution // self.factor

    @property
    def image_length(self) -> int:
        """Codes of one picture."""
        return self.grid**2


@dataclass(frozen=True)
class ImageTokenizerTrainingConfig(Part):
    """How the VQGAN is trained (Esser et al., arXiv 2012.09841; Gafni et al., arXiv 2203.13131)."""

    # Pictures drawn from the mixture's training split, kept as one memory-mapped file; 0 means all.
    num_images: NonNegativeInt = 1_000_000
    num_steps: PositiveInt = 800_000
    batch_size: PositiveInt = 192
    learning_rate: NonNegative = 4.5e-6
    warmup_steps: NonNegativeInt = 0
    # The last step's rate, as a share of the peak; the fall after the warm-up is linear.
    final_learning_rate_share: Fraction = 1.0
    beta1: Decay = 0.5
    beta2: Decay = 0.9
    # "gradient" moves the codebook by its own loss, "ema" by a running mean of what falls on each code.
    codebook_update: str = "gradient"
    ema_decay: Decay = 0.99
    codebook_weight: NonNegative = 1.0
    commitment_weight: NonNegative = 0.25
    # A code that was used less than this often (running mean, uses a step) is put on an encoder output of the batch.
    dead_code_threshold: NonNegative = 0.01
    # Steps between two looks for such codes; 0 never moves them.
    dead_code_every: NonNegativeInt = 100
    # 0 leaves the term out. LPIPS needs weights: a safetensors file of VGG16 and the LPIPS linear layers.
    perceptual_weight: NonNegative = 0.0
    perceptual_weights_file: OptionalPath = ""
    discriminator_weight: NonNegative = 0.8
    discriminator_start: NonNegativeInt = 250_000
    discriminator_channels: PositiveInt = 64
    discriminator_layers: Annotated[int, Range(at_least=1, at_most=16)] = 3
    # Random horizontal flips; wrong for pictures of text or digits.
    flip: bool = False
    log_every: PositiveInt = 100
    save_every: PositiveInt = 5000
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of("image_tokenizer_training", self, "codebook_update", "gradient", "ema")
        _require(
            self.perceptual_weight == 0 or bool(self.perceptual_weights_file),
            "image_tokenizer_training.perceptual_weight is set but perceptual_weights_file is empty: "
            "name a safetensors file, or set the weight to 0",
        )


@dataclass(frozen=True)
class BiEncoderConfig(Part):
    """What makes vectors of texts and pictures, by which neighbours are found (CLIP ViT-B/32 in the paper).

    The shapes are those of an encoder that is made here; one that was imported keeps its own.
    """

    path: LocalPath = "{workdir}/bi_encoder"
    # "clip": two transformers into one space (arXiv 2103.00020), trained on the mixture or imported. "tfidf": word
    # statistics and a thumbnail, for a corpus where nothing is trained yet; of the fields below it has `embedding_dim`
    # and `resolution`, the thumbnail's side.
    kind: str = "clip"
    embedding_dim: PositiveInt = 512
    resolution: PositiveInt = 224
    patch_size: PositiveInt = 32
    image_layers: Layers = 12
    image_dim: PositiveInt = 768
    image_heads: PositiveInt = 12
    max_text_tokens: Annotated[int, Range(at_least=3)] = 77
    text_layers: Layers = 12
    text_dim: PositiveInt = 512
    text_heads: PositiveInt = 8
    # "gelu", or the cheaper "quick_gelu" of the first published weights.
    activation: str = "quick_gelu"

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of("bi_encoder", self, "kind", "clip", "tfidf")
        _one_of("bi_encoder", self, "activation", "gelu", "quick_gelu")
        if self.kind == "tfidf":
            _require(
                3 * self.resolution**2 < self.embedding_dim,
                f"bi_encoder.resolution {self.resolution} makes a thumbnail of {3 * self.resolution**2} colours, which "
                f"leaves no room for text in bi_encoder.embedding_dim {self.embedding_dim}",
            )
            return
        _require(
            self.resolution % self.patch_size == 0,
            f"bi_encoder.resolution {self.resolution} is not a multiple of bi_encoder.patch_size {self.patch_size}",
        )
        for tower in ("image", "text"):
            dim, heads = getattr(self, f"{tower}_dim"), getattr(self, f"{tower}_heads")
            _require(
                dim % heads == 0, f"bi_encoder.{tower}_dim {dim} does not divide into bi_encoder.{tower}_heads {heads}"
            )


@dataclass(frozen=True)
class BiEncoderTrainingConfig(Part):
    """How the bi-encoder learns from the mixture's captioned pictures (arXiv 2103.00020, section 2 and table 19)."""

    # Pairs of a text and a picture, drawn from the mixture's training split; 0 means all.
    num_pairs: NonNegativeInt = 1_000_000
    num_steps: PositiveInt = 10_000
    # Every pair of a batch is held against every other, over all devices.
    batch_size: Annotated[int, Range(at_least=2)] = 4096
    peak_learning_rate: NonNegative = 5e-4
    warmup_steps: NonNegativeInt = 500
    beta1: Decay = 0.9
    beta2: Decay = 0.98
    epsilon: Positive = 1e-6
    weight_decay: NonNegative = 0.2
    initial_temperature: Positive = 0.07
    lowest_temperature: Positive = 0.01
    log_every: PositiveInt = 10
    save_every: PositiveInt = 1000
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            self.lowest_temperature <= self.initial_temperature,
            f"bi_encoder_training.lowest_temperature is {self.lowest_temperature}: at most initial_temperature, which "
            f"is {self.initial_temperature}",
        )


@dataclass(frozen=True)
class RetrievalConfig(Part):
    """Which documents stand in front of a document (arXiv 2309.02591, section 2.1.2; arXiv 2211.12561)."""

    # `prepare` finds the neighbours of every document, and `train` puts them in front.
    enabled: bool = False
    # Neighbours kept of a document: found by its text, and found by its pictures.
    num_by_text: NonNegativeInt = 2
    num_by_image: NonNegativeInt = 2
    # Share of the query's text tokens, and of its pictures' patches, that is left out for the search.
    query_dropout: Decay = 0.2
    # No neighbour is more like the document, or like a neighbour that was taken already, than this; and none scores
    # less than this with the query: rather none at all.
    max_score: Finite = 0.9
    min_score: Finite = 0.0
    # Whether only documents with text and picture can be neighbours.
    both_modalities: bool = True
    # Tasks whose training documents can be neighbours; none named means all.
    memory_tasks: tuple[str, ...] = ()
    # Documents searched for each query, among which the neighbours are chosen.
    num_candidates: PositiveInt = 64
    # "exact", or "approximate": what lies among the best is found with this probability, on a TPU in less time.
    search: str = "exact"
    search_recall: Annotated[float, Range(above=0, at_most=1)] = 0.95
    # Neighbours that a training document gets, drawn from those kept: "fixed" is this many, or all there are; "uniform"
    # is 0 to this many, each as often.
    num_drawn: NonNegativeInt = 3
    draw: str = "fixed"
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of("retrieval", self, "search", "exact", "approximate")
        _one_of("retrieval", self, "draw", "fixed", "uniform")
        most = max(self.num_by_text, self.num_by_image)
        _require(
            self.num_candidates >= most,
            f"retrieval.num_candidates is {self.num_candidates}: at least the {most} neighbours to be kept",
        )
        _require(
            self.num_drawn <= self.num_kept,
            f"retrieval.num_drawn is {self.num_drawn}: at most num_by_text + num_by_image, which are {self.num_kept}",
        )

    @property
    def num_kept(self) -> int:
        """Neighbours kept of a document."""
        return self.num_by_text + self.num_by_image


@dataclass(frozen=True)
class ObjectiveConfig(Part):
    """The CM3 objective (arXiv 2201.07520, section 2; arXiv 2309.02591, section 2.2)."""

    # "poisson": the number of masks is Poisson(mean_spans); "fixed": exactly mean_spans; "none": plain left to right.
    span_count: str = "poisson"
    mean_spans: Positive = 1.0
    max_spans: PositiveInt = 16
    # Share of the masked documents in which whole segments (a caption, a picture) are masked instead of random spans.
    # Random spans almost never cover a whole caption (1 in 20,000), so without this share neither the unconditional
    # stream of guidance (`<mask:0> <break> image`) nor captioning by infill would be trained. At a half, a captioned
    # picture loses its whole caption 16% of the time, about the drop rate of classifier-free guidance elsewhere, and
    # the other half keeps training infill inside pictures.
    whole_segment_share: Fraction = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of("objective", self, "span_count", "poisson", "fixed", "none")
        _require(
            self.span_count != "fixed" or self.mean_spans.is_integer(),
            f"objective.mean_spans is {self.mean_spans}: a whole number where span_count is 'fixed'",
        )


@dataclass(frozen=True)
class BatchConfig(Part):
    """The training batch."""

    # Sequences over all devices, and tokens in each.
    batch_size: PositiveInt = 2048
    sequence_length: PositiveInt = 4096
    # "whole": whole documents side by side, attention stays inside each; "stream": the paper's way, one stream of
    # documents cut anywhere, attention over all of the block.
    packing: str = "whole"
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of("batch", self, "packing", "whole", "stream")


@dataclass(frozen=True)
class ModelConfig(Part):
    """The transformer (arXiv 2309.02591, section 2.3)."""

    num_layers: Layers = 24
    model_dim: PositiveInt = 1024
    num_heads: PositiveInt = 16
    # Heads of keys and values, each for a group of query heads (arXiv 2305.13245); 0: num_heads.
    num_key_value_heads: NonNegativeInt = 0
    # 0: four times model_dim.
    ffn_dim: NonNegativeInt = 0
    # "gelu" is the exact one, "gelu_tanh" its usual approximation.
    activation: str = "relu"
    # A second product beside the activated one, multiplied with it: with "silu", SwiGLU (arXiv 2002.05202, section 2).
    gated: bool = False
    # "layer", or "rms", which neither centres nor shifts (arXiv 1910.07467).
    norm: str = "layer"
    # "layer" or "rms" normalizes every query and key head before their product, for stability at high learning rates
    # (arXiv 2302.05442, section 2.1); with one learned scale for all heads, or one per head (Chameleon,
    # arXiv 2405.09818, section 2.3).
    query_key_norm: str = "none"
    query_key_norm_per_head: bool = False
    # "xla" runs everywhere; "splash" is the fused one for TPUs, "tokamax" that for GPUs; "auto" takes the fused one
    # where there is one.
    attention: str = "auto"
    # The paper has neither biases nor learned scales and shifts after its layer norms; OPT has both.
    biases: bool = False
    affine_norms: bool = False
    # Where the norm of each sublayer is: on its "input" (with a final norm after the last layer), on its "output"
    # before it is added (Chameleon-34B; a final norm, too), or on the "sum" (OPT-350M).
    norm_position: str = "input"
    # Width of the token embeddings; 0: model_dim. Others are projected to and from it (OPT-350M).
    embedding_dim: NonNegativeInt = 0
    # Whether the embedding table is the output layer's as well, as in the paper and in OPT.
    tied_embeddings: bool = True
    # "learned": a table of absolute positions, the paper's; "rotary": queries and keys are turned by their position
    # (arXiv 2104.09864), which makes "one row up" the same step everywhere in a picture; "learned+rotary": both.
    positions: str = "learned"
    # A second table: the place in its picture that follows a code or a mark. A code that moved to the end of a masked
    # document has lost its place otherwise. 0 leaves it out, as the paper does; else the codes of one picture.
    picture_places: NonNegativeInt = 0
    # Half of what rotary positions turn goes by the place in the picture instead (as in arXiv 2409.12191, section 2.1):
    # so the same place of two pictures is always the same distance, and copying from a neighbour is soon learned.
    rotary_pictures: bool = False
    # Wavelengths of the rotary pairs go up to 2 pi times about this many tokens.
    rotary_base: Annotated[float, Range(above=1)] = 10_000.0
    layer_norm_epsilon: Positive = 1e-5
    init_std: NonNegative = 0.006
    position_init_std: NonNegative = 0.0002
    # The type of activations; parameters are float32.
    compute_dtype: str = "bfloat16"
    # What the backward pass computes again: "full", each layer from its input; "save_attention", all but attention,
    # whose inputs and output are kept; "save_dots", all but the matrix products; "none", nothing.
    remat: str = "full"
    scan_layers: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            "rotary" not in self.positions or self.head_dim % 2 == 0,
            f"model.positions is {self.positions!r}, which turns pairs, but a head is {self.head_dim} wide",
        )
        _require(
            self.model_dim % self.num_heads == 0,
            f"model.model_dim {self.model_dim} does not divide into model.num_heads {self.num_heads}",
        )
        _require(
            self.num_heads % self.key_value_heads == 0,
            f"model.num_heads {self.num_heads} does not divide into model.num_key_value_heads {self.key_value_heads}",
        )
        _one_of("model", self, "activation", "relu", "gelu", "gelu_tanh", "silu")
        _one_of("model", self, "norm", "layer", "rms")
        _one_of("model", self, "attention", "auto", "xla", "splash", "tokamax")
        _one_of("model", self, "norm_position", "input", "output", "sum")
        _one_of("model", self, "query_key_norm", "none", "layer", "rms")
        _require(
            self.query_key_norm != "none" or not self.query_key_norm_per_head,
            "model.query_key_norm_per_head needs model.query_key_norm: set it to 'layer' or 'rms'",
        )
        _one_of("model", self, "positions", "learned", "rotary", "learned+rotary")
        _require(
            not self.rotary_pictures or ("rotary" in self.positions and self.picture_places > 0),
            "model.rotary_pictures turns by picture places: it needs rotary model.positions and model.picture_places",
        )
        _one_of("model", self, "remat", "full", "save_attention", "save_dots", "none")
        _one_of("model", self, "compute_dtype", "bfloat16", "float32")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.model_dim // self.num_heads

    @property
    def key_value_heads(self) -> int:
        """Heads of keys and values."""
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
    """How many ways each mesh axis splits; one of them may be -1, which takes the devices that are left."""

    # Copies of the parameters; 0: one a slice, or as many more as the topology needs (model/sharding.py says when).
    replica: Annotated[int, Range(at_least=-1)] = 0
    # Ways in which each copy is shared out, over devices with different data.
    fsdp: Annotated[int, Range(at_least=1, other=-1)] = -1
    # Ways in which the work of each layer is shared out, over devices with the same data.
    tensor: Annotated[int, Range(at_least=1, other=-1)] = 1


@dataclass(frozen=True)
class DistributedConfig(Part):
    """When the processes of a run give each other up, in seconds; they then exit with 75 and can be started again."""

    # Until the last of them must have been started.
    initialization_seconds: Annotated[int, Range(at_least=1, at_most=_YEAR)] = 300
    # Without a sign of life of a process: it was killed or stopped, or its host is gone.
    heartbeat_seconds: Annotated[int, Range(at_least=1, at_most=_YEAR)] = 60
    # Without a finished training step, saving and evaluation included: something hangs; 0: never.
    stall_seconds: Annotated[float, Range(at_least=0, at_most=_YEAR)] = 1200.0


@dataclass(frozen=True)
class RecoveryConfig(Part):
    """What a run does about a step that would harm it: one with a loss or gradient norm that is not finite or leaps."""

    # A step whose gradient norm is this many times the running mean of those before is left out; 0: only what is not
    # finite is.
    spike_factor: Annotated[float, Range(above=1, other=0)] = 10.0
    # After this many in a row the run goes back to its last checkpoint before them, and passes their batches by.
    max_skipped: PositiveInt = 10
    # Times that it goes back before it stops for good.
    max_rollbacks: NonNegativeInt = 3


@dataclass(frozen=True)
class OptimizerConfig(Part):
    """AdamW with warm-up and linear decay (the paper names rate and warm-up; the rest is OPT's, arXiv 2205.01068)."""

    peak_learning_rate: NonNegative = 6e-4
    warmup_steps: NonNegativeInt = 1500
    # The last step's rate, as a share of the peak.
    final_learning_rate_share: Fraction = 0.1
    beta1: Decay = 0.9
    beta2: Decay = 0.95
    epsilon: Positive = 1e-8
    weight_decay: NonNegative = 0.1
    # A gradient of a larger norm is scaled down to this one; 0 leaves all gradients as they are.
    clip_norm: NonNegative = 1.0


@dataclass(frozen=True)
class TrainConfig(Part):
    """How long to train, and what to leave behind."""

    # The run ends at the step that takes it to this many tokens (batch_size * sequence_length a step). It may change
    # when a run goes on, finished or not, to anything that is not passed yet: from there on the learning rate is that
    # of a run which had this length from the first, so it leaps up where the end moves away and down where it comes
    # nearer, then decays linearly to the new end.
    num_tokens: Annotated[float, Range(at_least=1)] = 1.4e12
    # Folder of another run (its --workdir) whose newest parameters a new run starts from, with a fresh optimizer,
    # schedule and place in the data. Only the model's shape must be the same: tokens that both vocabularies have keep
    # their rows, other tokens and further positions begin fresh. A run's own checkpoints go before this, and this goes
    # before an import.
    init_from: OptionalPath = ""
    # Parts of a batch that are run one after the other, their gradients added up: less memory, the same step.
    num_microbatches: PositiveInt = 1
    # Parts of a microbatch whose scores of the vocabulary are in memory at a time; 0: as few as fit into an eighth of a
    # device's memory.
    loss_chunks: NonNegativeInt = 0
    # Weight of the squared log of the softmax's denominator, which keeps logits from drifting (PaLM, arXiv 2204.02311,
    # section 5, has 1e-4).
    z_loss: NonNegative = 0.0
    # Where compiled programs are kept, so that a restart need not compile again; "" keeps none.
    compilation_cache: OptionalPath = "{workdir}/compilation_cache"
    log_every: PositiveInt = 10
    save_every: PositiveInt = 1000
    keep_checkpoints: PositiveInt = 3
    # Held-out loss, and sample pictures from the first prompts of `evaluate` (none: the first held-out texts); 0 means
    # never.
    eval_every: NonNegativeInt = 1000
    eval_batches: PositiveInt = 8
    sample_every: NonNegativeInt = 1000
    seed: Seed = 0


@dataclass(frozen=True)
class SamplingConfig(Part):
    """How a token is drawn, how many, and how fast."""

    # 0 always takes the likeliest token.
    temperature: Annotated[float, Range(at_least=1e-3, other=0)] = 1.0
    top_p: Fraction = 1.0
    # Draw from this many likeliest tokens; 0 means from all.
    top_k: NonNegativeInt = 0
    # Weight of classifier-free guidance; 1 means none (arXiv 2309.02591, equation 1).
    guidance: Annotated[float, Range(at_least=0, at_most=1000)] = 3.0
    # Weights of an edit's guidance, towards the instruction and towards the source picture (the same, section 4.1).
    edit_guidance: Annotated[float, Range(at_least=0, at_most=1000)] = 7.5
    edit_image_guidance: Annotated[float, Range(at_least=0, at_most=1000)] = 1.5
    # "top_p": guidance, temperature, top_k and top_p; "contrastive": CD-K (the same, equation 3) wherever a prompt has
    # a text to leave out; "mixed": of a prompt's candidates, every other one by either.
    method: str = "top_p"
    # CD-K draws from tokens of at least alpha times the k-th largest probability.
    contrastive_k: PositiveInt = 10
    contrastive_alpha: Annotated[float, Range(above=0, at_most=1)] = 0.5
    amateur_temperature: Annotated[float, Range(at_least=1e-3)] = 1.0
    # Answers drawn for a prompt, of which the ones that score best are kept.
    candidates: PositiveInt = 1
    # "likelihood": the mean log-likelihood of an answer's tokens, given its prompt; "caption": that of the prompt's
    # text, given the picture that was drawn for it; "clip": how near the two are by the encoder at bi_encoder.path, as
    # the paper chooses (both only for pictures from a text, for other answers "likelihood").
    scorer: str = "likelihood"
    # Most text tokens of an answer.
    max_text_tokens: PositiveInt = 128
    # Prompts decoded side by side.
    batch_size: PositiveInt = 64
    # Type of the keys and values kept: "" (that of the activations), "float32", "bfloat16" or "int8".
    cache_dtype: str = ""
    # Codes of a picture that are guessed and checked in one pass (speculative Jacobi decoding, arXiv 2410.01699); 0
    # draws them one by one.
    speculative_window: Annotated[int, Range(at_least=2, other=0)] = 0
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of("sampling", self, "method", "top_p", "contrastive", "mixed")
        _one_of("sampling", self, "scorer", "likelihood", "caption", "clip")
        _one_of("sampling", self, "cache_dtype", "", "float32", "bfloat16", "int8")


@dataclass(frozen=True)
class EvaluateConfig(Part):
    """What `cm3leon evaluate` looks at, over the held-out split."""

    # Sequences of the held-out loss, and how many of them at a time.
    num_loss_sequences: PositiveInt = 512
    loss_batch_size: PositiveInt = 32
    # Documents that are captioned, infilled and shown; 0 means all.
    num_documents: NonNegativeInt = 256
    # Prompts from which pictures are drawn (none: the first held-out texts), and pictures a prompt.
    prompts: tuple[str, ...] = ()
    samples_per_prompt: PositiveInt = 4
    # Documents of the corpus put in front of each prompt, at most; they are found by its text.
    num_retrieved: NonNegativeInt = 0
    # "digits" also reads every drawn digit with a classifier trained on real ones; "" does not.
    recognizer: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of("evaluate", self, "recognizer", "", "digits")


@dataclass(frozen=True)
class Config:
    """A whole run."""

    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)
    image_tokenizer: ImageTokenizerConfig = field(default_factory=ImageTokenizerConfig)
    image_tokenizer_training: ImageTokenizerTrainingConfig = field(default_factory=ImageTokenizerTrainingConfig)
    bi_encoder: BiEncoderConfig = field(default_factory=BiEncoderConfig)
    bi_encoder_training: BiEncoderTrainingConfig = field(default_factory=BiEncoderTrainingConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def __post_init__(self) -> None:
        _require(
            self.model.picture_places in (0, self.image_tokenizer.image_length),
            f"model.picture_places is {self.model.picture_places}: 0, or the {self.image_tokenizer.image_length} codes "
            "of a picture of config.image_tokenizer",
        )
        _require(
            self.batch.packing == "stream" or self.batch.sequence_length > self.image_tokenizer.image_length,
            f"batch.sequence_length {self.batch.sequence_length} holds no picture of "
            f"{self.image_tokenizer.image_length} codes, and whole packing cuts none; make it longer",
        )
        # A document and its neighbours, each a picture, at least one text token and a break, behind one `</s>`.
        least = (self.retrieval.num_drawn + 1) * (self.image_tokenizer.image_length + 2)
        _require(
            not self.retrieval.enabled or self.batch.packing == "stream" or least <= self.batch.sequence_length,
            f"retrieval.num_drawn {self.retrieval.num_drawn} does not fit batch.sequence_length "
            f"{self.batch.sequence_length}: {self.retrieval.num_drawn + 1} pictures of "
            f"{self.image_tokenizer.image_length} codes with their texts take at least {least}; lower the one or "
            "raise the other",
        )
        is_digit = (self.image_tokenizer.resolution, self.image_tokenizer.in_channels) == (8, 1)
        _require(
            self.evaluate.recognizer != "digits" or is_digit,
            "evaluate.recognizer is 'digits', which reads grey pictures of 8 pixels: set image_tokenizer.resolution "
            "to 8 and in_channels to 1, or recognizer to ''",
        )

    @property
    def num_steps(self) -> int:
        """Steps of the training run."""
        tokens_per_step = self.batch.batch_size * self.batch.sequence_length
        return max(1, round(self.train.num_tokens / tokens_per_step))
