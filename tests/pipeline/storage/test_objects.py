"""Storage on a local disk and in memory: exclusive, whole or absent, confined to its root, honest when it fails."""

import errno
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest
from botocore.exceptions import NoCredentialsError, PartialCredentialsError
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.storage.objects import (
    MissingObjectError,
    Storage,
    StorageError,
    absolute_uri,
    explain,
    mistyped_uri,
    open_filesystem,
)
from tests.support.storage_contract import creates_only_what_is_not_there


@pytest.fixture(params=["file", "memory"])
def storage(request, tmp_path):
    return Storage(str(tmp_path / "root") if request.param == "file" else f"memory://{uuid4().hex}/root")


def test_write_read_list_delete(storage):
    storage.write("a/b/one.bin", b"1")
    storage.write("a/two.bin", b"22")
    storage.write("a/two.bin", b"333")
    storage.write("abc/three.bin", b"")
    assert storage.read("a/two.bin") == b"333"
    assert storage.read("abc/three.bin", max_bytes=10) == b""
    assert (storage.exists("a/two.bin"), storage.exists("a"), storage.exists("a/none")) == (True, False, False)
    assert (storage.size("a/two.bin"), storage.size("a/none"), storage.size("a/two.bin/deeper")) == (3, None, None)
    assert dict(storage.list("a")) == {"a/b/one.bin": 1, "a/two.bin": 3}
    assert dict(storage.list("a/")) == dict(storage.list("a"))
    assert dict(storage.list()) == {"a/b/one.bin": 1, "a/two.bin": 3, "abc/three.bin": 0}
    assert list(storage.list("nothing/here")) == []
    storage.delete("a/two.bin")
    storage.delete("a/two.bin")
    assert not storage.exists("a/two.bin")
    with pytest.raises(MissingObjectError, match=r"there is no .*a/two\.bin"):
        storage.read("a/two.bin")


def test_reads_are_capped(storage):
    storage.write("x.bin", b"12345")
    assert storage.read("x.bin", max_bytes=5) == b"12345"
    with pytest.raises(StorageError, match="larger than the limit of 4 bytes"):
        storage.read("x.bin", max_bytes=4)


def test_create_leaves_the_object_that_is_there(storage):
    creates_only_what_is_not_there(storage)


def test_create_is_exclusive_under_16_threads(storage):
    barrier = threading.Barrier(16)
    rounds = 30 if storage.root.startswith("file") else 400

    def contend(who: int) -> list[bool]:
        won = []
        for number in range(rounds):
            barrier.wait()
            won.append(storage.create(f"lease/{number}.json", str(who).encode()))
        return won

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns within a look and the write that follows it
    try:
        with ThreadPoolExecutor(16) as pool:
            table = list(pool.map(contend, range(16)))
    finally:
        sys.setswitchinterval(interval)
    for number in range(rounds):
        winners = [who for who in range(16) if table[who][number]]
        assert len(winners) == 1
        assert storage.read(f"lease/{number}.json") == str(winners[0]).encode()


def test_a_reader_never_sees_half_an_object(storage):
    versions = [bytes([value]) * (200_000 + value) for value in range(4)]
    storage.write("object.parquet", versions[0])
    done = threading.Event()

    def write() -> None:
        for number in range(60):
            storage.write("object.parquet", versions[number % 4])
        done.set()

    seen = set()
    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        while not done.is_set():
            data = storage.read("object.parquet")
            assert data in versions
            assert [path for path, _ in storage.list()] == ["object.parquet"]
            seen.add(data[0])
            if writer.done():
                break
        writer.result()
    assert storage.read("object.parquet") == versions[3]


def test_a_created_object_is_whole_when_it_appears(storage):
    payload = os.urandom(300_000)

    def wait_and_read(number: int) -> bytes:
        while not storage.exists(f"{number}.bin"):
            pass
        return storage.read(f"{number}.bin")

    for number in range(5):
        with ThreadPoolExecutor(2) as pool:
            read = pool.submit(wait_and_read, number)
            assert storage.create(f"{number}.bin", payload)
            assert read.result() == payload


def test_no_glob_of_results_matches_a_temporary(tmp_path):
    storage = Storage(str(tmp_path))
    names = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            names.update(path.name for path in tmp_path.glob("tables/*"))

    with ThreadPoolExecutor(1) as pool:
        watcher = pool.submit(watch)
        for number in range(30):
            storage.write(f"tables/{number}.parquet", b"x" * 100_000)
        done.set()
        watcher.result()
    left = {path.name for path in tmp_path.glob("tables/*")}
    assert left == {f"{number}.parquet" for number in range(30)}
    assert all(name.startswith(".") and name.endswith(".tmp") for name in names - left)


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a/./b", "a\x00b", "a\nb", "a\\..\\b"]
)
def test_paths_that_leave_the_root_are_errors(storage, path):
    for act in (storage.read, storage.exists, storage.uri, storage.full, storage.delete):
        with pytest.raises(StorageError, match="not an object's path"):
            act(path)
    with pytest.raises(StorageError, match="not an object's path"):
        storage.write(path, b"")


@settings(max_examples=60)
@given(path=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30))
def test_whatever_the_path_the_object_stays_under_the_root(path):
    storage = Storage("file:///srv/data/root")
    try:
        full = storage.full(path)
    except StorageError:
        return
    assert os.path.normpath(full).startswith("/srv/data/root/")


@settings(max_examples=25)
@given(
    objects=st.dictionaries(st.from_regex(r"[a-z]{1,3}(/[a-z]{1,3}){0,2}\.bin", fullmatch=True), st.binary(max_size=50))
)
def test_a_listing_is_what_was_written(objects):
    storage = Storage(f"memory://{uuid4().hex}")
    for path, data in objects.items():
        assert storage.create(path, data)
    assert dict(storage.list()) == {path: len(data) for path, data in objects.items()}
    assert {path: storage.read(path) for path in objects} == objects


