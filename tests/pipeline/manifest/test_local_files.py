"""Local paths of a run on other machines: refused by kind, or named so that each node can look for some of them."""

import base64
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.contract.errors import ManifestError
from pipeline.files.batches import find_manifest
from pipeline.manifest.local_files import ensure_shared, first_local_picture
from pipeline.storage.objects import Storage
from tests.support.manifests import concepts, photo_folder, write_jsonl
from tests.support.plans import concept, fill, picture

REMOTE = {"root": "s3://bucket/root", "metric.captions_uri": None}
REMEDY = (
    "workers on other machines cannot read it; use an object store, or set cluster.shared_filesystem to true if every "
    "node mounts the same folders at the same paths"
)


def on_disk(*paths):
    return [{"uri": f"file://{path}", "sha256": "0" * 64} for path in paths]


def shared(db, locations=REMOTE):
    return ensure_shared(db, locations, shared_filesystem=True)


def refusal(db, locations=REMOTE):
    """The lines of the message."""
    with pytest.raises(ManifestError) as caught:
        ensure_shared(db, locations, shared_filesystem=False)
    return str(caught.value).splitlines()


# What is refused, and what may be used


def test_objects_in_a_store_pass(db):
    web = [{"uri": "https://shop.example/file:///1.png", "sha256": "0" * 64}]
    fill(db, "concepts", [concept("mug-1"), concept("mug-2", masks=[picture("mask-1")]), concept("mug-3", images=web)])
    locations = {"root": "gs://bucket/root", "metric.captions_uri": "s3://bucket/captions.txt"}
    for shared_filesystem in (False, True):
        assert ensure_shared(db, locations, shared_filesystem=shared_filesystem) == ()


@pytest.mark.parametrize("name", ["root", "metric.captions_uri"])
@pytest.mark.parametrize("uri", ["file:///data/it", "/data/it"])
def test_a_local_location_is_named(db, name, uri):
    fill(db, "concepts", [concept("mug-1")])
    locations = {**REMOTE, name: uri}
    assert refusal(db, locations) == [f"{name} is /data/it, which is on this machine's disk: {REMEDY}"]
    assert shared(db, locations) == ("/data/it",)


@pytest.mark.parametrize("column", ["images", "masks"])
def test_local_photos_and_masks_are_counted(db, column):
    files = on_disk("/data/b/1.png", "/data/b/2.png", "/data/a/9.png")
    fill(db, "concepts", [concept("mug-1"), concept("mug-2", **{column: files}), concept("mug-3", masks=[])])
    assert refusal(db) == [f"3 photos or masks are on this machine's disk, such as /data/a/9.png: {REMEDY}"]
    assert shared(db) == ("/data/a/9.png", "/data/b/1.png")


def test_pictures_of_prompts_are_counted(db):
    fill(db, "concepts", [concept("mug-1")])
    [scene, mask, edges, lost] = on_disk("/data/s/1.png", "/data/s/2.png", "/data/c/1.png", "/data/l/1.png")
    rows = [{"scene": scene, "scene_mask": mask}, {"control": "canny", "control_picture": edges}, {}]
    fill(db, "prompts", [*rows, {"control_picture": lost, "error_code": "image_missing"}])
    assert refusal(db) == [f"3 photos or masks are on this machine's disk, such as /data/c/1.png: {REMEDY}"]
    assert shared(db) == ("/data/c/1.png", "/data/s/1.png")


def test_photos_of_a_thousand_rows_have_one_line(db):
    fill(db, "concepts", [concept(f"mug-{n}", images=on_disk(f"/data/{n:04}.png")) for n in range(1200)])
    assert refusal(db) == [f"1,200 photos or masks are on this machine's disk, such as /data/0000.png: {REMEDY}"]
    assert shared(db) == ("/data/0000.png",)


def test_each_kind_has_a_line(db):
    fill(db, "concepts", [concept("mug-1", images=on_disk("/data/1.png"), masks=on_disk("/data/m.png"))])
    found = refusal(db, {"root": "/results", "metric.captions_uri": "file:///data/captions.txt"})
    assert [line.split(",")[0] for line in found] == [
        "root is /results",
        "metric.captions_uri is /data/captions.txt",
        "2 photos or masks are on this machine's disk",
    ]


