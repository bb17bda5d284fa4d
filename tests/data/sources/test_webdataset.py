"""WebDataset tars as img2dataset and people write them: every layout, every fault, and any share read alone."""

import json

import pyarrow as pa
import pytest

from cm3leon_jax.data.sources.reading import ShardSlice
from cm3leon_jax.documents import Document
from cm3leon_jax.errors import UserError
from tests.data.sources.published import documents, faults, opened, png, shown, write_table, write_tar


def sample(key: str, value: int, txt: str | None, suffix: str = "jpg", **columns: object) -> list[tuple[str, bytes]]:
    """The members that img2dataset writes of an image."""
    members = [(f"{key}.{suffix}", png(value))]
    if txt is not None:
        members.append((f"{key}.txt", txt.encode()))
    return [*members, (f"{key}.json", json.dumps({"key": key, "status": "success", **columns}).encode())]


def read(path, **rows) -> list[tuple[str, ...]]:
    return [shown(each) for each in documents(opened(f"webdataset:{path}", rows=rows))]


def test_a_folder_of_img2dataset(tmp_path):
    first = sample("000000001", 1, "one") + sample("000000000", 0, "zero", "webp")
    write_tar(tmp_path / "00000.tar", first[1:] + first[:1])
    # A gap in the numbers, a folder below, and what else img2dataset leaves there.
    write_tar(tmp_path / "more/00002.tar", sample("000020000", 2, "two", "png"))
    write_table(tmp_path / "00000.parquet", [{"key": "000000000"}], {"key": pa.string()})
    for name in ("00000_stats.json", "_tmp/1.feather", ".00000.tar.crc", "00000.tar.crc"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"{}")
    task = opened(f"webdataset:{tmp_path}")
    assert [shown(each) for each in documents(task)] == [("", "zero", "<0>"), ("", "one", "<1>"), ("", "two", "<2>")]
    assert not task.skipped().by_kind
    assert task.where("train", 1) == "00000.tar:000000001"
    # A corpus of files that were changed is noticed.
    write_tar(tmp_path / "00000.tar", first[1:] + sample("000000001", 9, "one!"))
    assert opened(f"webdataset:{tmp_path}").provenance() != task.provenance()
    assert set(faults(task).values()) == {"image that was edited meanwhile"}


def test_any_share_is_read_alone(tmp_path):
    for shard in range(3):
        members = [each for n in range(5) for each in sample(f"{shard}{n}", 10 * shard + n, f"caption {shard}{n}")]
        write_tar(tmp_path / f"{shard}.tar", members)
    task = opened(f"webdataset:{tmp_path}")
    whole = dict(task.numbered("train", ShardSlice(15)))
    assert len(whole) == 15
    for first in range(2):
        part = dict(task.numbered("train", ShardSlice(4, first, 2)))
        assert part.items() <= whole.items() and {n for n in part if n // 4 % 2 == first} == {
            n for n in whole if n // 4 % 2 == first
        }


@pytest.mark.parametrize(
    ("pattern", "expected", "num_absent"),
    [
        ("{00000..00002}.tar", "013", 0),
        ("{00001..00004}.tar", "13", 2),
        ("{00002,00000}.tar", "30", 0),
        ("0000[01].tar", "01", 0),
        ("**/*.tar", "013", 0),
        ("00000.tar", "0", 0),
        ("", "013", 0),
    ],
)
def test_patterns(tmp_path, pattern, expected, num_absent):
    for name, value in (("00000", 0), ("00001", 1), ("00002", 3)):
        write_tar(tmp_path / f"{name}.tar", sample(name, value, f"caption {value}"))
    task = opened(f"webdataset:{tmp_path}/{pattern}")
    assert [shown(each)[1] for each in documents(task)] == [f"caption {value}" for value in expected]
    assert task.skipped().by_kind["file that is not there"] == num_absent and not task.skipped().num_documents


def test_tasks_are_named_after_their_tars(tmp_path):
    write_tar(tmp_path / "cats/00000.tar", sample("0", 0, "a"))
    names = {
        opened(f"webdataset:{tmp_path}/cats{end}").name for end in ("", "/00000.tar", "/*.tar", "/{00000..00001}.tar")
    }
    assert names == {"webdataset_cats", "webdataset_00000", "webdataset_cats_00000_00001"}


