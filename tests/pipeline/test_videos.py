"""Runs whose renders are videos: keys, columns, what is reused and adopted, and who reads the files."""

import io
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from perfusion_ops.base.folder import BaseError
from perfusion_ops.scoring.choice import choose_scorers
from perfusion_ops.scoring.models import load_scorers
from pipeline.bases.find import find_base
from pipeline.bases.motion import find_motion
from pipeline.contract.keys import metric_key
from pipeline.contract.layout import REPORT, image_path, run_path
from pipeline.inputs.pictures import InputLimits
from pipeline.inputs.videos import frames_of
from pipeline.report.page import write_report
from pipeline.scores.rows import spoken
from pipeline.scores.score_run import score_run
from pipeline.storage.objects import Storage
from pipeline.tables.views import query
from pipeline.worker.perfusion_worker import PerfusionWorker
from tests.support import scorer_folders
from tests.support.runs import METRIC, Engines, worker_settings
from tests.support.shop import CONCEPTS, PROMPTS, check_accounts, go, stock, tables
from tests.support.tiny_motion import video_folders

pytestmark = pytest.mark.timeout(300)
VIDEO = {"steps": 2, "task": "video", "frames": 3}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return video_folders(tmp_path_factory.mktemp("models"))


@pytest.fixture
def run(shop, root, models):
    def call(render=VIDEO, engines=None, motion="motion", **changes):
        changes |= {"motion": str(models / motion)} if motion else {}
        return go(root, shop, engines, base=str(models / "base"), render=render, **changes)

    return call


def renders(root, result):
    return tables(root, result.run_id)["renders"]


def data_of(root, row):
    return Storage(root).read(row["uri"].removeprefix(Storage(root).root + "/"))


def video(root, row):
    return np.stack([np.asarray(frame) for frame in frames_of(data_of(root, row), InputLimits(min_side=1), 256)])


def test_a_concept_is_the_same_in_pictures_and_in_videos(run, root):
    pictures, _ = run(render={"steps": 2}, motion=None)
    weights = dict(Storage(root).list("weights"))
    videos, engines = run()
    check_accounts(root, videos, concepts=3, prompts=2, pictures=4)
    assert dict(Storage(root).list("weights")) == weights
    assert {row["origin"] for row in tables(root, videos.run_id)["concepts"]} == {"reused"}
    before, after = renders(root, pictures), renders(root, videos)
    assert not {row["render_key"] for row in before} & {row["render_key"] for row in after}
    assert {(row["frames"], row["fps"]) for row in before} == {(None, None)}
    assert {(row["frames"], row["fps"]) for row in after} == {(3, 8)}
    for row in after:
        assert row["uri"] == Storage(root).uri(image_path(row["render_key"], "webp"))
        frames = video(root, row)
        assert frames.shape == (3, 16, 16, 3)
        assert (frames[0] != frames[1]).any()
    assert len({row["sha256"] for row in after}) == 4
    for render, motion in (({"steps": 2}, None), (VIDEO, "motion")):
        _, engines = run(render=render, motion=motion)
        assert engines.made == []


def test_columns_come_before_the_spec(run, root, shop):
    rows = [{"frames": 5}, {"fps": 24}, {"frames": 33}, {"frames": 257}, {"fps": 0}]
    stock(shop, prompts=[{**PROMPTS[1], **row} for row in rows])
    result, engines = run()
    found = renders(root, result)
    assert [(row["frames"], row["fps"], row["error_code"], row["error_column"]) for row in found] == [
        (5, 8, None, None),
        (3, 24, None, None),
        (33, 8, "out_of_range", "frames"),
        (None, None, "out_of_range", "frames"),
        (None, None, "out_of_range", "fps"),
    ]
    assert found[2]["error_message"] == (
        "frames is 33, and the motion adapter draws at most 32: write a smaller number"
    )
    assert [video(root, row).shape[0] for row in found[:2]] == [5, 3]
    with Image.open(io.BytesIO(data_of(root, found[1]))) as picture:
        picture.load()
        assert picture.info["duration"] == 42
    assert len({unit.tasks[0].shape for unit in engines.units if hasattr(unit.tasks[0], "shape")}) == 2


def test_frames_of_pictures_and_scenes_of_videos_are_refused(run, root, shop):
    stock(shop, prompts=[{**PROMPTS[0], "frames": 4}])
    [row] = renders(root, run(render={"steps": 2}, motion=None)[0])
    assert row["error_message"].startswith("frames is 4, but render.task is 'picture': set it to 'video'")
    box = {"scene": str(shop / "mug-1.png"), "scene_box": [0.1, 0.1, 0.9, 0.9]}
    stock(shop, prompts=[{**PROMPTS[0], **box}])
    [row] = renders(root, run()[0])
    assert row["error_code"] == "scene_conflict"
    with pytest.raises(BaseError, match="set motion to a motion adapter's folder"):
        run(motion=None)
    with pytest.raises(BaseError, match="leave motion out"):
        run(render={"steps": 2})


def test_the_rate_and_the_format_change_files_and_no_pixels(run, root):
    first, _ = run()
    faster, _ = run(render={**VIDEO, "fps": 24})
    mp4, _ = run(render={**VIDEO, "format": "mp4"})
    slow, fast, small = (renders(root, each) for each in (first, faster, mp4))
    assert len({row["render_key"] for row in (*slow, *fast, *small)}) == 12
    for one, other, third in zip(slow, fast, small, strict=True):
        assert one["seed"] == other["seed"] == third["seed"]
        assert np.array_equal(video(root, one), video(root, other))
        assert third["uri"].endswith(".mp4")
        assert video(root, third).shape == (3, 16, 16, 3)
    assert {row["origin"] for row in small} == {"rendered"}