def test_bad_rows_do_not_count(db):
    bad = {"error_code": "image_missing", "error_column": "images", "error_message": "lost"}
    fill(db, "concepts", [concept("mug-1"), concept("mug-2", images=on_disk("/data/1.png"), **bad)])
    assert ensure_shared(db, REMOTE, shared_filesystem=False) == ()
    assert shared(db) == ()


def test_rows_without_photos_do_not_count(db):
    fill(db, "concepts", [concept("mug-1"), concept("mug-2", images=None, error_code="missing_value")])
    assert ensure_shared(db, REMOTE, shared_filesystem=False) == ()


@pytest.mark.parametrize(("folders", "sampled"), [(19, 19), (20, 20), (21, 20), (60, 20)])
def test_one_file_of_at_most_twenty_folders_is_looked_for(db, folders, sampled):
    rows = [
        concept(f"mug-{n}", images=on_disk(f"/data/{n:02}/b.png", f"/data/{n:02}/a.png"))
        for n in reversed(range(folders))
    ]
    fill(db, "concepts", rows)
    locations = {"root": "/results", "metric.captions_uri": "/captions.txt"}
    files = [f"/data/{n:02}/a.png" for n in range(sampled)]
    assert shared(db, locations) == (*files, "/results", "/captions.txt")


def test_folders_are_those_of_the_last_slash(db):
    fill(db, "concepts", [concept("mug-1", images=on_disk("/1.png", "/a/1.png", "/a/b/1.png", "/a/b/2 x.png"))])
    assert shared(db) == ("/1.png", "/a/1.png", "/a/b/1.png")


def test_photos_that_a_manifest_holds_lie_where_the_root_is(db, tmp_path):
    photos = photo_folder(tmp_path / "photos")
    row = {"concept_id": "mug-1", "superclass": "mug", "images": [(photos / "0.png").read_bytes()]}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "concepts.parquet")
    assert concepts(db, tmp_path / "concepts.parquet", tmp_path).bad == {}
    [kept] = [path for path, _ in Storage(str(tmp_path / "root")).list("inputs")]
    assert shared(db) == (str(tmp_path / "root" / kept),)


# The first local photo, without a plan


REMOTE_ROWS = [["s3://bucket/a.png", "https://shop.example/b.png"], ["gs://bucket/c.png"]]


def write(folder, kind, columns):
    """A concepts manifest with these cells of images and masks."""
    rows = [{"concept_id": f"mug-{number}", "superclass": "mug"} | row for number, row in enumerate(columns, 1)]
    path = folder / f"concepts.{kind}"
    if kind == "jsonl":
        return str(write_jsonl(path, rows))
    if kind == "parquet":
        names = dict.fromkeys(name for row in rows for name in row)
        pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), path)
        return str(path)
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[row.get(name) or "" for name in names] for row in rows]
    lines = [",".join(";".join(cell) if isinstance(cell, list) else cell for cell in row) for row in cells]
    path.write_text("\n".join([",".join(names), *lines]) + "\n")
    return str(path)


def first(uri):
    return first_local_picture(find_manifest(uri))


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize(
    "address", ["/data/x.png", "photos/x.png", "./x.png", "file:///data/x.png", "FILE:///data/x.png"]
)
@pytest.mark.parametrize("column", ["images", "masks"])
def test_the_first_local_photo_of_every_format(tmp_path, kind, address, column):
    rows = [{"images": cell, "masks": ["s3://bucket/m.png"] * len(cell)} for cell in REMOTE_ROWS]
    assert first(write(tmp_path, kind, rows)) is None
    rows.append(rows[0] | {column: ["s3://bucket/d.png", address]})
    rows.append(rows[0] | {column: ["/data/later.png"]})
    assert first(write(tmp_path, kind, rows)) == (3, address)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_text_that_lists_photos_is_split(tmp_path, kind):
    assert first(write(tmp_path, kind, [{"images": "s3://bucket/a.png;s3://bucket/b.png"}])) is None
    assert first(write(tmp_path, kind, [{"images": "s3://bucket/a.png"}, {"images": "a.png;b.png"}])) == (2, "a.png")


