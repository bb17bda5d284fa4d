"""Twins by hashes: compared with the definition, pair by pair, and hashes of images that were encoded again."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from cm3leon_jax.data.curation.perceptual_hash import SIDE, perceptual_hash
from cm3leon_jax.data.curation.twins import classes, near_pairs, repeated, twins_of
from cm3leon_jax.images import decode_image, encode_png


def near(seed, count, max_flipped):
    """Hashes of which many differ in few bits."""
    rng = np.random.default_rng(seed)
    found = rng.integers(0, 2**64, max(1, count // 4), np.uint64)[rng.integers(0, max(1, count // 4), count)]
    for _ in range(max_flipped):
        found = found ^ np.where(
            rng.random(count) < 0.7, np.uint64(1) << rng.integers(0, 64, count, np.uint64), np.uint64(0)
        )
    return found


def bits(first, second):
    return bin(int(first) ^ int(second)).count("1")


CASES = dict(
    seed=st.integers(0, 1000), count=st.integers(0, 60), flipped=st.integers(0, 6), distance=st.integers(0, 10)
)


@settings(max_examples=40, deadline=None)
@given(**CASES)
def test_near_pairs(seed, count, flipped, distance):
    hashes = near(seed, count, flipped)
    expected = [[i, j] for i in range(count) for j in range(i + 1, count) if bits(hashes[i], hashes[j]) <= distance]
    assert near_pairs(hashes, distance).tolist() == expected


@settings(max_examples=40, deadline=None)
@given(**CASES)
def test_classes_and_twins(seed, count, flipped, distance):
    hashes = near(seed, count, flipped)
    found = classes(hashes, distance)
    firsts = {}
    for hash_, number in zip(hashes, found, strict=True):
        # The first of a class is its leader, and no two leaders are near.
        assert bits(firsts.setdefault(number, hash_), hash_) <= distance
    leaders = list(firsts.values())
    assert all(bits(a, b) > distance for k, a in enumerate(leaders) for b in leaders[:k])
    others, own = hashes[: count // 2], hashes[count // 2 :]
    for hash_, twin in zip(own, twins_of(own, others, distance), strict=True):
        if twin < 0:
            assert all(bits(hash_, other) > distance for other in others)
        else:
            assert bits(hash_, others[twin]) <= distance


def test_repeated_documents():
    documents = np.array([0, 1, 2, 2, 3, 3, 4, 4, 7, 8])
    images = np.array([5, 5, 5, 6, 6, 5, 5, 6, 0, 5])
    texts = np.array([1, 2, 3, 3, 3, 3, 3, 3, 1, 1], np.uint64)
    assert repeated(documents, images, None).tolist() == [[1, 0], [4, 2], [8, 0]]
    assert repeated(documents, images, texts).tolist() == [[4, 2], [8, 0]]
    assert repeated(documents[:0], images[:0], None).tolist() == []


def scene(seed):
    """An image of a few large shapes."""
    rng = np.random.default_rng(seed)
    found = Image.new("RGB", (160, 128), tuple(rng.integers(0, 256, 3).tolist()))
    for _ in range(6):
        left, top = rng.integers(0, 100, 2).tolist()
        box = (left, top, left + int(rng.integers(20, 60)), top + int(rng.integers(20, 60)))
        ImageDraw.Draw(found).ellipse(box, fill=tuple(rng.integers(0, 256, 3).tolist()))
    return found


def hash_of(found, form="PNG", **options):
    buffer = io.BytesIO()
    found.save(buffer, form, **options)
    return perceptual_hash(decode_image(buffer.getvalue(), SIDE, 1))


def test_hashes_of_images_that_were_encoded_again_are_near_and_others_far():
    scenes = [scene(seed) for seed in range(20)]
    hashes = [hash_of(each) for each in scenes]
    for each, hash_ in zip(scenes, hashes, strict=True):
        again = [hash_of(each, "JPEG", quality=50), hash_of(each.resize((80, 64))), hash_of(each, "WEBP", quality=60)]
        assert max(bits(hash_, other) for other in again) <= 4
    assert min(bits(a, b) for k, a in enumerate(hashes) for b in hashes[:k]) > 10


@pytest.mark.parametrize("value", [0, 7, 255])
def test_the_hash_of_an_even_area_does_not_depend_on_rounding(value):
    even = encode_png(np.full((50, 40, 3), value, np.uint8))
    larger = encode_png(np.full((500, 400, 3), value, np.uint8))
    assert perceptual_hash(decode_image(even, SIDE, 1)) == perceptual_hash(decode_image(larger, SIDE, 1))
