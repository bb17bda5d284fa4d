"""Names of pods: what they describe, and what is said of those that are wrong."""

import pytest

from cm3leon_jax.errors import UserError
from cm3leon_jax.planning.topology import parse, require_compiler


@pytest.mark.parametrize(
    ("name", "num_devices", "wrap", "described"),
    [
        ("v5p:8x8x8", 512, (True, True, True), "512 x v5p, torus of 8 x 8 x 8"),
        ("v5p:2x2x1", 4, (False, False, False), "4 x v5p, open mesh of 2 x 2 x 1"),
        ("v5e:16x16", 256, (True, True, False), "256 x v5e, torus of 16 x 16"),
        ("v6e:8x16", 128, (False, True, False), "128 x v6e, mesh, closed along its long side, of 8 x 16"),
        ("v5e:16x16*2", 512, (True, True, False), "512 x v5e, 2 slices, each a torus of 16 x 16"),
        ("h100:32x8", 256, None, "256 x h100, 32 hosts of 8"),
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
        ("v9:4x4", "the chips are v5e, v5p, v6e"),
        ("v5e:16x15", "a slice of v5e is one of 1x1, 2x2"),
        ("v5p:8x8", "three rising multiples of 4"),
        ("v5p:8x4x4", "three rising multiples of 4"),
        ("h100:4x16", "at most 8 GPUs per host"),
        ("h100:4x8*2", "slices of TPUs"),
        ("v5e:4x4*0", "at least one slice"),
    ],
)
def test_a_wrong_name_is_one_line_that_says_what_is_right(name, message):
    with pytest.raises(UserError) as caught:
        parse(name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_compiler_is_named_with_what_installs_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'cm3leon_jax\[plan\]'"):
        require_compiler(parse("v5e:2x2"))
    with pytest.raises(UserError, match=r"plan-cuda13"):
        require_compiler(parse("h100:1x8"))
