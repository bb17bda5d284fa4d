"""Whether each metric moves the right way, and what metrics cost.

    python benchmarks/evaluation.py directions --figure=docs/metrics.png [--images=FOLDER] [--inception=FILE]
    python benchmarks/evaluation.py cost RUN [--images=2000] [--inception=FILE]
    python benchmarks/evaluation.py distances [--num=2000] [--width=2048]

`directions` splits real images in two and adds growing noise to the second half; and it takes true captions and
replaces a growing fraction of them by those of other images. The images are the digits' training split, or a folder.
`cost` measures a run with every metric that needs no file of another project, on so many images of its prompts: CPU
seconds per metric, what has been generated for one before being free for the next, and the peak of memory. `distances`
times the distances between two sets of random features.
"""

from __future__ import annotations

import argparse
import dataclasses
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))

from cm3leon_jax import config_file
from cm3leon_jax.data.corpus.prepared import PreparedCorpus
from cm3leon_jax.documents import Document, ImageSegment, TextSegment
from cm3leon_jax.encoders.base import Encoder
from cm3leon_jax.encoders.tfidf import fit_documents
from cm3leon_jax.evaluation import estimates
from cm3leon_jax.evaluation.caption_scores import bleu, bleu_counts, cider_d, rouge_l
from cm3leon_jax.evaluation.context import EvaluationContext
from cm3leon_jax.evaluation.estimates import Estimate
from cm3leon_jax.evaluation.feature_distances import compare
from cm3leon_jax.evaluation.features import encoder_features, inception_features
from cm3leon_jax.evaluation.frechet import frechet_distance
from cm3leon_jax.evaluation.image_arrays import ImageArray
from cm3leon_jax.evaluation.inception import load_inception
from cm3leon_jax.evaluation.kernel_distance import cmmd, kid
from cm3leon_jax.evaluation.manifold import manifold_values
from cm3leon_jax.evaluation.metrics import build_metrics, measure
from cm3leon_jax.evaluation.ptb_tokenizer import caption_tokens
from cm3leon_jax.evaluation.reconstruction import psnr
from cm3leon_jax.evaluation.reference import open_reference
from cm3leon_jax.evaluation.ssim import ssim
from cm3leon_jax.generation.load import load_model
from cm3leon_jax.images import encode_png
from cm3leon_jax.log_handler import show_messages
from examples.digits import images as digits

