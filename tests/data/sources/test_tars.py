"""Tars: members by their offsets, whatever the form of their headers, and what is lost of a damaged one."""

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3leon_jax.data.sources import tars
from cm3leon_jax.data.sources.tars import TarFault, TarMember, read_members
from cm3leon_jax.errors import UserError
from tests.data.sources.published import write_tar

MEMBERS = [("a.jpg", b"j" * 700), ("a.txt", b"a caption"), ("b/" + "long" * 40 + ".jpg", b"k" * 512), ("é.json", b"{}")]
FORMS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


def contents(file):
    """Names and bytes of the members, and the faults."""
    found = list(read_members(file))
    whole = file.read_bytes()
    members = [(m.name, whole[m.start : m.start + m.size]) for m in found if isinstance(m, TarMember)]
    return members, [each for each in found if isinstance(each, TarFault)]


@pytest.mark.parametrize("form", FORMS[1:])
def test_members_of_every_form(tmp_path, form):
    write_tar(tmp_path / "a.tar", MEMBERS, form)
    assert contents(tmp_path / "a.tar") == (MEMBERS, [])


def test_what_tar_writes_of_a_folder(tmp_path):
    (tmp_path / "folder/below").mkdir(parents=True)
    (tmp_path / "folder/below/a.jpg").write_bytes(b"j")
    (tmp_path / "folder/b.jpg").symlink_to("below/a.jpg")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "folder", ".")
    members, faults = contents(tmp_path / "a.tar")
    assert members == [("below/a.jpg", b"j")] and [fault.kind for fault in faults] == [tars.NO_FILE]


def test_archives_one_after_the_other(tmp_path):
    for number, name in enumerate(("a.tar", "b.tar", "c.tar")):
        write_tar(tmp_path / name, [(f"{number}.txt", b"x" * number)], FORMS[number])
    joined = b"".join((tmp_path / name).read_bytes() for name in ("a.tar", "b.tar", "c.tar"))
    (tmp_path / "joined.tar").write_bytes(joined)
    assert contents(tmp_path / "joined.tar") == ([("0.txt", b""), ("1.txt", b"x"), ("2.txt", b"xx")], [])


def test_every_cut_keeps_the_whole_members_before_it_and_says_so(tmp_path):
    write_tar(tmp_path / "whole.tar", MEMBERS[:2] + MEMBERS[3:], tarfile.USTAR_FORMAT)
    whole, cut = (tmp_path / "whole.tar").read_bytes(), tmp_path / "cut.tar"
    expected, _ = contents(tmp_path / "whole.tar")
    ends = [512 + 700, 512 + 1024 + 512 + 9, 512 + 1024 + 1024 + 512 + 2]
    # Before the end of the archive.
    for size in [*range(1, ends[-1] + 400, 97), *ends, *(end - 1 for end in ends)]:
        cut.write_bytes(whole[:size])
        members, faults = contents(cut)
        assert members == [each for each, end in zip(expected, ends, strict=True) if end <= size]
        assert [fault.kind for fault in faults] == [tars.CUT if size >= 512 else tars.NO_TAR]


@pytest.mark.parametrize(("content", "kind"), [(b"", tars.NO_TAR), (b"no tar" * 200, tars.NO_TAR)])
def test_what_is_no_tar(tmp_path, content, kind):
    (tmp_path / "a.tar").write_bytes(content)
    assert list(read_members(tmp_path / "a.tar")) == [TarFault(kind, 0)]
    assert list(read_members(tmp_path / "absent.tar")) == [TarFault(tars.NO_TAR, 0)]


def test_a_compressed_tar_is_one_line(tmp_path):
    for mode, name in (("w:gz", "gzip"), ("w:bz2", "bzip2"), ("w:xz", "xz")):
        with tarfile.open(tmp_path / "a.tar", mode) as archive:
            archive.addfile(tarfile.TarInfo("a.txt"), io.BytesIO())
        with pytest.raises(UserError, match=rf"a.tar is compressed \({name}\).* unpack it"):
            list(read_members(tmp_path / "a.tar"))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 255)), min_size=1, max_size=8), st.sampled_from(FORMS[1:])
)
def test_damaged_headers_never_raise_nor_reach_out_of_the_file(tmp_path_factory, damage, form):
    file = tmp_path_factory.getbasetemp() / "damaged.tar"
    write_tar(file, MEMBERS, form)
    content = bytearray(file.read_bytes())
    for position, value in damage:
        content[position % len(content)] = value
    file.write_bytes(content)
    for each in read_members(file):
        if isinstance(each, TarMember):
            assert each.size >= 0 and each.start + each.size <= len(content)
