"""What travels with a submission: a spec and manifests that mean the same on another machine, and their identity."""

import hashlib
import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from jobs.placement import parcel
from jobs.placement.parcel import SPEC, is_local, packed
from jobs.spec import dump_spec, load_spec
from jobs.spec_file import SpecError
from pipeline.contract.errors import ManifestError
from pipeline.database.plandb import PlanDB
from pipeline.manifest.points import load_points
from pipeline.manifest.prompts import load_prompts
from pipeline.storage.objects import Storage
from tests.support.manifests import concepts, picture, rows

ROOT = "s3://bucket/results"
PHOTOS = "memory://parcel-photos"  # an object store of this process
PATHS = {"root", "concepts", "prompts", "points"}


@pytest.fixture(scope="module", autouse=True)
def photos():
    storage = Storage(PHOTOS)
    for number in range(3):
        storage.write(f"{number}.png", picture(number))


def product(name, number=0, **cells):
    return {"concept_id": name, "superclass": "mug", "images": [f"{PHOTOS}/{number}.png"], **cells}


def written(path, *table):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table))
    else:
        pq.write_table(pa.Table.from_pylist(list(table)), path)


def catalog(folder, **changes):
    """A spec over a small catalog in a folder; returns its settings."""
    if not (folder / "concepts.jsonl").exists():
        written(folder / "concepts.jsonl", product("mug-1"), product("mug-2", 1, season="summer"))
        written(folder / "prompts.jsonl", {"prompt": "a photo of a {product}", "tag": "plain"})
    values = {"root": ROOT, "concepts": "concepts.jsonl", "prompts": "prompts.jsonl", **changes}
    (folder / "shop.yaml").write_text(dump_spec(values))
    return load_spec(str(folder / "shop.yaml"))


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def refusal(settings):
    with pytest.raises(SpecError) as caught, packed(settings):
        pass
    return str(caught.value)


def digest(settings):
    with packed(settings) as made:
        return made.digest


@contextmanager
def arrived(settings, target):
    """The settings that another machine reads from the folder, which lies elsewhere there."""
    with packed(settings) as made:
        shutil.copytree(made.folder, target)
    yield load_spec(str(target / SPEC))
    shutil.rmtree(target)


# What travels


def test_the_spec_and_local_manifests_travel_and_nothing_else(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "captions.txt").write_text("a mug\n")
    written(tmp_path / "points.parquet", {"concept_id": "mug-1", "guidance": 3.0})
    (tmp_path / "photo.png").touch()
    settings = catalog(
        tmp_path, points="points.parquet", metric={"captions_uri": "texts/captions.txt", "captions": 400}
    )
    with packed(settings) as made:
        assert names(made.folder) == [
            "captions/captions.txt",
            "concepts/concepts.jsonl",
            "points/points.parquet",
            "prompts/prompts.jsonl",
            SPEC,
        ]
        assert yaml.safe_load((made.folder / SPEC).read_text()) == {
            "root": ROOT,
            "concepts": "concepts/concepts.jsonl",
            "prompts": "prompts/prompts.jsonl",
            "metric": {"captions_uri": "captions/captions.txt", "captions": 400},
            "points": "points/points.parquet",
        }
        for copy, original in (
            ("captions/captions.txt", "texts/captions.txt"),
            ("concepts/concepts.jsonl", "concepts.jsonl"),
        ):
            assert (made.folder / copy).read_bytes() == (tmp_path / original).read_bytes()
        folder = made.folder
    assert not folder.exists()


def test_what_is_in_an_object_store_stays_there(tmp_path):
    storage = Storage("memory://parcel-catalog")
    storage.write("concepts.jsonl", json.dumps(product("mug-1")).encode())
    storage.write("prompts.jsonl", json.dumps({"prompt": "a {product}"}).encode())
    captions, prompts = "s3://bucket/captions.txt", f"{storage.root}/prompts.jsonl"
    settings = catalog(
        tmp_path, concepts=f"{storage.root}/concepts.jsonl", prompts=prompts, metric={"captions_uri": captions}
    )
    with packed(settings) as made:
        assert names(made.folder) == [SPEC]
        found = yaml.safe_load((made.folder / SPEC).read_text())
    assert (found["concepts"], found["prompts"]) == (f"{storage.root}/concepts.jsonl", prompts)
    assert found["metric"]["captions_uri"] == captions