# Standard deviation of the noise, in levels of 255; and fractions of wrong captions.
_NOISE = (0, 4, 8, 16, 32, 64)
_WRONG = (0.0, 0.1, 0.25, 0.5, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("directions")
    first.add_argument("--images", default="", help="a folder of real images (default: the digits)")
    first.add_argument("--num", type=int, default=5000, help="images, of both halves together")
    first.add_argument("--inception", default="", help="weights of Inception-v3: FID and KID, too")
    first.add_argument("--figure", type=Path, help="where the curves go")
    second = commands.add_parser("cost")
    second.add_argument("run", type=Path)
    second.add_argument("--images", type=int, default=2000)
    second.add_argument("--inception", default="")
    third = commands.add_parser("distances")
    third.add_argument("--num", type=int, default=2000)
    third.add_argument("--width", type=int, default=2048)
    arguments = parser.parse_args()
    show_messages()
    if arguments.command == "distances":
        distances(arguments.num, arguments.width)
        return
    if arguments.command == "cost":
        cost(arguments.run, arguments.images, arguments.inception)
        return
    images = _images(arguments.images, arguments.num)
    curves = {"noise": of_noise(images, arguments.inception), "wrong captions": of_wrong_captions(len(images))}
    for what, (levels, values) in curves.items():
        print(f"{what:<28}" + "".join(f"{level:>12g}" for level in levels))
        for name, found in values.items():
            print(f"  {name:<26}" + "".join(f"{each.value:>12.4g}" for each in found))
    if arguments.figure:
        _plot(curves).savefig(arguments.figure, dpi=110)


def _images(folder: str, num: int) -> np.ndarray:
    if folder:
        return open_reference(folder, 64)[:num]  # type: ignore[index]
    count = len(digits.load("train")[0])
    return np.stack([digits.augmented(index % count, index // count) for index in range(num)])


def _encoder(images: np.ndarray) -> Encoder:
    documents = [Document((TextSegment("an image"), ImageSegment(encode_png(image)))) for image in images[:500]]
    return fit_documents(documents, 512, 8, images.shape[1])


def of_noise(images: np.ndarray, inception: str) -> tuple[tuple[float, ...], dict[str, list[Estimate]]]:
    """Metrics of the second half of the images with noise, against the first half or against themselves."""
    order = np.random.default_rng(0).permutation(len(images))
    real, others = (images[part] for part in np.array_split(order, 2))
    encoder, weights = _encoder(real), load_inception(inception) if inception else None

    def encoded(pixels: ImageArray) -> np.ndarray:
        return encoder_features(pixels, encoder, 64)

    def by_inception(pixels: ImageArray) -> np.ndarray:
        assert weights is not None
        return inception_features(pixels, weights, "clean-fid", 16)

    of_real = [(encoded(real), encoded, cmmd, "encoder_")]
    if inception:
        of_real.append((by_inception(real), by_inception, kid, "inception_"))
    values: dict[str, list[Estimate]] = {}
    random = np.random.default_rng(1)
    for level in _NOISE:
        noise = level * random.standard_normal(others.shape)
        noisy = np.round(others + noise).clip(0, 255).astype(np.uint8)
        found = {"psnr": estimates.mean(psnr(others, noisy))}
        if images.shape[1] >= 11:
            found["ssim"] = estimates.mean(ssim(others, noisy, "gaussian"))
        ranks, ids = np.zeros(len(noisy), np.int64), np.arange(len(noisy)).tolist()
        for features, function, discrepancy, prefix in of_real:
            distances = compare(features, function(noisy), ranks, ids, discrepancy)
            kernel = discrepancy.__name__
            found |= {prefix + name.replace("discrepancy", kernel): value for name, value in distances.items()}
        for name, value in found.items():
            values.setdefault(name, []).append(value)
    return tuple(map(float, _NOISE)), values


def of_wrong_captions(num: int) -> tuple[tuple[float, ...], dict[str, list[Estimate]]]:
    """Scores of captions of which a fraction is those of other images; each image has two references."""
    labels = digits.load("train")[1][np.arange(num) % len(digits.load("train")[0])]
    texts = [
        [digits.caption(int(label), 7 * index + which) for which in range(3)] for index, label in enumerate(labels)
    ]
    tokens = [[caption_tokens(text) for text in of_image] for of_image in texts]
    references = [of_image[1:] for of_image in tokens]
    random = np.random.default_rng(2)
    others, order = random.permutation(num), random.permutation(num)
    values: dict[str, list[Estimate]] = {}
    for fraction in _WRONG:
        predictions = [of_image[0] for of_image in tokens]
        for index in order[: round(fraction * num)]:
            predictions[index] = tokens[others[index]][0]
        counts = bleu_counts(predictions, references)
        found = {
            "cider": estimates.mean(cider_d(predictions, references)),
            "bleu4": estimates.bootstrap(lambda items, counts=counts: float(bleu(counts, items)[3]), num),  # type: ignore[misc]
            "rouge": estimates.mean(rouge_l(predictions, references)),
        }
        for name, value in found.items():
            values.setdefault(name, []).append(value)
    return _WRONG, values


def _plot(curves: Mapping[str, tuple[tuple[float, ...], dict[str, list[Estimate]]]]) -> Figure:
    """A small plot for each metric, with its intervals."""
    panels = [(what, levels, name, found) for what, (levels, all_) in curves.items() for name, found in all_.items()]
    columns = 4
    figure = Figure(figsize=(11, 2.4 * -(-len(panels) // columns)), layout="constrained")
    for number, (what, levels, name, found) in enumerate(panels, start=1):
        axes = figure.add_subplot(-(-len(panels) // columns), columns, number)
        axes.plot(levels, [each.value for each in found], color="#1f77b4", marker="o", markersize=3)
        axes.fill_between(levels, [each.low for each in found], [each.high for each in found], alpha=0.25)
        axes.set_title(name.replace("_", " "), fontsize=9)
        axes.set_xlabel(what, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def cost(run: Path, num_images: int, inception: str) -> None:
    """CPU seconds of each metric, and the peak of memory before and after."""
    config = config_file.load(str(run / "config.json"), str(run))
    corpus_path = Path(config.corpus.path)
    encoder = run / "cost_encoder"
    model = load_model(config, run)
    corpus = PreparedCorpus.open(corpus_path, model.vocabulary)
    per_prompt = -(-num_images // len(EvaluationContext(config, model, corpus).prompts))
    metrics = {
        "loss": dict(type="loss"),
        "likelihood": dict(type="likelihood"),
        "reconstruction": dict(type="reconstruction"),
        "encoder_distance": dict(type="encoder_distance", encoder=str(encoder)),
        "copies": dict(type="copies", encoder=str(encoder)),
        "captions": dict(type="captions"),
    }
    if inception:
        metrics["fid"] = dict(type="fid", weights=inception)
    config = dataclasses.replace(
        config,
        evaluate=dataclasses.replace(config.evaluate, metrics=metrics, samples_per_prompt=per_prompt, num_documents=0),
    )
    evaluation = EvaluationContext(config, model, corpus)
    _encoder(evaluation.held_out_images).save(encoder)
    print(f"{_peak():6.0f} MB before the first metric")
    started = time.process_time()
    count = len(evaluation.sampled_images)
    print(f"sampling {count:,} images: {time.process_time() - started:.1f} CPU s, {_peak():.0f} MB")
    for name, metric in build_metrics(metrics).items():
        started = time.process_time()
        values = measure({name: metric}, evaluation)
        seconds = time.process_time() - started
        print(f"{name:<20} {seconds:8.1f} CPU s {_peak():6.0f} MB at most so far, {len(values) - 1} values")


def distances(num: int, width: int) -> None:
    """Seconds of each distance with its interval, and the peak of memory."""
    random = np.random.default_rng(0)
    real, generated = (np.abs(random.standard_normal((num, width))).astype(np.float32) for _ in range(2))
    functions = {
        "frechet": lambda: frechet_distance(real, generated),
        "kid": lambda: kid(real, generated),
        "cmmd": lambda: cmmd(real, generated),
        "precision to coverage": lambda: manifold_values(real, generated),
    }
    for name, function in functions.items():
        started = time.perf_counter()
        function()
        print(f"{name:<24} {time.perf_counter() - started:8.1f} s {_peak():6.0f} MB at most so far")


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
