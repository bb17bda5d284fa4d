"""Where a run begins: at its newest sound checkpoint, from another run, from an import, or from scratch.

The first of these that there is, in this order; or before a bad stretch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from cm3leon_jax import accelerators
from cm3leon_jax.checkpoints import Checkpoints, DamagedCheckpoint, check_unchanged
from cm3leon_jax.config import Config
from cm3leon_jax.data.batches.row_fit import row_losses
from cm3leon_jax.data.batches.source import BatchSource, Retrieval, open_retrieval
from cm3leon_jax.data.corpus.neighbors import LIST_FIELDS
from cm3leon_jax.data.corpus.prepared import PreparedCorpus
from cm3leon_jax.distributed import is_coordinator
from cm3leon_jax.errors import RestartError, UserError
from cm3leon_jax.generation.samples import SampleImages
from cm3leon_jax.models.flops import flops_per_token
from cm3leon_jax.models.sharding import check_batch_divides, make_mesh, process_local_rows
from cm3leon_jax.training.goodput import NO_SECONDS
from cm3leon_jax.training.init_from import NewRun, taken_over
from cm3leon_jax.training.metrics import StepWork
from cm3leon_jax.training.optimizer import learning_rate
from cm3leon_jax.training.skipping import DivergedRange
from cm3leon_jax.training.step import TrainState, TrainStep
from cm3leon_jax.vocabulary import Vocabulary

# What may differ between a run and its continuation; everything else would make it another run.
MAY_CHANGE = (
    *("config.mesh", "config.distributed", "config.recovery", "config.sampling", "config.evaluate"),
    *("config.corpus", "config.image_tokenizer.training", "config.encoder"),
    # Neighbors have a fingerprint of their own.
    *(f"config.retrieval.{name}" for name in LIST_FIELDS),
    *("config.vocabulary.path", "config.vocabulary.num_documents", "config.image_tokenizer.path"),
    *(f"config.train.{name}" for name in ("log_every", "save_every", "keep_checkpoints", "eval_every")),
    *("config.train.eval_batches", "config.train.sample_every", "config.train.compilation_cache"),
    # Its schedule is said; where a run came from is done.
    *("config.train.num_tokens", "config.train.init_from"),
    # How a step is computed, not what.
    *("config.model.attention", "config.model.remat", "config.model.scan_layers"),
    *("config.train.num_microbatches", "config.train.loss_chunks"),
)
# What else may differ between an import and the run that starts from it: all that shapes no parameter.
FREE_AFTER_IMPORT = (
    *("config.batch.batch_size", "config.batch.packing", "config.batch.seed", "config.objective", "config.optimizer"),
    *("config.retrieval", "neighbors"),
    *("config.train", "config.model.compute_dtype", "config.model.init_std", "config.model.position_init_std"),
)

# The step counts in 32 bits on every device.
_MOST_STEPS = 2**31 - 1


@dataclass(frozen=True)
class TrainContext:
    """What stays the same however often a run starts again."""

    config: Config
    workdir: Path
    vocabulary: Vocabulary
    corpus: PreparedCorpus
    retrieval: Retrieval | None
    mesh: Mesh
    compiled: TrainStep
    work: StepWork
    images: SampleImages | None
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
            rows=process_local_rows(config.batch.batch_size, self.mesh),
            start_block=start.start_block if start else (0, 0),
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
    start_block: tuple[int, int] = (0, 0)
    left_out: tuple[tuple[int, int], ...] = ()
    num_rollbacks: int = 0
    from_import: bool = False
    # Another run and its step, whose parameters it began with.
    init_from: str = ""
    # The clock's at that time.
    seconds: Mapping[str, float] = field(default_factory=lambda: NO_SECONDS)

    def record(self, start_block: tuple[int, int], seconds: Mapping[str, float]) -> dict[str, Any]:
        """What a checkpoint of the run says, beside what it belongs to."""
        return {
            "start_block": start_block,
            "left_out": self.left_out,
            "num_rollbacks": self.num_rollbacks,
            "from_import": self.from_import,
            "init_from": self.init_from,
            "seconds": seconds,
        }


def build_context(config: Config, workdir: Path) -> TrainContext:
    """Opens what a run reads and compiles nothing yet.

    Raises:
      UserError: if the config, the corpus and the devices do not go together.
    """
    if config.num_steps > _MOST_STEPS:
        raise UserError(
            f"config.train.num_tokens {config.train.num_tokens:g} takes {config.num_steps:g} steps, and {_MOST_STEPS} "
            "can be counted; lower it, or raise config.batch.batch_size or config.batch.sequence_length"
        )
    vocabulary = Vocabulary.load(config.vocabulary.path)
    corpus = PreparedCorpus.open(config.corpus.path, vocabulary)
    retrieval = open_retrieval(corpus, config.retrieval, config.corpus.train_split)
    row_losses(corpus, vocabulary, config.batch, config.corpus.train_split).refuse_most_images()
    mesh = make_mesh(config.mesh)
    check_batch_divides(config.batch.batch_size, mesh, config.train.num_microbatches)
    chip = accelerators.by_device_kind(mesh.devices.flat[0].device_kind)
    return TrainContext(
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
        images=SampleImages(config, workdir, vocabulary, corpus, mesh) if config.train.sample_every else None,
        identity={
            "vocabulary": vocabulary.fingerprint,
            "corpus": corpus.identity,
            "neighbors": retrieval.lists.fingerprint if retrieval else "",
            "config": dataclasses.asdict(config),
        },
    )


def restore_or_init(setup: TrainContext, checkpoints: Checkpoints) -> Start:
    """The newest checkpoint that can be read, or a fresh start; damaged ones are put aside."""
    steps, init_from = checkpoints.steps, setup.config.train.init_from
    for step in reversed(steps):
        try:
            stored = checkpoints.meta(step)
            if init_from and stored.get("imported"):
                break
            return _start_at(setup, checkpoints, step, stored)
        except DamagedCheckpoint as damage:
            if step == steps[0]:
                raise UserError(
                    f"no checkpoint is left to continue from: {damage}; bring back one from a copy, or train anew in "
                    "another --workdir"
                ) from None
            print(f"damaged: {damage}; now called {checkpoints.quarantine(step).name}. Trying the one before")
            if jax.process_count() > 1:
                # The others wait for this one to read its part.
                raise RestartError(f"{damage}; the checkpoint before is used at the next start") from None
    state = setup.compiled.init()
    checkpoints.get_ready(state)
    return _start_from_another(setup, checkpoints, state) if init_from else Start(0, state, "from scratch")


def _start_from_another(setup: TrainContext, checkpoints: Checkpoints, state: TrainState) -> Start:
    """The first step of a run with another's parameters, saved at once: the other one may train on, or go."""
    image_tokenizer, fresh = setup.corpus.identity["image_tokenizer"], state.pop("parameters")
    taken = taken_over(NewRun(setup.config, setup.vocabulary, image_tokenizer, fresh, setup.mesh), setup.workdir)
    state["parameters"] = taken.parameters
    if is_coordinator():
        print("".join(f"{note}\n" for note in taken.notes), end="")
    start = Start(0, state, f"from the parameters of {taken.source}", init_from=taken.source)
    if not checkpoints.steps:
        checkpoints.save(0, state, setup.identity | start.record((0, 0), NO_SECONDS))
    return start