def test_photos_beside_a_manifest_in_an_object_store_are_not_local(tmp_path):
    storage = Storage("memory://parcel-beside")
    storage.write("concepts.jsonl", json.dumps(product("mug-1") | {"images": ["photos/0.png"]}).encode())
    assert digest(catalog(tmp_path, concepts=f"{storage.root}/concepts.jsonl"))


def test_the_address_does_not_travel(tmp_path):
    settings = catalog(tmp_path, cluster={"address": "head:6379", "slots": 3, "labels": {"zone": "a"}})
    with arrived(settings, tmp_path / "there") as found:
        assert found.cluster == settings.cluster.model_copy(update={"address": None})
    assert digest(settings) == digest(catalog(tmp_path, cluster={"slots": 3, "labels": {"zone": "a"}}))


def test_the_spec_says_the_same_but_for_the_paths(tmp_path):
    changes = {
        "base": "owner/model",
        "seed": 7,
        "train": {"steps": 20, "flip": True},
        "render": {"guidance": 4.5, "negative_prompt": "blurred: 'ugly' é"},
        "inputs": {"allow": [PHOTOS, "s3://bucket/photos"], "max_images": 8},
        "engine": {"slots": 2, "flush_s": 1.5},
        "policy": {"drain_s": 30},
        "storage_options": {"s3": {"endpoint_url": "http://127.0.0.1:9000"}},
    }
    settings = catalog(tmp_path, **changes)
    there = tmp_path / "there"
    with arrived(settings, there) as found:
        assert found.model_dump(exclude=PATHS) == settings.model_dump(exclude=PATHS)
        assert found.cluster.slots == 2
        assert (found.root, found.points) == (ROOT, None)
        assert found.concepts == str(there / "concepts" / "concepts.jsonl")
        assert found.prompts == str(there / "prompts" / "prompts.jsonl")


# Manifests of every shape


def one_file(folder):
    return "concepts.jsonl"


def folder_with_partitions(folder):
    written(folder / "c" / "season=SS26" / "b.parquet", product("mug-1"), product("mug-2", 1))
    written(folder / "c" / "season=SS26" / "line=x" / "a.parquet", product("mug-3"))
    written(folder / "c" / "season=AW26" / "a.parquet", product("mug-4", 2))
    written(folder / "c" / "_year=2026" / "a.parquet", product("mug-5"))
    (folder / "c" / "_SUCCESS").touch()
    (folder / "c" / ".hidden.parquet").touch()
    return "c"


def folder_of_one_partition(folder):
    written(folder / "c" / "season=SS26" / "a.parquet", product("mug-1"))
    return "c/"


def flat_folder(folder):
    for number, name in enumerate(("b", "a", "c")):
        written(folder / "c" / f"{name}.jsonl", product(f"mug-{name}", number, extra=number))
    return "c"


def file_in_a_partition(folder):
    folder_with_partitions(folder)
    return "c/season=SS26/b.parquet"


def glob_of_files(folder):
    for name in ("a1", "a2", "b1"):
        written(folder / "c" / f"{name}.jsonl", product(f"mug-{name}"))
    return "c/a*.jsonl"


def glob_of_partitions(folder):
    folder_with_partitions(folder)
    return "c/season=*/*.parquet"


def glob_of_one_file(folder):
    folder_with_partitions(folder)
    return "c/season=A*/?.parquet"


def glob_of_hidden_files(folder):
    for name in ("_a", "_b"):
        written(folder / "c" / f"{name}.jsonl", product(f"mug-{name[1:]}"))
    return "c/_*.jsonl"


