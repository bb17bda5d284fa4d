"""Kills a run again and again while it prepares, starts, trains, evaluates and saves, and looks whether it shows.

    python benchmarks/chaos.py --kills=50

Everything runs through launch/local.sh on eight virtual CPU devices, as 1 x 8, 2 x 4 or 4 x 2 of them, so the mesh is
always the same. A kill is SIGKILL, SIGTERM or SIGSTOP for one process, for all, or for the launcher itself, which is
then started again as a cluster would. Where all are stopped at once, as when a machine is suspended, they are continued
after some seconds; a single one that is stopped never is. Nothing else is ever done to a run.

Rounds of kills take turns in how many processes there are: always two; two or four, changing; one, two or four,
changing; always one. In the end every round is held against a run that nobody killed: each step logged once and in
order, with the same bits in every value but the times, and the same bits in the last parameters and moments; the
prepared files byte for byte; and every row of every batch that any start took, against the corpus. Where rounds change
between one process and several, losses agree to float error: XLA sums in another order inside a process than Gloo does
between them. Ends with 1 if anything differs, or would have needed a hand.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

os.environ["JAX_PLATFORMS"] = "cpu"

from chaos_comparison import Comparison, compared

from cm3leon_jax.images import encode_png
from cm3leon_jax.progress import read_step_log

sys.path.insert(0, str(Path(__file__).parents[1]))

from examples.digits import images as digits

T = TypeVar("T")

REPOSITORY = Path(__file__).resolve().parents[1]
NUM_DEVICES, NUM_IMAGES = 8, 600
EVAL_EVERY, SAVE_EVERY = 15, 10
HEARTBEAT, GRACE = 10, 15
# No sign of life for so long, however busy the machine, and somebody would have to look after the run.
PATIENCE = 240.0

CONFIG = """
from ml_collections import ConfigDict

def get_config():
    config = ConfigDict()
    config.corpus = dict(
        mixture="folder:{folder}/images", examples_per_shard=32, encode_batch_size=4, num_sample_images=4)
    config.vocabulary = dict(path="{folder}/vocabulary", num_text_tokens=280, num_masks=4)
    config.image_tokenizer = dict(
        path="{folder}/image_tokenizer", resolution=8, in_channels=1, base_channels=8, channel_multipliers=(1, 2),
        num_res_blocks=1, norm_groups=4, latent_channels=8, embedding_dim=4, codebook_size=16)
    config.image_tokenizer.training = dict(num_images=0, num_steps=6, batch_size=16, discriminator_weight=0.0)
    config.encoder = dict(path="{folder}/encoder", family="tfidf", embedding_dim=512, resolution=8)
    config.retrieval = dict(enabled=True, num_retrieved=1)
    config.model = dict(num_layers=2, model_dim=32, num_heads=4, compute_dtype="float32", remat="none")
    config.batch = dict(batch_size=16, sequence_length=96)
    config.mesh = dict(replica=2, fsdp=4)
    config.distributed = dict(initialization_seconds=60, heartbeat_seconds={heartbeat}, stall_seconds=60)
    config.optimizer = dict(peak_learning_rate=3e-3, warmup_steps=10)
    config.train = dict(
        num_tokens=16 * 96 * {steps}, num_microbatches=2, log_every=1, save_every={save_every},
        eval_every={eval_every}, eval_batches=1, sample_every=0, compilation_cache="{folder}/cache")
    return config
