"""Runs whose renders are WebP: keys, what is reused, what is adopted, and who reads the files."""

import io

import numpy as np
import pytest
from PIL import Image

from perfusion_ops.scoring.choice import choose_scorers
from perfusion_ops.scoring.models import load_scorers
from pipeline.contract.layout import REPORT, image_path, run_path
from pipeline.report.page import write_report
from pipeline.run import execute
from pipeline.scores.score_run import score_run
from pipeline.settings import RunSettings
from pipeline.storage.objects import Storage
from tests.support import scorer_folders
from tests.support.runs import Engines, Silent, run_settings
from tests.support.shop import check_accounts, go, tables

pytestmark = pytest.mark.timeout(300)
WEBP = {"steps": 2, "format": "webp"}


def renders(root, result):
    return tables(root, result.run_id)["renders"]


def picture(root, row):
    data = Storage(root).read(row["uri"].removeprefix(Storage(root).root + "/"))
    return Image.open(io.BytesIO(data))


def check_format(root, rows, name):
    for row in rows:
        assert row["uri"] == Storage(root).uri(image_path(row["render_key"], name))
        assert picture(root, row).format == name.upper()


def test_webp_has_keys_of_its_own_and_the_same_pixels(shop, root):
    png, _ = go(root, shop)
    webp, engines = go(root, shop, render=WEBP)
    check_accounts(root, webp, concepts=3, prompts=2, pictures=4)
    before, after = renders(root, png), renders(root, webp)
    check_format(root, before, "png")
    check_format(root, after, "webp")
    assert {row["origin"] for row in after} == {"rendered"}
    assert {row["origin"] for row in tables(root, webp.run_id)["concepts"]} == {"reused"}
    for old, new in zip(before, after, strict=True):
        assert old["render_key"] != new["render_key"]
        assert old["seed"] == new["seed"]  # also where the row asks for none
        one, other = (np.asarray(picture(root, row)).astype(int) for row in (old, new))
        assert np.abs(one - other).max() <= 1  # of another batch
    lossy, _ = go(root, shop, render={**WEBP, "webp_quality": 50})
    check_format(root, renders(root, lossy), "webp")
    keys = [{row["render_key"] for row in rows} for rows in (before, after, renders(root, lossy))]
    assert len(set.union(*keys)) == 12
    # Each of them is still the answer to its own command.
    for render in ({"steps": 2}, WEBP, {**WEBP, "webp_quality": 50}):
        _, engines = go(root, shop, render=render)
        assert engines.made == []
    _, engines = go(root, shop, engine={"png_level": 9, "plan_memory": "200MB"})
    assert engines.made == []


def test_webp_is_reused_and_made_again_when_it_is_gone(shop, root):
    first, _ = go(root, shop, render=WEBP)
    rows = renders(root, first)
    storage = Storage(root)
    gone, cut = (image_path(row["render_key"], "webp") for row in rows[:2])
    storage.delete(gone)
    storage.write(cut, storage.read(cut)[:-1])
    storage.write(image_path(rows[0]["render_key"]), b"what a user has put beside it")
    second, engines = go(root, shop, render=WEBP)
    assert engines.keys == {row["render_key"] for row in rows[:2]}
    assert [row["origin"] for row in renders(root, second)] == ["rendered", "rendered", "reused", "reused"]
    check_format(root, renders(root, second), "webp")


def test_webp_whose_record_was_lost_is_adopted(shop, root):
    settings = run_settings(root, shop, render=WEBP)
    first = execute(settings, make_engine=Engines(), observer=Silent(), selection=None)
    storage = Storage(root)
    before = {row["render_key"]: row["sha256"] for row in renders(root, first)}
    for folder in ("runs", "tables"):
        for path, _ in list(storage.list(folder)):
            storage.delete(path)
    second, engines = go(root, shop, render=WEBP)
    after = renders(root, second)
    assert engines.keys >= before.keys()  # given to a worker, which finds them
    assert {row["render_key"]: row["sha256"] for row in after} == before
    assert {row["accelerator_s"] for row in after} == {0.0}


def test_reports_and_scores_read_webp(shop, root, tmp_path):
    result, _ = go(root, shop, render={**WEBP, "webp_quality": 90})
    storage = Storage(root)
    write_report(storage, result.run_id)
    text = storage.read(run_path(result.run_id, REPORT)).decode()
    assert text.count("data:image/webp;base64,") >= 7  # three photos and four renders
    assert "cannot be read" not in text
    choice = choose_scorers(**scorer_folders.all_three(tmp_path / "scorers"))
    summary = score_run(storage, result.run_id, choice, load=lambda each: load_scorers(each, device="cpu"))
    assert (summary.rows, summary.errors) == (4, {})


def test_a_quality_without_webp_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"webp_quality is 80 and format 'png': set format to 'webp'"):
        RunSettings(root=str(tmp_path), concepts="c", prompts="p", render={"webp_quality": 80})
