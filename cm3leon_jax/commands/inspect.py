"""Shows what is in a prepared corpus: its documents, their neighbors, and the packed sequences that training sees.

Prints them as text and writes a page with images. Special tokens are shown as they are, `[image 4x4]` stands for a
whole image and `[5 codes]` for a part of one.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, zip_longest
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from cm3leon_jax import pages
from cm3leon_jax.config import Config
from cm3leon_jax.data.batches.batch import Batch
from cm3leon_jax.data.batches.instructions import stored_roles
from cm3leon_jax.data.batches.row_fit import row_losses
from cm3leon_jax.data.batches.row_plan import Retrieval, open_retrieval
from cm3leon_jax.data.batches.source import BatchSource
from cm3leon_jax.data.corpus.check import check_corpus
from cm3leon_jax.data.corpus.neighbors import NONE
from cm3leon_jax.data.corpus.prepared import PreparedCorpus
from cm3leon_jax.data.corpus.tokenizing import summary
from cm3leon_jax.documents import Role
from cm3leon_jax.errors import UserError
from cm3leon_jax.files import atomic_write
from cm3leon_jax.image_tokenizers.base import ImageTokenizer, load_image_tokenizer
from cm3leon_jax.paths import output_file
from cm3leon_jax.ranges import Range, whole_number
from cm3leon_jax.storage.address import shown
from cm3leon_jax.terminal import counted, visible
from cm3leon_jax.vocabulary import Vocabulary

# Where a part of an image is missing, the page shows this pale blue, which no gray image has.
_MISSING = (205, 218, 240)


@dataclass(frozen=True)
class Piece:
    """A run of ids of one kind: "text", "special", "pad" or "image"."""

    kind: str
    text: str
    # Of an image: its codes, and where in the image the first of them lies; None if that is not known.
    codes: tuple[int, ...] = ()
    offset: int | None = None
    # The role in an instruction, or "uncounted" for what the loss does not count; empty where neither is shown.
    label: str = ""


@dataclass(frozen=True)
class Shown:
    """One document or sequence as it is shown."""

    title: str
    pieces: tuple[Piece, ...]
    # Of a document, the best first: those found by its text, then those found by its images.
    neighbors: tuple[Shown, ...] = ()

    @property
    def line(self) -> str:
        return " ".join(f"{piece.label}:{piece.text}" if piece.label else piece.text for piece in self.pieces)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--split", help="which split (default: config.corpus.train_split)")
    parser.add_argument(
        "--count",
        type=whole_number("--count", Range(at_least=1, at_most=10_000)),
        default=8,
        metavar="N",
        help="how many documents and how many sequences (default: 8)",
    )
    parser.add_argument("--check", action="store_true", help="read all of the corpus, say what is damaged; no page")
    parser.add_argument(
        "--html", type=output_file("--html"), metavar="FILE", help="the page (default: WORKDIR/inspect.html)"
    )


def run(config: Config, workdir: Path, arguments: argparse.Namespace) -> int:
    vocabulary = Vocabulary.load(config.vocabulary.path)
    corpus = PreparedCorpus.open(config.corpus.path, vocabulary)
    if arguments.check:
        print(check_corpus(corpus, vocabulary, config.corpus.train_split))
        return 0
    split = arguments.split or config.corpus.train_split
    retrieval = open_retrieval(corpus, config.retrieval, config.corpus.train_split)
    documents = list(_documents(corpus, vocabulary, split, arguments.count, retrieval))
    sequences = list(_sequences(config, corpus, vocabulary, split, arguments.count, retrieval))
    image_tokenizer, absence = _image_tokenizer(config, corpus)

    made_by, mixture = corpus.manifest["created_by"], corpus.manifest["mixture"]
    print(visible(f"{corpus.path}, made by {made_by} from {mixture!r}") + "\n")
    print(visible(summary(corpus.manifest), keep="\n"))
    print(row_losses(corpus, vocabulary, config.batch, split))
    for heading, entries in (("documents", documents), ("sequences", sequences)):
        print(f"\n{heading} of {split!r}")
        for entry in entries:
            print(f"\n  {visible(entry.title)}\n    {visible(entry.line)}")
            for neighbor in entry.neighbors:
                print(f"    {visible(neighbor.title)}: {visible(neighbor.line)}")
    page = arguments.html or workdir / "inspect.html"
    with atomic_write(page) as temporary:
        temporary.write_text(_page(corpus, split, documents, sequences, image_tokenizer, absence), encoding="utf-8")
    print("\n" + visible(f"{absence + '; ' if absence else ''}page written to {page}"))
    return 0


def pieces(
    ids: Int[np.ndarray, " n"], vocabulary: Vocabulary, image_length: int, labels: Sequence[str] = ()
) -> tuple[Piece, ...]:
    """Splits ids into runs of text, images and single special tokens, and finds where in its image each part lies.

    A run has one of the `labels`, of which there is one for each id, if any.
    """
    edges = {vocabulary.break_, vocabulary.end, *vocabulary.begin_image, *vocabulary.end_image}
    result: list[Piece] = []
    # Where in its image the hole under a mask begins, for the masks met so far.
    holes: dict[int, int | None] = {}
    reached: int | None = None
    start = 0
    conditions = [ids == vocabulary.pad, vocabulary.is_image(ids), vocabulary.is_text(ids)]
    kinds = np.select(conditions, ["pad", "image", "text"], "special").tolist()
    labeled = zip(kinds, labels or [""] * len(kinds), ids.tolist(), strict=True)
    for (kind, label), group in groupby(labeled, lambda entry: entry[:2]):
        run = [token for *_, token in group]
        start += len(run)
        # A sequence of concat-then-split packing may be cut inside an image, at both its ends.
        ends_segment = start < len(ids) and int(ids[start]) in edges
        if kind == "text":
            result.append(Piece(kind, vocabulary.decode_text(run), label=label))
            reached = None
        elif kind == "pad":
            result.append(Piece(kind, f"<pad> x {len(run)}"))
        elif kind == "special":
            for token in run:
                result.append(Piece(kind, vocabulary.name(token), label=label))
                if token in edges:
                    reached = 0
                elif token in holes:
                    # The mask comes a second time, before what it hides.
                    reached = holes[token]
                else:
                    holes[token], reached = reached, None
        else:
            offset = 0 if len(run) == image_length else reached
            if offset is None and ends_segment:
                offset = image_length - len(run)
            result.append(_image_piece(run, offset, vocabulary, image_length, label))
            reached = None if offset is None else offset + len(run)
    return tuple(result)


def _image_piece(run: list[int], offset: int | None, vocabulary: Vocabulary, image_length: int, label: str) -> Piece:
    grid = round(image_length**0.5)
    text = f"[image {grid}x{grid}]" if len(run) == image_length else f"[{counted(len(run), 'code')}]"
    codes = tuple(vocabulary.decode_image(np.array(run)).tolist())
    fits = offset is not None and offset + len(run) <= image_length
    return Piece("image", text, codes, offset if fits else None, label)


def _documents(
    corpus: PreparedCorpus, vocabulary: Vocabulary, split: str, count: int, retrieval: Retrieval | None
) -> Iterator[Shown]:
    """The first documents, in turn from each task, with their neighbors."""
    tasks = corpus.splits(split)
    by_task = [[(name, index) for index in range(min(count, task.num_documents))] for name, task in tasks.items()]
    in_turn = [entry for turn in zip_longest(*by_task) for entry in turn if entry is not None]
    for name, index in in_turn[:count]:
        ids = tasks[name].document(index)
        template, roles = tasks[name].template(index), stored_roles(tasks[name], index, vocabulary)
        labels = [] if roles is None else [Role(min(role, Role.TARGET)).name.lower() for role in roles.tolist()]
        neighbors = tuple(_neighbors(corpus, vocabulary, name, split, index, retrieval)) if retrieval else ()
        title = f"{name} {index}, {len(ids)} tokens" + (f", template {template}" if template else "")
        if retrieval and not neighbors:
            title += ", no neighbors"
        yield Shown(title, pieces(ids, vocabulary, corpus.image_length, labels), neighbors)


def _neighbors(
    corpus: PreparedCorpus, vocabulary: Vocabulary, task: str, split: str, index: int, retrieval: Retrieval
) -> Iterator[Shown]:
    indices, scores = retrieval.lists.of_split(task, split)
    for rank, (position, score) in enumerate(zip(indices[index].tolist(), scores[index].tolist(), strict=True)):
        if position == NONE:
            continue
        found_by = "text" if rank < retrieval.config.num_by_text else "image"
        origin, number = retrieval.lists.documents.origin(position)
        ids = retrieval.lists.documents.document(position)
        yield Shown(f"by {found_by}, {score:.2f}, {origin} {number}", pieces(ids, vocabulary, corpus.image_length))


def _sequences(
    config: Config, corpus: PreparedCorpus, vocabulary: Vocabulary, split: str, count: int, retrieval: Retrieval | None
) -> Iterator[Shown]:
    """The first sequences of training, document by document."""
    rows = dataclasses.replace(config.batch, batch_size=count)
    batch = BatchSource(corpus, vocabulary, config.objective, rows, split, retrieval=retrieval)[0]
    for row in range(count):
        parts = list(_row_documents(batch, row, vocabulary))
        # Where all counts, nothing is labeled.
        is_weighted = any(not is_counted.all() for _, is_counted in parts)
        length = batch.tokens.shape[1]
        used = int((batch.tokens[row] != vocabulary.pad).sum())
        title = f"sequence {row}, {used} of {length} tokens, {counted(len(parts), 'document')}"
        shown: list[Piece] = []
        for ids, is_counted in parts:
            # The first token is never predicted.
            labels = ["", *np.where(is_counted, "", "uncounted").tolist()] if is_weighted else ()
            shown += pieces(ids, vocabulary, corpus.image_length, labels)
        padding = [Piece("pad", f"<pad> x {length - used}")] if used < length else []
        yield Shown(title, (*shown, *padding))


def _row_documents(
    batch: Batch, row: int, vocabulary: Vocabulary
) -> Iterator[tuple[Int[np.ndarray, " n"], Bool[np.ndarray, "n-1"]]]:
    """The ids of each document of a row, with the last one, which is only a target, and which targets count."""
    used = batch.tokens[row] != vocabulary.pad
    for start in np.unique(batch.document_start[row][used]):
        inside = used & (batch.document_start[row] == start)
        ids = np.append(batch.tokens[row][inside], batch.targets[row][inside][-1])
        yield ids, batch.weights[row][inside] > 0


def _image_tokenizer(config: Config, corpus: PreparedCorpus) -> tuple[ImageTokenizer | None, str]:
    """The image tokenizer the corpus was made with, or why there is none to decode its codes."""
    try:
        image_tokenizer = load_image_tokenizer(config.image_tokenizer.path)
    except UserError as error:
        return None, f"the page has no images: {error}"
    if image_tokenizer.fingerprint != corpus.manifest["image_tokenizer"]["fingerprint"]:
        return None, f"the page has no images: {config.image_tokenizer.path} is not what the corpus was made with"
    return image_tokenizer, ""


def _page(
    corpus: PreparedCorpus,
    split: str,
    documents: Sequence[Shown],
    sequences: Sequence[Shown],
    image_tokenizer: ImageTokenizer | None,
    absence: str,
) -> str:
    everything = [*documents, *(neighbor for document in documents for neighbor in document.neighbors), *sequences]
    placed = [piece for shown in everything for piece in shown.pieces if piece.offset is not None]
    images = dict(zip(placed, _decoded(placed, image_tokenizer), strict=True)) if image_tokenizer and placed else {}
    return pages.render(
        "commands",
        "inspect.html.jinja",
        image=pages.ImageStyle.of(corpus.manifest["image_tokenizer"]["resolution"]),
        path=shown(str(corpus.path)),
        manifest=corpus.manifest,
        split=split,
        sections=[("Documents", documents), ("Sequences", sequences)],
        samples=[pages.png_url(file.read_bytes()) for file in _sample_files(corpus, split)],
        images=images,
        absence=absence,
        has_roles=any(piece.label for shown in documents for piece in shown.pieces),
    )


def _decoded(placed: Sequence[Piece], image_tokenizer: ImageTokenizer) -> list[str]:
    """PNGs as data URLs; what a part of an image does not cover is pale blue."""
    config = image_tokenizer.config
    codes = np.zeros((len(placed), config.image_length), np.int32)
    known = np.zeros(codes.shape, bool)
    for row, piece in enumerate(placed):
        assert piece.offset is not None
        stop = piece.offset + len(piece.codes)
        codes[row, piece.offset : stop], known[row, piece.offset : stop] = piece.codes, True
    pixels = image_tokenizer.decode(codes, batch_size=min(64, len(placed)))
    side = config.resolution // config.grid
    cells = known.reshape(-1, config.grid, config.grid, 1).repeat(side, axis=1).repeat(side, axis=2)
    return [pages.image_url(image) for image in np.where(cells, pixels, np.array(_MISSING, np.uint8))]


def _sample_files(corpus: PreparedCorpus, split: str, count: int = 16) -> list[Path]:
    files = [sorted((corpus.path / task / split / "samples").glob("*.png")) for task in corpus.manifest["tasks"]]
    return next((found[:count] for found in files if found), [])
