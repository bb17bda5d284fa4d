"""Images, features and weights that follow from names and numbers alone, so that any program can make them again."""

from __future__ import annotations

import zlib

import numpy as np

# One in so many of an image's features counts in a distance: the root of all 2,048 takes SciPy a minute.
EVERY = 16


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A random tensor of Inception-v3 under which activations neither vanish nor explode."""
    random = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    if not shape:
        # How many batches were normalized in training.
        return np.zeros((), np.int64)
    if len(shape) == 4:
        return random.standard_normal(shape, np.float32) * np.float32((2 / np.prod(shape[1:])) ** 0.5)
    if name.endswith(("bn.running_var", "bn.weight")):
        return random.uniform(0.5, 1.5, shape).astype(np.float32)
    return (random.standard_normal(shape) * 0.1).astype(np.float32)


def image(seed: int, height: int, width: int, channels: int) -> np.ndarray:
    """Waves of a few frequencies, and noise."""
    random = np.random.Generator(np.random.PCG64(seed))
    y, x = np.arange(height)[:, None, None] / height, np.arange(width)[None, :, None] / width
    frequency, phase = random.uniform(1, 12, (2, channels)), random.uniform(0, 6, channels)
    waves = np.sin(2 * np.pi * (y * frequency[0] + x * frequency[1]) + phase)
    noise = random.standard_normal((height, width, channels))
    return np.round(127.5 + 90 * waves + 20 * noise).clip(0, 255).astype(np.uint8)


def images() -> list[np.ndarray]:
    """Six RGB images of 64 pixels."""
    return [image(seed, 64, 64, 3) for seed in range(6)]


def resized() -> dict[str, np.ndarray]:
    """Images to resize: larger, smaller, of 299 pixels, oblong, gray."""
    return {
        "larger": image(10, 512, 512, 3),
        "smaller": image(11, 64, 64, 3),
        "same": image(12, 299, 299, 3),
        "oblong": image(13, 480, 200, 3),
        "gray": image(14, 256, 256, 1),
        "tiny": image(15, 8, 8, 3),
    }


def feature_sets() -> tuple[np.ndarray, np.ndarray]:
    """500 and 400 correlated vectors of 48 numbers, like those of a network: none negative."""
    random = np.random.Generator(np.random.PCG64(20))
    mix = random.standard_normal((48, 48)) / 7
    real = np.abs(random.standard_normal((500, 48)) @ mix)
    generated = np.abs(random.standard_normal((400, 48)) @ mix * 1.2 + 0.1)
    return real, generated


def distorted() -> tuple[np.ndarray, np.ndarray]:
    """An image, and the same with noise."""
    original = image(30, 48, 48, 3)
    noise = np.random.Generator(np.random.PCG64(31)).normal(0, 25, original.shape)
    return original, (original + noise).clip(0, 255).astype(np.uint8)
