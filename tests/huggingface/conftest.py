"""A run whose parameters are all random, so that every tensor of an export matters; and commands as functions."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cm3leon_jax.checkpoints import Checkpoints, abstract_on, flat
from cm3leon_jax.commands import export as export_command
from cm3leon_jax.commands import import_ as import_command
from cm3leon_jax.config import Config
from cm3leon_jax.data.batches.config import BatchConfig
from cm3leon_jax.data.corpus.config import CorpusConfig, VocabularyConfig
from cm3leon_jax.models.config import MeshConfig, ModelConfig
from cm3leon_jax.models.sharding import make_mesh, shardings
from cm3leon_jax.models.transformer import Transformer, abstract_model
from cm3leon_jax.training.config import TrainConfig
from cm3leon_jax.vocabulary import Vocabulary

TEXTS = ("a handwritten seven", "the digit 3 written by hand", "a photo of the number 9", "zero, in pencil")
STEP = 7


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="parity with transformers needs torch: pip install -e '.[test]'")


@pytest.fixture
def transformers():
    return pytest.importorskip("transformers", reason="the extra [test] brings transformers")


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained run on disk."""

    config: Config
    workdir: Path
    vocabulary: Vocabulary
    model: Transformer

    def export(
        self,
        name: str = "exported",
        dtype: str = "float32",
        shard_size: str = "2GB",
        family: str | None = None,
        materialize_norms: bool = False,
    ) -> Path:
        output = self.workdir / name
        arguments = Namespace(
            output=str(output),
            format="huggingface",
            family=family,
            dtype=dtype,
            shard_size=shard_size,
            materialize_norms=materialize_norms,
        )
        export_command.run(self.config, self.workdir, arguments)
        return output

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        return logits(self.model, tokens)


def logits(model: Transformer, tokens: np.ndarray) -> np.ndarray:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    zeros = jnp.zeros_like(positions)
    graph, parameters = nnx.split(model)

    @jax.jit
    def whole(parameters, tokens):
        model = nnx.merge(graph, parameters)
        return model.logits(model(tokens, positions, zeros, zeros))

    return np.asarray(whole(parameters, tokens))


def greedy(model: Transformer, prompt: list[int], num_tokens: int) -> list[int]:
    """The likeliest token after each, with a cache, as `generate` decodes."""
    graph, parameters = nnx.split(model.unstacked())

    @jax.jit
    def step(parameters, token, index, cache):
        at = jnp.full((1, 1), index)
        model = nnx.merge(graph, parameters)
        hidden, cache = model.extend(token, at, 0 * at, 0 * at, cache, index)
        return model.logits(hidden)[:, -1:].argmax(-1), cache

    cache, tokens = model.empty_cache(1, len(prompt) + num_tokens), list(prompt)
    for index in range(len(prompt) + num_tokens - 1):
        likeliest, cache = step(parameters, jnp.array([[tokens[index]]]), index, cache)
        if index >= len(prompt) - 1:
            tokens.append(int(likeliest[0, 0]))
    return tokens[len(prompt) :]


def import_folder(config: Config, workdir: Path, source: Path) -> None:
    import_command.run(config, workdir, Namespace(source=str(source), image_tokenizer=None))


def at(config: Config, workdir: Path) -> Config:
    """The config of another workdir."""
    return dataclasses.replace(
        config,
        corpus=dataclasses.replace(config.corpus, path=str(workdir / "corpus")),
        vocabulary=dataclasses.replace(config.vocabulary, path=str(workdir / "vocabulary")),
        image_tokenizer=dataclasses.replace(config.image_tokenizer, path=str(workdir / "image_tokenizer")),
    )


ONE_DEVICE = MeshConfig(replica=1, fsdp=-1, tensor=1)


def imported(config, workdir, mesh=ONE_DEVICE):
    """The parameters of the checkpoint of step 0, and its meta."""
    vocabulary = Vocabulary.load(config.vocabulary.path)
    _, abstract = abstract_model(config.model, vocabulary.size, config.batch.sequence_length)
    abstract = abstract_on(abstract, shardings(abstract, make_mesh(mesh)))
    with Checkpoints(workdir / "checkpoints", keep=1) as checkpoints:
        assert checkpoints.latest_step == 0
        return checkpoints.restore_parameters(0, abstract), checkpoints.meta(0)


def by_name(parameters):
    return {name: np.asarray(value) for name, value in flat(nnx.to_pure_dict(parameters)).items()}


def assert_equal(found, expected):
    found, expected = by_name(found), by_name(expected)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def by_shape(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter."""
    _, abstract = abstract_model(config, 20, 6)
    return {name: leaf.shape for name, leaf in flat(nnx.to_pure_dict(abstract)).items()}


def random_model(config: ModelConfig, vocabulary_size: int, sequence_length: int) -> Transformer:
    """A model with random numbers in every parameter, also where an initialization has zeros or ones."""
    graph, abstract = abstract_model(config, vocabulary_size, sequence_length)
    rng = np.random.default_rng(0)

    def random(path, leaf):
        around = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0
        return jnp.asarray(around + 0.1 * rng.standard_normal(leaf.shape), jnp.float32)

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(random, abstract))


@pytest.fixture
def make_run(tmp_path, tiny_model, image_tokenizer) -> Callable[..., Run]:
    def make(num_text_tokens: int = 288, sequence_length: int = 32, **changes: object) -> Run:
        model: ModelConfig = dataclasses.replace(tiny_model, **changes)
        workdir = tmp_path / "run"
        config = at(
            Config(
                corpus=CorpusConfig(),
                vocabulary=VocabularyConfig(num_text_tokens=num_text_tokens, num_masks=8),
                image_tokenizer=image_tokenizer.config,
                batch=BatchConfig(batch_size=8, sequence_length=sequence_length),
                model=model,
                train=TrainConfig(num_tokens=1e6),
            ),
            workdir,
        )
        vocabulary = Vocabulary.train(TEXTS * 4, num_text_tokens, 32, 8, progress=False)
        vocabulary.save(config.vocabulary.path)
        image_tokenizer.save(config.image_tokenizer.path)
        transformer = random_model(model, vocabulary.size, sequence_length)
        meta = {
            "vocabulary": vocabulary.fingerprint,
            "corpus": {
                "tasks": {"captions": {"rate": 1.0, "train": 40}},
                "image_tokenizer": image_tokenizer.fingerprint,
            },
            "config": dataclasses.asdict(config),
            "origin": "random numbers",
        }
        with Checkpoints(workdir / "checkpoints", keep=1) as checkpoints:
            checkpoints.save(STEP, {"parameters": nnx.state(transformer)}, meta)
        return Run(config, workdir, vocabulary, transformer)

    return make
