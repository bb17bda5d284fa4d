"""Every value that a run can set: one typed dataclass a part, with its meaning and default.

A config file (`configs/NAME.py`) names only what differs from these defaults; `config_file.py` reads it. The defaults
are the paper's 350M model (arXiv 2309.02591, Table 3) with its 256-pixel image tokenizer. In a path, `{workdir}` stands
for the folder given with `--workdir`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cm3leon_jax.data.sources.folder_config import FolderConfig
from cm3leon_jax.errors import UserError


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(f"config.{message}")


def _at_least(least: int, part: str, values: object, *names: str) -> None:
    for name in names:
        _require(getattr(values, name) >= least, f"{part}.{name} is {getattr(values, name)}: at least {least}")


def _one_of(part: str, values: object, name: str, *choices: str) -> None:
    value, listed = getattr(values, name), [repr(choice) for choice in choices]
    _require(value in choices, f"{part}.{name} is {value!r}: {', '.join(listed[:-1])} or {listed[-1]}")


@dataclass(frozen=True)
class CorpusConfig:
    """What is prepared, from where, to where."""

    path: str = "{workdir}/corpus"
    # A registered seqio Task or Mixture, and the modules whose import registers it.
    mixture: str = ""
    modules: tuple[str, ...] = ("cm3leon_jax.data.tasks",)
    train_split: str = "train"
    held_out_split: str = "validation"
    # Examples of a task and split that make a shard, so that each can be written without those before it: by several
    # processes, or after an interruption. With captioned pictures of 1,024 codes these are about 140 million tokens.
    examples_per_shard: int = 1 << 17
    # Pictures encoded in one call of the image tokenizer.
    encode_batch_size: int = 128
    # Original pictures kept beside each split, to be looked at.
    num_sample_pictures: int = 32
    # Most of a task's documents that may be skipped because something is odd about them, as a fraction of all.
    max_skipped_fraction: float = 0.1
    # How a folder is read, where the mixture is one.
    folder: FolderConfig = field(default_factory=FolderConfig)

    def __post_init__(self) -> None:
        _at_least(1, "corpus", self, "examples_per_shard", "encode_batch_size")


@dataclass(frozen=True)
class VocabularyConfig:
    """The text side of the id space; the number of image codes is the image tokenizer's."""

    path: str = "{workdir}/vocabulary"
    num_text_tokens: int = 56320
    num_masks: int = 512
    # Documents of the training split from which the BPE is learned.
    num_documents: int = 1_000_000

    def __post_init__(self) -> None:
        _require(self.num_text_tokens >= 256, f"vocabulary.num_text_tokens is {self.num_text_tokens}: at least 256")
        _require(self.num_masks >= 1, f"vocabulary.num_masks is {self.num_masks}: the CM3 objective needs at least 1")


