"""Edits in parquet files as published, and their faults."""

import numpy as np
import pyarrow as pa
import pytest

from cm3leon_jax.data.sources.reading import ShardSlice
from cm3leon_jax.errors import UserError
from tests.data.sources.published import IMAGE, cell, documents, faults, opened, shown, write_table

PIX2PIX = {
    "original_prompt": pa.string(),
    "original_image": IMAGE,
    "edit_prompt": pa.string(),
    "edited_prompt": pa.string(),
    "edited_image": IMAGE,
}
ULTRAEDIT = {
    **dict.fromkeys(("clip_sim_source", "clip_sim_target", "clip_sim_dir", "clip_sim_image"), pa.float32()),
    **{"dinov2_sim": pa.float32(), "ssim": pa.float32(), "source_caption": pa.string(), "target_caption": pa.string()},
    **{"idx": pa.int32(), "edit_prompt": pa.string(), "source_image": IMAGE, "edited_image": IMAGE},
}
OMNIEDIT = {
    **{"omni_edit_id": pa.string(), "task": pa.string(), "src_img": IMAGE, "edited_img": IMAGE},
    **{"edited_prompt_list": pa.list_(pa.string()), "sc_score_1": pa.int64()},
}


def pair(number: int, instruction: str = "make it darker", **other) -> dict:
    row = {
        "original_prompt": f"a fox {number}",
        "original_image": cell(2 * number),
        "edit_prompt": instruction,
        "edited_prompt": "a dark fox",
        "edited_image": cell(2 * number + 1),
    }
    return row | other


def test_instruct_pix2pix(tmp_path):
    rows = [[pair(number) for number in range(5)], [pair(number) for number in range(5, 8)]]
    for number, some in enumerate(rows):
        write_table(tmp_path / f"data/train-{number:05d}-of-00002.parquet", some, PIX2PIX)
    task = opened(f"instruct_pix2pix:{tmp_path}")
    assert [shown(each) for each in documents(task)] == [
        ("edit", f"<{2 * number}>", "make it darker", f"<{2 * number + 1}>") for number in range(8)
    ]
    assert task.where("train", 6) == "data/train-00001-of-00002.parquet:1"
    part = dict(task.numbered("train", ShardSlice(size=3, first=1, step=2)))
    assert {number: shown(each)[1] for number, each in part.items()} == {3: "<6>", 4: "<8>", 5: "<10>", 6: "<12>"}


def test_what_is_skipped_shifts_nothing(tmp_path):
    rows = [pair(0), pair(1, edited_image=None), pair(2, " "), pair(3, None), pair(4, original_image=None), pair(5)]
    rows += [pair(6, edited_image={"bytes": None, "path": "6.png"}), pair(7)]
    write_table(tmp_path / "train-00000-of-00001.parquet", rows, PIX2PIX)
    task = opened(f"instruct_pix2pix:{tmp_path}")
    assert [shown(each)[1] for each in documents(task)] == ["<0>", "<10>", "<14>"]
    assert task.skipped().by_kind == {
        "missing image": 2,
        "empty field: instruction": 1,
        "no edit_prompt of the published form": 1,
    }
    assert faults(task) == {"train-00000-of-00001.parquet:6": "missing image"}


