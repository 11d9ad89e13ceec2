"""Scores of whole runs: every ok picture once, whatever became of it; again adds nothing; others stand beside."""

import hashlib
import io
import math
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from perfusion_ops.scoring.choice import choose_scorers
from perfusion_ops.scoring.models import load_scorers
from pipeline.contract.errors import Code, ManifestError
from pipeline.contract.layout import image_path, scores_path
from pipeline.contract.schemas import METADATA, PUBLISHED, RUN_ID, SCORES
from pipeline.run import execute
from pipeline.scores.score_run import score_run
from pipeline.storage.objects import MissingObjectError, Storage, StorageError
from pipeline.tables.views import query
from tests.support import scorer_folders as small_scorers
from tests.support.runs import Engines, Silent, keep_metric, manifest, photo, run_settings
from tests.support.scores import DATE, RUN, Root, key, png


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return small_scorers.all_three(tmp_path_factory.mktemp("scorers"))


@pytest.fixture(scope="module")
def choice(folders):
    return choose_scorers(**folders)


@pytest.fixture(scope="module")
def scorers(choice):
    return load_scorers(choice, device="cpu")


def pixels_of(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def score(root, choice, scorers, run=RUN, **options):
    return score_run(root.storage, run, choice, load=lambda _: scorers, **options)


@pytest.fixture
def root(tmp_path):
    """Two concepts, five pictures of which one failed and two are equal."""
    root = Root(tmp_path / "root")
    root.concept("mug-1", "mug", 1, 2, 3)
    root.concept("bear-1", "teddy  bear", 4)
    root.render("a photo of a {mug-1} on the beach", "mug-1", seed=1)
    root.render("a photo of a {bear-1}", "bear-1", seed=2)
    root.render("a {mug-1} next to a {bear-1} in the garden", "mug-1", "bear-1", seed=3)
    root.render("a photo of a {mug-1} on the beach", "mug-1", seed=1)
    root.render("a {mug-1}", "mug-1", seed=9, status="failed", uri=None, sha256=None)
    return root.publish()


def test_every_score_is_the_one_computed_by_hand(root, choice, scorers):
    summary = score(root, choice, scorers, batch=2)
    rows = {row["render_key"]: row for row in root.scores()}
    assert (summary.rows, summary.added, summary.errors, len(rows)) == (3, True, {}, 3)

    def vectors(embedder, pictures):
        return embedder.embed_images([pixels_of(data) for data in pictures]).astype(np.float64)

    photos = {name: vectors(scorers.image, [png(seed, (48, 64)) for seed in seeds]) for name, seeds in
              (("mug-1", (1, 2, 3)), ("bear-1", (4,)))}  # fmt: skip
    said = {
        1: "a photo of a mug on the beach",
        2: "a photo of a teddy bear",
        3: "a mug next to a teddy bear in the garden",
    }
    named = {1: ["mug-1"], 2: ["bear-1"], 3: ["mug-1", "bear-1"]}
    labels = scorers.reader.heads["context"]
    for number, wanted in enumerate(root.renders[:3], 1):
        row, picture = rows[wanted["render_key"]], [png(1000 + number)]
        text = scorers.text.embed_texts([said[number]])[0].astype(np.float64)
        assert row["text_similarity"] == pytest.approx(float(text @ vectors(scorers.text, picture)[0]), abs=1e-5)
        own = vectors(scorers.image, picture)[0]
        alike = [np.mean([photo @ own for photo in photos[name]]) for name in named[number]]
        assert row["image_similarity"] == pytest.approx(np.mean(alike), abs=1e-5)
        seen = labels[scorers.reader.read([pixels_of(picture[0])])["context"][0].argmax()]
        # Only the first names a context that the reader has a label for.
        assert row["context_correct"] == ((seen == "beach") if number == 1 else None)
        assert (row["scorer"], row["scorer_digest"]) == (choice.name, choice.digest)
        assert (row["run_id"], row["error_code"], row["error_message"]) == (RUN, None, None)
    assert summary.contexts == 1
    assert summary.text_similarity == pytest.approx(np.mean([row["text_similarity"] for row in rows.values()]))


def test_again_adds_nothing_and_another_scorer_adds_its_own(root, choice, scorers, folders, tmp_path):
    first = score(root, choice, scorers)
    path = scores_path(DATE, RUN, choice.digest)
    before = root.storage.read(path)

    def never(_):
        raise AssertionError("there is nothing to score")

    again = score_run(root.storage, RUN, choice, load=never)
    assert again == type(first)(**{**vars(first), "added": False})
    assert root.storage.read(path) == before
    other = choose_scorers(text=small_scorers.dual(tmp_path / "other", seed=5))
    assert score(root, other, load_scorers(other, device="cpu")).added
    rows = root.scores()
    assert len(rows) == 6
    keys = {(row["run_id"], row["render_key"], row["scorer_digest"]) for row in rows}
    assert len(keys) == 6
    new = [row for row in rows if row["scorer_digest"] == other.digest]
    assert {(row["image_similarity"], row["context_correct"]) for row in new} == {(None, None)}
    assert all(row["text_similarity"] is not None and row["scorer"] == "text=other(clip)" for row in new)
    assert root.storage.read(path) == before


def test_batches_change_nothing(root, choice, scorers, tmp_path):
    score(root, choice, scorers, batch=1)
    one = root.scores()
    root.storage.delete(scores_path(DATE, RUN, choice.digest))
    seen = []
    score(root, choice, scorers, batch=3, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(3, 3)]
    for row, other in zip(one, root.scores(), strict=True):
        for name in ("text_similarity", "image_similarity"):
            assert row[name] == pytest.approx(other[name], abs=1e-5)
        assert row["context_correct"] == other["context_correct"]


WAYS = ["fine", "gone", "changed", "no picture", "photo gone", "photo no picture", "too long", "no photos", "failed"]
CODES = {
    "gone": Code.IMAGE_MISSING,
    "changed": Code.IMAGE_CHANGED,
    "no picture": Code.IMAGE_FORMAT,
    "photo gone": Code.IMAGE_MISSING,
    "photo no picture": Code.IMAGE_FORMAT,
    "too long": Code.PROMPT_TOO_LONG,
    "no photos": Code.IMAGE_MISSING,
}


def spoil(root, way, name, row):
    """Make a picture, or its concept's only photo, what `way` says."""
    picture, photo = image_path(row["render_key"]), root.folder / "photos" / f"{name}-0.png"
    match way:
        case "gone":
            root.storage.delete(picture)
        case "changed":
            root.storage.write(picture, png(12345))
        case "no picture":
            root.storage.write(picture, b"no picture")
            row["sha256"] = hashlib.sha256(b"no picture").hexdigest()
        case "photo gone":
            photo.unlink()
        case "photo no picture":
            photo.write_bytes(b"no picture")
        case "no photos":
            root.photos[name] = []


@settings(max_examples=10)
@given(st.lists(st.sampled_from(WAYS), min_size=1, max_size=7), st.integers(1, 4))
def test_there_is_one_row_for_each_ok_picture_whatever_became_of_it(choice, scorers, ways, batch):
    with tempfile.TemporaryDirectory() as folder:
        root = Root(Path(folder) / "root")
        wanted = {}
        for number, way in enumerate(ways):
            name = f"mug-{number}"
            root.concept(name, "mug", number)
            words = " very" * 40 if way == "too long" else ""
            status = {"status": "failed", "uri": None} if way == "failed" else {}
            found = root.render(f"a{words} {{{name}}} on the beach", name, seed=number, **status)
            spoil(root, way, name, root.renders[-1])
            if way != "failed":
                wanted[found] = way
        recorded = {name: uris for name, uris in root.photos.items() if uris}
        root.photos = {name: uris or ["nowhere.png"] for name, uris in root.photos.items()}
        root.publish(recorded=recorded)
        summary = score(root, choice, scorers, batch=batch)
        rows = {row["render_key"]: row for row in root.scores()}
        assert rows.keys() == wanted.keys()
        assert summary.rows == len(wanted)
        for found, way in wanted.items():
            row = rows[found]
            assert row["error_code"] == CODES.get(way)
            assert (row["error_message"] is None) == (way == "fine")
            pictured = way not in ("gone", "changed", "no picture")
            assert (row["text_similarity"] is not None) == (pictured and way != "too long")
            assert (row["image_similarity"] is not None) == (way in ("fine", "too long"))
            assert (row["context_correct"] is not None) == pictured
            for name in ("text_similarity", "image_similarity"):
                assert row[name] is None or math.isfinite(row[name])


def test_a_message_names_the_picture_and_every_problem_of_a_row(root, choice, scorers):
    (root.folder / "photos" / "mug-1-1.png").unlink()
    long = root.render("a {mug-1}" + " and so on" * 20, "mug-1", seed=4)
    root.publish()
    score(root, choice, scorers)
    [row] = [row for row in root.scores() if row["render_key"] == long]
    assert row["error_code"] == Code.PROMPT_TOO_LONG
    assert "a photo of concept 'mug-1' is unavailable: there is no" in row["error_message"]
    assert "mug-1-1.png" in row["error_message"]


def test_concepts_of_the_negative_prompt_and_equal_ones_do_not_count(root, choice, scorers):
    """The mean is over the distinct concepts that the prompt itself names."""
    prompts = {"a {mug-1}": ["mug-1", "bear-1"], "a {mug-1} and a {twin}": ["mug-1", "twin"]}
    root.concept("twin", "mug", 1, 2, 3)
    for prompt, names in prompts.items():
        root.render(prompt, *names, seed=7)
    root.renders[-1]["concept_keys"] = [key("mug-1")] * 2
    root.publish()
    score(root, choice, scorers)
    rows = {row["render_key"]: row["image_similarity"] for row in root.scores()}
    first, second = (rows[row["render_key"]] for row in root.renders[-2:])
    assert first == pytest.approx(second, abs=1e-6)


def test_concepts_that_the_run_did_not_record_are_found_in_its_manifest(root, choice, scorers):
    score(root, choice, scorers)
    before = [row["image_similarity"] for row in root.scores()]
    root.storage.delete(scores_path(DATE, RUN, choice.digest))
    root.publish(recorded={"bear-1": root.photos["bear-1"]})
    score(root, choice, scorers)
    assert [row["image_similarity"] for row in root.scores()] == pytest.approx(before)
    assert None not in before


def test_without_record_and_manifest_nothing_is_published(root, choice, scorers):
    root.publish(recorded={})
    (root.folder / "concepts.parquet").unlink()
    with pytest.raises(ManifestError, match="there is no manifest at"):
        score(root, choice, scorers)
    assert root.scores() == []
    text_only = type(choice)("text", choice.text, None, None)
    assert score(root, text_only, type(scorers)(text=scorers.text)).added, (
        "who needs no training pictures asks for none"
    )


def test_training_pictures_are_read_under_the_run_s_own_limits(root, choice, scorers):
    root.publish(inputs={"allow": [str(root.folder / "elsewhere")]})
    assert score(root, choice, scorers).errors == {Code.URI_NOT_ALLOWED: 3}
    assert {row["image_similarity"] for row in root.scores()} == {None}


def test_an_outage_is_no_property_of_pictures(root, choice, scorers, monkeypatch):
    """Where storage itself fails nothing is published, and the next attempt starts from the beginning."""
    from fsspec.implementations.local import LocalFileSystem

    real = LocalFileSystem.cat_file

    def down(self, path, *arguments, **options):
        if "/images/" in path:
            raise OSError("503 Slow Down")
        return real(self, path, *arguments, **options)

    monkeypatch.setattr(LocalFileSystem, "cat_file", down)
    monkeypatch.setattr("pipeline.storage.patience.WAITS_S", ())
    with pytest.raises(StorageError, match="503 Slow Down"):
        score(root, choice, scorers)
    assert not root.storage.exists(scores_path(DATE, RUN, choice.digest))
    monkeypatch.setattr(LocalFileSystem, "cat_file", real)
    assert score(root, choice, scorers).added


def test_a_run_that_is_not_published_is_refused(root, choice, scorers):
    with pytest.raises(MissingObjectError, match=r"published\.json"):
        score(root, choice, scorers, run="run-2")
    root.publish(rooot=1)
    with pytest.raises(StorageError, match=r"spec\.json has settings that this version does not accept \(rooot: "):
        score(root, choice, scorers)


def test_a_run_without_pictures_has_an_empty_table(tmp_path, choice):
    root = Root(tmp_path / "root")
    root.concept("mug-1", "mug", 1)
    root.render("a {mug-1}", "mug-1", status="failed", uri=None)
    root.publish()
    summary = score_run(root.storage, RUN, choice, load=lambda _: None)
    assert (summary.rows, summary.added, summary.text_similarity) == (0, True, None)
    assert root.scores() == []


def test_the_view_is_there_without_any_score_and_joins(root, choice, scorers):
    columns = {*SCORES.names, "run_id", "run_date"}
    assert set(query(root.storage, "SELECT * FROM scores").column_names) == columns
    score(root, choice, scorers)
    found = query(root.storage, "SELECT * FROM scores")
    assert set(found.column_names) == columns
    stored = pq.read_schema(root.storage.full(scores_path(DATE, RUN, choice.digest)))
    assert stored.equals(PUBLISHED["scores"])
    assert stored.metadata == {**METADATA, RUN_ID: RUN.encode()}
    sql = "SELECT DISTINCT prompt, image_similarity FROM renders JOIN scores USING (run_id, render_key)"
    assert query(root.storage, sql).num_rows == 3


def test_a_real_run_is_scored_whole(tmp_path, choice, scorers):
    for number, name in enumerate(("mug-1", "bag-1")):
        photo(tmp_path / f"{name}.png", seed=number)
    manifest(
        tmp_path / "concepts.parquet",
        [{"concept_id": name, "superclass": name[:3], "images": [f"{name}.png"]} for name in ("mug-1", "bag-1")],
    )
    manifest(
        tmp_path / "prompts.parquet",
        [{"prompt": "a photo of a {product} on the beach"}, {"prompt": "a {mug-1} next to a {bag-1}", "seed": 3}],
    )
    root = str(tmp_path / "root")
    keep_metric(Storage(root))
    result = execute(run_settings(root, tmp_path), make_engine=Engines(), observer=Silent())
    summary = score_run(Storage(root), result.run_id, choice, load=lambda _: scorers)
    assert (summary.rows, summary.errors) == (3, {})
    sql = """
        SELECT count(*) FROM renders FULL JOIN scores USING (run_id, render_key)
        WHERE status = 'ok' AND text_similarity IS NOT NULL AND image_similarity IS NOT NULL
    """
    assert query(Storage(root), sql).column(0).to_pylist() == [3]
