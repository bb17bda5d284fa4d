"""Where a run begins: from scratch, from an import, at its newest sound checkpoint, or before a bad stretch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from cm3leon_jax import accelerators
from cm3leon_jax.checkpoints import Checkpoints, DamagedCheckpoint, refuse_changes
from cm3leon_jax.config import Config
from cm3leon_jax.data.batches import BatchSource, Retrieval, open_retrieval
from cm3leon_jax.data.corpus import PreparedCorpus
from cm3leon_jax.data.neighbours import LIST_FIELDS
from cm3leon_jax.data.row_fit import row_losses
from cm3leon_jax.distributed import is_first
from cm3leon_jax.errors import RestartError, UserError
from cm3leon_jax.model.flops import flops_per_token
from cm3leon_jax.model.sharding import make_mesh, own_rows, refuse_uneven_batch
from cm3leon_jax.training.goodput import NO_SECONDS
from cm3leon_jax.training.metrics import StepWork
from cm3leon_jax.training.samples import SamplePictures
from cm3leon_jax.training.skipping import BadStretch
from cm3leon_jax.training.step import TrainState, TrainStep
from cm3leon_jax.vocabulary import Vocabulary

# What may differ between a run and its continuation; everything else would make it another run.
MAY_CHANGE = (
    *("config.mesh", "config.distributed", "config.recovery", "config.sampling", "config.evaluate"),
    *("config.corpus", "config.image_tokenizer_training"),
    # Neighbours have a fingerprint of their own.
    *("config.bi_encoder", "config.bi_encoder_training", *(f"config.retrieval.{name}" for name in LIST_FIELDS)),
    *("config.vocabulary.path", "config.vocabulary.num_documents", "config.image_tokenizer.path"),
    *(f"config.train.{name}" for name in ("log_every", "save_every", "keep_checkpoints", "eval_every")),
    *("config.train.eval_batches", "config.train.sample_every", "config.train.compilation_cache"),
    # How a step is computed, not what.
    *("config.model.attention", "config.model.remat", "config.model.scan_layers"),
    *("config.train.num_microbatches", "config.train.loss_chunks"),
)
# What else may differ between an import and the run that starts from it: all that shapes no parameter.
FREE_AFTER_IMPORT = (
    *("config.batch.batch_size", "config.batch.packing", "config.batch.seed", "config.objective", "config.optimizer"),
    *("config.retrieval", "neighbours"),
    *("config.train", "config.model.compute_dtype", "config.model.init_std", "config.model.position_init_std"),
)


@dataclass(frozen=True)
class Setup:
    """What stays the same however often a run starts again."""

    config: Config
    workdir: Path
    vocabulary: Vocabulary
    corpus: PreparedCorpus
    retrieval: Retrieval | None
    mesh: Mesh
    compiled: TrainStep
    work: StepWork
    pictures: SamplePictures | None
    # What a checkpoint says it belongs to.
    identity: dict[str, Any]

    def source(self, split: str, start: Start | None = None) -> BatchSource:
        """The batches of a split, as far as this process needs them."""
        config = self.config
        return BatchSource(
            self.corpus,
            self.vocabulary,
            config.objective,
            config.batch,
            split,
            rows=own_rows(config.batch.batch_size, self.mesh),
            first_window=start.first_window if start else (0, 0),
            retrieval=self.retrieval,
            left_out=start.left_out if start else (),
        )


@dataclass(frozen=True)
class Start:
    """Where a run goes on."""

    step: int
    state: TrainState
    # In words.
    origin: str
    # What the checkpoint says, beside what it belongs to.
    first_window: tuple[int, int] = (0, 0)
    left_out: tuple[tuple[int, int], ...] = ()
    num_rollbacks: int = 0
    from_import: bool = False
    # The clock's at that time.
    seconds: Mapping[str, float] = field(default_factory=lambda: NO_SECONDS)


def set_up(config: Config, workdir: Path) -> Setup:
    """Opens what a run reads and compiles nothing yet.

    Raises:
      UserError: if the config, the corpus and the devices do not go together.
    """
    vocabulary = Vocabulary.load(config.vocabulary.path)
    corpus = PreparedCorpus.open(config.corpus.path, vocabulary)
    retrieval = open_retrieval(corpus, config.retrieval, config.corpus.train_split)
    row_losses(corpus, vocabulary, config.batch, config.corpus.train_split).refuse_most_images()
    mesh = make_mesh(config.mesh)
    refuse_uneven_batch(config.batch.batch_size, mesh, config.train.num_microbatches)
    chip = accelerators.by_device_kind(mesh.devices.flat[0].device_kind)
    return Setup(
        config=config,
        workdir=workdir,
        vocabulary=vocabulary,
        corpus=corpus,
        retrieval=retrieval,
        mesh=mesh,
        compiled=TrainStep(config, vocabulary, mesh),
        work=StepWork(
            num_tokens=config.batch.batch_size * config.batch.sequence_length,
            flops_per_token=flops_per_token(config.model, vocabulary.size, config.batch.sequence_length),
            num_devices=mesh.size,
            peak_flops=chip.bfloat16_flops if chip else 0.0,
        ),
        pictures=SamplePictures(config, workdir, vocabulary, mesh) if config.train.sample_every else None,
        identity={
            "vocabulary": vocabulary.fingerprint,
            "corpus": corpus.identity,
            "neighbours": retrieval.lists.fingerprint if retrieval else "",
            "config": dataclasses.asdict(config),
        },
    )


def continued(setup: Setup, checkpoints: Checkpoints) -> Start:
    """The newest checkpoint that can be read, or a fresh start; damaged ones are put aside."""
    steps = checkpoints.steps
    for step in reversed(steps):
        try:
            return _start_at(setup, checkpoints, step)
        except DamagedCheckpoint as damage:
            if step == steps[0]:
                raise UserError(
                    f"no checkpoint is left to continue from: {damage}; bring back one from a copy, or train anew in "
                    "another --workdir"
                ) from None
            print(f"damaged: {damage}; now called {checkpoints.set_aside(step).name}. Trying the one before")
            if jax.process_count() > 1:
                # The others wait for this one to read its part.
                raise RestartError(f"{damage}; the checkpoint before is used at the next start") from None
    state = setup.compiled.init()
    checkpoints.get_ready(state)
    return Start(0, state, "from scratch")


def _start_at(setup: Setup, checkpoints: Checkpoints, step: int) -> Start:
    stored = checkpoints.meta(step)
    is_import = bool(stored.get("imported"))
    if is_import and stored["corpus"]["image_tokenizer"] is None:
        # Imported before there was one: the corpus says which one it is.
        del stored["corpus"]
    free = MAY_CHANGE + FREE_AFTER_IMPORT * is_import
    allowed = refuse_changes(stored, setup.identity, free, f"{setup.workdir} holds a run")
    if is_first() and not is_import:
        print("".join(f"changed: {change}\n" for change in allowed), end="")
    if is_import:
        state = setup.compiled.init()
        # The drawn parameters go before the imported ones come: two states do not fit where one does.
        del state["parameters"]
        abstract = setup.compiled.abstract_state["parameters"]
        state["parameters"] = checkpoints.restore_parameters(step, abstract)
        return Start(step, state, "from imported parameters", from_import=True)
    # Restored without ever being initialised, for the same reason; a finished run needs no state.
    is_finished = step >= setup.config.num_steps
    return Start(
        step,
        {} if is_finished else checkpoints.restore(step, setup.compiled.abstract_state),
        f"continued from the checkpoint of step {step:,}",
        first_window=tuple(stored["first_window"]),
        left_out=tuple((first, stop) for first, stop in stored["left_out"]),
        num_rollbacks=stored["num_rollbacks"],
        from_import=stored["from_import"],
        seconds=stored["seconds"],
    )


def gone_back(setup: Setup, start: Start, checkpoints: Checkpoints, stretch: BadStretch) -> Start:
    """The last checkpoint before a bad stretch, whose batches are from now on left out.

    Raises:
      UserError: if the run went back as often as it may.
    """
    if start.num_rollbacks >= setup.config.recovery.max_rollbacks:
        raise UserError(
            f"the run diverged: {stretch}, after it went back {start.num_rollbacks} times; if it only met bad data, "
            "raise config.recovery.max_rollbacks or spike_factor and run again; if not, lower "
            "config.optimizer.peak_learning_rate in a new run, which may start from this one (config.train.init_from)"
        )
    checkpoints.drop_after(stretch.first - 1)
    batches = setup.source(setup.config.corpus.train_split, start)
    bad = (batches.batch_of(stretch.first - 1), batches.batch_of(stretch.last - 1) + 1)
    back = continued(setup, checkpoints)
    if is_first():
        print(
            f"going back: {stretch} (a loss or gradient norm that is not finite, or leaps); {back.origin}, without "
            f"batches {bad[0]:,} to {bad[1] - 1:,} ({start.num_rollbacks + 1} of {setup.config.recovery.max_rollbacks})"
        )
    kept = [(first, stop) for first, stop in start.left_out if stop <= bad[0] or first >= bad[1]]
    return dataclasses.replace(
        back, left_out=tuple(sorted([*kept, bad])), num_rollbacks=start.num_rollbacks + 1, first_window=(0, 0)
    )
