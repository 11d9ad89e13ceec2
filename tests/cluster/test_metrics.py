"""What a run publishes: from events alone, and scraped from a real Ray by HTTP."""

import itertools
import json
import math
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import defaultdict

import pytest
import yaml

from cluster import metric_table as table
from cluster.errors import ClusterError
from cluster.fleet import SlotResources
from cluster.instruments import WorkerMetrics
from cluster.local import start_local
from cluster.metrics import Metrics
from cluster.ray_executor import RayExecutor
from jobs.monitoring.alerts import alerts
from jobs.monitoring.kinds import RENDERERS
from jobs.monitoring.options import Monitoring
from jobs.monitoring.panels import panels
from pipeline.contract.errors import Code, Origin, Status
from pipeline.contract.kinds import Counts, PerKind
from pipeline.contract.units import Outcome
from pipeline.engine.figures import Snapshot
from pipeline.observer import Begun, Pulse
from pipeline.settings import EngineSettings
from tests.support.metrics import free_port, scrape
from tests.support.ray_pool import Worker, go

ENGINE = EngineSettings(render_batch=4, group_size=2, budget_h=0.5)
BEGUN = Begun("run-1", "2026-10-01", resumed=False, lease=3)


class Recorded:
    """Instruments that remember."""

    def __init__(self):
        self.counts = defaultdict(float)
        self.gauges = {}
        self.calls = 0

    def add(self, metric, values, amount):
        assert metric.kind == "counter"
        self.calls += 1
        self.counts[metric, *values] += amount

    def set(self, metric, values, value):
        assert metric.kind == "gauge"
        self.calls += 1
        self.gauges[metric, *values] = value


def plan(concepts, renders):
    return PerKind(*(Counts(rows=n, invalid=0, reused=0, to_do=n, keys=n, keys_to_do=n) for n in (concepts, renders)))


def begin(metrics, concepts=2, renders=8):
    metrics.stage("plan", "root")
    metrics.planned(plan(concepts, renders))
    metrics.begun(BEGUN)
    metrics.stage("start", "run run-1")


@pytest.fixture
def recorded():
    """Metrics whose time stands still, and their instruments."""
    to = Recorded()
    metrics = Metrics(ENGINE, make=lambda: to, clock=lambda: 100.0, wall=itertools.count(5000.0).__next__)
    begin(metrics)
    return metrics, to


def render(key, **fields):
    return Outcome("render", key, **{"status": Status.OK, "origin": Origin.RENDERED, "accelerator_s": 0.5, **fields})


def test_endings_batches_time_and_bytes_are_counted_once(recorded):
    metrics, to = recorded
    metrics.working(Pulse(Snapshot(ready=3, running=2, starting=1, quarantined=4, spent_s=9, wasted_s=2, deaths=1)))
    metrics.outcomes([render(f"r{i}", batch=3, bytes=100) for i in range(3)])
    metrics.outcomes([Outcome("concept", "c0", Status.OK, origin=Origin.TRAINED, accelerator_s=7.0, batch=2, bytes=9)])
    metrics.outcomes([render("r3", origin=Origin.REUSED, accelerator_s=0.0, bytes=100)])
    failed = {"status": Status.FAILED, "origin": None, "accelerator_s": 0.0}
    metrics.outcomes([render("r4", error_code=Code.CONCEPT_FAILED, **failed)])
    metrics.working(Pulse(Snapshot(ready=1, spent_s=12, wasted_s=3, deaths=2, retries=1, outages=1), (), 4.5, 6))
    metrics.stage("publish", "run run-1")
    metrics.stage("report", "run run-1")
    run = "run-1"
    assert {key: count for key, count in to.counts.items() if count} == {
        (table.TASKS, run, "render", "made", ""): 3,
        (table.TASKS, run, "concept", "made", ""): 1,
        (table.TASKS, run, "render", "reused", ""): 1,
        (table.TASKS, run, "render", "failed", "concept_failed"): 1,
        (table.ACCELERATOR, run, "useful"): 8.5,
        (table.ACCELERATOR, run, "wasted"): 3,
        (table.BATCH_TASKS, run, "render"): 3,
        (table.BATCH_PLACES, run, "render"): 4,
        (table.BATCH_TASKS, run, "concept"): 1,
        (table.BATCH_PLACES, run, "concept"): 1,
        (table.WRITTEN, run, "render"): 300,
        (table.WRITTEN, run, "concept"): 9,
        (table.STORAGE_RETRIES, run, "driver"): 6,
        (table.UNIT_RETRIES, run): 1,
        (table.DEATHS, run): 2,
        (table.OUTAGES, run): 1,
    }
    assert to.gauges == {
        (table.RUN, run, "2026-10-01", "3"): 1,
        (table.TASKS_PLANNED, run, "concept"): 2,
        (table.TASKS_PLANNED, run, "render"): 8,
        (table.TASKS_LEFT, run, "concept"): 1,
        (table.TASKS_LEFT, run, "render"): 3,
        (table.LAST_UNIT, run): 5004.0,
        (table.SLOTS, run, "running"): 0,
        (table.SLOTS, run, "idle"): 1,
        (table.SLOTS, run, "leaving"): 0,
        (table.SLOTS, run, "starting"): 0,
        (table.SLOTS, run, "quarantined"): 0,
        (table.SPENT, run): 12,
        (table.BUDGET, run): 1800,
        (table.HEARTBEAT_AGE, run): 4.5,
    }