def _start_at(setup: TrainContext, checkpoints: Checkpoints, step: int, stored: dict[str, Any]) -> Start:
    is_import = bool(stored.get("imported"))
    if is_import and stored["corpus"]["image_tokenizer"] is None:
        # Imported before there was one: the corpus says which one it is.
        del stored["corpus"]
    free = MAY_CHANGE + FREE_AFTER_IMPORT * is_import
    allowed = check_unchanged(stored, setup.identity, free, f"{setup.workdir} holds a run")
    if is_coordinator() and not is_import:
        print("".join(f"changed: {change}\n" for change in allowed), end="")
    if is_import:
        state = setup.compiled.init()
        # The drawn parameters go before the imported ones come: two states do not fit where one does.
        del state["parameters"]
        abstract = setup.compiled.abstract_state["parameters"]
        state["parameters"] = checkpoints.restore_parameters(step, abstract)
        return Start(step, state, "from imported parameters", from_import=True)
    num_steps = setup.config.num_steps
    if step > num_steps:
        raise UserError(
            f"config.train.num_tokens {setup.config.train.num_tokens:.10g} ends the run at step {num_steps:,}, but it "
            f"is at step {step:,} already: give at least {step * setup.work.num_tokens:,}"
        )
    # Restored without ever being initialized, for the same reason; a finished run needs no state.
    state = {} if step == num_steps else checkpoints.restore(step, setup.compiled.abstract_state)
    if state and is_coordinator():
        _say_schedule(setup.config, stored, int(state["history"].num_taken))
    return Start(
        step,
        state,
        f"continued from the checkpoint of step {step:,}",
        start_block=tuple(stored["start_block"]),
        left_out=tuple((first, stop) for first, stop in stored["left_out"]),
        num_rollbacks=stored["num_rollbacks"],
        from_import=stored["from_import"],
        # Checkpoints from before there was this field have none.
        init_from=stored.get("init_from", ""),
        seconds=stored["seconds"],
    )


def _say_schedule(config: Config, stored: Mapping[str, Any], num_taken: int) -> None:
    """What the learning rate does now, if the end of the run has moved."""
    tokens = config.batch.batch_size * config.batch.sequence_length
    then, now = max(1, round(stored["config"]["train"]["num_tokens"] / tokens)), config.num_steps
    if then == now:
        return
    before, after = (learning_rate(config.optimizer, num_steps) for num_steps in (then, now))
    print(
        f"schedule: the run ends at step {now:,}, not {then:,}: the learning rate is {float(after(num_taken)):.3g} "
        f"from here on, not {float(before(num_taken)):.3g}, and decays linearly to {float(after(now)):.3g} at the end"
    )


def rolled_back(setup: TrainContext, start: Start, checkpoints: Checkpoints, stretch: DivergedRange) -> Start:
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
    back = restore_or_init(setup, checkpoints)
    if is_coordinator():
        print(
            f"going back: {stretch} (a loss or gradient norm that is not finite, or leaps); {back.origin}, without "
            f"batches {bad[0]:,} to {bad[1] - 1:,} ({start.num_rollbacks + 1} of {setup.config.recovery.max_rollbacks})"
        )
    kept = [(first, stop) for first, stop in start.left_out if stop <= bad[0] or first >= bad[1]]
    return dataclasses.replace(
        back, left_out=tuple(sorted([*kept, bad])), num_rollbacks=start.num_rollbacks + 1, start_block=(0, 0)
    )
