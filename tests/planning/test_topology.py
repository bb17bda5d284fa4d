"""Names of pods: what they describe, and what is said of those that are wrong."""

from types import SimpleNamespace

import pytest

from cm3leon_jax.errors import UserError
from cm3leon_jax.planning.topology import coordinates, parse, require_compiler


@pytest.mark.parametrize(
    ("name", "num_devices", "wrap", "described"),
    [
        ("v5p:8x8x8", 512, (True, True, True), "512 x v5p, torus of 8 x 8 x 8, 128 hosts"),
        ("v5p:2x2x1", 4, (False, False, False), "4 x v5p, open mesh of 2 x 2 x 1, 1 host"),
        ("v5p:4x8x8_twisted", 256, (True, True, True), "256 x v5p, twisted torus of 4 x 8 x 8, 64 hosts"),
        (
            "v4:4x4x8_twisted*2",
            256,
            (True, True, True),
            "256 x v4, 2 slices, each a twisted torus of 4 x 4 x 8, 64 hosts",
        ),
        ("v5p:4x4x28", 448, (True, True, True), "448 x v5p, torus of 4 x 4 x 28, 112 hosts"),
        ("v4:4x4x4", 64, (True, True, True), "64 x v4, torus of 4 x 4 x 4, 16 hosts"),
        ("tpu7x:4x4x4", 128, (True, True, True), "64 x tpu7x, torus of 4 x 4 x 4, 16 hosts"),
        ("tpu7x:1x1x1", 2, (False, False, False), "1 x tpu7x, open mesh of 1 x 1 x 1, 1 host"),
        ("v5e:16x16", 256, (True, True, False), "256 x v5e, torus of 16 x 16, 64 hosts"),
        ("v6e:8x16", 128, (False, True, False), "128 x v6e, mesh, closed along its long side, of 8 x 16, 32 hosts"),
        ("v5e:16x16*2", 512, (True, True, False), "512 x v5e, 2 slices, each a torus of 16 x 16, 128 hosts"),
        ("h100:32x8", 256, None, "256 x h100, 32 hosts of 8"),
        ("gb200:18x4", 72, None, "72 x gb200, 18 hosts of 4"),
    ],
)
def test_a_name_describes_chips_and_links(name, num_devices, wrap, described):
    pod = parse(name)
    assert pod.name == name
    assert pod.num_devices == num_devices
    assert wrap is None or pod.wrap == wrap
    assert pod.describe() == described


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5p", "write CHIP:SHAPE"),
        ("v9:4x4", "the chips are v4, v5e, v5p, v6e"),
        ("v5e:16x15", "a slice of v5e is one of 1x1, 2x2"),
        ("v5e:16x15", "the nearest: v5e:8x16 or v5e:16x16"),
        ("v5e:32x16", "the nearest: v5e:16x16"),
        ("v5e:16x16_twisted", "a slice of v5e is one of"),
        ("v5p:8x8", "three rising multiples of 4"),
        ("v5p:8x8", "the nearest: v5p:4x4x4"),
        ("v5p:8x4x4", "three rising multiples of 4"),
        ("v5p:8x4x4", "the nearest: v5p:4x4x8"),
        ("v5p:1x1x1", "the nearest: v5p:2x2x1"),
        ("v5p:0x4x4", "three rising multiples of 4"),
        ("v5p:16x24x24", "at most 6144 chips; the nearest: v5p:16x16x24"),
        ("v5p:8x8x8_twisted", "sides of A, A, 2A or A, 2A, 2A"),
        ("v5p:2x2x4_twisted", "sides of A, A, 2A or A, 2A, 2A"),
        ("h100:4x16", "at most 8 GPUs per host, such as h100:8x8"),
        ("gb200:9x8", "at most 4 GPUs per host, such as gb200:18x4"),
        ("h100:4x8*2", "slices of TPUs"),
        ("v5e:4x4*0", "at least one slice"),
    ],
)
def test_a_wrong_name_is_one_line_that_says_what_is_right(name, message):
    with pytest.raises(UserError) as caught:
        parse(name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_switch_of_a_rack_joins_its_hosts():
    device = SimpleNamespace(id=71)
    assert coordinates(parse("gb200:36x4"), device) == (0, 17, 3)
    assert coordinates(parse("gb200:36x4"), SimpleNamespace(id=72)) == (1, 18, 0)
    assert coordinates(parse("h100:36x8"), device) == (8, 8, 7)


def test_a_missing_compiler_is_named_with_what_installs_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'cm3leon_jax\[plan\]'"):
        require_compiler(parse("v5e:2x2"))
    with pytest.raises(UserError, match=r"plan-cuda13"):
        require_compiler(parse("h100:1x8"))
