"""The gallery: real files of the kinds that people have, each with its right value or its code in one table."""

import fnmatch
import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from jobs.spec import load_spec
from jobs.spec_file import SpecError
from pipeline.contract.errors import ManifestError, RowError
from pipeline.database.plandb import EXTRA_ROW, PlanDB, extra_columns
from pipeline.database.query import quoted
from pipeline.inputs.cache import InputCache
from pipeline.inputs.pictures import InputLimits, decode, decode_mask, inspect
from pipeline.manifest.concepts import load_concepts
from pipeline.manifest.prompts import load_prompts
from pipeline.storage.objects import Storage

GALLERY = Path(__file__).parent.parent / "files"
CASES = yaml.safe_load((GALLERY / "cases.yaml").read_text(encoding="utf-8"))
LIMITS = InputLimits()
KNOWN = {
    "picture": {"size", "pixels", "within", "code", "says"},
    "mask": {"size", "pixels", "within", "code", "says"},
    "concepts": {"good", "bad", "columns", "types", "rows", "notices", "says", "refused"},
    "prompts": {"good", "bad", "columns", "types", "rows", "notices", "says", "refused"},
    "spec": {"settings", "refused"},
}


def _made():
    spec = importlib.util.spec_from_file_location("gallery_make", GALLERY / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gallery") / "files"
    shutil.copytree(GALLERY, folder, symlinks=True)
    _made().make_all(folder)
    return folder


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['file']} as {case['as']}")
def test_file_has_its_value_or_its_code(case, gallery, tmp_path):
    expected = {name: value for name, value in case.items() if name not in ("file", "as", "about")}
    assert expected, "a case says what it expects"
    assert set(expected) <= KNOWN[case["as"]], "a case says only what is looked at"
    path = gallery / case["file"]
    match case["as"]:
        case "picture" | "mask" as role:
            check_picture(path.read_bytes(), role, expected)
        case "concepts" | "prompts" as manifest:
            check_manifest(str(path), manifest, expected, tmp_path)
        case "spec":
            check_spec(str(path), expected)


def tried(call, refusal):
    """What a call gives, and how it was refused if it was."""
    try:
        return call(), None
    except refusal as error:
        return None, error


def check_picture(data, role, expected):
    decoded = decode if role == "picture" else decode_mask
    result, refused = tried(lambda: (inspect(data, LIMITS), decoded(data, LIMITS)), RowError)
    assert (refused.code if refused else None) == expected.get("code"), refused
    assert expected.get("says", "") in str(refused)
    if refused:
        return
    found, picture = result
    assert list(picture.size) == [found.width, found.height] == expected.get("size", list(picture.size))
    for x, y, *value in expected.get("pixels", ()):
        seen = np.atleast_1d(np.asarray(picture)[y, x]).astype(int)
        assert np.abs(seen - value).max() <= expected.get("within", 0), f"({x}, {y}) is {seen.tolist()}"


def check_manifest(uri, manifest, expected, tmp_path):
    with PlanDB() as db:
        summary, refused = tried(lambda: load(db, uri, manifest, tmp_path), ManifestError)
        check_refusal(refused, expected)
        if refused:
            return
        assert (summary.good, dict(summary.bad)) == (expected.get("good", 0), expected.get("bad", {}))
        table = f"{manifest}_extra"
        columns = {name: values(db, table, name) for name in extra_columns(db.connection, manifest)}
        described = "SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = ?"
        types = dict(db.connection.execute(described, [table]).fetchall())
        rows = {name: values(db, manifest, name) for name in expected.get("rows", ())}
        said = [message for message in values(db, manifest, "error_message") if message]
    for name, wanted in expected.get("columns", {}).items():
        assert columns.get(name) == wanted
    if expected.get("columns") == {}:
        assert columns == {}
    for name, wanted in expected.get("types", {}).items():
        assert types.get(name) == wanted
    assert rows == expected.get("rows", {})
    assert expected.get("says", "") in "\n".join(said)
    if "notices" in expected:
        assert len(summary.notices) == len(expected["notices"]), summary.notices
        assert all(part in notice for part, notice in zip(expected["notices"], summary.notices, strict=True))


def check_refusal(refused, expected):
    assert (refused is not None) == ("refused" in expected), refused
    assert expected.get("refused", "") in str(refused)


def load(db, uri, manifest, tmp_path):
    if manifest == "prompts":
        return load_prompts(db, uri)
    storage = Storage(str(tmp_path / "root"))
    return load_concepts(db, uri, storage=storage, limits=LIMITS, cache=InputCache(storage))


def values(db, table, name):
    row = EXTRA_ROW if table.endswith("_extra") else "row"
    # By way of Arrow, because DuckDB makes Python's times only with the help of pytz.
    found = db.connection.sql(f"SELECT {quoted(name)} AS value FROM {table} ORDER BY {row}").to_arrow_table()
    return found.column("value").to_pylist()


def check_spec(path, expected):
    found, refused = tried(lambda: load_spec(path).model_dump(mode="json"), SpecError)
    check_refusal(refused, expected)
    if not refused:
        assert {name: found[name] for name in expected["settings"]} == expected["settings"]


def test_every_file_of_the_gallery_is_in_the_table(gallery):
    named = [case["file"] for case in CASES]
    for path in sorted(gallery.rglob("*")):
        name = path.relative_to(gallery).as_posix()
        inside = any(name == each or name.startswith(f"{each}/") or fnmatch.fnmatch(name, each) for each in named)
        support = name in ("cases.yaml", "make.py") or name.startswith(("photos/", "exports/", "__pycache__/"))
        picture_of_a_manifest = name.startswith("manifests/") and path.suffix in (".png", ".jpg", ".webp")
        if path.is_file() and not path.is_symlink():
            assert inside or support or picture_of_a_manifest, f"{name} has no case"