SHAPES = {
    one_file: ["concepts.jsonl"],
    folder_with_partitions: [
        "_year=2026/a.parquet",
        "season=AW26/a.parquet",
        "season=SS26/b.parquet",
        "season=SS26/line=x/a.parquet",
    ],
    folder_of_one_partition: ["season=SS26/a.parquet"],
    flat_folder: ["a.jsonl", "b.jsonl", "c.jsonl"],
    file_in_a_partition: ["b.parquet"],
    glob_of_files: ["a1.jsonl", "a2.jsonl"],
    glob_of_partitions: ["season=AW26/a.parquet", "season=SS26/b.parquet"],
    glob_of_one_file: ["season=AW26/a.parquet"],
    glob_of_hidden_files: ["_a.jsonl", "_b.jsonl"],
}


def read(uri, folder):
    """All that a run takes from a concepts manifest."""
    with PlanDB(memory_limit="200MB", threads=1) as db:
        summary = concepts(db, uri, folder)
        assert summary.bad == {}
        return summary.digest, summary.files, rows(db, "concepts"), rows(db, "concepts_extra")


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_the_copy_has_the_rows_of_the_original(tmp_path, shape):
    catalog(tmp_path)
    settings = catalog(tmp_path, concepts=shape(tmp_path))
    original = read(settings.concepts, tmp_path)
    with arrived(settings, tmp_path / "there") as found:
        assert names(tmp_path / "there" / "concepts") == SHAPES[shape]
        assert read(found.concepts, tmp_path) == original
    assert original[1] == len(SHAPES[shape])


def test_prompts_and_points_have_the_rows_of_the_original(tmp_path):
    catalog(tmp_path)
    written(tmp_path / "p" / "set=b" / "1.parquet", {"prompt": "a {product}", "tag": "x"})
    written(tmp_path / "p" / "set=a" / "2.parquet", {"prompt": "the {product}", "tag": "y"})
    written(tmp_path / "points.parquet", {"concept_id": "mug-1", "guidance": 3.0})
    settings = catalog(tmp_path, prompts="p", points="points.parquet")

    def loaded(given):
        with PlanDB(memory_limit="200MB", threads=1) as db:
            digests = load_prompts(db, given.prompts).digest, load_points(db, given.points).digest
            return digests, rows(db, "prompts"), rows(db, "prompts_extra"), db.connection.sql("FROM points").fetchall()

    original = loaded(settings)
    with arrived(settings, tmp_path / "there") as found:
        assert loaded(found) == original


# Identity


def test_equal_content_has_one_digest_wherever_it_lies(tmp_path):
    found = []
    for name in ("home", "elsewhere/deep"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "captions.txt").write_text("a mug\n")
        settings = catalog(folder, metric={"captions_uri": "captions.txt"})
        found += [digest(settings), digest(settings)]
    assert len(set(found)) == 1
    assert len(found[0]) == 64


def test_the_notation_of_a_spec_does_not_matter(tmp_path):
    before = digest(catalog(tmp_path, seed=3, render={"guidance": 4.5}))
    values = {"render": {"guidance": 4.5}, "seed": 3, "prompts": "prompts.jsonl", "concepts": "concepts.jsonl"}
    (tmp_path / "shop.json").write_text(json.dumps({**values, "root": ROOT}, indent=4))
    assert digest(load_spec(str(tmp_path / "shop.json"))) == before


def test_every_change_of_content_changes_the_digest(tmp_path):
    (tmp_path / "captions.txt").write_text("a mug\n")
    captions = {"metric": {"captions_uri": "captions.txt"}}
    found = [digest(catalog(tmp_path, **captions))]

    def changed(**changes):
        found.append(digest(catalog(tmp_path, **(captions | changes))))

    for name in ("concepts.jsonl", "prompts.jsonl", "captions.txt"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data + b"\n")
        changed()
        (tmp_path / name).write_bytes(data)
    (tmp_path / "other.jsonl").write_bytes((tmp_path / "concepts.jsonl").read_bytes())
    changed(concepts="other.jsonl")
    changed(seed=1)
    changed(root="s3://bucket/other")
    changed(train={"steps": 3})
    changed(cluster={"slots": 3})
    assert len(set(found)) == len(found)
    assert digest(catalog(tmp_path, **captions)) == found[0], "all of it was undone"


