"""Maps of structure: edges where the image changes, colors by kind."""

import numpy as np

from examples.scenes.pictures import GROUNDS, KINDS, SKIES, Scene, SceneObject, render
from examples.scenes.structure import edges, segmentation
from tests.examples.fonts import needs_font


@needs_font
def test_the_only_edge_of_an_empty_scene_is_the_horizon():
    for sky in SKIES:
        for ground in GROUNDS:
            found = edges(render(Scene(sky, ground, ())))
            assert found.shape == (32, 32, 3) and set(np.unique(found)) == {0, 255}
            assert np.all(found[19] == 255) and not np.delete(found, 19, axis=0).any()


@needs_font
def test_edges_are_those_of_objects():
    each = SceneObject(1, 2, "panda")
    found = edges(render(Scene("bright blue", "green", (each,))))[..., 0] > 0
    found[19] = False
    left, top, right, bottom = each.box
    assert found[top:bottom, left:right].sum() > 30
    found[top - 1 : bottom, left - 1 : right] = False
    assert not found.any()


@needs_font
def test_segmentation_has_one_color_per_kind_inside_of_the_boxes():
    colors = set()
    for kind in KINDS:
        image = segmentation(Scene("pink", "green", (SceneObject(0, 0, kind), SceneObject(3, 3, kind))))
        empty = segmentation(Scene("gray", "brown", ()))
        changed = np.any(image != empty, axis=-1)
        assert not changed[:12, 12:].any() and changed[:12, :12].any()
        (color,) = np.unique(image[changed], axis=0)
        colors.add(tuple(color))
    assert len(colors) == len(KINDS)