"""

# How many processes a round has: one of these at every start.
ROUNDS = ((2,), (2, 4), (1, 2, 4), (1,))
PREPARING = ("prepare, start-up", "prepare, tokens", "prepare, neighbors")
MOMENTS = ("start-up", "step", "evaluation", "saving", "saved")
KILLS = (
    *(("one", number) for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP)),
    *(("all", number) for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP)),
    *(("launcher", number) for number in (signal.SIGKILL, signal.SIGTERM)),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--kills-a-round", type=int, default=10, help="at most; three of them while it prepares")
    parser.add_argument("--steps", type=int, default=100, help="of every run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where everything goes (default: a new one, gone when all is well)")
    arguments = parser.parse_args()
    # Orbax remarks on every checkpoint that is opened to be read alone.
    logging.getLogger("absl").setLevel(logging.ERROR)
    # So that what was started is ended then, too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    if arguments.folder:
        return _chaos(arguments, arguments.folder.resolve())
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    code = _chaos(arguments, folder)
    if code:
        print(f"everything is still in {folder}")
    else:
        shutil.rmtree(folder)
    return code


def _chaos(arguments: argparse.Namespace, folder: Path) -> int:
    with Workplace.made(folder, arguments.steps) as place:
        began = time.monotonic()
        references = {number: place.reference(number) for number in (1, 2, 4)}
        print(f"references and tokenizers: {time.monotonic() - began:.0f} s", flush=True)
        rounds = [Round("1, never killed", 1, references[1]), Round("4, never killed", 4, references[4])]
        rounds[0].comparison = compared(references[1], references[2], place.config, place.num_steps, same_bits=False)
        rounds[1].comparison = compared(references[4], references[2], place.config, place.num_steps, same_bits=True)
        num_prepared = num_files(references[1] / "corpus")
        chaos = Chaos(place, random.Random(arguments.seed), arguments.kills, num_prepared)
        failure = ""
        while len(chaos.events) < arguments.kills and not failure:
            numbers = ROUNDS[(len(rounds) - 2) % len(ROUNDS)]
            made = Round(" or ".join(map(str, numbers)), numbers[0], place.folder / f"round_{len(rounds) - 1}")
            rounds.append(made)
            before = len(chaos.events)
            try:
                chaos.round(made.run, numbers, arguments.kills_a_round)
            except NeedsAHand as error:
                failure = str(error)
                break
            finally:
                made.num_kills = len(chaos.events) - before
            reference = references[1 if numbers == (1,) else 2]
            same_bits = numbers == (1,) or 1 not in numbers
            made.comparison = compared(made.run, reference, place.config, place.num_steps, same_bits)
            for fault in made.comparison.faults:
                print(f"DIFFERENT in {made.run.name}: {fault}", flush=True)
        _show(rounds, chaos, time.monotonic() - began)
    faults = sum(len(each.comparison.faults) for each in rounds)
    if failure:
        print(f"NEEDS A HAND: {failure}")
    print(f"{faults} differences" if faults else "no difference" * (not failure))
    return 1 if faults or failure else 0


def num_files(folder: Path) -> int:
    """Whole files below a folder."""
    return sum(not name.startswith(".") for _, _, names in os.walk(folder) for name in names)


class NeedsAHand(Exception):
    """A run that does not go on by itself."""


@dataclass
class Round:
    """A run from raw images to its last step, and what became of it."""

    processes: str
    reference: int
    run: Path
    num_kills: int = 0
    comparison: Comparison = field(default_factory=Comparison)


@dataclass
class Workplace:
    """The raw images, the tokenizers and the config that all runs share."""

    folder: Path
    num_steps: int
    # In the environment of every process that is started here, however far down.
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def config(self) -> Path:
        """The config of every run."""
        return self.folder / "chaos.py"

    @classmethod
    @contextlib.contextmanager
    def made(cls, folder: Path, num_steps: int) -> Iterator[Workplace]:
        """Makes what all runs share; in the end, ends whatever still runs."""
        place = cls(folder, num_steps)
        (folder / "images").mkdir(parents=True)
        pixels, labels = digits.load("train")
        for index in range(NUM_IMAGES):
            (folder / "images" / f"{index:04d}.png").write_bytes(encode_png(pixels[index]))
            (folder / "images" / f"{index:04d}.txt").write_text(digits.caption(int(labels[index]), index))
        place.config.write_text(
            CONFIG.replace("{folder}", str(folder))
            .replace("{heartbeat}", str(HEARTBEAT))
            .replace("{steps}", str(num_steps))
            .replace("{save_every}", str(SAVE_EVERY))
            .replace("{eval_every}", str(EVAL_EVERY))
        )
        program = folder / "cm3leon"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{REPOSITORY}/benchmarks/chaos_program.py" "$@"\n')
        program.chmod(0o755)
        try:
            for command in ("train-text-tokenizer", "train-image-tokenizer", "train-encoder"):
                _succeed(
                    subprocess.run([program, *place.arguments(command, folder / "tokenizers")], env=place.environment)
                )
            yield place
        finally:
            while left := place.processes():
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                time.sleep(0.1)

    @property
    def environment(self) -> dict[str, str]:
        """That of every process."""
        return os.environ | {
            "CHAOS_MARK": self.mark,
            "PYTHONPATH": str(REPOSITORY),
            "JAX_PLATFORMS": "cpu",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }

    def arguments(self, command: str, run: Path) -> list[str]:
        """What cm3leon is given."""
        return [command, f"--config={self.config}", f"--workdir={run}"]

    def launched(self, command: str, run: Path, num_processes: int, restarts: int) -> subprocess.Popen[bytes]:
        """Starts launch/local.sh; what it and process 0 say goes to launcher.log."""
        run.mkdir(exist_ok=True)
        with (run / "launcher.log").open("ab") as log:
            return subprocess.Popen(
                [REPOSITORY / "launch" / "local.sh", *self.arguments(command, run)],
                env={
                    **self.environment,
                    "PROCESSES": str(num_processes),
                    "JAX_NUM_CPU_DEVICES": str(NUM_DEVICES // num_processes),
                    "RESTARTS": str(restarts),
                    "BACKOFF": "0",
                    "GRACE": str(GRACE),
                    "LOGS": str(run / "logs"),
                    "CM3LEON": str(self.folder / "cm3leon"),
                    "CHAOS_ROWS": str(run / "rows"),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def reference(self, num_processes: int) -> Path:
        """A run that nobody kills."""
        run = self.folder / f"reference_{num_processes}"
        for command in ("prepare", "train"):
            launcher = self.launched(command, run, num_processes, 0)
            launcher.wait()
            _succeed(launcher)
        return run

    def processes(self) -> dict[int, int | None]:
        """Every process that was started here and lives: its id, and its number where it is one of a run."""
        found: dict[int, int | None] = {}
        for path in Path("/proc").iterdir():
            if not path.name.isdecimal() or int(path.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                # That of a dead one is empty.
                environment = (path / "environ").read_bytes().split(b"\0")
                if f"CHAOS_MARK={self.mark}".encode() in environment:
                    numbers = [each.partition(b"=")[2] for each in environment if each.startswith(b"JAX_PROCESS_ID=")]
                    found[int(path.name)] = int(numbers[0]) if numbers else None
        return found

    def members(self) -> dict[int, int]:
        """The processes of a run, by their ids."""
        return {pid: number for pid, number in self.processes().items() if number is not None}


def _succeed(ended: subprocess.CompletedProcess[bytes] | subprocess.Popen[bytes]) -> None:
    if ended.returncode:
        raise SystemExit(f"{ended.args!r} ended with {ended.returncode} though nobody killed it")


@dataclass(frozen=True)
class Event:
    """A kill, and what followed."""

    moment: str
    victim: str
    signal: signal.Signals
    # Until all processes of that start were gone.
    seconds: float


@dataclass
class Chaos:
    """Launches runs and kills them."""

    place: Workplace
    random: random.Random
    num_kills: int
    # Files of a prepared corpus.
    num_prepared: int
    events: list[Event] = field(default_factory=list)
    # Starts of a launcher, and starts of all processes, among these such as no kill explains.
    num_launches: int = 0
    num_starts: int = 0
    unexplained: list[str] = field(default_factory=list)
    # Seconds from a kill to the next new step.
    recoveries: list[float] = field(default_factory=list)
    # Steps from a SIGTERM to the one behind which all stopped.
    steps_to_stop: list[int] = field(default_factory=list)
    _decks: dict[str, list[Any]] = field(default_factory=dict)

    def drawn(self, name: str, choices: tuple[T, ...]) -> T:
        """One of the choices; all come equally often."""
        deck = self._decks.setdefault(name, [])
        if not deck:
            deck.extend(choices)
            self.random.shuffle(deck)
        return deck.pop()

    def round(self, run: Path, numbers: tuple[int, ...], most_kills: int) -> None:
        """A whole run with at most so many kills."""
        last = min(self.num_kills, len(self.events) + most_kills)
        Driven(self, run, "prepare", numbers, min(last, len(self.events) + 3)).to_its_end()
        Driven(self, run, "train", numbers, last).to_its_end()


class Driven:
    """One command of a run, from its first launch to its end."""

    def __init__(self, chaos: Chaos, run: Path, command: str, numbers: tuple[int, ...], last_event: int) -> None:
        self._chaos, self._place, self._run, self._command = chaos, chaos.place, run, command
        self._numbers, self._last_event = numbers, last_event
        self._number = numbers[0]
        self._launcher: subprocess.Popen[bytes] | None = None
        # The processes of this start, and the metrics file that the start before left.
        self._pids: set[int] = set()
        self._old_file: int | None = None
        self._first_step = 0
        # When the run was killed, until it makes a step again.
        self._killed_at: float | None = None
        # Processes that were suspended, which the others or they themselves may notice later.
        self._were_suspended: set[int] = set()

    def to_its_end(self) -> None:
        """Launches as often as it takes; kills until enough was killed."""
        while True:
            if self._launcher is None:
                self._launch()
            assert self._launcher is not None
            if not self._await_start():
                code = self._launcher.wait()
                self._launcher = None
                if code == 0:
                    return
                if code != 75:
                    raise NeedsAHand(f"local.sh ended with {code}, see {self._run}/launcher.log")
                continue
            if len(self._chaos.events) >= self._last_event:
                self._until(lambda: False, "to end")
            elif moment := self._await_moment():
                self._kill(moment)
                continue
            self._note_end()

    def _launch(self) -> None:
        # A cluster may give back fewer nodes, or more; one that gives the same lets the launcher start again by itself.
        self._number = self._chaos.random.choice(self._numbers)
        restarts = 1000 if len(self._numbers) == 1 else 0
        self._launcher = self._place.launched(self._command, self._run, self._number, restarts)
        self._chaos.num_launches += 1

    def _await_start(self) -> bool:
        """Waits for all processes of a start; whether they came, and the launcher has not ended instead."""
        assert self._launcher is not None
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            found = self._place.members()
            if len(found) == self._number and (pids := set(found)) != self._pids:
                if pids & self._pids:
                    raise NeedsAHand(f"processes {pids & self._pids} of the start before still run")
                self._pids, self._first_step = pids, self._newest_checkpoint()
                self._chaos.num_starts += 1
                return True
            if found.keys() == self._pids and self._pids:
                # They were suspended, and go on.
                self._first_step = max(self._first_step, self._step())
                return True
            if self._launcher.poll() is not None:
                return False
            time.sleep(0.05)
        raise NeedsAHand(f"no start within {PATIENCE:.0f} s, see {self._run}/launcher.log")

    def _note_end(self) -> None:
        """The processes ended though nobody killed them."""
        if self._place.members().keys() & self._pids:
            self._gone("after the first of them ended")
        self._old_file = self._metrics_file()
        assert self._launcher is not None
        finished = False
        with contextlib.suppress(subprocess.TimeoutExpired):
            finished = self._launcher.wait(timeout=3) == 0
        if not finished and self._were_suspended != self._pids:
            self._chaos.unexplained.append(f"{self._run.name} {self._command}, step {self._step()}")
            print(f"restart that no kill explains: {self._chaos.unexplained[-1]}", flush=True)

    def _await_moment(self) -> str:
        """Waits for a moment to kill at; "" if the processes ended before."""
        draw, delay, there_before = self._chaos.random, 0.0, self._num_files()
        if self._command == "prepare":
            moment, there = "prepare", True
            left = self._chaos.num_prepared - there_before
            if left < 2 or draw.random() < 1 / 3:
                delay = draw.uniform(0, 8)
            else:
                wanted = there_before + draw.randrange(1, left)
                there, delay = self._until(lambda: self._num_files() >= wanted, "a file"), draw.uniform(0, 0.05)
        else:
            moment = self._chaos.drawn("moment", MOMENTS)
            step = draw.randint(1, SAVE_EVERY + 2)
            if moment == "start-up":
                there, delay = True, draw.uniform(0, 15)
            elif moment == "step":
                there = self._until(lambda: self._step() >= self._first_step + step, f"{step} steps")
                delay = draw.uniform(0, 0.5)
            elif moment == "evaluation":
                there = self._until(lambda: self._step() % EVAL_EVERY == EVAL_EVERY - 1, "the step before evaluation")
                delay = draw.uniform(0, 0.5)
            elif moment == "saving":
                there, delay = self._until(self._is_saving, "a save to begin"), draw.uniform(0, 0.3)
            else:
                there = self._until(lambda: self._newest_checkpoint() > self._first_step, "a save to end")
        if not there:
            return ""
        deadline = time.monotonic() + delay
        if not self._until(lambda: time.monotonic() >= deadline, "a moment"):
            return ""
        if moment == "prepare":
            stage = "neighbors" if (self._run / "corpus" / "retrieval").exists() else "tokens"
            return f"prepare, {stage if there_before < self._num_files() else 'start-up'}"
        # The moment may have passed before the delay had.
        is_past = {
            "start-up": self._step() > self._first_step,
            "evaluation": self._step() % EVAL_EVERY != EVAL_EVERY - 1,
        }
        return "step" if is_past.get(moment) else moment

    def _until(self, condition: Callable[[], bool], what: str) -> bool:
        """Waits until a condition holds; False if the processes end before."""
        last, moved, looked = -1, time.monotonic(), 0.0
        while not condition():
            now = time.monotonic()
            if (step := self._step()) != last:
                last, moved = step, now
                if step > self._first_step and self._killed_at is not None:
                    self._chaos.recoveries.append(now - self._killed_at)
                    self._killed_at = None
            if now - moved > PATIENCE:
                raise NeedsAHand(f"nothing moved for {PATIENCE:.0f} s while waiting for {what}")
            if now - looked > 0.2:
                looked = now
                if self._place.members().keys() & self._pids != self._pids:
                    return False
            time.sleep(0.005)
        return True

    def _kill(self, moment: str) -> None:
        assert self._launcher is not None
        draw = self._chaos.random
        members = self._place.members()
        if members.keys() != self._pids:
            # They have ended by themselves since.
            return
        name = "kill" if self._number > 1 else "kill of one process"
        kills = KILLS if self._number > 1 else KILLS[3:]
        victim, number = self._chaos.drawn(name, kills)
        chosen = {"one": draw.sample(sorted(members), 1), "all": sorted(members), "launcher": [self._launcher.pid]}[
            victim
        ]
        step = self._step()
        where = f"step {step}" if self._command == "train" else f"{self._num_files()} files"
        whose = f"process {members[chosen[0]]}" if victim == "one" else victim
        began = time.monotonic()
        for pid in chosen:
            # One may have ended by itself in this very moment.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        if self._killed_at is None:
            self._killed_at = began
        if victim == "all" and number == signal.SIGSTOP:
            outcome = self._suspended(chosen)
        else:
            self._gone(f"after {number.name} for {whose} at {moment}, {where}")
            outcome = f"all gone after {time.monotonic() - began:.1f} s"
            if number == signal.SIGTERM and step > self._first_step:
                self._chaos.steps_to_stop.append(self._step() - step)
                outcome += f" and {self._step() - step} steps"
            if victim == "launcher":
                self._launcher.wait(timeout=PATIENCE)
                if number == signal.SIGKILL:
                    self._launcher = None
        if not self._place.members().keys() & self._pids:
            self._old_file = self._metrics_file()
        self._chaos.events.append(Event(moment, victim, number, time.monotonic() - began))
        print(
            f"{len(self._chaos.events):3d} {self._run.name}, {self._number} x {NUM_DEVICES // self._number}: {moment}, "
            f"{where}: {number.name} for {whose}; {outcome}",
            flush=True,
        )

    def _suspended(self, pids: list[int]) -> str:
        seconds, self._were_suspended = self._chaos.random.uniform(1, 1.5 * HEARTBEAT), set(pids)
        time.sleep(seconds)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        # Long enough for what noticed the pause to give up.
        step, files = self._step(), self._num_files()
        deadline = time.monotonic() + HEARTBEAT + 5
        alive = self._until(
            lambda: time.monotonic() > deadline or self._step() > step + 3 or self._num_files() > files + 5, "a sign"
        )
        if not alive:
            self._gone("after a pause")
        return f"continued after {seconds:.1f} s, and " + ("went on" if alive else "ended")

    def _gone(self, what: str) -> None:
        """Waits until no process of this start lives."""
        deadline = time.monotonic() + PATIENCE
        while left := self._place.members().keys() & self._pids:
            if time.monotonic() > deadline:
                raise NeedsAHand(f"processes {left} still run {PATIENCE:.0f} s {what}")
            time.sleep(0.05)

    def _step(self) -> int:
        """The last step that this start has logged; 0: none."""
        path = self._run / "metrics.jsonl"
        with contextlib.suppress(OSError, ValueError, IndexError, KeyError):
            if self._metrics_file() != self._old_file:
                with path.open("rb") as file:
                    file.seek(max(0, path.stat().st_size - 4096))
                    return int(json.loads(file.read().split(b"\n")[-2])["step"])
        return 0

    def _metrics_file(self) -> int | None:
        """Tells the file that a start has made anew from that of the start before."""
        with contextlib.suppress(FileNotFoundError):
            return (self._run / "metrics.jsonl").stat().st_ino
        return None

    def _num_files(self) -> int:
        return num_files(self._run / "corpus")

    def _checkpoints(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return [path.name for path in (self._run / "checkpoints").iterdir()]
        return []

    def _newest_checkpoint(self) -> int:
        return max((int(name) for name in self._checkpoints() if name.isdecimal()), default=0)

    def _is_saving(self) -> bool:
        # What a killed start left lies there until the next one has opened the folder.
        return self._step() > 0 and any("orbax-checkpoint-tmp" in name for name in self._checkpoints())


def _show(rounds: list[Round], chaos: Chaos, seconds: float) -> None:
    """The tables."""
    print(f"\n{'moment':<20}" + "".join(f"{f'{victim} {number.name[3:]}':>15}" for victim, number in KILLS) + "    all")
    counts = Counter((event.moment, event.victim, event.signal) for event in chaos.events)
    for moment in (*PREPARING, *MOMENTS):
        row = [counts[moment, *kill] for kill in KILLS]
        print(f"{moment:<20}" + "".join(f"{count or '-':>15}" for count in row) + f"{sum(row):7d}")
    columns = [sum(counts[moment, *kill] for moment in (*PREPARING, *MOMENTS)) for kill in KILLS]
    print(f"{'all':<20}" + "".join(f"{count:15d}" for count in columns) + f"{sum(columns):7d}")

    print(
        f"\n{'processes':<18}{'kills':>6}{'files':>7}{'values':>8}{'arrays':>7}{'steps taken':>12}{'rows':>8}"
        f"{'loss differs':>14}{'faults':>7}{'goodput':>9}{'lost':>7}{'save, s':>9}"
    )
    for each in rounds:
        result, (goodput, lost, save) = each.comparison, _time_of(each.run)
        print(
            f"{each.processes:<18}{each.num_kills:6d}{result.num_files:7d}{result.num_values:8d}{result.num_arrays:7d}"
            f"{result.num_steps_taken:12d}{result.num_rows:8d}{result.difference:14.1e}{len(result.faults):7d}"
            f"{goodput:9.1%}{lost:7.1%}{save:9.2f}"
        )
    print(
        f"\n{len(chaos.events)} kills in {seconds / 60:.1f} min: {chaos.num_launches} launches of local.sh, "
        f"{chaos.num_starts} starts of all processes, {len(chaos.unexplained)} that no kill explains"
    )
    if chaos.recoveries:
        ordered = sorted(chaos.recoveries)
        print(f"from SIGTERM to a stop: {max(chaos.steps_to_stop, default=0)} steps at most")
        print(f"from a kill to the next step: median {statistics.median(ordered):.1f} s, longest {ordered[-1]:.1f} s")


def _time_of(run: Path) -> tuple[float, float, float]:
    """Goodput of a run, the share of its time that went into steps done twice, and its longest save."""
    lines = read_step_log(run / "metrics.jsonl")
    if not lines:
        return 0.0, 0.0, 0.0
    log = (run / "launcher.log").read_text(errors="replace")
    saves = [float(found) for found in re.findall(r"held the steps up for at most ([\d.]+) s", log)]
    return lines[-1]["goodput"], lines[-1]["seconds_lost"] / lines[-1]["seconds_total"], max(saves, default=0.0)


if __name__ == "__main__":
    sys.exit(main())
