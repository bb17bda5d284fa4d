"""Loads a trained model from the folder of its run, ready to generate."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from flax import nnx
from jax.sharding import Mesh

from cm3leon_jax.checkpoints import Checkpoints, abstract_on, check_same_model
from cm3leon_jax.config import Config
from cm3leon_jax.encoders.base import Encoder, load_encoder
from cm3leon_jax.errors import UserError
from cm3leon_jax.generation.sampler import Sampler
from cm3leon_jax.image_tokenizers.base import ImageTokenizer, load_image_tokenizer
from cm3leon_jax.models.sharding import make_mesh, shardings
from cm3leon_jax.models.transformer import abstract_model
from cm3leon_jax.newest_checkpoint import read_newest
from cm3leon_jax.squaring import Squaring
from cm3leon_jax.vocabulary import Vocabulary


@dataclass(frozen=True)
class TrainedModel:
    """All that generation and evaluation need."""

    step: int
    # The model as it was trained; the sampler has a copy that is laid out for decoding.
    graph: nnx.GraphDef
    parameters: nnx.State
    sampler: Sampler
    mesh: Mesh
    vocabulary: Vocabulary
    image_tokenizer: ImageTokenizer
    # Scores images against their prompts, where `config.sampling.scorer` is "clip".
    clip: Encoder | None = None
    # How images of prompts become squares, as those of the corpus did.
    squaring: Squaring = field(default_factory=Squaring)


def load_model(config: Config, workdir: Path) -> TrainedModel:
    """The newest checkpoint of a run, with the vocabulary and the image tokenizer it belongs to."""
    return read_newest(workdir, config.train.keep_checkpoints, partial(load_step, config, workdir))


def load_step(config: Config, workdir: Path, checkpoints: Checkpoints, step: int) -> TrainedModel:
    """A checkpoint of a run, of those that are open."""
    clip = scoring_clip(config)
    vocabulary = Vocabulary.load(config.vocabulary.path)
    image_tokenizer = load_image_tokenizer(config.image_tokenizer.path)
    mesh = make_mesh(config.mesh)
    graph, abstract = abstract_model(
        config.model, vocabulary.size, config.batch.sequence_length, config.image_tokenizer.image_length
    )
    meta, what = checkpoints.meta(step), f"the checkpoint {workdir}/checkpoints/{step}"
    vocabulary.check_fingerprint(meta["vocabulary"], what)
    fingerprints = (meta["corpus"]["image_tokenizer"], image_tokenizer.fingerprint)
    check_same_model(meta, config, what, image_tokenizer=fingerprints)
    parameters = checkpoints.restore_parameters(step, abstract_on(abstract, shardings(abstract, mesh)))
    sampler = Sampler(config.model, vocabulary, config.batch.sequence_length, mesh, config.image_tokenizer.image_length)
    sampler.load(parameters)
    return TrainedModel(
        step, graph, parameters, sampler, mesh, vocabulary, image_tokenizer, clip, config.corpus.squaring
    )


def scoring_clip(config: Config) -> Encoder | None:
    """The encoder that ranks images by their prompts, where `config.sampling.scorer` is "clip"."""
    if config.sampling.scorer != "clip":
        return None
    encoder = load_encoder(config.encoder.path)
    if not encoder.is_joint:
        raise UserError(
            f"config.sampling.scorer is 'clip', but the encoder at {config.encoder.path} is none, and cannot compare a "
            "text with an image: name the path of a CLIP encoder, or another scorer"
        )
    return encoder
