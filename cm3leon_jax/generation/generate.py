"""Completes requests: prompts, candidates for each, and the best of these."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cm3leon_jax.config import Config
from cm3leon_jax.data.corpus.prepared import PreparedCorpus
from cm3leon_jax.data.templates import TEMPLATES
from cm3leon_jax.data.templates.template import Template
from cm3leon_jax.distributed import is_coordinator, same_on_all_processes
from cm3leon_jax.errors import UserError
from cm3leon_jax.generation import prompts
from cm3leon_jax.generation.config import SamplingConfig
from cm3leon_jax.generation.load import TrainedModel
from cm3leon_jax.generation.prompt import Codes, Prompt
from cm3leon_jax.generation.rank import SCORERS, Candidate, best, caption_prompt, is_captioned
from cm3leon_jax.generation.requests import TASKS, Failure, ImageSource, Request, read_image, read_images
from cm3leon_jax.generation.sampler import Completion
from cm3leon_jax.generation.sampling import is_contrastive
from cm3leon_jax.images import UnreadableImage, decode_image
from cm3leon_jax.progress import Progress
from cm3leon_jax.retrieval.retriever import Neighbor, Retriever
from cm3leon_jax.vocabulary import Vocabulary

# Tasks whose documents are retrieved by the text (an image that is yet to be generated: arXiv 2309.02591, section 3.2),
# and by the image they are about; and queries per search.
_BY_TEXT, _BY_IMAGE = ("text_to_image", "infill"), ("caption", "vqa", "infill_text")
_QUERIES = 64


@dataclass(frozen=True)
class Result:
    """The candidates kept for a request, the best first, and their scores."""

    request: Request
    candidates: list[Candidate]
    scores: list[float]
    # Retrieved documents in its prompt.
    neighbors: tuple[Neighbor, ...] = ()


def generate(
    requests: Sequence[Request],
    model: TrainedModel,
    sampling: SamplingConfig,
    samples: int = 1,
    neighbors: Mapping[int, Sequence[Neighbor]] | None = None,
) -> tuple[list[Result], list[Failure]]:
    """Completes requests, and keeps the `samples` best candidates of each; says which have no result, and why.

    Where the mesh spans several processes, all of them call this with the same requests. `neighbors` are retrieved
    documents, by the number of the request.
    """
    retrieved = {number: tuple(found) for number, found in (neighbors or {}).items()}
    sources = (image for request in requests for image in request.images)
    images = read_images(sources, model.image_tokenizer, model.squaring)
    built, failures = _build_prompts(requests, images, retrieved, model, sampling)
    if not same_on_all_processes(repr(built)):
        raise UserError(
            "the processes of this run do not read the same prompts and images: give paths on a file system that all "
            "of them share"
        )
    completions = _complete(built, model, sampling, num_candidates(samples, sampling))
    decoded = [
        [decode_completion(request, completion, images, model) for completion in found]
        for (request, _), found in zip(built, completions, strict=True)
    ]
    scores = iter(SCORERS[sampling.scorer]([candidate for found in decoded for candidate in found], model))
    results = []
    for (request, _), found in zip(built, decoded, strict=True):
        scored = [(candidate, next(scores)) for candidate in found]
        # What is sampled from numbers that are not finite means nothing.
        finite = [(c, score) for c, score in scored if math.isfinite(c.completion.mean_logprob + score)]
        if not finite:
            failures.append(Failure(request.line, _not_finite(sampling, model)))
            continue
        kept = [finite[index] for index in best([score for _, score in finite], samples)]
        candidates, kept_scores = [c for c, _ in kept], [score for _, score in kept]
        results.append(Result(request, candidates, kept_scores, retrieved.get(request.number, ())))
    return results, sorted(failures, key=lambda failure: failure.line)


def _build_prompts(
    requests: Sequence[Request],
    images: Mapping[ImageSource, Codes | str],
    neighbors: Mapping[int, Sequence[Neighbor]],
    model: TrainedModel,
    sampling: SamplingConfig,
) -> tuple[list[tuple[Request, Prompt]], list[Failure]]:
    """The prompts of the requests that can be completed, and why the others cannot."""
    sampler, v, tokenizer = model.sampler, model.vocabulary, model.image_tokenizer.config
    built, failures = [], []
    for request in requests:
        documents = [neighbor.tokens.tolist() for neighbor in neighbors.get(request.number, ())]
        try:
            prompt = prompts.prompt_of(
                request, images, tokenizer.grid, v, sampling.max_text_tokens, sampler.sequence_length, documents
            )
            sampler.check_fits_sequence([prompt])
            if sampling.scorer == "caption" and is_captioned(request):
                any_image = np.zeros(tokenizer.image_length, np.int32)
                sampler.check_fits_sequence([caption_prompt(request.prompt, any_image, v)])
            built.append((request, prompt))
        except UserError as error:
            failures.append(Failure(request.line, str(error)))
    return built, failures


def num_candidates(samples: int, sampling: SamplingConfig) -> int:
    """How many candidates are sampled per request to keep `samples`, or fewer, of them."""
    candidates = max(samples, sampling.candidates)
    if sampling.temperature > 0:
        return candidates
    # Greedy decoding is deterministic: one completion per method.
    return min(candidates, 2 if sampling.method == "mixed" else 1)


def _complete(
    built: Sequence[tuple[Request, Prompt]], model: TrainedModel, sampling: SamplingConfig, number: int
) -> list[list[Completion]]:
    """The candidates of each request, which depend on the seed and on the request's number alone."""
    completions: list[list[Completion]] = [[] for _ in built]
    tasks = list(TASKS)
    progress = Progress("generate", len(built) * number, unit="sample", shown=is_coordinator())

    def task_of(index: int) -> int:
        return tasks.index(built[index][0].task)

    def order(index: int) -> tuple[int, int, int]:
        prompt = built[index][1]
        return task_of(index), len(prompt.plan), len(prompt.variants[0].tokens)

    done = 0
    # One task at a time, and short prompts apart from long ones: completions of one length finish together.
    for task, indices in itertools.groupby(sorted(range(len(built)), key=order), task_of):
        rows = [(index, candidate) for index in indices for candidate in range(number)]
        # A batch is filled up to its size: a small one for few prompts.
        batch_size = min(sampling.batch_size, len(rows))

        def advance(count: int, task: int = task, is_long: bool = len(rows) > batch_size) -> None:
            nonlocal done
            done += count
            progress.advance(count)
            if is_long:
                progress.say(done, tasks[task])

        found = model.sampler(
            [built[index][1] for index, _ in rows],
            dataclasses.replace(sampling, batch_size=batch_size),
            [built[index][0].number * number + candidate for index, candidate in rows],
            [is_contrastive(candidate, sampling.method) for _, candidate in rows],
            advance,
        )
        for (index, _), completion in zip(rows, found, strict=True):
            completions[index].append(completion)
    progress.close()
    return completions