@pytest.mark.parametrize("form", ["webp", "mp4"])
def test_a_video_whose_record_was_lost_is_adopted_and_a_cut_one_is_drawn_again(run, root, form):
    render = {**VIDEO, "format": form}
    rows = renders(root, run(render=render)[0])
    storage = Storage(root)
    before = {row["render_key"]: row["sha256"] for row in rows}
    cut = image_path(rows[0]["render_key"], form)
    whole = storage.read(cut)
    storage.write(cut, whole[:-1])
    for folder in ("runs", "tables"):
        for path, _ in list(storage.list(folder)):
            storage.delete(path)
    after = renders(root, run(render=render)[0])
    spent = {row["render_key"]: row["accelerator_s"] for row in after}
    assert {key for key, seconds in spent.items() if seconds} == {rows[0]["render_key"]}
    redrawn = after[[row["render_key"] for row in after].index(rows[0]["render_key"])]
    assert {row["render_key"]: row["sha256"] for row in after if row != redrawn} == {
        key: sha for key, sha in before.items() if key != redrawn["render_key"]
    }
    one, other = (
        video(root, redrawn),
        np.stack([np.asarray(frame) for frame in frames_of(whole, InputLimits(min_side=1), 9)]),
    )
    assert np.abs(one.astype(int) - other).max() <= (1 if form == "webp" else 40)  # alone, not in a batch


class Watching(Engines):
    """Workers that note how many frames their denoiser sees at once."""

    seen: list

    @contextmanager
    def __call__(self, worker):
        self.seen = []
        with super().__call__(worker) as engine:
            for each in engine.executor.workers.values():
                each.models.drawing.denoiser.register_forward_pre_hook(
                    lambda module, inputs: self.seen.append(inputs[0].shape[0] * inputs[0].shape[2])
                )
            yield engine


def test_long_videos_of_a_unit_are_drawn_one_after_the_other(run, root):
    engines = Watching()
    engine = {"group_size": 3, "render_batch": 8, "plan_memory": "200MB", "threads": 2}
    result, _ = run(engines=engines, engine=engine, render={**VIDEO, "frames": 8})
    assert max(engines.seen) == 2 * 16  # two videos, with and without the prompt
    result, _ = run(engines=engines, engine=engine, render={**VIDEO, "frames": 20})
    assert set(engines.seen) == {2 * 20}
    assert {row["status"] for row in renders(root, result)} == {"ok"}


@pytest.mark.parametrize("form", ["webp", "mp4"])
def test_reports_show_a_poster_and_scores_are_means_over_frames(run, root, tmp_path, form):
    result, _ = run(render={**VIDEO, "frames": 20, "format": form})
    storage = Storage(root)
    write_report(storage, result.run_id)
    text = storage.read(run_path(result.run_id, REPORT)).decode()
    assert text.count("data:image/webp;base64,") >= 7  # three photos and four posters
    assert "cannot be read" not in text
    rows = renders(root, result)
    for row in rows:
        path = image_path(row["render_key"], form)
        assert f'video, 20 frames, 8 fps · <a href="../../../{path}">open</a>' in text
    choice = choose_scorers(**scorer_folders.all_three(tmp_path / "scorers"))
    scorers = load_scorers(choice, device="cpu")
    summary = score_run(storage, result.run_id, choice, load=lambda each: scorers, batch=3)
    assert (summary.rows, summary.errors) == (4, {})
    scores = query(storage, "SELECT render_key, text_similarity, context_correct FROM scores").to_pylist()
    found = {row["render_key"]: (row["text_similarity"], row["context_correct"]) for row in scores}
    labels = scorers.reader.heads["context"]
    for row in rows:
        frames = video(root, row)[[round(at * 19 / 15) for at in range(16)]]
        said = spoken(row["prompt"], {each["concept_id"]: each["superclass"] for each in CONCEPTS})
        wanted = float(np.mean(scorers.text.embed_images(frames) @ scorers.text.embed_texts([said])[0]))
        assert found[row["render_key"]][0] == pytest.approx(wanted, abs=1e-5)
        shown = labels[scorers.reader.read(frames)["context"].mean(0).argmax()]
        asked = "beach" if "beach" in said else None
        assert found[row["render_key"]][1] == (None if asked is None else shown == asked)


def test_a_worker_refuses_another_adapter_than_the_planned_one(root, models):
    base, motion = find_base(str(models / "base")), find_motion(str(models / "motion"))
    settings = worker_settings(
        root,
        base=str(models / "base"),
        base_digest=base.digest,
        metric_key=metric_key(base_digest=base.metric_digest, metric=METRIC),
        motion=str(models / "motion"),
    )
    with pytest.raises(RuntimeError, match=r"the motion adapter '.*motion' on .* give every machine the same files"):
        PerfusionWorker(replace(settings, motion_digest="f" * 64)).setup()
    worker = PerfusionWorker(replace(settings, motion_digest=motion.digest))
    worker.setup()
    assert worker.models.motion == motion
    assert worker.models.drawing is not worker.models.base
    assert worker.models.drawing.texts is worker.models.base.texts  # loaded once
    worker.close()