def test_names_and_contents_are_told_apart(tmp_path):
    written(tmp_path / "c" / "a.jsonl", product("mug-1"))
    written(tmp_path / "c" / "b.jsonl", product("mug-2"))
    before = digest(catalog(tmp_path, concepts="c"))
    for old, new in (("a", "x"), ("b", "a"), ("x", "b")):
        (tmp_path / "c" / f"{old}.jsonl").rename(tmp_path / "c" / f"{new}.jsonl")
    assert digest(catalog(tmp_path, concepts="c")) != before


def test_the_digest_is_that_of_names_and_contents(tmp_path):
    with packed(catalog(tmp_path)) as made:
        lines = [
            f"{name} {hashlib.sha256((made.folder / name).read_bytes()).hexdigest()}\n" for name in names(made.folder)
        ]
        assert made.digest == hashlib.sha256("".join(lines).encode()).hexdigest()


# Refusals


@pytest.mark.parametrize("root", ["results", "/data/results", "file:///data/results"])
def test_a_local_root_is_refused(tmp_path, root):
    settings = catalog(tmp_path, root=root)
    assert refusal(settings).startswith(
        f"root is {settings.root}, which the cluster cannot write: give an object store"
    )


@pytest.mark.parametrize("address", ["photos/x.png", "/data/x.png", "file:///data/x.png"])
@pytest.mark.parametrize("column", ["images", "masks"])
def test_local_photos_are_refused_with_the_row(tmp_path, address, column):
    catalog(tmp_path)
    written(tmp_path / "concepts.jsonl", product("mug-1"), product("mug-2") | {column: [address]})
    settings = catalog(tmp_path)
    assert refusal(settings) == (
        f"row 2 of {settings.concepts} names the photo {address}, which the cluster cannot read: give addresses in an "
        "object store, or set cluster.shared_filesystem to true if the cluster mounts the same folders at the same "
        "paths"
    )


def test_too_much_is_refused_with_its_size(tmp_path, monkeypatch):
    settings = catalog(tmp_path)
    with packed(settings) as made:
        size = sum((made.folder / name).stat().st_size for name in names(made.folder))
    monkeypatch.setattr(parcel, "MOST_MB", size / 1e6)
    assert digest(settings)
    monkeypatch.setattr(parcel, "MOST_MB", 2)
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "a {product}", "notes": "x" * 2_700_000}) + "\n")
    found = refusal(settings)
    assert found.startswith(
        "the manifests take 3 MB, and a submission carries at most 2 MB: put them into an object st"
    )


@pytest.mark.parametrize("name", ["concepts", "prompts", "points"])
def test_a_manifest_that_is_not_there(tmp_path, name):
    with (
        pytest.raises(ManifestError, match=r"there is no manifest at .*none\.parquet"),
        packed(catalog(tmp_path, **{name: "none.parquet"})),
    ):
        pass


def test_captions_that_are_not_there(tmp_path):
    found = refusal(catalog(tmp_path, metric={"captions_uri": "none.txt"}))
    assert found == f"metric.captions_uri is {tmp_path / 'none.txt'}, which cannot be read: No such file or directory"


# Shared folders


def test_on_a_shared_filesystem_only_the_spec_travels(tmp_path):
    (tmp_path / "captions.txt").write_text("a mug\n")
    catalog(tmp_path)
    written(tmp_path / "concepts.jsonl", product("mug-1") | {"images": ["photos/x.png"]})
    shared = {"shared_filesystem": True, "address": "auto"}
    settings = catalog(tmp_path, root="results", metric={"captions_uri": "captions.txt"}, cluster=shared)
    with packed(settings) as made:
        assert names(made.folder) == [SPEC]
        found = load_spec(str(made.folder / SPEC))
    assert found == settings.model_copy(update={"cluster": settings.cluster.model_copy(update={"address": None})})
    assert found.concepts == str(tmp_path / "concepts.jsonl")


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("a/b", True),
        ("/a/b", True),
        ("file:///a", True),
        (str(Path.home()), True),
        ("s3://a/b", False),
        ("memory://a", False),
    ],
)
def test_what_is_local(uri, expected):
    assert is_local(uri) is expected