def decode_completion(
    request: Request, completion: Completion, images: Mapping[ImageSource, Codes | str], model: TrainedModel
) -> Candidate:
    """The texts and images (as codes) of a completion."""
    v, tokens = model.vocabulary, completion.tokens
    if gives_image(request) and request.task != "infill":
        return Candidate(request, completion, image=v.decode_image(np.array(tokens)))
    if request.task == "infill":
        assert request.image is not None
        source = images[request.image]
        assert not isinstance(source, str)
        mask = prompts.region_mask(request.region, model.image_tokenizer.config.grid)
        return Candidate(request, completion, image=prompts.merge_infill(source, mask, tokens, v))
    if request.task == "infill_text":
        given = request.prompt.split(prompts.BLANK)
        num_spans = len(given) - 1
        # A completion that used up its tokens lacks the last texts.
        texts = [*prompts.infill_texts(tokens, v), *[""] * num_spans][:num_spans]
        text = "".join(part for pair in zip(given, [*texts, ""], strict=True) for part in pair)
        return Candidate(request, completion, text=text, texts=tuple(texts))
    if request.task == "continue":
        return Candidate(request, completion, segments=tuple(prompts.split_segments(tokens, v)))
    return Candidate(request, completion, text=v.decode_text(tokens).strip())


def gives_image(request: Request) -> bool:
    """Whether a request asks for an image alone."""
    if request.task == "instruction":
        template: Template = TEMPLATES.load(request.template)
        return template.targets[-1] in template.images
    return request.task in ("text_to_image", "edit", "infill")


def _not_finite(sampling: SamplingConfig, model: TrainedModel) -> str:
    return (
        f"the scores of its samples are not finite: with temperature {sampling.temperature:g} and guidance "
        f"{sampling.guidance:g} (edits {sampling.edit_guidance:g} and {sampling.edit_image_guidance:g}) set "
        f"config.sampling nearer to 1, or, where it is, take another checkpoint than that of step {model.step:,}"
    )


def open_retriever(config: Config, vocabulary: Vocabulary, count: int) -> Retriever:
    """The retriever of the run's corpus; a `UserError` if `count` documents do not fit beside an image."""
    image_length, length = config.image_tokenizer.image_length, config.batch.sequence_length
    # A text of one token and a break beside each image.
    most = length // (vocabulary.image_segment_length(image_length) + 2) - 1
    if count > most:
        raise UserError(
            f"--retrieve={count} does not fit: beside an image of {image_length} codes, config.batch.sequence_length "
            f"{length} has room for at most {max(0, most)} documents"
        )
    return Retriever.open(config, PreparedCorpus.open(config.corpus.path, vocabulary))


def retrieve(
    requests: Sequence[Request], retriever: Retriever, count: int, config: Config
) -> dict[int, list[Neighbor]]:
    """At most `count` documents for each request that can be searched for, by the request's number."""
    found: dict[int, list[Neighbor]] = {}
    image = config.image_tokenizer
    for start in range(0, len(requests), _QUERIES):
        chunk = requests[start : start + _QUERIES]
        texts = {request.number: request.prompt for request in chunk if request.task in _BY_TEXT}
        pixels = {}
        for request in chunk:
            # An image that cannot be read is reported when its prompt is built.
            with contextlib.suppress(OSError, ValueError, UnreadableImage):
                if request.task in _BY_IMAGE and request.image is not None:
                    pixels[request.number] = decode_image(
                        read_image(request.image), image.resolution, image.in_channels, config.corpus.squaring
                    )
        if texts:
            found |= dict(zip(texts, retriever.by_text(list(texts.values()), count), strict=True))
        if pixels:
            found |= dict(zip(pixels, retriever.by_image(np.stack(list(pixels.values())), count), strict=True))
    return found