def test_a_local_listing_is_of_whole_objects_alone(tmp_path):
    storage = Storage(str(tmp_path))
    objects = {"a/b/c.bin": b"12", "a/d.bin": b"", "e.bin": b"123"}
    for path, data in objects.items():
        storage.write(path, data)
    (tmp_path / "a" / ".half.tmp").write_bytes(b"1")
    (tmp_path / "a" / "link.bin").symlink_to(tmp_path / "e.bin")
    (tmp_path / "a" / "broken.bin").symlink_to(tmp_path / "nothing")
    (tmp_path / "folder-link").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    # What a link to a file leads to can be read; a link to a folder may lead round in a circle.
    assert dict(storage.list()) == {path: len(data) for path, data in objects.items()} | {"a/link.bin": 3}
    assert dict(storage.list("a/b")) == {"a/b/c.bin": 2}
    assert list(storage.list("nothing")) == list(storage.list("e.bin")) == []


def test_pickled_with_its_options_but_they_are_not_shown(tmp_path):
    storage = Storage("s3://bucket/folder/", {"s3": {"key": "me", "secret": "hunter2"}})
    assert storage.root == "s3://bucket/folder"
    assert "hunter2" not in repr(storage)
    again = pickle.loads(pickle.dumps(storage))
    assert again.root == storage.root
    assert again.filesystem.storage_options["secret"] == "hunter2"
    local = Storage(str(tmp_path))
    local.write("x", b"1")  # the filesystem is open now
    assert pickle.loads(pickle.dumps(local)).read("x") == b"1"


def test_roots_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Storage("runs/x").root == f"file://{tmp_path}/runs/x"
    assert Storage("file://./runs//x/").root == f"file://{tmp_path}/runs/x"
    assert Storage("memory:///x/").root == "memory://x"
    assert absolute_uri("~/x") == f"file://{Path.home()}/x"
    for bad in ("", "s3://", "s3://bucket/../other", "a\x00b"):
        with pytest.raises(StorageError, match="is not a location"):
            Storage(bad)


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("file:results", "file:///folder/results, or just results"),
        ("file:/srv/x", "file:///srv/x"),
        ("FILE:x", "just x"),
        ("s3:/bucket/x", "s3://bucket/x"),
        ("s3:bucket/x", "s3://bucket/x"),
        ("s3//bucket/x", "s3://bucket/x"),
        ("S3:/bucket", "s3://bucket"),
        ("gcs:/bucket", "gcs://bucket"),
        ("abfss:/box@account/x", "remove them and write abfss://"),
        ("https:/host/x", "https://host/x"),
        ("hdfs:/data", "hdfs://data"),
        ("made-up:/x", "made-up://x"),
    ],
)
def test_a_uri_with_a_single_slash_is_named(path, meant):
    with pytest.raises(StorageError, match="lacks") as refused:
        absolute_uri(path)
    assert meant in str(refused.value)
    assert absolute_uri(f"./{path}").startswith("file:///")


def test_a_mistyped_uri_with_credentials_is_not_printed():
    assert "hunter2" not in mistyped_uri("s3:/key:hunter2@bucket/x")


@pytest.mark.parametrize(
    "path", ["results:2026", "a:b/c", "C:/x", "owner/name", "/a/s3:/x", "files/x", "memory/x", "s3/x"]
)
def test_paths_that_only_resemble_a_uri_stay_paths(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_uri(path) == f"file://{tmp_path / path}"


def test_a_missing_package_names_its_extra():
    try:
        import gcsfs  # noqa: F401
    except ImportError:
        with pytest.raises(StorageError, match=r"pip install 'perfusion-pipeline\[gcs\]'"):
            open_filesystem("gs://bucket/x")
    with pytest.raises(StorageError, match="nosuch:// cannot be opened"):
        open_filesystem("nosuch://bucket/x")


def test_errors_of_the_disk_become_a_message(tmp_path):
    storage = Storage(str(tmp_path))
    storage.write("file", b"")
    with pytest.raises(StorageError, match="a folder and an object have the same name"):
        storage.write("file/below", b"")
    assert "the disk is full; free space" in explain(OSError(errno.ENOSPC, "No space left"), "write", "file:///x")
    assert "permission denied" in explain(PermissionError(errno.EACCES, "no"), "write", "file:///x")
    for error in (NoCredentialsError(), PartialCredentialsError(provider="env", cred_var="aws_secret_access_key")):
        assert "no usable credentials" in explain(error, "list", "s3://x")
        assert "set them in the environment" in explain(error, "list", "s3://x")


def test_a_write_that_the_system_cuts_short_leaves_the_old_object(tmp_path):
    # In a process of its own: the limit on a file's size cannot be lifted again.
    program = """
import resource, signal, sys
from pipeline.storage.objects import Storage, StorageError
storage = Storage(sys.argv[1])
storage.write("x.png", b"old")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for act in (storage.write, storage.create):
    try:
        act("x.png" if act == storage.write else "y.png", b"n" * 5000)
    except StorageError as error:
        print(error)
"""
    run = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert run.stdout.count("File too large") == 2
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x.png", b"old")]


def test_an_unreadable_folder_is_an_error_not_an_empty_listing(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    storage = Storage(str(tmp_path))
    storage.write("a/x", b"")
    (tmp_path / "a").chmod(0)
    try:
        with pytest.raises(StorageError, match="permission denied"):
            list(storage.list("a"))
    finally:
        (tmp_path / "a").chmod(0o700)
