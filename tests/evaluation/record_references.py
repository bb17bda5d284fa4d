"""Records what pytorch-fid 0.3.0, clean-fid 0.1.35 and scikit-image compute of what `made.py` makes.

Needs none of cm3leon_jax, and an environment of its own:

    pip install torch numpy scipy pillow tqdm requests scikit-image
    pip install --no-deps torchvision pytorch-fid==0.3.0 clean-fid==0.1.35
    PYTHONPATH=. python tests/evaluation/record_references.py

Nothing is downloaded: the weights are random numbers that follow from the names of the tensors.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage.metrics import structural_similarity

from tests.evaluation import made

# A torchvision that was built for another PyTorch lacks its compiled operators, which Inception does not use.
try:
    import torchvision  # noqa: F401
except RuntimeError:
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from cleanfid.fid import kernel_distance
from cleanfid.resize import build_resizer
from pytorch_fid import fid_score, inception

FOLDER = Path(__file__).parent / "recorded"


def inception_features() -> dict[str, np.ndarray]:
    """Features of the images, and the distance between its halves."""

    def load_made_weights(*_: object, **__: object) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(made.tensor(name, shape)) for name, shape in shapes.items()}

    network = inception._inception_v3(num_classes=1008, aux_logits=False, weights=None)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    # The blocks with changed pools have the tensors of those they replace.
    inception.load_state_dict_from_url = load_made_weights
    model = inception.InceptionV3([inception.InceptionV3.BLOCK_INDEX_BY_DIM[2048]]).eval()
    clean_model = inception.InceptionV3([3], resize_input=False, normalize_input=False).eval()
    clean_resize = build_resizer("clean")
    images = made.images()
    batch = torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2)).float() / 255
    clean = torch.from_numpy(np.stack([(clean_resize(image) - 128) / 128 for image in images]).transpose(0, 3, 1, 2))
    with torch.no_grad():
        features = model(batch)[0][:, :, 0, 0].numpy()
        clean_features = clean_model(clean)[0][:, :, 0, 0].numpy()
    return {"pytorch_fid": features, "clean_fid": clean_features[:2]}


def resized() -> dict[str, np.ndarray]:
    """Every 13th row and column of each image of `made.resized` after clean-fid's resize."""
    resize = build_resizer("clean")
    found = {}
    for name, image in made.resized().items():
        # As clean-fid opens a file.
        gray = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).convert("RGB")
        found[f"resized_{name}"] = resize(np.asarray(gray))[::13, ::13].astype(np.float16)
    return found


def main() -> None:
    """Writes the two files."""
    arrays = inception_features() | resized()
    np.savez_compressed(FOLDER / "images.npz", **arrays)
    real, generated = made.feature_sets()
    distance = fid_score.calculate_frechet_distance(
        real.mean(axis=0), np.cov(real, rowvar=False), generated.mean(axis=0), np.cov(generated, rowvar=False)
    )
    first, second = np.array_split(arrays["pytorch_fid"][:, :: made.EVERY].astype(np.float64), 2)
    of_images = fid_score.calculate_frechet_distance(
        first.mean(axis=0), np.cov(first, rowvar=False), second.mean(axis=0), np.cov(second, rowvar=False)
    )
    original, other = made.distorted()
    options = dict(channel_axis=-1, data_range=255)
    gaussian = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    values = {
        "frechet": float(distance),
        "frechet_of_images": float(of_images),
        # Of sets of one size, all is one subset.
        "kid": kernel_distance(real[: len(generated)], generated, num_subsets=1),
        "ssim_uniform": float(structural_similarity(original, other, **options)),
        "ssim_gaussian": float(structural_similarity(original, other, **options, **gaussian)),
    }
    (FOLDER / "images.json").write_text(json.dumps(values, indent=2) + "\n")


if __name__ == "__main__":
    main()
