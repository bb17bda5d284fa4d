"""Accelerator types against the tables that the clouds publish, and what is said of those that are not there."""

import itertools

import pytest

from cm3leon_jax.errors import UserError
from cm3leon_jax.planning.accelerator_types import accelerator_type, find_pod

# (accelerator type, shape, chips, hosts): docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e and tpu7x, read in 2026;
# the shapes of the numbers between those of their tables: apple/axlearn, axlearn/experiments/aot_compilation.py.
PUBLISHED = [
    ("v4-8", "v4:2x2x1", 4, 1),
    ("v4-16", "v4:2x2x2", 8, 2),
    ("v4-32", "v4:2x2x4", 16, 4),
    ("v4-64", "v4:2x4x4", 32, 8),
    ("v4-128", "v4:4x4x4", 64, 16),
    ("v4-256", "v4:4x4x8", 128, 32),
    ("v4-512", "v4:4x8x8", 256, 64),
    ("v4-1024", "v4:8x8x8", 512, 128),
    ("v4-1536", "v4:8x8x12", 768, 192),
    ("v4-2048", "v4:8x8x16", 1024, 256),
    ("v4-4096", "v4:8x16x16", 2048, 512),
    ("v5litepod-1", "v5e:1x1", 1, 1),
    ("v5litepod-4", "v5e:2x2", 4, 1),
    ("v5litepod-8", "v5e:2x4", 8, 1),
    ("v5litepod-16", "v5e:4x4", 16, 4),
    ("v5litepod-32", "v5e:4x8", 32, 8),
    ("v5litepod-64", "v5e:8x8", 64, 16),
    ("v5litepod-128", "v5e:8x16", 128, 32),
    ("v5litepod-256", "v5e:16x16", 256, 64),
    ("v5p-8", "v5p:2x2x1", 4, 1),
    ("v5p-16", "v5p:2x2x2", 8, 2),
    ("v5p-32", "v5p:2x2x4", 16, 4),
    ("v5p-64", "v5p:2x4x4", 32, 8),
    ("v5p-128", "v5p:4x4x4", 64, 16),
    ("v5p-256", "v5p:4x4x8", 128, 32),
    ("v5p-384", "v5p:4x4x12", 192, 48),
    ("v5p-512", "v5p:4x8x8", 256, 64),
    ("v5p-640", "v5p:4x4x20", 320, 80),
    ("v5p-768", "v5p:4x8x12", 384, 96),
    ("v5p-1024", "v5p:8x8x8", 512, 128),
    ("v5p-1152", "v5p:4x12x12", 576, 144),
    ("v5p-1536", "v5p:8x8x12", 768, 192),
    ("v5p-1920", "v5p:4x12x20", 960, 240),
    ("v5p-2048", "v5p:8x8x16", 1024, 256),
    ("v5p-3072", "v5p:8x12x16", 1536, 384),
    ("v5p-3456", "v5p:12x12x12", 1728, 432),
    ("v5p-4096", "v5p:8x16x16", 2048, 512),
    ("v5p-4608", "v5p:12x12x16", 2304, 576),
    ("v5p-6144", "v5p:12x16x16", 3072, 768),
    ("v5p-6272", "v5p:4x28x28", 3136, 784),
    ("v5p-6912", "v5p:12x12x24", 3456, 864),
    ("v5p-7680", "v5p:12x16x20", 3840, 960),
    ("v5p-7808", "v5p:4x4x244", 3904, 976),
    ("v5p-8064", "v5p:12x12x28", 4032, 1008),
    ("v5p-8192", "v5p:16x16x16", 4096, 1024),
    ("v5p-8960", "v5p:8x20x28", 4480, 1120),
    ("v5p-9216", "v5p:12x16x24", 4608, 1152),
    ("v5p-9984", "v5p:8x12x52", 4992, 1248),
    ("v5p-10368", "v5p:12x12x36", 5184, 1296),
    ("v5p-11904", "v5p:4x12x124", 5952, 1488),
    ("v5p-12288", "v5p:16x16x24", 6144, 1536),
    ("v6e-1", "v6e:1x1", 1, 1),
    ("v6e-4", "v6e:2x2", 4, 1),
    ("v6e-8", "v6e:2x4", 8, 1),
    ("v6e-16", "v6e:4x4", 16, 4),
    ("v6e-32", "v6e:4x8", 32, 8),
    ("v6e-64", "v6e:8x8", 64, 16),
    ("v6e-128", "v6e:8x16", 128, 32),
    ("v6e-256", "v6e:16x16", 256, 64),
    ("tpu7x-2", "tpu7x:1x1x1", 1, 1),
    ("tpu7x-8", "tpu7x:2x2x1", 4, 1),
    ("tpu7x-16", "tpu7x:2x2x2", 8, 2),
    ("tpu7x-32", "tpu7x:2x2x4", 16, 4),
    ("tpu7x-64", "tpu7x:2x4x4", 32, 8),
    ("tpu7x-128", "tpu7x:4x4x4", 64, 16),
    ("tpu7x-256", "tpu7x:4x4x8", 128, 32),
    ("tpu7x-512", "tpu7x:4x8x8", 256, 64),
    ("tpu7x-1024", "tpu7x:8x8x8", 512, 128),
    ("tpu7x-2048", "tpu7x:8x8x16", 1024, 256),
    ("tpu7x-4096", "tpu7x:8x16x16", 2048, 512),
    ("tpu7x-13824", "tpu7x:12x24x24", 6912, 1728),
    ("tpu7x-16384", "tpu7x:16x16x32", 8192, 2048),
    ("tpu7x-18432", "tpu7x:16x24x24", 9216, 2304),
    ("a100-1", "a100:1x1", 1, 1),
    ("h100-8", "h100:1x8", 8, 1),
    ("h100-256", "h100:32x8", 256, 32),
    ("h200-64", "h200:8x8", 64, 8),
    ("b200-256", "b200:32x8", 256, 32),
    ("gb200-4", "gb200:1x4", 4, 1),
    ("gb200-72", "gb200:18x4", 72, 18),
]
DEVICES_PER_CHIP = {"tpu7x": 2}


