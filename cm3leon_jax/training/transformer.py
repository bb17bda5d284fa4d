"""The training of the transformer: its corpus, its step, and where its first parameters come from."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from cm3leon_jax import accelerators
from cm3leon_jax.checkpoints import Checkpoints, check_unchanged
from cm3leon_jax.config import Config
from cm3leon_jax.config_file import stored_values
from cm3leon_jax.config_part import changeable
from cm3leon_jax.data.batches.batch import Batch
from cm3leon_jax.data.batches.row_fit import row_losses
from cm3leon_jax.data.batches.row_plan import Retrieval, open_retrieval
from cm3leon_jax.data.batches.source import BatchSource, iterate
from cm3leon_jax.data.corpus.prepared import PreparedCorpus
from cm3leon_jax.errors import UserError
from cm3leon_jax.models.flops import flops_per_token
from cm3leon_jax.models.sharding import check_batch_divides, make_mesh, on_mesh, process_local_rows
from cm3leon_jax.training.eval_loss import eval_loss, make_eval_step
from cm3leon_jax.training.goodput import NO_SECONDS, StepWork
from cm3leon_jax.training.init_from import load_from_run
from cm3leon_jax.training.loss import absent_modalities, without_absent
from cm3leon_jax.training.run import Evaluation, Images, Start, TrainingRun
from cm3leon_jax.training.schedules import learning_rate
from cm3leon_jax.training.step import TrainState, TrainStep
from cm3leon_jax.vocabulary import Vocabulary

log = logging.getLogger(__name__)

# The step counts in 32 bits on every device.
_MOST_STEPS = 2**31 - 1


@dataclass(frozen=True)
class TransformerTraining:
    """What a training of the transformer reads, and its compiled step."""

    config: Config
    workdir: Path
    vocabulary: Vocabulary
    corpus: PreparedCorpus
    retrieval: Retrieval | None
    mesh: Mesh
    compiled: TrainStep

    @classmethod
    def open(cls, config: Config, workdir: Path) -> TransformerTraining:
        """Opens the corpus and compiles nothing yet.

        Raises a `UserError` if the config, the corpus and the devices do not go together.
        """
        if config.num_steps > _MOST_STEPS:
            raise UserError(
                f"config.train.num_tokens {config.train.num_tokens:g} takes {config.num_steps:g} steps, and "
                f"{_MOST_STEPS} can be counted; lower it, or raise config.batch.batch_size or "
                "config.batch.sequence_length"
            )
        vocabulary = Vocabulary.load(config.vocabulary.path)
        corpus = PreparedCorpus.open(config.corpus.path, vocabulary)
        retrieval = open_retrieval(corpus, config.retrieval, config.corpus.train_split)
        row_losses(corpus, vocabulary, config.batch, config.corpus.train_split).check_most_images_fit()
        mesh = make_mesh(config.mesh)
        check_batch_divides(config.batch.batch_size, mesh, config.train.num_microbatches)
        return cls(config, workdir, vocabulary, corpus, retrieval, mesh, TrainStep(config, vocabulary, mesh))

    @property
    def work(self) -> StepWork:
        batch, chip = self.config.batch, accelerators.by_device_kind(self.mesh.devices.flat[0].device_kind)
        return StepWork(
            num_tokens=batch.batch_size * batch.sequence_length,
            flops_per_token=flops_per_token(self.config.model, self.vocabulary.size, batch.sequence_length),
            num_devices=self.mesh.size,
            peak_flops=chip.bfloat16_flops if chip else 0.0,
        )

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint of the run belongs to."""
        return {
            "vocabulary": self.vocabulary.fingerprint,
            "corpus": self.corpus.identity
            | ({"templates": templates} if (templates := self.corpus.templates()) else {}),
            "neighbors": self.retrieval.lists.fingerprint if self.retrieval else "",
            "config": stored_values(self.config),
        }

    def run(
        self,
        images: Sequence[Images] = (),
        on_start: Callable[[Start], None] = lambda start: None,
        evaluations: Sequence[Evaluation] = (),
    ) -> TrainingRun:
        """The description for the trainer; `images` are made, and `evaluations` measured, meanwhile."""
        config, train, work = self.config, self.config.train, self.work
        batches = _TrainBatches(self)
        return TrainingRun(
            name="transformer",
            num_steps=config.num_steps,
            init=self._init,
            abstract_state=self.compiled.abstract_state,
            step=self.compiled.step,
            batches=batches,
            batch_hint=batches.hint,
            identity=self.identity,
            may_change=changeable(config, "config."),
            length_field=f"config.train.num_tokens {train.num_tokens:.10g}",
            length_per_step=work.num_tokens,
            fix="start again in another --workdir, or from a good checkpoint with config.train.init_from, with a lower "
            "config.optimizer.peak_learning_rate or beta2, or a larger epsilon",
            workdir=self.workdir,
            checkpoints=self.workdir / "checkpoints",
            keep_checkpoints=train.keep_checkpoints,
            save_every=train.save_every,
            log_every=train.log_every,
            loggers=train.loggers,
            config=stored_values(config),
            describe=_describe,
            select=without_absent,
            rates=work.rates,
            evaluations=[
                *evaluations,
                *([Evaluation(train.eval_every, self._eval_loss())] if train.eval_every else []),
            ],
            images=images,
            recovery=config.recovery,
            stall_seconds=config.distributed.stall_seconds,
            compile=self.compiled.compile,
            on_start=on_start,
            on_resume=self._log_new_schedule,
        )

    def source(self, split: str, start_block: tuple[int, int] = (0, 0)) -> BatchSource:
        """The batches of a split, as far as this process needs them."""
        config = self.config
        return BatchSource(
            self.corpus,
            self.vocabulary,
            config.objective,
            config.batch,
            split,
            rows=process_local_rows(config.batch.batch_size, self.mesh),
            start_block=start_block,
            retrieval=self.retrieval,
        )

    def _eval_loss(self) -> Callable[[int, TrainState], Mapping[str, float]]:
        config, source = self.config, self.source(self.config.corpus.held_out_split)
        length, train = config.batch.sequence_length, config.train
        image_length = config.image_tokenizer.image_length
        eval_step = make_eval_step(config.model, self.vocabulary, length, self.mesh, train.loss_chunks, image_length)
        return lambda step, state: eval_loss(eval_step, state["parameters"], source, train.eval_batches, self.mesh)

    def _init(self, checkpoints: Checkpoints) -> Start:
        """The first state: with the parameters of another run, of an import in the checkpoints, or random ones."""
        steps = checkpoints.steps
        if steps and not self.config.train.init_from:
            return self._from_import(checkpoints, steps[-1])
        state = self.compiled.init()
        checkpoints.get_ready(state)
        return self._from_run(checkpoints, state) if self.config.train.init_from else Start(0, state)

    def _from_run(self, checkpoints: Checkpoints, state: TrainState) -> Start:
        """Starts with another run's parameters, and saves them at once: the other run may train on, or be deleted."""
        image_tokenizer, fresh = self.corpus.identity["image_tokenizer"], state.pop("parameters")
        state["parameters"], found_at = load_from_run(
            self.config, self.workdir, self.vocabulary, image_tokenizer, fresh, self.mesh
        )
        start = Start(0, state, f"from the parameters of {found_at}", f"the parameters of {found_at}")
        if not checkpoints.steps:
            checkpoints.save(0, state, self.identity | start.meta(None, NO_SECONDS))
        return start

    def _from_import(self, checkpoints: Checkpoints, step: int) -> Start:
        meta = checkpoints.meta(step)
        if meta["corpus"]["image_tokenizer"] is None:
            # Imported before there was one: the corpus says which one it is.
            del meta["corpus"]
        may_change = (*changeable(self.config, "config.", after_import=True), "neighbors")
        check_unchanged(meta, self.identity, may_change, f"{self.workdir} holds a run")
        state = self.compiled.init()
        # The random parameters go before the imported ones come: two states may not fit where one does.
        del state["parameters"]
        state["parameters"] = checkpoints.restore_parameters(step, self.compiled.abstract_state["parameters"])
        return Start(step, state, "from imported parameters", "imported parameters")

    def _log_new_schedule(self, meta: Mapping[str, Any], state: TrainState) -> None:
        """Says what the learning rate does now, if the end of the run has moved."""
        config, num_tokens = self.config, meta["config"]["train"]["num_tokens"]
        then, now = max(1, round(num_tokens / self.work.num_tokens)), config.num_steps
        if then == now:
            return
        num_applied = int(state["spikes"].num_applied)
        before, after = (learning_rate(config.optimizer, num_steps) for num_steps in (then, now))
        log.info(
            f"schedule: the run ends at step {now:,}, not {then:,}: the learning rate is "
            f"{float(after(num_applied)):.3g} from here on, not {float(before(num_applied)):.3g}, and falls "
            f"to {float(after(now)):.3g} at the end"
        )


class _TrainBatches:
    """Batches of the training split, on the mesh."""

    def __init__(self, training: TransformerTraining) -> None:
        self._training, self._split = training, training.config.corpus.train_split
        self._source = training.source(self._split)

    def __call__(self, first: int, stop: int, hint: Any) -> Iterator[Batch]:
        """Global batches first .. stop - 1."""
        if hint:
            self._source = self._training.source(self._split, tuple(hint))
        for batch in iterate(self._source, first, stop):
            yield on_mesh(batch, self._training.mesh)

    def hint(self, index: int) -> tuple[int, int]:
        """The shuffle block in which a batch begins, and the number of rows before it."""
        return self._source.block_at_step(index)


def _describe(values: Mapping[str, float]) -> str:
    mfu = f", MFU {values['mfu']:.1%}" if "mfu" in values else ""
    return f"loss {values['loss']:.3f}{absent_modalities(values)}, {values['tokens_per_second']:,.0f} tokens/s{mfu}"