def test_in_csv_a_semicolon_always_separates(tmp_path):
    assert first(write(tmp_path, "csv", [{"images": "s3://bucket/a.png;x/b.png"}])) == (1, "x/b.png")


def test_structs_hold_bytes_or_a_path(tmp_path):
    def rows(*pictures):
        return [{"images": [{"bytes": data, "path": path} for data, path in pictures]}]

    assert first(write(tmp_path, "parquet", rows((b"\x89PNG", "local.png"), (None, "s3://bucket/a.png")))) is None
    assert first(write(tmp_path, "parquet", rows((b"\x89PNG", None), (None, "local.png")))) == (1, "local.png")
    alone = [{"images": {"bytes": None, "path": "alone.png"}}]
    assert first(write(tmp_path, "parquet", alone)) == (1, "alone.png")


def test_embedded_bytes_pass(tmp_path):
    assert first(write(tmp_path, "parquet", [{"images": [b"\x89PNG", b"/data/x.png"]}])) is None
    assert first(write(tmp_path, "parquet", [{"images": b"/data/x.png"}, {"images": None}])) is None
    text = base64.b64encode(b"\x89PNG").decode()
    row = {"images": [{"bytes": text, "path": "/data/x.png"}]}
    assert first(write(tmp_path, "jsonl", [row])) is None, "a row that a run refuses anyway"


def test_empty_cells_pass(tmp_path):
    path = tmp_path / "concepts.csv"
    lines = ["a,mug,s3://bucket/1.png,", "b,mug,s3://bucket/1.png,  ", "c,mug,,"]
    path.write_text("\n".join(["concept_id,superclass,images,masks", *lines, ""]))
    assert first(str(path)) is None
    path.write_text("\n".join(["concept_id,superclass,images,masks", *lines, "d,mug,s3://bucket/1.png,m.png", ""]))
    assert first(str(path)) == (4, "m.png")
    assert first(write(tmp_path, "jsonl", [{"images": ["s3://bucket/1.png", " "], "masks": ""}])) is None


def test_rows_are_counted_through_all_files(tmp_path):
    for name, cells in (("a", [["s3://bucket/1.png"]] * 3), ("b", [["s3://bucket/2.png"], ["x.png"]])):
        (tmp_path / name).mkdir()
        write(tmp_path / name, "parquet", [{"images": cell} for cell in cells])
    assert first(str(tmp_path)) == (5, "x.png")
    assert first(str(tmp_path / "b")) == (2, "x.png")


def test_rows_that_cannot_be_read_are_counted_and_passed(tmp_path):
    good = {"concept_id": "mug-1", "superclass": "mug", "images": ["s3://bucket/1.png"]}
    path = tmp_path / "concepts.jsonl"
    path.write_text("\n".join([json.dumps(good), "{", json.dumps(good | {"images": 7}), ""]))
    assert first(str(path)) is None
    path.write_text("\n".join([json.dumps(good), "{", json.dumps(good | {"images": "x.png"}), ""]))
    assert first(str(path)) == (3, "x.png")


def test_relative_paths_are_where_the_manifest_is():
    storage = Storage("memory://first-local")
    row = {"concept_id": "mug-1", "superclass": "mug"}

    def written(*addresses):
        lines = [json.dumps(row | {"images": [address]}) for address in addresses]
        storage.write("concepts.jsonl", "".join(f"{line}\n" for line in lines).encode())
        return f"{storage.root}/concepts.jsonl"

    assert first(written("photos/x.png", "./x.png", "s3://bucket/x.png")) is None
    assert first(written("photos/x.png", "/data/x.png")) == (2, "/data/x.png")
    assert first(written("photos/x.png", "file:///data/x.png")) == (2, "file:///data/x.png")


def test_a_manifest_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "concepts.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(ManifestError, match=r"concepts\.parquet"):
        first(str(tmp_path / "concepts.parquet"))