@pytest.mark.parametrize(("name", "shape", "num_chips", "num_hosts"), PUBLISHED)
def test_a_published_type_has_its_shape_chips_and_hosts(name, shape, num_chips, num_hosts):
    pod = find_pod(name)
    assert (pod.name, pod.num_chips, pod.num_hosts) == (shape, num_chips, num_hosts)
    assert pod.num_devices == num_chips * DEVICES_PER_CHIP.get(pod.accelerator.name, 1)
    assert find_pod(shape) == pod
    assert accelerator_type(pod) == name


def test_v5e_has_two_names():
    for count in (1, 4, 8, 16, 32, 64, 128, 256):
        assert find_pod(f"v5e-{count}") == find_pod(f"v5litepod-{count}")


@pytest.mark.parametrize("name", ["v5p-256*2", "v5litepod-256*4", "tpu7x-128*3"])
def test_slices_are_counted_apart(name):
    one, _, slices = name.partition("*")
    pod = find_pod(name)
    assert pod.num_slices == int(slices)
    assert pod.num_chips == int(slices) * find_pod(one).num_chips
    assert pod.num_hosts == int(slices) * find_pod(one).num_hosts
    assert accelerator_type(pod) == name


@pytest.mark.parametrize("shape", ["v5p:4x4x8_twisted", "v5p:4x4x32", "h100:16x4"])
def test_another_shape_of_as_many_chips_is_no_accelerator_type(shape):
    assert accelerator_type(find_pod(shape)) is None


@pytest.mark.parametrize("family", ["v4", "v5litepod", "v5e", "v5p", "v6e", "tpu7x", "a100", "h100", "b200", "gb200"])
def test_every_number_is_a_pod_or_one_line_with_the_nearest_that_are(family):
    for number in itertools.chain(range(70), range(120, 140), (500, 511, 513, 8576, 12_289, 20_000)):
        name = f"{family}-{number}"
        try:
            assert find_pod(name).num_chips > 0
        except UserError as error:
            message = str(error)
            assert "\n" not in message
            listed = message.rpartition(": ")[2].split(", ")
            assert 1 <= len(listed) <= 2
            for other in listed:
                find_pod(other)
            numbers = [int(other.rpartition("-")[2]) for other in listed]
            assert len(numbers) == 1 or numbers[0] < number < numbers[1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5p-100", "The nearest: v5p-64, v5p-128"),
        ("v5p-1023", "its number counts cores, two for each chip"),
        ("v5p-512*0", "at least one slice"),
        ("v6e-257", "The nearest: v6e-256"),
        ("v5litepod-12", "The nearest: v5litepod-8, v5litepod-16"),
        ("h100-12", "The nearest: h100-8, h100-16"),
        ("h100-16*2", "slices of TPUs"),
        ("v9-8", "write CHIP:SHAPE"),
        ("v5p-", "write CHIP:SHAPE"),
        ("", "write CHIP:SHAPE"),
    ],
)
def test_a_wrong_name_is_one_line_that_says_what_is_right(name, message):
    with pytest.raises(UserError) as caught:
        find_pod(name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
