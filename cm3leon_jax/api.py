"""Loads a trained model in Python and generates with it, one method per task.

    model = cm3leon_jax.load("runs/demo")
    images = model.text_to_image("a handwritten seven", samples=4)
    text = model.caption(images[0])

Images that go in are PIL images, arrays of pixels or paths; images that come out are PIL images. What a field of
`config.sampling` sets can be given to every method by its name, such as `temperature` or `seed`.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cm3leon_jax import config_file
from cm3leon_jax.config import Config
from cm3leon_jax.errors import UserError
from cm3leon_jax.generation.generate import Result, generate
from cm3leon_jax.generation.load import TrainedModel, load_model
from cm3leon_jax.generation.rank import Candidate
from cm3leon_jax.generation.requests import MIDDLE_HALF, request_of
from cm3leon_jax.images import encode_png
from cm3leon_jax.paths import local
from cm3leon_jax.storage import mirror

ImageInput = Image.Image | np.ndarray | str | Path


def load(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Model:
    """Loads the newest checkpoint of a run, whose folder was given to `cm3leon train --workdir`.

    `overrides` are values by dotted field of the config, as in {"sampling.scorer": "clip"}. Raises a `UserError` if
    there is no run, or it is damaged.
    """
    folder = Path(local(str(path), "the folder of a run"))
    mirror.refresh(folder, whole=False)
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(f"no run at {folder}: give the folder of one, in which `cm3leon train` wrote config.json")
    if not (folder / "checkpoints").is_dir() and any(folder.glob("*.safetensors")):
        raise UserError(
            f"{folder} is a Hugging Face folder: make a run of it with `cm3leon import --from={folder} --config=FILE "
            "--workdir=DIR`, and load that"
        )
    config = config_file.load(str(file), str(folder), {name: str(value) for name, value in (overrides or {}).items()})
    config_file.copy_inputs(config, ("vocabulary", "image_tokenizer", "encoder"))
    return Model(config, load_model(config, folder))


class Model:
    """A trained model that generates images and texts.

    The options of every method are `retrieved` (pairs of a text and an image, put before the prompt) and the fields of
    `config.sampling`.
    """

    def __init__(self, config: Config, trained: TrainedModel) -> None:
        self.config, self.trained = config, trained

    def text_to_image(
        self,
        prompt: str,
        samples: int = 1,
        objects: Sequence[tuple[str, Sequence[int]]] = (),
        **options: Any,
    ) -> list[Image.Image]:
        """Images for a text, the best first; `objects` are names with boxes (left, top, right, bottom) in pixels."""
        boxes = [{"name": name, "box": list(box)} for name, box in objects]
        return self._images(samples, options, prompt=prompt, **({"objects": boxes} if boxes else {}))

    def caption(self, image: ImageInput, prompt: str = "", order: str = "infill", **options: Any) -> str:
        """A text for an image; `prompt` may be an instruction."""
        return self._text(options, task="caption", image=image, prompt=prompt, order=order)

    def answer(self, image: ImageInput, question: str, order: str = "infill", **options: Any) -> str:
        """The answer to a question about an image."""
        return self._text(options, task="vqa", image=image, prompt=question, order=order)

    def infill(
        self,
        image: ImageInput,
        prompt: str,
        region: Sequence[float | int] = MIDDLE_HALF,
        samples: int = 1,
        **options: Any,
    ) -> list[Image.Image]:
        """The image with a region, (left, top, right, bottom) as fractions of its sides, generated again."""
        return self._images(samples, options, task="infill", image=image, prompt=prompt, region=region)

    def infill_text(self, image: ImageInput, prompt: str, **options: Any) -> str:
        """The text with every <mask> in it infilled, given the image."""
        return self._text(options, task="infill_text", image=image, prompt=prompt)

    def edit(self, image: ImageInput, instruction: str, samples: int = 1, **options: Any) -> list[Image.Image]:
        """The image, changed as the instruction says."""
        return self._images(samples, options, task="edit", image=image, prompt=instruction)

    def follow(
        self, template: str, samples: int = 1, wording: int = 0, fields: Mapping[str, Any] | None = None, **options: Any
    ) -> list[str | Image.Image]:
        """What a template asks for, the best first; `fields` are texts, images as {"image": ..}, and lists of them."""
        candidates = self._candidates(
            samples, options, task="instruction", template=template, fields=fields or {}, wording=wording
        )
        images = iter(self._decoded([candidate.image for candidate in candidates if candidate.image is not None]))
        return [candidate.text or "" if candidate.image is None else next(images) for candidate in candidates]

    def continue_document(self, segments: Sequence[str | ImageInput], **options: Any) -> list[str | Image.Image]:
        """The texts and images that follow those of a document; a string is a text, a Path an image."""
        parts = [part if isinstance(part, str) else {"image": part} for part in segments]
        (candidate,) = self._candidates(1, options, task="continue", segments=parts)
        found = candidate.segments or ()
        images = iter(self._decoded([part for part in found if not isinstance(part, str)]))
        return [part if isinstance(part, str) else next(images) for part in found]

    def generate(self, requests: Sequence[Mapping[str, Any]], samples: int = 1, **sampling: Any) -> list[Result]:
        """Completes several requests at once, each with the fields of a line of a prompts file.

        Raises a `UserError` that says what is wrong with the first request that cannot be completed.
        """
        known = dataclasses.asdict(self.config.sampling)
        for name in sampling:
            if name not in known:
                raise UserError(f"no such option {name}: the fields of config.sampling are {', '.join(known)}")
        changed = dataclasses.replace(self.config.sampling, **sampling)
        if changed.scorer == "clip" and self.trained.clip is None:
            raise UserError('scorer is "clip": load the model with load(path, {"sampling.scorer": "clip"})')
        if samples < 1:
            raise UserError(f"samples={samples}: at least 1")
        made = [request_of(_with_encoded(fields), Path(), number + 1, number) for number, fields in enumerate(requests)]
        results, failures = generate(made, self.trained, changed, samples)
        if failures:
            raise UserError(failures[0].error)
        return results

    def _candidates(self, samples: int, options: Mapping[str, Any], **fields: Any) -> list[Candidate]:
        sampling = dict(options)
        if "retrieved" in sampling:
            fields["retrieved"] = [{"prompt": text, "image": image} for text, image in sampling.pop("retrieved")]
        (result,) = self.generate([fields], samples, **sampling)
        return result.candidates

    def _text(self, options: Mapping[str, Any], **fields: Any) -> str:
        (candidate,) = self._candidates(1, options, **fields)
        return candidate.text or ""

    def _images(self, samples: int, options: Mapping[str, Any], **fields: Any) -> list[Image.Image]:
        candidates = self._candidates(samples, options, **fields)
        return self._decoded([candidate.image for candidate in candidates if candidate.image is not None])

    def _decoded(self, codes: Sequence[np.ndarray]) -> list[Image.Image]:
        if not codes:
            return []
        batch_size = min(self.config.sampling.batch_size, len(codes))
        pixels = self.trained.image_tokenizer.decode(np.stack(codes), batch_size)
        return [Image.open(io.BytesIO(encode_png(image))) for image in pixels]


def _with_encoded(fields: Any) -> Any:
    """A record with the images in it as bytes of PNG files, or as names of files."""
    if isinstance(fields, Mapping):
        # A field of a template may be named so, too; its value is a record, which stays as it is here.
        return {name: _with_encoded(_encoded(each) if name == "image" else each) for name, each in fields.items()}
    if isinstance(fields, list | tuple):
        return [_with_encoded(each) for each in fields]
    return fields


def _encoded(image: Any) -> Any:
    if isinstance(image, Path):
        return str(image)
    if isinstance(image, np.ndarray):
        try:
            image = Image.fromarray(image)
        except TypeError as error:
            raise UserError(f"an array of {image.dtype}{list(image.shape)} is no image ({error}): give uint8") from None
    if isinstance(image, Image.Image):
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        return buffer.getvalue()
    return image
