"""Measure the latest checkpoint of a run on held-out documents; write evaluation.json and report.html."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from cm3leon_jax.config import Config
from cm3leon_jax.data.batches.source import BatchSource, open_retrieval
from cm3leon_jax.data.corpus.prepared import PreparedCorpus
from cm3leon_jax.distributed import is_coordinator
from cm3leon_jax.evaluation.report import Report, write_report
from cm3leon_jax.files import write_json
from cm3leon_jax.generation import prompts
from cm3leon_jax.generation.captioned import CaptionedImages, captioned_images
from cm3leon_jax.generation.config import SamplingConfig
from cm3leon_jax.generation.drawing import draw_images
from cm3leon_jax.generation.requests import MIDDLE_HALF, region_mask
from cm3leon_jax.generation.restoring import TrainedModel, restore_model
from cm3leon_jax.generation.retrieving import open_retriever
from cm3leon_jax.images import decode_image
from cm3leon_jax.models.sharding import check_batch_divides, process_local_rows
from cm3leon_jax.progress import Progress, read_step_log
from cm3leon_jax.training.eval_loss import eval_loss, make_eval_step
from cm3leon_jax.vocabulary import Vocabulary

log = logging.getLogger(__name__)

# Where the config names no prompts, the first held-out texts are drawn.
_DEFAULT_PROMPTS = 8

# Told how many more answers there are.
Advance = Callable[[int], None]


def run(config: Config, workdir: Path, arguments: argparse.Namespace) -> None:
    """Draws, captions, fills in, measures, and writes it all down; with several processes, the first of them does."""
    with _stage(f"opening the newest checkpoint of {workdir}"):
        model = restore_model(config, workdir)
    corpus = PreparedCorpus.open(config.corpus.path, model.vocabulary)
    evaluate, sampling = config.evaluate, config.sampling
    numbers: dict[str, float] = {"step": float(model.step)}
    with _stage(f"the loss of {evaluate.num_loss_sequences:,} held-out sequences"):
        numbers |= _losses(config, corpus, model)
    held_out = captioned_images(
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
    with _stage(f"drawing {len(texts):,} images", len(texts)) as advance:
        drawn = _draw(texts, model, sampling, retrieved, advance)
    with _stage("the same without guidance", len(texts)) as advance:
        plain = _draw(texts, model, dataclasses.replace(sampling, guidance=1.0), retrieved, advance)
    num_held_out = len(held_out.texts)
    with _stage(f"captioning {num_held_out:,} images by infill", num_held_out) as advance:
        by_infill = captions(held_out, model, sampling, True, advance)
    with _stage("captioning them left to right", num_held_out) as advance:
        left_to_right = captions(held_out, model, sampling, False, advance)
    with _stage("filling in their middle halves", num_held_out) as advance:
        filled = infills(held_out, model, sampling, advance)

    if evaluate.classifier == "digits":
        with _stage("reading the digits"):
            from examples.digits.classifier import DigitClassifier

            reader = DigitClassifier()
        numbers |= reader.score_drawings("text_to_image", texts, drawn)
        numbers |= reader.score_drawings("text_to_image_unguided", texts, plain)
        numbers |= reader.score_captions("caption", held_out.texts, by_infill)
        numbers |= reader.score_captions("caption_left_to_right", held_out.texts, left_to_right)
        numbers |= reader.score_infills(held_out.texts, held_out.codes, filled, model.image_tokenizer)
        numbers |= reader.score_reading(model.image_tokenizer)
    if not is_coordinator():
        return
    # A perplexity may be infinite, which JSON has no word for.
    finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
    write_json(workdir / "evaluation.json", finite)

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
        log.info(f"  {name:<44} {value:,.4g}")
    log.info(f"{workdir / 'evaluation.json'} and {workdir / 'report.html'} are written")


def captions(
    held_out: CaptionedImages,
    model: TrainedModel,
    sampling: SamplingConfig,
    by_infill: bool,
    advance: Advance | None = None,
) -> list[str]:
    """The likeliest text for each image, token by token."""
    asked = [_caption(c, sampling.max_text_tokens, model.vocabulary, by_infill) for c in held_out.codes]
    answers = model.decoder(asked, dataclasses.replace(sampling, temperature=0.0), advance=advance)
    return [model.vocabulary.decode_text(answer.tokens).strip() for answer in answers]


def _caption(codes: Int[np.ndarray, "codes"], most: int, vocabulary: Vocabulary, by_infill: bool) -> prompts.Prompt:
    if by_infill:
        return prompts.text_infill(prompts.BLANK, codes, most, vocabulary)
    return prompts.text_after_image(codes, most, vocabulary)


def infills(
    held_out: CaptionedImages, model: TrainedModel, sampling: SamplingConfig, advance: Advance | None = None
) -> Int[np.ndarray, "n codes"]:
    """Each image with its middle half drawn anew, given the rest and its text."""
    mask = region_mask(MIDDLE_HALF, model.image_tokenizer.config.grid)
    asked = [
        prompts.infill(text, codes, mask, model.vocabulary)
        for text, codes in zip(held_out.texts, held_out.codes, strict=True)
    ]
    answers = model.decoder(asked, sampling, advance=advance)
    filled = [
        prompts.merge_infill(codes, mask, answer.tokens, model.vocabulary)
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
    check_batch_divides(batch.batch_size, model.mesh)
    retrieval = open_retrieval(corpus, config.retrieval, config.corpus.train_split)
    source = BatchSource(
        corpus,
        model.vocabulary,
        config.objective,
        batch,
        config.corpus.held_out_split,
        rows=process_local_rows(batch.batch_size, model.mesh),
        retrieval=retrieval,
    )
    length, chunks = config.batch.sequence_length, config.train.loss_chunks
    eval_step = make_eval_step(config.model, model.vocabulary, length, model.mesh, chunks)
    num_batches = -(-config.evaluate.num_loss_sequences // config.evaluate.loss_batch_size)
    losses = eval_loss(eval_step, model.parameters, source, num_batches, model.mesh)
    perplexities = {
        name.replace("loss", "perplexity"): float(np.exp(value)) for name, value in losses.items() if "loss" in name
    }
    return losses | perplexities


def _originals(corpus: PreparedCorpus, config: Config) -> UInt8[np.ndarray, "n R R C"]:
    """The held-out images that `prepare` kept as pixels."""
    image = config.image_tokenizer
    files = sorted(corpus.path.glob(f"*/{config.corpus.held_out_split}/samples/*.png"))
    if not files:
        return np.zeros((0, image.resolution, image.resolution, image.in_channels), np.uint8)
    return np.stack([decode_image(file.read_bytes(), image.resolution, image.in_channels) for file in files])


def _retrieved(texts: list[str], config: Config, model: TrainedModel) -> list[prompts.Retrieved]:
    """The documents in front of each text; none where the config asks for none."""
    count = config.evaluate.num_retrieved
    if not count:
        return []
    found = open_retriever(config, model.vocabulary, count).by_text(texts, count)
    return [[neighbor.tokens.tolist() for neighbor in of_one] for of_one in found]


def _draw(
    texts: list[str],
    model: TrainedModel,
    sampling: SamplingConfig,
    retrieved: list[prompts.Retrieved],
    advance: Advance,
) -> UInt8[np.ndarray, "n R R C"]:
    return draw_images(texts, model.decoder, model.image_tokenizer, model.vocabulary, sampling, retrieved, advance)


@contextlib.contextmanager
def _stage(what: str, total: int = 0) -> Iterator[Advance]:
    """Says what begins and how long it took, and shows how far it is if it knows; only the first process does."""
    has_bar = total > 0 and sys.stderr.isatty()
    is_said = is_coordinator() and not has_bar
    if is_said:
        log.info(f"{what} ...")
    started, progress, done = time.perf_counter(), Progress(what, total, unit="answer", shown=is_coordinator()), 0

    def advance(number: int) -> None:
        nonlocal done
        done += number
        for _ in range(number):
            progress.advance()
        if is_said and done < total:
            progress.say(done, "answered")

    if not has_bar:
        progress.close()
    yield advance
    progress.close()
    if is_said:
        log.info(f"{what}: {time.perf_counter() - started:.1f} s")
