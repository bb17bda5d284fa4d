"""Folders of captioned images with structure maps."""

import numpy as np
import pytest

from cm3leon_jax.data.sources.config import AnnotationsConfig
from cm3leon_jax.data.sources.structure_maps import STRUCTURES
from cm3leon_jax.data.templates import TEMPLATES
from cm3leon_jax.documents import ImageSegment, TextSegment
from cm3leon_jax.errors import UserError
from cm3leon_jax.images import decode_image, encode_png
from tests.data.sources.published import documents, faults, opened


@pytest.fixture
def folder(tmp_path):
    """Three captioned images of a square, one of them damaged, and one without a caption."""
    for number in range(4):
        image = np.zeros((64, 64, 3), np.uint8)
        image[20:40, 20 + number : 40] = 250
        content = encode_png(image)
        (tmp_path / f"{number}.png").write_bytes(content if number != 1 else content[:60])
        if number < 3:
            (tmp_path / f"{number}.txt").write_text(f"square {number}")
    return tmp_path


def test_every_image_comes_with_every_map(folder):
    task = opened(f"structures:{folder}", resolution=32, structures=tuple(STRUCTURES))
    found = documents(task)
    assert sorted((each.template, each.text) for each in found) == sorted(
        (kind, f"square {number}") for kind in STRUCTURES for number in (0, 2)
    )
    for document in found:
        structure, caption, image = document.segments
        assert isinstance(structure, ImageSegment) and isinstance(caption, TextSegment)
        number = int(caption.text[-1])
        assert image == ImageSegment((folder / f"{number}.png").read_bytes())
        made = STRUCTURES[document.template](decode_image(image.encoded, 32, 3))
        assert (decode_image(structure.encoded, 32, made.shape[-1]) == made).all()
    assert len(faults(task)) == 4 and all(each.startswith("unreadable image: ") for each in faults(task).values())
    assert task.skipped().by_kind == {"image without a caption": 1}


def test_an_image_is_on_one_side_with_all_its_maps(folder):
    task = opened(f"structures:{folder}", held_out_fraction=0.5, resolution=32)
    train, held_out = ({each.text for each in documents(task, split)} for split in ("train", "validation"))
    assert held_out and not train & held_out and len(documents(task)) == 2 * len(train)


def test_every_map_has_its_template():
    assert set(STRUCTURES) < set(TEMPLATES)


def test_what_is_missing_is_one_line(folder):
    with pytest.raises(
        UserError, match=r"structures:.* needs the side of images .*: set config.corpus.annotations.res"
    ):
        opened(f"structures:{folder}")
    with pytest.raises(
        UserError, match=r"config.corpus.annotations.structures is 'hed': 'edges', 'soft_edges', 'scrib"
    ):
        AnnotationsConfig(structures=("hed",))
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match="holds no images"):
        opened(f"structures:{folder}/empty", resolution=32)