@dataclass(frozen=True)
class ImageTokenizerConfig:
    """The VQGAN: pixels <-> codes (the paper's: 256 pixels, factor 8, 1,024 codes out of 8,192)."""

    path: str = "{workdir}/image_tokenizer"
    resolution: int = 256
    in_channels: int = 3
    base_channels: int = 128
    # One entry a level; each level but the last halves the side.
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 4)
    num_res_blocks: int = 2
    # Sides of the feature map at which residual blocks are followed by attention.
    attention_resolutions: tuple[int, ...] = ()
    # The two blocks and the attention at the lowest resolution. Without them a code describes its own place alone,
    # which a small transformer on a small corpus learns far sooner than codes that each hold a share of all of it.
    mid_block: bool = True
    # Most groups of a group normalisation; small widths want fewer, since a group of one channel loses its mean.
    norm_groups: int = 32
    latent_channels: int = 256
    embedding_dim: int = 256
    codebook_size: int = 8192

    def __post_init__(self) -> None:
        _require(len(self.channel_multipliers) >= 1, "image_tokenizer.channel_multipliers is empty: one entry a level")
        _require(
            self.resolution % self.factor == 0,
            f"image_tokenizer.resolution {self.resolution} is not a multiple of the factor {self.factor}, "
            f"which follows from {len(self.channel_multipliers)} channel_multipliers",
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
class ImageTokenizerTrainingConfig:
    """How the VQGAN is trained (Esser et al., arXiv 2012.09841; Gafni et al., arXiv 2203.13131)."""

    # Pictures drawn from the mixture's training split, kept as one memory-mapped file; 0 means all.
    num_images: int = 1_000_000
    num_steps: int = 800_000
    batch_size: int = 192
    learning_rate: float = 4.5e-6
    warmup_steps: int = 0
    # The last step's rate, as a share of the peak; the fall after the warm-up is linear.
    final_learning_rate_share: float = 1.0
    beta1: float = 0.5
    beta2: float = 0.9
    # "gradient" moves the codebook by its own loss, "ema" by a running mean of what falls on each code.
    codebook_update: str = "gradient"
    ema_decay: float = 0.99
    codebook_weight: float = 1.0
    commitment_weight: float = 0.25
    # A code that was used less than this often (running mean, uses a step) is put on an encoder output of the batch.
    dead_code_threshold: float = 0.01
    # Steps between two looks for such codes; 0 never moves them.
    dead_code_every: int = 100
    # 0 leaves the term out. LPIPS needs weights: a safetensors file of VGG16 and the LPIPS linear layers.
    perceptual_weight: float = 0.0
    perceptual_weights_file: str = ""
    discriminator_weight: float = 0.8
    discriminator_start: int = 250_000
    discriminator_channels: int = 64
    discriminator_layers: int = 3
    # Random horizontal flips; wrong for pictures of text or digits.
    flip: bool = False
    log_every: int = 100
    save_every: int = 5000
    seed: int = 0

    def __post_init__(self) -> None:
        _one_of("image_tokenizer_training", self, "codebook_update", "gradient", "ema")
        for name in ("num_steps", "batch_size", "log_every", "save_every"):
            _require(getattr(self, name) >= 1, f"image_tokenizer_training.{name} is {getattr(self, name)}: at least 1")
        _require(
            self.perceptual_weight == 0 or bool(self.perceptual_weights_file),
            "image_tokenizer_training.perceptual_weight is set but perceptual_weights_file is empty: "
            "name a safetensors file, or set the weight to 0",
        )


@dataclass(frozen=True)
class BiEncoderConfig:
    """What makes vectors of texts and pictures, by which neighbours are found (CLIP ViT-B/32 in the paper).

    The shapes are those of an encoder that is made here; one that was imported keeps its own.
    """

    path: str = "{workdir}/bi_encoder"
    # "clip": two transformers into one space (arXiv 2103.00020), trained on the mixture or imported. "tfidf": word
    # statistics and a thumbnail, for a corpus where nothing is trained yet; of the fields below it has `embedding_dim`
    # and `resolution`, the thumbnail's side.
    kind: str = "clip"
    embedding_dim: int = 512
    resolution: int = 224
    patch_size: int = 32
    image_layers: int = 12
    image_dim: int = 768
    image_heads: int = 12
    max_text_tokens: int = 77
    text_layers: int = 12
    text_dim: int = 512
    text_heads: int = 8
    # "gelu", or the cheaper "quick_gelu" of the first published weights.
    activation: str = "quick_gelu"

    def __post_init__(self) -> None:
        _one_of("bi_encoder", self, "kind", "clip", "tfidf")
        _one_of("bi_encoder", self, "activation", "gelu", "quick_gelu")
        counts = ("embedding_dim", "resolution", "patch_size", "image_layers", "text_layers", "image_heads")
        _at_least(1, "bi_encoder", self, *counts, "text_heads")
        _at_least(3, "bi_encoder", self, "max_text_tokens")
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
class BiEncoderTrainingConfig:
    """How the bi-encoder learns from the mixture's captioned pictures (arXiv 2103.00020, section 2 and table 19)."""

    # Pairs of a text and a picture, drawn from the mixture's training split; 0 means all.
    num_pairs: int = 1_000_000
    num_steps: int = 10_000
    # Every pair of a batch is held against every other, over all devices.
    batch_size: int = 4096
    peak_learning_rate: float = 5e-4
    warmup_steps: int = 500
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-6
    weight_decay: float = 0.2
    initial_temperature: float = 0.07
    lowest_temperature: float = 0.01
    log_every: int = 10
    save_every: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        names = ("num_steps", "log_every", "save_every")
        _at_least(1, "bi_encoder_training", self, *names)
        _at_least(2, "bi_encoder_training", self, "batch_size")
        _require(
            0 < self.lowest_temperature <= self.initial_temperature,
            "bi_encoder_training.lowest_temperature must be above 0 and at most initial_temperature",
        )


@dataclass(frozen=True)
class RetrievalConfig:
    """Which documents stand in front of a document (arXiv 2309.02591, section 2.1.2; arXiv 2211.12561)."""

    # `prepare` finds the neighbours of every document, and `train` puts them in front.
    enabled: bool = False
    # Neighbours kept of a document: found by its text, and found by its pictures.
    num_by_text: int = 2
    num_by_image: int = 2
    # Share of the query's text tokens, and of its pictures' patches, that is left out for the search.
    query_dropout: float = 0.2
    # No neighbour is more like the document, or like a neighbour that was taken already, than this; and none scores
    # less than this with the query: rather none at all.
    max_score: float = 0.9
    min_score: float = 0.0
    # Whether only documents with text and picture can be neighbours.
    both_modalities: bool = True
    # Tasks whose training documents can be neighbours; none named means all.
    memory_tasks: tuple[str, ...] = ()
    # Documents searched for each query, among which the neighbours are chosen.
    num_candidates: int = 64
    # "exact", or "approximate": what lies among the best is found with this probability, on a TPU in less time.
    search: str = "exact"
    search_recall: float = 0.95
    # Neighbours that a training document gets, drawn from those kept: "fixed" is this many, or all there are; "uniform"
    # is 0 to this many, each as often.
    num_drawn: int = 3
    draw: str = "fixed"
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least(0, "retrieval", self, "num_by_text", "num_by_image", "num_drawn")
        _require(0 <= self.query_dropout < 1, f"retrieval.query_dropout is {self.query_dropout}: a share below 1")
        _require(0 < self.search_recall <= 1, f"retrieval.search_recall is {self.search_recall}: a share above 0")
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
class ObjectiveConfig:
    """The CM3 objective (arXiv 2201.07520, section 2; arXiv 2309.02591, section 2.2)."""

    # "poisson": the number of masks is Poisson(mean_spans); "fixed": exactly mean_spans; "none": plain left to right.
    span_count: str = "poisson"
    mean_spans: float = 1.0
    max_spans: int = 16
    # Share of the masked documents in which whole segments (a caption, a picture) are masked instead of random spans.
    # Random spans almost never cover a whole caption (1 in 20,000), so without this share neither the unconditional
    # stream of guidance (`<mask:0> <break> image`) nor captioning by infill would be trained. At a half, a captioned
    # picture loses its whole caption 16% of the time, about the drop rate of classifier-free guidance elsewhere, and
    # the other half keeps training infill inside pictures.
    whole_segment_share: float = 0.5

    def __post_init__(self) -> None:
        _require(
            self.span_count in ("poisson", "fixed", "none") and self.mean_spans > 0,
            "objective.span_count must be 'poisson', 'fixed' or 'none', and mean_spans above 0",
        )
        _require(
            self.span_count != "fixed" or self.mean_spans.is_integer(),
            f"objective.mean_spans is {self.mean_spans}: a whole number where span_count is 'fixed'",
        )
        _require(0 <= self.whole_segment_share <= 1, "objective.whole_segment_share must lie between 0 and 1")
        _require(self.max_spans >= 1, "objective.max_spans must be at least 1; span_count = 'none' masks nothing")


@dataclass(frozen=True)
class BatchConfig:
    """The training batch."""

    # Sequences over all devices, and tokens in each.
    batch_size: int = 2048
    sequence_length: int = 4096
    # "whole": whole documents side by side, attention stays inside each; "stream": the paper's way, one stream of
    # documents cut anywhere, attention over all of the block.
    packing: str = "whole"
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least(1, "batch", self, "batch_size", "sequence_length")
        _one_of("batch", self, "packing", "whole", "stream")


@dataclass(frozen=True)
class ModelConfig:
    """The transformer (arXiv 2309.02591, section 2.3)."""

    num_layers: int = 24
    model_dim: int = 1024
    num_heads: int = 16
    # Heads of keys and values, each for a group of query heads (arXiv 2305.13245); 0: num_heads.
    num_key_value_heads: int = 0
    # 0: four times model_dim.
    ffn_dim: int = 0
    # "gelu" is the exact one, "gelu_tanh" its usual approximation.
    activation: str = "relu"
    # A second product beside the activated one, multiplied with it: with "silu", SwiGLU (arXiv 2002.05202, section 2).
    gated: bool = False
    # "layer", or "rms", which neither centres nor shifts (arXiv 1910.07467).
    norm: str = "layer"
    # Norms every query and key head before their product, for stability at high learning rates (arXiv 2302.05442,
    # section 2.1).
    query_key_norm: bool = False
    # "xla" runs everywhere; "splash" is the fused one for TPUs, "tokamax" that for GPUs; "auto" takes the fused one
    # where there is one.
    attention: str = "auto"
    # The paper has neither biases nor learned scales and shifts after its layer norms; OPT has both.
    biases: bool = False
    affine_norms: bool = False
    # "before": each layer norms what it reads, and a last norm follows the last layer; "after": each layer norms the
    # sum it leaves, as OPT-350M does.
    norm_position: str = "before"
    # Width of the token embeddings; 0: model_dim. Others are projected to and from it (OPT-350M).
    embedding_dim: int = 0
    # "learned": a table of absolute positions, the paper's; "rotary": queries and keys are turned by their position
    # (arXiv 2104.09864), which makes "one row up" the same step everywhere in a picture; "learned+rotary": both.
    positions: str = "learned"
    # A second table: the place in its picture that follows a code or a mark. A code that moved to the end of a masked
    # document has lost its place otherwise. 0 leaves it out, as the paper does; else the codes of one picture.
    picture_places: int = 0
    # Half of what rotary positions turn goes by the place in the picture instead (as in arXiv 2409.12191, section 2.1):
    # so the same place of two pictures is always the same distance, and copying from a neighbour is soon learned.
    rotary_pictures: bool = False
    layer_norm_epsilon: float = 1e-5
    init_std: float = 0.006
    position_init_std: float = 0.0002
    # The type of activations; parameters are float32.
    compute_dtype: str = "bfloat16"
    # What the backward pass computes again: "full", each layer from its input; "save_attention", all but attention,
    # whose inputs and output are kept; "save_dots", all but the matrix products; "none", nothing.
    remat: str = "full"
    scan_layers: bool = True

    def __post_init__(self) -> None:
        _at_least(1, "model", self, "num_layers", "model_dim", "num_heads")
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
        _one_of("model", self, "norm_position", "before", "after")
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
class MeshConfig:
    """How many ways each mesh axis splits; one of them may be -1, which takes the devices that are left."""

    # Copies of the parameters; 0: one a slice, or as many more as the topology needs (model/sharding.py says when).
    replica: int = 0
    # Ways in which each copy is shared out, over devices with different data.
    fsdp: int = -1
    # Ways in which the work of each layer is shared out, over devices with the same data.
    tensor: int = 1


@dataclass(frozen=True)
class DistributedConfig:
    """When the processes of a run give each other up, in seconds; they then exit with 75 and can be started again."""

    # Until the last of them must have been started.
    initialization_seconds: int = 300
    # Without a sign of life of a process: it was killed or stopped, or its host is gone.
    heartbeat_seconds: int = 60
    # Without a finished training step, saving and evaluation included: something hangs; 0: never.
    stall_seconds: float = 1200.0

    def __post_init__(self) -> None:
        _at_least(1, "distributed", self, "initialization_seconds", "heartbeat_seconds")
        _at_least(0, "distributed", self, "stall_seconds")


@dataclass(frozen=True)
class RecoveryConfig:
    """What a run does about a step that would harm it: one with a loss or gradient norm that is not finite or leaps."""

    # A step whose gradient norm is this many times the running mean of those before is left out; 0: only what is not
    # finite is.
    spike_factor: float = 10.0
    # After this many in a row the run goes back to its last checkpoint before them, and passes their batches by.
    max_skipped: int = 10
    # Times that it goes back before it stops for good.
    max_rollbacks: int = 3

    def __post_init__(self) -> None:
        _require(
            self.spike_factor == 0 or self.spike_factor > 1,
            f"recovery.spike_factor is {self.spike_factor}: 0, or above 1",
        )
        _at_least(1, "recovery", self, "max_skipped")
        _at_least(0, "recovery", self, "max_rollbacks")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up and linear decay (the paper names rate and warm-up; the rest is OPT's, arXiv 2205.01068)."""

    peak_learning_rate: float = 6e-4
    warmup_steps: int = 1500
    # The last step's rate, as a share of the peak.
    final_learning_rate_share: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0


@dataclass(frozen=True)
class TrainConfig:
    """How long to train, and what to leave behind."""

    # The run ends at the step that takes it to this many tokens (batch_size * sequence_length a step).
    num_tokens: float = 1.4e12
    # Parts of a batch that are run one after the other, their gradients added up: less memory, the same step.
    num_microbatches: int = 1
    # Parts of a microbatch whose scores of the vocabulary are in memory at a time; 0: as few as fit into an eighth of a
    # device's memory.
    loss_chunks: int = 0
    # Weight of the squared log of the softmax's denominator, which keeps logits from drifting (PaLM, arXiv 2204.02311,
    # section 5, has 1e-4).
    z_loss: float = 0.0
    # Where compiled programs are kept, so that a restart need not compile again; "" keeps none.
    compilation_cache: str = "{workdir}/compilation_cache"
    log_every: int = 10
    save_every: int = 1000
    keep_checkpoints: int = 3
    # Held-out loss, and sample pictures from the first prompts of `evaluate`; 0 means never.
    eval_every: int = 1000
    eval_batches: int = 8
    sample_every: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least(1, "train", self, "num_tokens", "log_every", "save_every", "keep_checkpoints", "eval_batches")
        _at_least(1, "train", self, "num_microbatches")
        _at_least(0, "train", self, "loss_chunks", "z_loss")


@dataclass(frozen=True)
class SamplingConfig:
    """How a token is drawn, how many, and how fast."""

    # 0 always takes the likeliest token.
    temperature: float = 1.0
    top_p: float = 1.0
    # Draw from this many likeliest tokens; 0 means from all.
    top_k: int = 0
    # Weight of classifier-free guidance; 1 means none (arXiv 2309.02591, equation 1).
    guidance: float = 3.0
    # Weights of an edit's guidance, towards the instruction and towards the source picture (the same, section 4.1).
    edit_guidance: float = 7.5
    edit_image_guidance: float = 1.5
    # "top_p": guidance, temperature, top_k and top_p; "contrastive": CD-K (the same, equation 3) wherever a prompt has
    # a text to leave out; "mixed": of a prompt's candidates, every other one by either.
    method: str = "top_p"
    # CD-K draws from tokens of at least alpha times the k-th largest probability.
    contrastive_k: int = 10
    contrastive_alpha: float = 0.5
    amateur_temperature: float = 1.0
    # Answers drawn for a prompt, of which the ones that score best are kept.
    candidates: int = 1
    # "likelihood": the mean log-likelihood of an answer's tokens, given its prompt; "caption": that of the prompt's
    # text, given the picture that was drawn for it; "clip": how near the two are by the encoder at bi_encoder.path, as
    # the paper chooses (both only for pictures from a text, for other answers "likelihood").
    scorer: str = "likelihood"
    # Most text tokens of an answer.
    max_text_tokens: int = 128
    # Prompts decoded side by side.
    batch_size: int = 64
    # Type of the keys and values kept: "" (that of the activations), "float32", "bfloat16" or "int8".
    cache_dtype: str = ""
    # Codes of a picture that are guessed and checked in one pass (speculative Jacobi decoding, arXiv 2410.01699); 0
    # draws them one by one.
    speculative_window: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least(0, "sampling", self, "temperature", "guidance", "top_k", "edit_guidance", "edit_image_guidance")
        _at_least(1, "sampling", self, "max_text_tokens", "batch_size", "candidates", "contrastive_k")
        _require(0 <= self.top_p <= 1, f"sampling.top_p is {self.top_p}: a share between 0 and 1")
        _one_of("sampling", self, "method", "top_p", "contrastive", "mixed")
        _require(
            0 < self.contrastive_alpha <= 1,
            f"sampling.contrastive_alpha is {self.contrastive_alpha}: above 0 and at most 1",
        )
        _require(self.amateur_temperature > 0, f"sampling.amateur_temperature is {self.amateur_temperature}: above 0")
        _one_of("sampling", self, "scorer", "likelihood", "caption", "clip")
        _one_of("sampling", self, "cache_dtype", "", "float32", "bfloat16", "int8")
        _require(
            self.speculative_window == 0 or self.speculative_window >= 2,
            f"sampling.speculative_window is {self.speculative_window}: 0, or at least 2",
        )


@dataclass(frozen=True)
class EvaluateConfig:
    """What `cm3leon evaluate` looks at, over the held-out split."""

    # Sequences of the held-out loss, and how many of them at a time.
    num_loss_sequences: int = 512
    loss_batch_size: int = 32
    # Documents that are captioned, infilled and shown; 0 means all.
    num_documents: int = 256
    # Prompts from which pictures are drawn (none: the first held-out texts), and pictures a prompt.
    prompts: tuple[str, ...] = ()
    samples_per_prompt: int = 4
    # Documents of the corpus put in front of each prompt, at most; they are found by its text.
    num_retrieved: int = 0
    # "digits" also reads every drawn digit with a classifier trained on real ones; "" does not.
    recognizer: str = ""

    def __post_init__(self) -> None:
        _at_least(0, "evaluate", self, "num_retrieved", "num_documents")
        _at_least(1, "evaluate", self, "num_loss_sequences", "loss_batch_size", "samples_per_prompt")
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
