"""Output files are whole or absent, and messages are one line."""

import stat
from pathlib import Path

import pytest

from softmaxloss.data.files import DataError, check_input, check_output, known_suffix, listed, replacing


def names(folder):
    return [path.name for path in folder.iterdir()]


def test_a_file_takes_its_place_when_the_block_ends_well(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("before")
    with replacing(path) as temporary:
        temporary.write_text("after")
        assert path.read_text() == "before"
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".txt"

    assert path.read_text() == "after"
    assert names(tmp_path) == ["out.txt"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, DataError])
def test_an_error_leaves_everything_as_it_was(tmp_path, error):
    path = tmp_path / "out.txt"
    path.write_text("before")

    def write_half():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write_half()

    assert path.read_text() == "before"
    assert names(tmp_path) == ["out.txt"]


def test_a_disk_that_is_full_is_told_in_one_line(tmp_path):
    def write():
        with replacing(tmp_path / "out.txt"):
            raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match=r"out\.txt: cannot be written \(No space left on device\)"):
        write()
    assert names(tmp_path) == []


def test_permissions_are_those_of_any_new_file_or_of_the_one_replaced(tmp_path):
    path, plain = tmp_path / "out.txt", tmp_path / "plain.txt"
    plain.touch()
    with replacing(path):
        pass
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)

    path.chmod(0o640)
    with replacing(path):
        pass
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "out.txt", tmp_path / "link.txt"
    link.symlink_to(target)
    with replacing(link) as temporary:
        temporary.write_text("new")

    assert link.is_symlink()
    assert target.read_text() == "new"


def test_links_are_followed_before_the_work_as_after_it(tmp_path):
    (tmp_path / "real").mkdir()
    for link, target in (("far", "real/out.txt"), ("lost", "none/out.txt"), ("a", "b"), ("b", "a")):
        (tmp_path / link).symlink_to(target)
    check_output(tmp_path / "far")
    assert names(tmp_path / "real") == []
    for link, problem in (("lost", r"there is no folder .*none"), ("a", "Too many levels of symbolic links")):
        with pytest.raises(DataError, match=rf"{link}: cannot be written \({problem}\)"):
            check_output(tmp_path / link)
        with pytest.raises(DataError, match=problem), replacing(tmp_path / link):
            raise AssertionError("was given a file to write to")
    with pytest.raises(DataError, match="there is no folder"):
        check_output(tmp_path / "a" / "out.txt")
    assert sorted(names(tmp_path)) == ["a", "b", "far", "lost", "real"]


def test_a_place_that_takes_no_file_is_found_out_beforehand(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "none" / "out.txt", tmp_path / "file" / "out.txt"):
        with pytest.raises(DataError, match=r"cannot be written \(there is no folder"):
            check_output(path)
    with pytest.raises(DataError, match="is a directory"):
        check_output(tmp_path)
    with pytest.raises(DataError, match="is the input itself"):
        check_output(tmp_path / "file", inputs=[tmp_path / "." / "file"])

    check_output(tmp_path / "out.txt", inputs=[tmp_path / "file", tmp_path / "absent"])
    assert names(tmp_path) == ["file"]


def test_an_input_that_is_no_file_with_something_in_it(tmp_path):
    (tmp_path / "empty").touch()
    for name, problem in (("none", "there is no such file"), (".", "is a directory"), ("empty", "is empty")):
        with pytest.raises(DataError, match=problem):
            check_input(tmp_path / name)
    with pytest.raises(DataError, match="cannot be read"):
        check_input(tmp_path / ("long" * 100))
    with pytest.raises(DataError, match="cannot be read"):
        check_input(Path("zero\0byte"))


def test_an_unknown_suffix_gets_the_known_ones_listed():
    with pytest.raises(DataError, match=r"'\.xls' is not known; .* \.csv, \.npz"):
        known_suffix(Path("a.xls"), [".csv", ".npz"])
    with pytest.raises(DataError, match="no suffix"):
        known_suffix(Path("csv"), [".csv"])


def test_long_lists_are_cut():
    assert listed(range(2)) == "'0', '1'"
    assert listed(range(50)).endswith("'19', ... (50 in all)")
