"""What retrieved documents are worth: held-out perplexity of images with neighbors, without, and with random ones.

For runs of examples/emoji/emoji.py: python benchmarks/retrieval.py RUN [RUN ..] [--steps=500,1000]

Beside the models stands what needs none: a unigram of each place of an image, mixed with copying the code that the
neighbors have at the same place. Every document is scored as it is (nothing masked), its image's codes alone; the
neighbors are those found by its text, since by its image would tell what is to be predicted.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from cm3leon_jax import config_file
from cm3leon_jax.checkpoints import Checkpoints
from cm3leon_jax.config import Config
from cm3leon_jax.data.corpus.neighbors import NONE, NeighborLists
from cm3leon_jax.data.corpus.prepared import PreparedCorpus
from cm3leon_jax.evaluation.context import EvaluationContext
from cm3leon_jax.evaluation.likelihood import document_losses
from cm3leon_jax.generation.load import load_step
from cm3leon_jax.vocabulary import Vocabulary

sys.path.insert(0, str(Path(__file__).parents[1]))

from examples.emoji import images as emoji

_ROWS = 24


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The held-out documents, their neighbors by text, and which of them have a variant in training."""

    documents: list[Int[np.ndarray, "n"]]
    neighbors: Int[np.ndarray, "documents kept"]
    has_sibling: Bool[np.ndarray, "documents"]
    lists: NeighborLists


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="workdirs of finished or running trainings")
    parser.add_argument("--steps", default="", help="checkpoints to look at, such as 500,1000 (default: the last)")
    parser.add_argument("--neighbors", default="", help="comparisons to make, such as 'none,top 1' (default: all)")
    parser.add_argument("--output", type=Path, help="also write the table as JSON lines")
    arguments = parser.parse_args()
    lines = []
    for number, run in enumerate(arguments.runs):
        config = _config(run)
        vocabulary = Vocabulary.load(config.vocabulary.path)
        corpus = PreparedCorpus.open(config.corpus.path, vocabulary)
        held_out = _held_out(config, corpus, vocabulary)
        if number == 0:
            lines += _show("no model", 0, copying(held_out, corpus, config, vocabulary), held_out)
        with Checkpoints(run / "checkpoints", config.train.keep_checkpoints) as checkpoints:
            steps = [int(step) for step in arguments.steps.split(",") if step] or [checkpoints.latest_step]
            for step in steps:
                evaluation = EvaluationContext(config, load_step(config, run, checkpoints, step), corpus)
                asked = [name for name in arguments.neighbors.split(",") if name] or list(choices(held_out))
                found = {name: nats(held_out, choices(held_out)[name], evaluation) for name in asked}
                lines += _show(str(run), step, found, held_out)
    if arguments.output:
        arguments.output.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _config(run: Path) -> Config:
    """A run's own config, with its paths as they were."""
    return config_file.load(str(run / "config.json"), str(run))


def _held_out(config: Config, corpus: PreparedCorpus, vocabulary: Vocabulary) -> HeldOut:
    lists = NeighborLists.open(corpus, dataclasses.replace(config.retrieval, enabled=True), config.corpus.train_split)
    split = corpus.task_split("emoji", config.corpus.held_out_split)
    documents = [split.document(index) for index in range(split.num_documents)]
    places, _ = lists.of_split("emoji", config.corpus.held_out_split)
    names = [emoji.named(vocabulary.decode_text(document.tolist())) for document in documents]
    has_sibling = np.array([name is not None and emoji.sibling_in_training(name) for name in names])
    return HeldOut(documents, np.asarray(places[:, : config.retrieval.num_by_text]), has_sibling, lists)


def choices(held_out: HeldOut) -> dict[str, Int[np.ndarray, "documents k"]]:
    """Which neighbors stand in front, in each comparison."""
    n, most = held_out.neighbors.shape
    random = np.random.default_rng(0).integers(0, len(held_out.lists.documents), (n, most))
    named = {"none": held_out.neighbors[:, :0]}
    for count in range(1, most + 1):
        # The best stands nearest to the document.
        named[f"top {count}"] = held_out.neighbors[:, :count][:, ::-1]
    return named | {"random 1": random[:, :1], f"random {most}": random}


def nats(
    held_out: HeldOut, places: Int[np.ndarray, "documents k"], evaluation: EvaluationContext
) -> Float[np.ndarray, "documents codes"]:
    """The loss of each code of each document's image, after its neighbors, as the likelihood metric has it."""
    vocabulary = evaluation.model.vocabulary
    rows = [
        ([held_out.lists.documents.document(place) for place in mine if place != NONE], document)
        for document, mine in zip(held_out.documents, places.tolist(), strict=True)
    ]
    losses = document_losses(rows, evaluation, _ROWS)
    # The last loss of a document is that of its end.
    return np.stack([of[:-1][vocabulary.is_image(row[1])] for row, of in zip(rows, losses, strict=True)])


def copying(
    held_out: HeldOut, corpus: PreparedCorpus, config: Config, vocabulary: Vocabulary
) -> dict[str, Float[np.ndarray, "documents codes"]]:
    """A unigram of each place, alone and mixed with copying from neighbors; the mixture's weight is the best one."""

    def image(document: Int[np.ndarray, "n"]) -> Int[np.ndarray, "codes"]:
        return vocabulary.decode_image(document[vocabulary.is_image(document)])

    split = corpus.task_split("emoji", config.corpus.train_split)
    train = np.stack([image(split.document(index)) for index in range(split.num_documents)])
    num_codes, length = vocabulary.num_image_codes, train.shape[1]
    counts = np.full((length, num_codes), 0.1)
    for code in train:
        counts[np.arange(length), code] += 1
    unigram = counts / counts.sum(axis=1, keepdims=True)
    targets = np.stack([image(document) for document in held_out.documents])
    alone = unigram[np.arange(length), targets]
    results = {"unigram": -np.log(alone)}
    for name, places in choices(held_out).items():
        if name == "none":
            continue
        is_there = places != NONE
        agree = np.stack(
            [
                [(train[place] == target) if place != NONE else np.zeros(length, bool) for place in mine]
                for mine, target in zip(places.tolist(), targets, strict=True)
            ]
        )
        share = agree.sum(axis=1) / np.maximum(1, is_there.sum(axis=1))[:, None]
        weight = np.where(is_there.any(axis=1), 1.0, 0.0)[:, None]
        losses = [-np.log((1 - weight * w) * alone + weight * w * share + 1e-12) for w in np.linspace(0.05, 0.95, 19)]
        results[f"unigram, copying {name}"] = min(losses, key=np.mean)
    return results


def _show(
    what: str, step: int, found: Mapping[str, Float[np.ndarray, "documents codes"]], held_out: HeldOut
) -> list[dict[str, float | str]]:
    lines: list[dict[str, float | str]] = []
    groups = {"all": np.ones_like(held_out.has_sibling), "sibling": held_out.has_sibling, "rest": ~held_out.has_sibling}
    for name, losses in found.items():
        line: dict[str, float | str] = {"run": what, "step": step, "neighbors": name}
        for group, members in groups.items():
            line[group] = float(np.exp(losses[members].mean()))
        print(f"{what:<24} {step:>6} {name:<28}" + "".join(f" {group} {line[group]:7.2f}" for group in groups))
        lines.append(line)
    sizes = ", ".join(f"{int(members.sum())} {group}" for group, members in groups.items())
    print(f"{'':<24} documents: {sizes}", flush=True)
    return lines


if __name__ == "__main__":
    main()
