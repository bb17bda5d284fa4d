"""A trained model, held-out documents, and what the model generates for them: what every metric measures."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import sys
import time
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Bool, Int, UInt8

from cm3leon_jax.config import Config
from cm3leon_jax.data.corpus.prepared import PreparedCorpus
from cm3leon_jax.distributed import is_coordinator
from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation import set_results
from cm3leon_jax.evaluation.image_arrays import CodedImages, ImageArray, ImageFiles
from cm3leon_jax.evaluation.set_results import ComparedEdits, ComparedTexts, SampledImages
from cm3leon_jax.evaluation.sets.base import Item
from cm3leon_jax.evaluation.sets.configured import CommonSetOptions, ConfiguredSet, OwnItems, set_named
from cm3leon_jax.generation import prompts
from cm3leon_jax.generation.captioned import CaptionedImages, captioned_images
from cm3leon_jax.generation.config import SamplingConfig
from cm3leon_jax.generation.generate import Result, open_retriever
from cm3leon_jax.generation.load import TrainedModel
from cm3leon_jax.generation.prompt import Prompt, Retrieved
from cm3leon_jax.generation.prompts import region_mask
from cm3leon_jax.generation.requests import MIDDLE_HALF
from cm3leon_jax.generation.samples import generate_images
from cm3leon_jax.images import decode_image
from cm3leon_jax.progress import Progress

log = logging.getLogger(__name__)

# Prompts taken from the held-out texts, where the config has none.
_DEFAULT_PROMPTS = 8

# Most lines about the progress of a stage.
_LINES = 20

T = TypeVar("T")

# Called with the number of further samples that are done.
Advance = Callable[[int], None]


@dataclass(frozen=True)
class CompletedItems:
    """Requests with what is true of them, and what the model generated for each."""

    items: Sequence[Item]
    results: list[Result]


@dataclass(frozen=True)
class EvaluationContext:
    """What metrics and the report look at; samples are made when first used, then kept.

    All processes of a run use the same attributes in the same order, since they generate together.
    """

    config: Config
    model: TrainedModel
    corpus: PreparedCorpus
    sets: Mapping[str, ConfiguredSet] = field(default_factory=dict)
    # What was generated, by the name of the set that a metric has looked at, or that it gave to items of its own.
    completed: dict[str, CompletedItems] = field(default_factory=dict)
    # What the model's parameters do not decide, such as features of real images: `keep`.
    kept: dict[Hashable, Any] = field(default_factory=dict)

    def keep(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returned the first time; while a model trains, all measurements share it.

        Args:
          key: such as (metric, what): metrics of the same options are equal.
        """
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]

    def sampled(self, name: str = "") -> SampledImages:
        """Images from the prompts of an evaluation set, or of the config."""
        if not name:
            prompts = self.sample_prompts
            per_prompt = self.config.evaluate.samples_per_prompt
            ranks = np.tile(np.arange(per_prompt), len(prompts) // per_prompt)
            return SampledImages(prompts, prompts, self.sampled_images, ranks)
        asked = self.asked(name, ("text_to_image",), "images from prompts")
        return set_results.sampled(asked.items, self._results(asked), self.model)

    def captioned(self, name: str = "") -> ComparedTexts:
        """Captions of the images of an evaluation set, or of held-out images."""
        if not name:
            ids = [str(index) for index in range(len(self.held_out.texts))]
            return ComparedTexts(ids, self.captions, [(text,) for text in self.held_out.texts])
        return self._texts(self.asked(name, ("caption",), "captions"))

    def answered(self, name: str = "") -> ComparedTexts:
        """Answers to the questions of an evaluation set."""
        return self._texts(self.asked(name, ("vqa",), "answers"))

    def edited(self, name: str = "") -> ComparedEdits:
        """Edited images of an evaluation set."""
        asked = self.asked(name, ("edit",), "edits")
        for item in asked.items:
            if item.image is None:
                raise asked.error(item, "no target to compare an edited image with")
        return set_results.edits(asked.items, self._results(asked), self.model)

    def complete(self, name: str, items: Sequence[Item], **sampling: Any) -> list[Result]:
        """What the model generates for a metric's own items, one result each; the report shows the first of them.

        Texts are the likeliest, by greedy decoding, unless `sampling` says otherwise.

        Args:
          name: what the report calls them.
          sampling: fields of `config.sampling` that differ.

        Raises:
          UserError: names the first item that cannot be completed.
        """
        asked = ConfiguredSet(name, OwnItems(items), CommonSetOptions(samples_per_prompt=1, sampling=sampling))
        with stage(f"{name}: {len(items):,} requests"):
            results = set_results.complete(asked, self.model, self.config)
        self.completed.setdefault(name, CompletedItems(items, results))
        return results

    def real_images(self, name: str = "") -> ImageArray:
        """The real images of an evaluation set; without a name the held-out images, decoded from their codes."""
        if not name:
            return CodedImages(self.held_out.codes, self.model.image_tokenizer)
        sources = dict.fromkeys(item.image for item in set_named(self.sets, name).items if item.image is not None)
        if not sources:
            raise UserError(f"config.evaluate.sets.{name} has no real images to compare with")
        config = self.config.image_tokenizer
        return ImageFiles(list(sources), config.resolution, config.in_channels, self.model.squaring)

    def asked(self, name: str, tasks: Collection[str], what: str) -> ConfiguredSet:
        """An evaluation set that asks for these tasks alone; nothing is generated for it.

        Raises:
          UserError: if there is no such set, or it asks for another task; says that a metric needs `what`.
        """
        asked = set_named(self.sets, name)
        asked.check_asks(tasks, what)
        return asked

    def _texts(self, asked: ConfiguredSet) -> ComparedTexts:
        for item in asked.items:
            if not item.references:
                raise asked.error(item, "no references to compare a text with")
        return set_results.texts(asked.items, self._results(asked))

    def _results(self, asked: ConfiguredSet) -> list[Result]:
        if asked.name not in self.completed:
            with stage(f"generating for the evaluation set {asked.name}"):
                results = set_results.complete(asked, self.model, self.config)
                self.completed[asked.name] = CompletedItems(asked.items, results)
        return self.completed[asked.name].results

    @cached_property
    def held_out(self) -> CaptionedImages:
        """Held-out documents of one text and one image."""
        config = self.config
        return captioned_images(
            self.corpus,
            config.corpus.held_out_split,
            config.evaluate.num_documents,
            config.batch.sequence_length,
            self.model.vocabulary,
        )

    @cached_property
    def held_out_images(self) -> UInt8[np.ndarray, "n R R C"]:
        """The images of `held_out`, decoded from their codes."""
        return self.model.image_tokenizer.decode(self.held_out.codes)

    @cached_property
    def originals(self) -> UInt8[np.ndarray, "o R R C"]:
        """The held-out images that `prepare` kept as pixels."""
        image = self.config.image_tokenizer
        files = sorted(self.corpus.path.glob(f"*/{self.config.corpus.held_out_split}/samples/*.png"))
        if not files:
            return np.zeros((0, image.resolution, image.resolution, image.in_channels), np.uint8)
        return np.stack([decode_image(file.read_bytes(), image.resolution, image.in_channels) for file in files])

    @cached_property
    def reconstructions(self) -> UInt8[np.ndarray, "o R R C"]:
        """`originals` after the image tokenizer."""
        return self.model.image_tokenizer.reconstruct(self.originals) if len(self.originals) else self.originals

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts of text-to-image."""
        return self.config.evaluate.prompts or tuple(self.held_out.texts[:_DEFAULT_PROMPTS])

    @property
    def sample_prompts(self) -> list[str]:
        """The prompt of each sampled image."""
        return [text for text in self.prompts for _ in range(self.config.evaluate.samples_per_prompt)]

    @cached_property
    def sampled_images(self) -> UInt8[np.ndarray, "s R R C"]:
        """An image for each of `sample_prompts`."""
        with stage(f"sampling {len(self.sample_prompts):,} images", len(self.sample_prompts)) as advance:
            return self._sample_images(self.config.sampling, advance)

    @cached_property
    def unguided_images(self) -> UInt8[np.ndarray, "s R R C"]:
        """The same without classifier-free guidance."""
        with stage("the same without guidance", len(self.sample_prompts)) as advance:
            return self._sample_images(dataclasses.replace(self.config.sampling, guidance=1.0), advance)

    @cached_property
    def captions(self) -> list[str]:
        """The likeliest text of each held-out image, as an infill of a masked caption."""
        with stage(f"captioning {len(self.held_out.texts):,} images by infill", len(self.held_out.texts)) as advance:
            return self._caption(partial(prompts.text_infill, prompts.BLANK), advance)

    @cached_property
    def captions_left_to_right(self) -> list[str]:
        """The likeliest text of each held-out image, as what follows it."""
        with stage("captioning them left to right", len(self.held_out.texts)) as advance:
            return self._caption(prompts.text_after_image, advance)

    @cached_property
    def mask(self) -> Bool[np.ndarray, "codes"]:
        """Which codes of an image an infill replaces: the middle half."""
        return region_mask(MIDDLE_HALF, self.model.image_tokenizer.config.grid)

    @cached_property
    def infilled_codes(self) -> Int[np.ndarray, "n codes"]:
        """Each held-out image with its middle half sampled, given the rest and its text."""
        model, held_out = self.model, self.held_out
        requests = [
            prompts.infill(text, codes, self.mask, model.vocabulary)
            for text, codes in zip(held_out.texts, held_out.codes, strict=True)
        ]
        with stage("infilling their middle halves", len(requests)) as advance:
            completions = model.sampler(requests, self.config.sampling, advance=advance)
        infilled = [
            prompts.merge_infill(codes, self.mask, completion.tokens, model.vocabulary)
            for codes, completion in zip(held_out.codes, completions, strict=True)
        ]
        return np.stack(infilled)

    @cached_property
    def infilled_images(self) -> UInt8[np.ndarray, "n R R C"]:
        """The images of `infilled_codes`."""
        return self.model.image_tokenizer.decode(self.infilled_codes)

    @cached_property
    def _retrieved(self) -> list[Retrieved]:
        """The documents before each of `sample_prompts`; empty where the config retrieves none."""
        count = self.config.evaluate.num_retrieved
        if not count:
            return []
        retriever = open_retriever(self.config, self.model.vocabulary, count)
        found = retriever.by_text(self.sample_prompts, count)
        return [[neighbor.tokens.tolist() for neighbor in of_prompt] for of_prompt in found]

    def _sample_images(self, sampling: SamplingConfig, advance: Advance) -> UInt8[np.ndarray, "s R R C"]:
        model = self.model
        return generate_images(
            self.sample_prompts,
            model.sampler,
            model.image_tokenizer,
            model.vocabulary,
            sampling,
            self._retrieved,
            advance,
        )

    def _caption(self, prompt: Callable[..., Prompt], advance: Advance) -> list[str]:
        model, sampling = self.model, self.config.sampling
        requests = [prompt(codes, sampling.max_text_tokens, model.vocabulary) for codes in self.held_out.codes]
        completions = model.sampler(requests, dataclasses.replace(sampling, temperature=0.0), advance=advance)
        return [model.vocabulary.decode_text(completion.tokens).strip() for completion in completions]


@contextlib.contextmanager
def stage(what: str, total: int = 0, done_word: str = "sampled") -> Iterator[Advance]:
    """Logs what begins and how long it took, and shows progress where the total is known: as lines, about twenty."""
    has_bar = total > 0 and sys.stderr.isatty()
    if not has_bar:
        log.info(f"{what} ...")
    started, done = time.perf_counter(), 0
    progress = Progress(what, total, unit="sample", shown=is_coordinator())

    def advance(number: int) -> None:
        nonlocal done
        done += number
        progress.advance(number)
        if not has_bar and done < total and done * _LINES // total > (done - number) * _LINES // total:
            progress.say(done, done_word)

    if not has_bar:
        progress.close()
    yield advance
    progress.close()
    if not has_bar:
        log.info(f"{what}: {time.perf_counter() - started:.1f} s")
