"""Files of a local disk: atomic writes, exclusive creation, and listings that tolerate what disappears."""

import errno
import os

import pytest

from pipeline.storage.local_files import NoHardLinksError, files_below, write_file
from pipeline.storage.objects import Storage, StorageError


def found(folder):
    return {path: size for paths, sizes in files_below(str(folder)) for path, size in zip(paths, sizes, strict=True)}


def test_exclusive_write_leaves_an_existing_file(tmp_path):
    full = str(tmp_path / "deep" / "er" / "x.bin")
    assert write_file(full, b"one", exclusive=True)
    assert not write_file(full, b"two!", exclusive=True)
    assert found(tmp_path) == {full: 3}
    assert write_file(full, b"three", exclusive=False)
    assert found(tmp_path) == {full: 5}


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP])
def test_disk_without_hard_links_is_named_and_left_clean(tmp_path, monkeypatch, number):
    def link(source, target):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(NoHardLinksError, match=str(tmp_path)):
        write_file(str(tmp_path / "x.bin"), b"one", exclusive=True)
    with pytest.raises(StorageError, match="has no hard links, which exclusive creation needs: use a local disk, NFS"):
        Storage(str(tmp_path)).create("x.bin", b"one")
    assert list(tmp_path.iterdir()) == []


def test_other_errors_of_a_link_are_raised_as_they_are(tmp_path, monkeypatch):
    def link(source, target):
        raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(OSError, match="I/O error") as caught:
        write_file(str(tmp_path / "x.bin"), b"one", exclusive=True)
    assert not isinstance(caught.value, NoHardLinksError)
    assert list(tmp_path.iterdir()) == []


def test_listing_has_all_files_of_a_wide_and_deep_tree_once(tmp_path):
    expected = {}
    for number in range(300):
        path = tmp_path / f"{number % 70:02d}" / f"{number % 3}" / f"{number}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(number))
        expected[str(path)] = number
    (tmp_path / "00" / ".0123.tmp").write_bytes(b"half")
    (tmp_path / "round").symlink_to(tmp_path)
    assert found(tmp_path) == expected
    assert found(tmp_path / "none") == {}
    assert found(tmp_path / "00" / "0" / "0.bin") == {}


def test_folder_that_disappears_while_the_listing_runs_is_no_error(tmp_path):
    for number in range(40):
        (tmp_path / f"{number:02d}").mkdir()
        (tmp_path / f"{number:02d}" / "x.bin").write_bytes(b"1")
    listing = files_below(str(tmp_path))
    next(listing)  # the folder itself
    for number in range(40):
        (tmp_path / f"{number:02d}" / "x.bin").unlink()
        (tmp_path / f"{number:02d}").rmdir()
    assert [paths for paths, _ in listing if paths] == []
