"""Measure the latest checkpoint of a run on held-out documents; write evaluation.json and report.html."""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Int, UInt8

from cm3leon_jax.config import Config, SamplingConfig
from cm3leon_jax.data.batches import BatchSource, open_retrieval
from cm3leon_jax.data.corpus import PreparedCorpus
from cm3leon_jax.data.objective import segments
from cm3leon_jax.distributed import is_first
from cm3leon_jax.documents import open_picture
from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation.digits import DigitReader
from cm3leon_jax.evaluation.report import Report, write_report
from cm3leon_jax.files import write_json
from cm3leon_jax.generation import prompts
from cm3leon_jax.generation.drawing import draw_pictures
from cm3leon_jax.generation.requests import MIDDLE_HALF, region_mask
from cm3leon_jax.generation.restoring import TrainedModel, restore_model
from cm3leon_jax.generation.retrieving import open_retriever
from cm3leon_jax.model.sharding import own_rows, refuse_uneven_batch
from cm3leon_jax.progress import read_step_log
from cm3leon_jax.training.held_out import held_out_loss
from cm3leon_jax.training.step import TrainStep
from cm3leon_jax.vocabulary import Vocabulary

# Where the config names no prompts, the first held-out texts are drawn.
_DEFAULT_PROMPTS = 8

# Marks of an infill prompt beside the document: two ends, and two for each of a few spans.
_MOST_MARKS = 8

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class CaptionedPictures:
    """Held-out documents of one text and one picture."""

    texts: list[str]
    codes: Int[np.ndarray, "n codes"]


def run(config: Config, workdir: Path, arguments: argparse.Namespace) -> None:
    """Draws, captions, fills in, measures, and writes it all down; with several processes, the first of them does."""
    model = restore_model(config, workdir)
    corpus = PreparedCorpus.open(config.corpus.path, model.vocabulary)
    evaluate, sampling = config.evaluate, config.sampling
    numbers: dict[str, float] = {"step": float(model.step)}
    numbers |= _losses(config, corpus, model)
    held_out = captioned_pictures(
        corpus, config.corpus.held_out_split, evaluate.num_documents, config.batch.sequence_length, model.vocabulary
    )
    originals = _originals(corpus, config)
    reconstructions = originals
    if len(originals):
        reconstructions = model.image_tokenizer.reconstruct(originals)
        numbers["reconstruction_psnr"] = psnr(originals, reconstructions)

    asked = evaluate.prompts or tuple(held_out.texts[:_DEFAULT_PROMPTS])
    texts = [text for text in asked for _ in range(evaluate.samples_per_prompt)]
    retrieved = _retrieved(texts, config, model)
    drawn = _timed(f"drawing {len(texts)} pictures", lambda: _draw(texts, model, sampling, retrieved))
    unguided = dataclasses.replace(sampling, guidance=1.0)
    plain = _timed("the same without guidance", lambda: _draw(texts, model, unguided, retrieved))
    by_infill = _timed(
        f"captioning {len(held_out.texts)} pictures by infill", lambda: captions(held_out, model, sampling, True)
    )
    left_to_right = _timed("and left to right", lambda: captions(held_out, model, sampling, False))
    filled = _timed("filling in their middle halves", lambda: infills(held_out, model, sampling))

    if evaluate.recognizer == "digits":
        reader = DigitReader()
        numbers |= reader.score_drawings("text_to_image", texts, drawn)
        numbers |= reader.score_drawings("text_to_image_unguided", texts, plain)
        numbers |= reader.score_captions("caption", held_out.texts, by_infill)
        numbers |= reader.score_captions("caption_left_to_right", held_out.texts, left_to_right)
        numbers |= reader.score_infills(held_out.texts, held_out.codes, filled, model.image_tokenizer)
        numbers |= reader.score_reading(model.image_tokenizer)
    if not is_first():
        return
    write_json(workdir / "evaluation.json", numbers)

    shown = slice(0, 24)
    report = Report(
        title=workdir.name,
        numbers=numbers,
        metrics=read_step_log(workdir / "metrics.jsonl"),
        prompts=list(asked),
        drawn=drawn.reshape(len(asked), -1, *drawn.shape[1:]),
        originals=originals[shown],
        reconstructions=reconstructions[shown],
        held_out=model.image_tokenizer.decode(held_out.codes[shown]),
        filled=model.image_tokenizer.decode(filled[shown]),
        texts=held_out.texts[shown],
        captions=by_infill[shown],
        captions_left_to_right=left_to_right[shown],
        mask=region_mask(MIDDLE_HALF, model.image_tokenizer.config.grid),
    )
    write_report(report, workdir / "report.html")
    for name, value in numbers.items():
        print(f"  {name:<44} {value:,.4g}")
    print(f"{workdir / 'evaluation.json'} and {workdir / 'report.html'} are written")