def test_counters_with_known_tags_appear_before_they_count(recorded):
    metrics, to = recorded
    metrics.working(Pulse())
    assert set(to.counts.values()) == {0.0}
    assert {key[0] for key in to.counts} == {metric for metric in table.METRICS if metric.kind == "counter"}


def test_ray_is_told_at_most_once_a_second():
    to, now = Recorded(), itertools.count(0, 0.001)
    metrics = Metrics(ENGINE, make=lambda: to, clock=now.__next__)
    begin(metrics, renders=5000)
    published = []
    for each in range(2500):
        before = to.calls
        metrics.working(Pulse())
        metrics.outcomes([render(f"r{each}", bytes=1)])
        published.append(to.calls > before)
    assert 2 <= sum(published) <= 5
    metrics.stage("publish", "run run-1")
    assert to.counts[table.TASKS, "run-1", "render", "made", ""] == 2500


def test_nothing_is_published_without_ray_and_trouble_ends_the_publishing_alone(caplog):
    with Metrics(ENGINE) as metrics:
        begin(metrics)
        metrics.working(Pulse())
        metrics.outcomes([render("r0")])

    class Broken(Recorded):
        def set(self, metric, values, value):
            self.calls += 1
            raise OSError("the agent is gone")

    broken = Broken()
    with Metrics(ENGINE, make=lambda: broken, clock=itertools.count().__next__) as metrics:
        begin(metrics)
        for _ in range(3):
            metrics.working(Pulse())
    assert [record.message for record in caplog.records] == [
        "this run publishes no more metrics: OSError: the agent is gone"
    ]
    calls = broken.calls
    metrics.working(Pulse())
    assert broken.calls == calls


def test_a_worker_without_counters_still_works(caplog):
    metrics = WorkerMetrics()
    metrics.publish(None)
    metrics.publish(None)
    assert len(caplog.records) == 1


@pytest.fixture(scope="module")
def port():
    """A port of a local Ray that serves metrics and reports every second."""
    number = free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_metrics_report_interval_ms", "1000")
        with start_local(cpus=2, metrics_port=number):
            yield number


@pytest.mark.timeout(300)
def test_a_run_on_a_real_ray_is_scraped_with_its_values(port, tmp_path):
    folder = str(tmp_path)
    with Metrics(ENGINE) as metrics:
        begin(metrics, concepts=0, renders=14)
        executor = RayExecutor(lambda: Worker(folder), slots=2, resources=SlotResources(num_cpus=0))
        try:
            _, summary = go(executor, ["ok"] * 10 + ["memory", "exit"], batch=2, observer=metrics)
            metrics.stage("start", "run run-1")
            # Apart, because a worker that is killed loses what it counted since its last report.
            go(executor, ["retry", "retry"], batch=2, observer=metrics)
            expected = {
                ("ray_perfusion_tasks_total", "run-1", "render", "made", ""): 12,
                ("ray_perfusion_tasks_total", "run-1", "render", "failed", "out_of_memory"): 1,
                ("ray_perfusion_tasks_total", "run-1", "render", "failed", "worker_died"): 1,
                ("ray_perfusion_tasks_left", "run-1", "render"): 0,
                ("ray_perfusion_tasks_planned", "run-1", "render"): 14,
                ("ray_perfusion_run_info", "run-1", "2026-10-01", "3"): 1,
                ("ray_perfusion_batch_tasks_total", "run-1", "render"): 12,
                ("ray_perfusion_batch_places_total", "run-1", "render"): 24,
                ("ray_perfusion_accelerator_seconds_total", "run-1", "useful"): 6,
                ("ray_perfusion_accelerator_seconds_total", "run-1", "wasted"): pytest.approx(summary.wasted_s),
                ("ray_perfusion_accelerator_budget_seconds", "run-1"): 1800,
                ("ray_perfusion_written_bytes_total", "run-1", "render"): 12_000,
                ("ray_perfusion_storage_retries_total", "run-1", "driver"): 7,
                ("ray_perfusion_storage_retries_total", "", "worker"): 2,
                ("ray_perfusion_worker_deaths_total", "run-1"): summary.deaths,
                ("ray_perfusion_unit_retries_total", "run-1"): summary.retries,
                ("ray_perfusion_outages_total", "run-1"): pytest.approx(0),
                ("ray_perfusion_lease_heartbeat_age_seconds", "run-1"): 2.5,
                ("ray_perfusion_slots", "run-1", "quarantined"): 0,
            }
            found = {}
            until = time.monotonic() + 60
            while {name: found.get(name) for name in expected} != expected and time.monotonic() < until:
                metrics.stage("publish", "run run-1")
                time.sleep(0.2)
                found = scrape(port)
        finally:
            executor.close()
    assert summary.deaths
    assert {name: found.get(name) for name in expected} == expected
    assert {name[0] for name in found} == {metric.exposed for metric in table.METRICS}
    assert 0 <= time.time() - found["ray_perfusion_last_unit_timestamp_seconds", "run-1"] < 120


