"""Which files a folder or a glob stands for: the same on a local disk and in an object store, links followed."""

import os
from pathlib import Path

import fsspec
import pytest

from pipeline.contract.errors import ManifestError
from pipeline.database.plandb import PlanDB
from pipeline.files.batches import find_manifest
from pipeline.manifest.prompts import load_prompts

PLACES = {
    "a.csv": True,
    "b/c.csv": True,
    "b/.c.csv": False,
    "b/_c.csv": False,
    "_year=2026/a.csv": True,
    "_year=2026/_temporary/0/a.csv": False,
    "_temporary/a.csv": False,
    "_delta_log/0.json": False,
    "_SUCCESS": False,
    "_metadata": False,
    ".ipynb_checkpoints/a-checkpoint.csv": False,
    "b/.ipynb_checkpoints/c.csv": False,
    ".DS_Store": False,
    "Thumbs.db": False,
    "~$book.xlsx": False,
    ".a.csv.crc": False,
    "a.csv.crc": False,
    "half.csv.tmp": False,
    "copy.csv._COPYING_": False,
    "season=SS26_$folder$": False,
}
SKIPPED_NAMES = 17


@pytest.fixture(params=["file", "memory"])
def top(request, tmp_path):
    """A folder whose own name is hidden and that lies below a private one."""
    filesystem = fsspec.filesystem(request.param)
    root = f"{tmp_path}/_cache/.mf" if request.param == "file" else "/walk/_cache/.mf"
    for place in PLACES:
        filesystem.makedirs(f"{root}/{place}".rpartition("/")[0], exist_ok=True)
        filesystem.pipe_file(f"{root}/{place}", b"prompt\n{product}\n")
    filesystem.pipe_file(f"{root}/KEEP", b"")
    yield f"{request.param}://{root.lstrip('/') if request.param == 'memory' else root}"
    if request.param == "memory":
        filesystem.rm("/walk", recursive=True)


def names(uri, top):
    folder = str(fsspec.filesystem(top.partition("://")[0])._strip_protocol(top))
    return [file.name.removeprefix(folder).lstrip("/") for file in find_manifest(uri).files]


def test_hidden_and_private_names_are_skipped_at_any_depth_and_told(top):
    assert names(top, top) == sorted(name for name, read in PLACES.items() if read)
    (notice,) = find_manifest(top).notices.messages("X")
    assert notice.startswith(f"X: {SKIPPED_NAMES + 1} hidden, private or temporary names skipped")
    assert "and 13 more" in notice


def test_globs_skip_the_same_unless_they_name_it(top):
    assert names(f"{top}/**/*.csv", top) == sorted(name for name, read in PLACES.items() if read)
    assert names(f"{top}/*/*.csv", top) == ["_year=2026/a.csv", "b/c.csv"]
    assert names(f"{top}/*.csv", top) == ["a.csv"]
    assert not find_manifest(f"{top}/*.csv").notices.messages("X")
    assert names(f"{top}/b/_*.csv", top) == ["b/_c.csv"]
    assert names(f"{top}/_temporary/*.csv", top) == ["_temporary/a.csv"]
    assert names(f"{top}/*/.ipynb_checkpoints/*.csv", top) == ["b/.ipynb_checkpoints/c.csv"]
    assert names(f"{top}/b/[ac].csv", top) == ["b/c.csv"]
    assert names(f"{top}/b/.c.csv", top) == ["b/.c.csv"]


def test_where_all_is_skipped_the_refusal_says_so(tmp_path):
    (tmp_path / "_old").mkdir()
    (tmp_path / "_old" / "a.csv").write_text("prompt\n{product}\n")
    with pytest.raises(ManifestError, match=r"no manifest at .*1 hidden, private or temporary name skipped.*_old"):
        find_manifest(str(tmp_path))


@pytest.fixture
def mf(tmp_path):
    for place in ("mf/day1/c.csv", "elsewhere/c.csv", "mf/.store/day3/c.csv"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(f"prompt\n{{product}} {place}\n")
    (tmp_path / "mf/day2").symlink_to("../elsewhere")
    (tmp_path / "mf/day3").symlink_to(".store/day3")
    return tmp_path / "mf"


@pytest.mark.parametrize("below", ["", "/*/c.csv", "/**/*.csv", "/day[0-9]/*.csv"])
def test_linked_folders_are_read_whether_they_lead_in_or_out(mf, below):
    assert names(f"{mf}{below}", f"file://{mf}") == ["day1/c.csv", "day2/c.csv", "day3/c.csv"]
    with PlanDB(threads=1) as db:
        assert load_prompts(db, f"{mf}{below}").good == 3


def test_the_manifest_itself_may_be_a_link(mf, tmp_path):
    (tmp_path / "folder").symlink_to("mf")
    (tmp_path / "file.csv").symlink_to("mf/day1/c.csv")
    assert names(str(tmp_path / "folder"), f"file://{tmp_path}/folder") == ["day1/c.csv", "day2/c.csv", "day3/c.csv"]
    assert names(str(tmp_path / "file.csv"), f"file://{tmp_path}") == ["file.csv"]


@pytest.mark.parametrize("below", ["", "/**/*.csv"])
def test_links_back_are_not_followed_for_ever(mf, below):
    (mf / "day1" / "up").symlink_to("..")
    (mf / "day1" / "self").symlink_to(".")
    (mf / "out").symlink_to("..")
    (mf.parent / "round").symlink_to(mf)
    found = find_manifest(f"{mf}{below}")
    assert len([file for file in found.files if file.name.endswith("day1/c.csv")]) == 1
    assert any("leads to what is read already" in notice for notice in found.notices.messages("X"))


def test_one_file_under_two_names_is_read_once_unless_a_partition_tells_them_apart(mf):
    (mf / "latest").symlink_to("day1")
    (mf / "season=SS26").symlink_to("day1")
    found = find_manifest(str(mf))
    assert len(found.files) == 4
    (skipped, repeated) = found.notices.messages("X")
    assert "latest" in repeated
    assert "1 link skipped" in repeated
    assert ".store" in skipped


def test_a_mounted_config_map_is_read_once(tmp_path):
    version = tmp_path / "..2026_01_01"
    version.mkdir()
    (version / "prompts.csv").write_text("prompt\n{product}\n")
    (tmp_path / "..data").symlink_to("..2026_01_01")
    (tmp_path / "prompts.csv").symlink_to("..data/prompts.csv")
    for uri in (tmp_path, tmp_path / "*.csv", tmp_path / "**" / "*.csv", tmp_path / "prompts.csv"):
        assert [Path(file.name).name for file in find_manifest(str(uri)).files] == ["prompts.csv"]


@pytest.mark.parametrize("target", ["gone", "day9"])
def test_a_link_that_leads_nowhere_is_named(mf, target):
    (mf / "day9").symlink_to(target)
    for uri in (str(mf), f"{mf}/*/c.csv", f"{mf}/day9"):
        with pytest.raises(ManifestError, match=f"day9 is a link to {target}, which leads nowhere"):
            find_manifest(uri)
    assert len(find_manifest(f"{mf}/day[1-3]/c.csv").files) == 3


def test_pipes_and_sockets_are_told(mf):
    os.mkfifo(mf / "pipe.csv")
    assert any("pipe.csv" in notice for notice in find_manifest(str(mf)).notices.messages("X"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_an_error(mf):
    (mf / "day1").chmod(0)
    with pytest.raises(ManifestError, match="permission denied"):
        find_manifest(str(mf))
    (mf / "day1").chmod(0o755)