CAPTIONED = [
    ("txt", [("a.txt", b"from txt")], {}, ["from txt"]),
    ("caption", [("a.caption", b"from caption")], {}, ["from caption"]),
    ("json", [("a.json", b'{"caption": "from json"}')], {}, ["from json"]),
    ("both", [("a.txt", b"from txt"), ("a.json", b'{"text": "from json"}')], {}, ["from txt"]),
    ("named", [("a.txt", b"x"), ("a.json", b'{"x": {"y": "deep"}}')], {"caption_column": "x.y"}, ["deep"]),
    ("second file", [("a.txt", b"x"), ("a.blip.txt", b"blip")], {"caption_column": "blip.txt"}, ["blip"]),
    ("list", [("a.json", b'{"captions": ["one", "two", "one"]}')], {}, ["one", "two"]),
    ("first", [("a.json", b'{"captions": ["one", "three"]}')], {"captions": "first"}, ["one"]),
    ("longest", [("a.json", b'{"captions": ["one", "three"]}')], {"captions": "longest"}, ["three"]),
    ("JSON in a string", [("a.json", json.dumps({"text": '["one", "two"]'}).encode())], {}, ["one", "two"]),
    ("brackets", [("a.json", b'{"text": "[1] a fox"}')], {}, ["[1] a fox"]),
    ("upper case", [("A.TXT", b"x"), ("a.TXT", b"from TXT")], {}, ["from TXT"]),
    ("BOM", [("a.txt", "\ufefffox\r\n".encode())], {}, ["fox"]),
    ("other files", [("a.txt", b"fox"), ("a.cls", b"3"), ("a.seg.png", b"no image"), ("README", b"")], {}, ["fox"]),
]


@pytest.mark.parametrize(
    ("members", "rows", "expected"), [case[1:] for case in CAPTIONED], ids=[c[0] for c in CAPTIONED]
)
def test_captions(tmp_path, members, rows, expected):
    write_tar(tmp_path / "a.tar", [*members, ("a.jpeg", png(7))])
    assert read(tmp_path, **rows) == [("", caption, "<7>") for caption in expected]


def test_one_caption_by_hash_is_the_same_again_and_all_are_taken(tmp_path):
    captions = [f"caption {number}" for number in range(3)]
    write_tar(tmp_path / "a.tar", [m for n in range(30) for m in sample(f"{n:02d}", n, None, captions=captions)])
    found = read(tmp_path, captions="by_hash")
    assert len(found) == 30 and {each[1] for each in found} == set(captions)
    assert read(tmp_path, captions="by_hash") == found


def test_languages(tmp_path):
    members = [
        *sample("0", 0, "ein Fuchs", lang="de"),
        *sample("1", 1, "a fox", lang="en"),
        *sample("2", 2, None, captions=["un renard", "a fox", "ein Fuchs"], lang=["fr", "en", "de"]),
        *sample("3", 3, None, captions=["un renard", "a fox"], lang=["fr"]),
        *sample("4", 4, "renard"),
    ]
    write_tar(tmp_path / "a.tar", members)
    task = opened(f"webdataset:{tmp_path}", rows={"language_column": "lang", "languages": ("de", "en")})
    assert [shown(each)[1:] for each in documents(task)] == [
        ("ein Fuchs", "<0>"), ("a fox", "<1>"), ("a fox", "<2>"), ("ein Fuchs", "<2>"),
    ]  # fmt: skip
    assert task.skipped().by_kind == {
        "captions and languages of different numbers": 1,
        "caption in another language": 1,
    }
    assert task.skipped().num_documents == 1
    with pytest.raises(UserError, match="go together"):
        opened(f"webdataset:{tmp_path}", rows={"languages": ("de",)})


def test_the_same_image_is_on_one_side_of_the_split(tmp_path):
    for shard in range(4):
        members = [m for n in range(20) for m in sample(f"{n}", n, f"caption {shard}", sha256=f"{n:064x}")]
        write_tar(tmp_path / f"{shard}.tar", members)
    task = opened(f"webdataset:{tmp_path}", held_out_fraction=0.3)
    train, held_out = ({shown(each)[2] for each in documents(task, split)} for split in ("train", "validation"))
    assert len(train) + len(held_out) == 20 and held_out and not train & held_out