def answers(address):
    try:
        return urllib.request.urlopen(address, timeout=30).status == 200
    except urllib.error.URLError:
        return False


@pytest.fixture
def prometheus(tmp_path):
    """Start Prometheus on loopback with the printed files and quick scrapes of a port; gives what asks its API."""
    started = []

    def start(port):
        config = yaml.safe_load(RENDERERS["prometheus"](Monitoring(targets=(f"127.0.0.1:{port}",))))
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
        (tmp_path / "perfusion-alerts.yaml").write_text(RENDERERS["alerts"](Monitoring()))
        mine = free_port()
        words = ["--config.file=prometheus.yml", "--storage.tsdb.path=data", f"--web.listen-address=127.0.0.1:{mine}"]
        started.append(subprocess.Popen(["prometheus", *words], cwd=tmp_path, stderr=(tmp_path / "log").open("w")))

        until = time.monotonic() + 60
        while not answers(f"http://127.0.0.1:{mine}/-/ready"):
            assert time.monotonic() < until, (tmp_path / "log").read_text()
            time.sleep(0.1)

        def ask(path, **parameters):
            address = f"http://127.0.0.1:{mine}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
            with urllib.request.urlopen(address, timeout=30) as answer:
                return json.load(answer)["data"]

        return ask

    yield start
    for process in started:
        process.terminate()
        process.wait(60)


@pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is not installed: apt-get install prometheus"
)
@pytest.mark.timeout(300)
def test_a_real_prometheus_answers_each_query_and_evaluates_each_rule(port, prometheus):
    ask = prometheus(port)
    silent = {
        query.expr.replace("$__rate_interval", "10s").replace("$run_id", "run-1"): panel.title
        for panel in panels(Monitoring())
        for query in panel.queries
    }
    firing, until = [], time.monotonic() + 120
    with Metrics(ENGINE) as metrics:
        begin(metrics, concepts=1000, renders=1000)
        while (silent or not firing) and time.monotonic() < until:
            pulse = Pulse(Snapshot(ready=2, running=1, spent_s=60.0), (), heartbeat_age_s=45.0, storage_retries=3)
            metrics.working(pulse)
            metrics.outcomes([render("r", bytes=100, batch=2)])
            metrics.outcomes([render("f", status=Status.FAILED, origin=None, error_code=Code.STORAGE)])
            metrics.outcomes([Outcome("concept", "c", Status.OK, origin=Origin.TRAINED, accelerator_s=1.0, bytes=9)])
            time.sleep(0.5)
            silent = {expr: title for expr, title in silent.items() if not has_numbers(ask("query", query=expr))}
            firing = ask("query", query='ALERTS{alertstate="firing"}')["result"]
        rules = ask("rules")["groups"][0]["rules"]
    assert silent == {}
    assert [(rule["name"], rule["health"]) for rule in rules] == [(each.name, "ok") for each in alerts(Monitoring())]
    assert {series["metric"]["alertname"] for series in firing} == {"PerfusionHeartbeatOld"}


def has_numbers(found):
    return bool(found["result"]) and all(math.isfinite(float(series["value"][1])) for series in found["result"])


def test_a_port_that_is_in_use_is_named(port):
    import ray

    with pytest.MonkeyPatch.context() as patch, socket.socket() as taken:
        patch.setattr(ray, "is_initialized", lambda: False)
        taken.bind(("", 0))
        taken.listen()
        number = taken.getsockname()[1]
        with (
            pytest.raises(ClusterError, match=rf"port {number} .*cluster\.metrics_port"),
            start_local(metrics_port=number),
        ):
            pass
