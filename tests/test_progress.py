"""The log of steps: gap-free through restarts, whatever a disk did to a line."""

import json

import numpy as np
import pytest

from cm3leon_jax.progress import StepLog, read_step_log

LINES = [{"step": step, "loss": step / 10, "skipped": None} for step in range(1, 7)]
TEXT = [json.dumps(line).encode() for line in LINES]

DAMAGES = {
    "not UTF-8": lambda line: line[:10] + b"\xff" + line[11:],
    "cut off": lambda line: line[: len(line) // 2],
    "empty": lambda line: b"",
    "zeros, as after a power cut": lambda line: bytes(len(line)),
    "a list": lambda line: b"[1, 2]",
    "a number": lambda line: b"7",
    "no step": lambda line: line.replace(b"step", b"stap"),
    "a step that is none": lambda line: line.replace(b'"step": ', b'"step": "x", "was": '),
    "a value that is none": lambda line: line.replace(b'"loss": ', b'"loss": {}, "was": '),
    "deeply nested": lambda line: b"[" * 100_000,
    "too many digits": lambda line: b'{"step": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("place", [0, 2, 5])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_line_is_named_and_kept_aside_and_the_others_stay(tmp_path, capsys, damage, place):
    file = tmp_path / "metrics.jsonl"
    found = list(TEXT)
    found[place] = DAMAGES[damage](found[place])
    file.write_bytes(b"".join(line + b"\n" for line in found))
    sound = [line for index, line in enumerate(LINES) if index != place]
    assert read_step_log(file) == sound
    log = StepLog(file, 4)
    log.write(5, {"loss": 0.5})
    log.close()
    assert read_step_log(file) == [line for line in sound if line["step"] <= 4] + [{"step": 5, "loss": 0.5}]
    (said,) = capsys.readouterr().out.splitlines()
    assert f"line {place + 1} of {file} cannot be read" in said and "metrics.jsonl.damaged" in said
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == found[place] + b"\n"
    # The next start has nothing to say of it.
    StepLog(file, 4).close()
    assert not capsys.readouterr().out


def test_any_flipped_bit_leaves_a_log_that_can_be_read_and_continued(tmp_path):
    file = tmp_path / "metrics.jsonl"
    whole = b"".join(line + b"\n" for line in TEXT)
    random = np.random.default_rng(0)
    for place in random.integers(0, 8 * len(whole), 200):
        content = bytearray(whole)
        content[place // 8] ^= 1 << (place % 8)
        file.write_bytes(bytes(content))
        # A bit in a line break spoils two lines.
        assert len(read_step_log(file)) >= len(LINES) - 2
        log = StepLog(file, 6)
        log.write(7, {"loss": 0.7})
        log.close()
        assert read_step_log(file)[-1] == {"step": 7, "loss": 0.7}


def test_the_half_line_of_a_crash_goes_without_a_word(tmp_path, capsys):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(TEXT[0] + b"\n" + TEXT[1][:9])
    StepLog(file, 1).close()
    assert read_step_log(file) == LINES[:1]
    assert not capsys.readouterr().out
    assert not (tmp_path / "metrics.jsonl.damaged").exists()