def test_edits_of_a_caption_are_on_one_side(tmp_path):
    rows = [pair(number, original_prompt=f"a fox {number // 4}") for number in range(80)]
    write_table(tmp_path / "train-00000-of-00001.parquet", rows, PIX2PIX)
    task = opened(f"instruct_pix2pix:{tmp_path}", held_out_fraction=0.3)
    sides = {
        split: {int(shown(each)[1][1:-1]) // 8 for each in documents(task, split)} for split in ("train", "validation")
    }
    assert sides["train"] and sides["validation"] and not sides["train"] & sides["validation"]
    order = [int(shown(each)[1][1:-1]) for each in documents(task)]
    assert order == sorted(order) and len(order) == 4 * len(sides["train"])


def test_ultraedit(tmp_path):
    row = {"source_caption": "a fox", "edit_prompt": "add a hat", "source_image": cell(3), "edited_image": cell(4)}
    write_table(tmp_path / "FreeForm_00000.parquet", [row], ULTRAEDIT)
    assert [shown(each) for each in documents(opened(f"ultraedit:{tmp_path}"))] == [("edit", "<3>", "add a hat", "<4>")]


def test_omniedit_takes_one_of_the_paraphrases(tmp_path):
    rows = [
        {
            "omni_edit_id": f"id_{n}",
            "src_img": cell(n),
            "edited_img": cell(9),
            "edited_prompt_list": ["Add.", "", "Put."],
        }
        for n in range(9)
    ]
    rows[4]["edited_prompt_list"] = []
    write_table(tmp_path / "data/train-00000-of-00001.parquet", rows, OMNIEDIT)
    task = opened(f"omniedit:{tmp_path}")
    found = [shown(each) for each in documents(task)]
    assert {each[2] for each in found} == {"Add.", "Put."} and len(found) == 8
    assert found == [shown(each) for each in documents(opened(f"omniedit:{tmp_path}"))]
    assert task.skipped().by_kind == {"empty field: instruction": 1}


def test_other_forms_are_one_line(tmp_path):
    with pytest.raises(UserError, match="nothing is at that path; give that of parquet files of UltraEdit"):
        opened(f"ultraedit:{tmp_path}/nowhere")
    with pytest.raises(UserError, match=r"holds no parquet files of UltraEdit: there is no .parquet file"):
        opened(f"ultraedit:{tmp_path}")
    write_table(tmp_path / "a.parquet", [pair(0)], PIX2PIX)
    with pytest.raises(
        UserError, match=r"a.parquet has no column source_image: parquet files of UltraEdit has source_"
    ):
        opened(f"ultraedit:{tmp_path}")
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"a.parquet is no parquet file that can be read"):
        opened(f"ultraedit:{tmp_path}")
    write_table(tmp_path / "a.parquet", [pair(0, "")], PIX2PIX)
    with pytest.raises(UserError, match=r"has no examples \(1 x empty field: instruction: a.parquet:0\)"):
        opened(f"instruct_pix2pix:{tmp_path}")


def test_another_template_of_the_same_fields_takes_its_role(tmp_path):
    write_table(tmp_path / "a.parquet", [pair(0)], PIX2PIX)
    task = opened(f"instruct_pix2pix:{tmp_path}", templates={"edit": "edits"})
    assert [shown(each) for each in documents(task)] == [("edits", "<0>", "make it darker", "<1>")]
    with pytest.raises(UserError, match=r"'question' needs the field question: the examples of .* image, instruction"):
        opened(f"instruct_pix2pix:{tmp_path}", templates={"edit": "question"})


def test_a_corpus_of_another_state_is_noticed(tmp_path):
    write_table(tmp_path / "a.parquet", [pair(0), pair(1)], PIX2PIX)
    first = opened(f"instruct_pix2pix:{tmp_path}").provenance()
    assert first["examples"].startswith("2 train, 0 validation, ") and "1 files of" in first["images"]
    assert opened(f"instruct_pix2pix:{tmp_path}").provenance() == first
    write_table(tmp_path / "a.parquet", [pair(0), pair(2)], PIX2PIX)
    assert opened(f"instruct_pix2pix:{tmp_path}").provenance() != first


def test_images_without_paths_and_plain_bytes(tmp_path):
    schema = PIX2PIX | {"original_image": pa.binary(), "edited_image": pa.struct([("bytes", pa.binary())])}
    row = pair(0)
    row["original_image"], row["edited_image"] = row["original_image"]["bytes"], {"bytes": row["edited_image"]["bytes"]}
    write_table(tmp_path / "a.parquet", [row, row | {"original_image": None}], schema)
    task = opened(f"instruct_pix2pix:{tmp_path}")
    assert [shown(each)[1:] for each in documents(task)] == [("<0>", "make it darker", "<1>")]
    assert faults(task) == {"a.parquet:1": "missing image"}
    assert np.unique(list(faults(task).values())).tolist() == ["missing image"]
