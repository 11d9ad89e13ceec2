"""The metric of a base model: estimated once, then read, by whoever needs it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from perfusion_ops.base_model import load_base
from perfusion_ops.config import MetricConfig
from perfusion_ops.metric import MetricError, read_metric
from perfusion_ops.mini import metric_file
from perfusion_ops.mini.world import grammar
from pipeline.bases import metrics
from pipeline.bases.find import find_base
from pipeline.bases.metrics import load_metric
from pipeline.contract.keys import metric_key
from pipeline.contract.layout import metric_path
from pipeline.storage.objects import Storage
from pipeline.worker.perfusion_worker import PerfusionWorker
from tests.support.runs import METRIC, metric_object, worker_settings

KEY = "ab" * 32


@pytest.fixture(scope="module")
def base():
    return load_base(find_base("mini"))


@pytest.fixture
def storage(tmp_path):
    return Storage(str(tmp_path / "root"))


def captions_file(path, count):
    path.write_text("\n\n".join(grammar.captions(count, 9)) + "\n", encoding="utf-8")
    return str(path)


def test_estimated_once_and_read_from_then_on(tmp_path):
    settings = worker_settings(tmp_path)
    path, data = metric_object()
    first = PerfusionWorker(settings)
    first.setup()
    file = tmp_path / path
    before = file.stat()
    assert read_metric(data, base_digest=settings.base_digest).digest == first.models.metric.digest  # estimated twice
    second = PerfusionWorker(settings)
    second.setup()
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert second.models.metric.digest == first.models.metric.digest
    assert 0.8 < first.models.metric.held_out < 1.2


def test_progress_of_the_estimate_counts_captions(base, storage):
    seen = []
    load_metric(storage, base, METRIC, KEY, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, METRIC.captions) for done in range(METRIC.captions)]
    seen.clear()
    load_metric(storage, base, METRIC, KEY, progress=lambda done, total: seen.append((done, total)))
    assert seen == []  # it is read


def test_what_is_stored_is_what_is_used(base, storage):
    """Not estimated again: a metric that no captions would give is taken as it stands under the key."""
    _, data = metric_object()
    true = read_metric(data, base_digest=base.folder.digest)
    other = type(true)(2 * true.second_moment, true.inverse / 2, true.ridge, true.base_digest, true.held_out, "")
    storage.create(metric_path(KEY), other.to_bytes())
    found = load_metric(storage, base, METRIC, KEY)
    torch.testing.assert_close(found.second_moment, other.second_moment)


def test_embedded_base_with_default_settings_takes_the_metric_of_the_package(base, storage, monkeypatch):
    def never(*arguments, **options):
        raise AssertionError("it was estimated")

    monkeypatch.setattr(metrics, "estimate", never)
    config = MetricConfig()
    found = load_metric(storage, base, config, KEY)
    shipped = metric_file().read_bytes()
    assert storage.read(metric_path(KEY)) == shipped
    assert found.digest == read_metric(shipped, base_digest=base.folder.digest).digest
    for other in (MetricConfig(captions=50_000), MetricConfig(tokens="content"), MetricConfig(ridge=1e-6)):
        with pytest.raises(AssertionError, match="estimated"):
            load_metric(storage, base, other, "ef" * 32)
    own = captions_file(Path(storage.root.removeprefix("file://")).parent / "own.txt", 3000)
    with pytest.raises(AssertionError, match="estimated"):
        load_metric(storage, base, MetricConfig(captions_uri=own), "ef" * 32)
    changed = replace(base, folder=replace(base.folder, digest="e" * 64))
    with pytest.raises(AssertionError, match="estimated"):
        load_metric(storage, changed, config, "ef" * 32)


def test_root_that_holds_a_metric_keeps_its_own(base, storage):
    _, data = metric_object()
    storage.create(metric_path(KEY), data)
    found = load_metric(storage, base, MetricConfig(), KEY)
    assert found.digest == read_metric(data, base_digest=base.folder.digest).digest
    assert storage.read(metric_path(KEY)) == data


def test_base_and_settings_have_keys_of_their_own():
    def key(base="a" * 64, captions=None, **metric):
        return metric_key(base_digest=base, metric=MetricConfig(**metric), captions_sha256=captions)

    keys = [key(), key("b" * 64), key(captions="c" * 64), key(ridge=1e-6), key(tokens="content"), key(captions=None)]
    assert len(set(keys)) == 5


def test_captions_of_ones_own_are_used(base, storage, tmp_path):
    uri = captions_file(tmp_path / "captions.txt", 2600)
    mine = load_metric(storage, base, MetricConfig(captions=5000, captions_uri=uri), KEY)
    fewer = load_metric(storage, base, MetricConfig(captions=1200, captions_uri=uri), "cd" * 32)
    assert mine.digest != fewer.digest
    assert 0.5 < mine.held_out < 1.5
    (tmp_path / "captions.txt").unlink()
    assert load_metric(storage, base, MetricConfig(captions=5000, captions_uri=uri), KEY).digest == mine.digest


def test_captions_file_that_cannot_be_used_is_a_sentence_and_leaves_nothing(base, storage, tmp_path):
    short = captions_file(tmp_path / "short.txt", 1300)
    (tmp_path / "latin.txt").write_bytes("ein Becher für Tee\n".encode("latin-1") * 3000)
    cases = {
        short: r"has 1,300 captions: give at least 2,000, one a line; 1,000 of them only test the metric",
        captions_file(tmp_path / "tiny.txt", 10): r"has 10 captions: give at least 2,000",
        str(
            tmp_path / "latin.txt"
        ): r"latin.txt \(metric.captions_uri\) cannot be read as UTF-8 text .*: save it as UTF-8",
        str(
            tmp_path / "absent.txt"
        ): r"absent.txt \(metric.captions_uri\) cannot be read: it does not exist; correct the address",
    }
    for uri, words in cases.items():
        with pytest.raises(MetricError, match=words):
            load_metric(storage, base, MetricConfig(captions=5000, captions_uri=uri), KEY)
    assert list(storage.list()) == []


def test_stored_metric_that_is_damaged_or_of_another_base_is_refused(base, storage):
    _, data = metric_object()
    storage.write(metric_path(KEY), data[:-8])
    with pytest.raises(MetricError, match=rf"{KEY}.safetensors: .* is damaged .* delete it"):
        load_metric(storage, base, METRIC, KEY)
    true = read_metric(data, base_digest=base.folder.digest)
    foreign = type(true)(true.second_moment, true.inverse, true.ridge, "e" * 64, true.held_out, "")
    storage.write(metric_path(KEY), foreign.to_bytes())
    with pytest.raises(MetricError, match=rf"{KEY}.safetensors: .* belongs to another base model"):
        load_metric(storage, base, METRIC, KEY)