GOOD = sample("g", 200, "good")
FAULTS = [
    ("missing txt", [("a.jpg", png(1)), ("a.json", b'{"width": 3}')], "image without a caption"),
    ("empty caption", sample("a", 1, " \n"), "empty caption"),
    ("JSON without a caption", sample("a", 1, None), "image without a caption"),
    ("JSON caption null", sample("a", 1, None, caption=None), "row without a caption"),
    ("JSON caption a number", sample("a", 1, None, caption=3), "caption that is no text"),
    ("JSON damaged", [("a.jpg", png(1)), ("a.txt", b"x"), ("a.json", b'{"caption": ')], "malformed JSON"),
    ("JSON of another kind", [("a.jpg", png(1)), ("a.txt", b"x"), ("a.json", b"[1]")], "malformed JSON"),
    ("caption no UTF-8", [("a.jpg", png(1)), ("a.txt", b"\xff\xff")], "caption that is not UTF-8"),
    ("jpg and png", [("a.jpg", png(1)), *sample("a", 2, "x", "png")], "several images of one key"),
    ("jpg and JPG", [("a.JPG", png(1)), *sample("a", 2, "x")], "key that is there twice"),
    ("key twice", [*sample("a", 1, "x"), *GOOD, *sample("a", 2, "y")], "key that is there twice"),
    (
        "second image of a key",
        [("a.jpg", png(1)), *GOOD, ("a.jpg", png(2)), ("a.txt", b"y")],
        "key that is there twice",
    ),
    ("dots in the key", [("a.b.jpg", png(1)), ("a.b.txt", b"x")], "image whose name has a dot before its suffix"),
    ("zero bytes", [("a.jpg", b""), ("a.txt", b"x")], "empty image"),
    ("text alone", [("a.txt", b"x")], "key without an image"),
    ("HEIC", [("a.heic", b"x"), ("a.txt", b"x")], "image of a kind that is not read"),
]


@pytest.mark.parametrize(("members", "kind"), [case[1:] for case in FAULTS], ids=[case[0] for case in FAULTS])
@pytest.mark.parametrize("is_first", [False, True])
def test_a_fault_is_counted_and_its_neighbors_are_read(tmp_path, members, kind, is_first):
    others = [] if GOOD[0] in members else GOOD
    write_tar(tmp_path / "a.tar", [*members, *others] if is_first else [*others, *members])
    task = opened(f"webdataset:{tmp_path}")
    assert [shown(each) for each in documents(task)] == [("", "good", "<200>")]
    assert task.skipped().by_kind == {kind: 1} and task.skipped().num_documents == 1
    assert task.skipped().entry()["first"] == [{"where": "a.tar:a", "reason": kind}]


def test_one_of_several_images_is_chosen_by_name(tmp_path):
    write_tar(tmp_path / "a.tar", [("a.jpg", png(1)), ("a.seg.png", png(3)), *sample("a", 2, "x", "png")])
    assert read(tmp_path, image_column="png") == [("", "x", "<2>")]
    assert read(tmp_path, image_column="seg.png") == [("", "x", "<3>")]


def test_equal_keys_in_two_tars_are_two_images(tmp_path):
    write_tar(tmp_path / "a.tar", sample("0", 1, "one"))
    write_tar(tmp_path / "b.tar", sample("0", 2, "two"))
    assert read(tmp_path) == [("", "one", "<1>"), ("", "two", "<2>")]


def test_of_a_tar_that_is_cut_off_the_whole_members_count(tmp_path):
    write_tar(tmp_path / "a.tar", sample("0", 0, "zero") + sample("1", 1, "one"))
    write_tar(tmp_path / "b.tar", sample("2", 2, "two"))
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: whole.index(b"one")])
    (tmp_path / "c.tar").write_bytes(b"")
    task = opened(f"webdataset:{tmp_path}")
    assert [shown(each)[1] for each in documents(task)] == ["zero", "two"]
    assert task.skipped().by_kind == {
        "tar that is cut off": 1, "tar that cannot be read": 1, "image without a caption": 1,
    }  # fmt: skip


def test_what_is_found_while_images_are_decoded_is_no_fault_of_the_reader(tmp_path):
    html = [("a.jpg", b"<html>not found</html>"), ("a.txt", b"x")]
    write_tar(tmp_path / "a.tar", [*html, *GOOD])
    assert (
        len([each for each in opened(f"webdataset:{tmp_path}").documents("train") if isinstance(each, Document)]) == 2
    )


def test_other_forms_are_one_line(tmp_path):
    with pytest.raises(UserError, match="nothing is at that path; give that of WebDataset tars"):
        opened(f"webdataset:{tmp_path}/nowhere")
    with pytest.raises(UserError, match=r"holds no WebDataset tars: there is no .tar file"):
        opened(f"webdataset:{tmp_path}")
    with pytest.raises(UserError, match="holds no WebDataset tars"):
        opened(f"webdataset:{tmp_path}/*.tar")
    write_tar(tmp_path / "a.tar", [("a.jpg", b"x")])
    with pytest.raises(UserError, match=r"has no examples \(1 x image without a caption: a.tar:a\)"):
        opened(f"webdataset:{tmp_path}")