def captioned_pictures(
    corpus: PreparedCorpus, split: str, most: int, longest: int, vocabulary: Vocabulary
) -> CaptionedPictures:
    """The first documents of a split that are one text and one picture, each picture once.

    Args:
      most: how many; 0 means all.
      longest: positions of the model; documents that leave no room for an answer are left out.
    """
    texts: list[str] = []
    codes: list[Int[np.ndarray, "codes"]] = []
    seen: set[bytes] = set()
    for documents in corpus.splits(split).values():
        for index in range(documents.num_documents):
            tokens = documents.document(index)
            parts = [tokens[start:stop] for start, stop in segments(tokens, vocabulary)]
            pictures = [part for part in parts if vocabulary.is_image(part).all()]
            words = [part for part in parts if not vocabulary.is_image(part).any()]
            # Room for the marks, and for as many codes as an infill can ask for.
            fits = len(tokens) + len(pictures[0] if pictures else ()) + _MOST_MARKS <= longest
            if len(pictures) != 1 or len(words) != 1 or len(parts) != 2 or not fits:
                continue
            if pictures[0].tobytes() not in seen:
                seen.add(pictures[0].tobytes())
                texts.append(vocabulary.decode_text(words[0].tolist()))
                codes.append(vocabulary.decode_image(pictures[0]))
            if most and len(texts) == most:
                return CaptionedPictures(texts, np.stack(codes))
    if not texts:
        raise UserError(f"the split {split!r} of {corpus.path} has no document of one text and one picture to evaluate")
    return CaptionedPictures(texts, np.stack(codes))


def captions(held_out: CaptionedPictures, model: TrainedModel, sampling: SamplingConfig, by_infill: bool) -> list[str]:
    """The likeliest text for each picture, token by token."""
    asked = [_caption(c, sampling.max_text_tokens, model.vocabulary, by_infill) for c in held_out.codes]
    answers = model.decoder(asked, dataclasses.replace(sampling, temperature=0.0))
    return [model.vocabulary.decode_text(answer.tokens).strip() for answer in answers]


def _caption(codes: Int[np.ndarray, "codes"], most: int, vocabulary: Vocabulary, by_infill: bool) -> prompts.Prompt:
    if by_infill:
        return prompts.text_infill(prompts.BLANK, codes, most, vocabulary)
    return prompts.text_after_picture(codes, most, vocabulary)


def infills(held_out: CaptionedPictures, model: TrainedModel, sampling: SamplingConfig) -> Int[np.ndarray, "n codes"]:
    """Each picture with its middle half drawn anew, given the rest and its text."""
    mask = region_mask(MIDDLE_HALF, model.image_tokenizer.config.grid)
    asked = [
        prompts.infill(text, codes, mask, model.vocabulary)
        for text, codes in zip(held_out.texts, held_out.codes, strict=True)
    ]
    answers = model.decoder(asked, sampling)
    filled = [
        prompts.filled(codes, mask, answer.tokens, model.vocabulary)
        for codes, answer in zip(held_out.codes, answers, strict=True)
    ]
    return np.stack(filled)


def psnr(originals: UInt8[np.ndarray, "n R R C"], others: UInt8[np.ndarray, "n R R C"]) -> float:
    """Peak signal-to-noise ratio over all pixels, in dB."""
    error = np.mean(np.square(originals.astype(np.float64) - others))
    return float(10 * np.log10(255**2 / max(error, 1e-12)))


def _losses(config: Config, corpus: PreparedCorpus, model: TrainedModel) -> dict[str, float]:
    """Held-out loss under the training objective, and the perplexities it means."""
    batch = dataclasses.replace(config.batch, batch_size=config.evaluate.loss_batch_size)
    refuse_uneven_batch(batch.batch_size, model.mesh)
    retrieval = open_retrieval(corpus, config.retrieval, config.corpus.train_split)
    source = BatchSource(
        corpus,
        model.vocabulary,
        config.objective,
        batch,
        config.corpus.held_out_split,
        rows=own_rows(batch.batch_size, model.mesh),
        retrieval=retrieval,
    )
    compiled = TrainStep(config, model.vocabulary, model.mesh)
    num_batches = -(-config.evaluate.num_loss_sequences // config.evaluate.loss_batch_size)
    losses = held_out_loss(compiled, model.parameters, source, num_batches, model.mesh)
    perplexities = {
        name.replace("loss", "perplexity"): float(np.exp(value)) for name, value in losses.items() if "loss" in name
    }
    return losses | perplexities


def _originals(corpus: PreparedCorpus, config: Config) -> UInt8[np.ndarray, "n R R C"]:
    """The held-out pictures that `prepare` kept as pixels."""
    image = config.image_tokenizer
    files = sorted(corpus.path.glob(f"*/{config.corpus.held_out_split}/samples/*.png"))
    if not files:
        return np.zeros((0, image.resolution, image.resolution, image.in_channels), np.uint8)
    return np.stack([open_picture(file.read_bytes(), image.resolution, image.in_channels) for file in files])


def _retrieved(texts: list[str], config: Config, model: TrainedModel) -> list[prompts.Retrieved]:
    """The documents in front of each text; none where the config asks for none."""
    count = config.evaluate.num_retrieved
    if not count:
        return []
    found = open_retriever(config, model.vocabulary, count).by_text(texts, count)
    return [[neighbour.tokens.tolist() for neighbour in of_one] for of_one in found]


def _draw(
    texts: list[str], model: TrainedModel, sampling: SamplingConfig, retrieved: list[prompts.Retrieved]
) -> UInt8[np.ndarray, "n R R C"]:
    return draw_pictures(texts, model.decoder, model.image_tokenizer, model.vocabulary, sampling, retrieved)


def _timed(what: str, work: Callable[[], _Result]) -> _Result:
    started = time.perf_counter()
    result = work()
    if is_first():
        print(f"{what}: {time.perf_counter() - started:.1f} s", flush=True)
    return result
