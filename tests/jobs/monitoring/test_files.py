"""The printed files: byte for byte, in agreement with the list of metrics, and checked by Prometheus' own tool.

To write the golden files again after a change that is meant: PERFUSION_WRITE_GOLDEN=1 pytest
tests/jobs/monitoring/test_files.py; then read the difference.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from cluster.metric_table import METRICS, OF_WORKER
from jobs.commands.cluster import Monitor
from jobs.monitoring.alerts import alerts
from jobs.monitoring.options import Monitoring
from jobs.monitoring.panels import panels

GOLDEN = Path(__file__).parent / "golden"
PAGE = (Path(__file__).parents[3] / "docs" / "monitoring.md").read_text(encoding="utf-8")
ENDINGS = {"grafana": "json"}
promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed: apt-get install prometheus"
)


def check(*words, folder):
    done = subprocess.run(["promtool", *words], cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def printed(perfusion):
    def text(kind, *words):
        code, out, err = perfusion("cluster", "monitoring", "--kind", kind, *words)
        assert (code, err) == (0, "")
        return out

    return text


@pytest.mark.parametrize("kind", list(Monitor))
def test_the_file_is_what_it_was(printed, kind):
    file = GOLDEN / f"{kind}.{ENDINGS.get(kind, 'yaml')}"
    text = printed(kind)
    if os.environ.get("PERFUSION_WRITE_GOLDEN"):
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")


def test_no_golden_file_is_left_over():
    assert {file.name for file in GOLDEN.iterdir()} == {f"{kind}.{ENDINGS.get(kind, 'yaml')}" for kind in Monitor}


def test_options_change_the_files_and_unknown_ones_are_named(printed, perfusion):
    rules = printed("alerts", "--option", "stall_min=30", "--option", "failed_share=0.2")
    assert "_timestamp_seconds) > 1800 and" in rules
    assert "> 0.2 and" in rules
    config = yaml.safe_load(printed("prometheus", "--option", "targets=[10.0.0.7:9400]", "--option", "rules=a.yaml"))
    assert config["rule_files"] == ["a.yaml"]
    assert config["scrape_configs"][0]["static_configs"] == [{"targets": ["10.0.0.7:9400"]}]
    monitor, rule = yaml.safe_load_all(printed("kubernetes", "--option", "labels={release: prom}"))
    assert monitor["metadata"]["labels"] == rule["metadata"]["labels"] == {"release": "prom"}
    for option, message in (
        ("stal_min=3", "option stal_min does not exist; use budget_share, "),
        ("heartbeat_s=5", "option heartbeat_s is 5: input should be greater than 10"),
        ("stall_min", "--option 'stall_min' is not NAME=VALUE"),
    ):
        code, out, err = perfusion("cluster", "monitoring", "--kind", "alerts", "--option", option)
        assert (code, out) == (2, "")
        assert message in err


def test_names_of_metrics_have_the_form_that_prometheus_asks_for():
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert re.fullmatch(r"perfusion_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.tags[0] == "run_id"
        for unit in ("seconds", "bytes"):
            assert (unit in metric.name) == metric.unit.startswith(unit)
    assert {metric.kind for metric in OF_WORKER.values()} == {"counter"}


def test_dashboard_and_alerts_use_each_metric_and_no_other_one():
    options = Monitoring()
    asked = [query.expr for panel in panels(options) for query in panel.queries]
    asked += [alert.expr for alert in alerts(options)]
    used = {name for expr in asked for name in re.findall(r"ray_perfusion_\w+", expr)}
    assert used == {metric.exposed for metric in METRICS}


def test_labels_that_queries_name_are_tags_of_their_metrics():
    tags = {metric.exposed: set(metric.tags) for metric in METRICS}
    options = Monitoring()
    asked = [query.expr for panel in panels(options) for query in panel.queries]
    asked += [alert.expr for alert in alerts(options)]
    for expr in asked:
        for name, where in re.findall(r"(ray_perfusion_\w+)\{([^}]*)\}", expr):
            assert set(re.findall(r"(\w+)[!=]=?~?\"", where)) <= tags[name], expr


def test_the_dashboard_has_what_grafana_reads(printed):
    page = json.loads(printed("grafana"))
    assert {variable["name"] for variable in page["templating"]["list"]} == {"source", "run_id"}
    ids = [panel["id"] for panel in page["panels"]]
    assert ids == list(range(1, len(ids) + 1))
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in page["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells)), "two panels overlap"
    assert all(0 <= x < 24 for x, _ in cells)
    for panel in page["panels"]:
        assert panel["type"] in {"stat", "timeseries"}
        assert panel["title"]
        assert panel["description"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        for target in panel["targets"]:
            assert target["instant"] != target["range"]


def test_each_metric_and_option_is_documented():
    for metric in METRICS:
        row = f"| `{metric.exposed}` | {metric.kind} | {metric.unit} | {', '.join(metric.tags)} | {metric.help} |"
        assert row in PAGE
    for name, option in Monitoring.model_fields.items():
        assert f"| `{name}` |" in PAGE
        assert option.description in PAGE
    for alert in alerts(Monitoring()):
        assert f"`{alert.name}`" in PAGE


@promtool
def test_prometheus_accepts_rules_and_configuration(printed, tmp_path):
    (tmp_path / "perfusion-alerts.yaml").write_text(printed("alerts"))
    (tmp_path / "prometheus.yml").write_text(printed("prometheus", "--option", "targets=[localhost:9400]"))
    found = check("check", "rules", "perfusion-alerts.yaml", folder=tmp_path)
    assert f"{len(alerts(Monitoring()))} rules found" in found
    assert "valid prometheus config" in check("check", "config", "prometheus.yml", folder=tmp_path)
    _, rule = yaml.safe_load_all(printed("kubernetes"))
    (tmp_path / "operator.yaml").write_text(yaml.safe_dump(rule["spec"]))
    check("check", "rules", "operator.yaml", folder=tmp_path)


@promtool
def test_the_rules_in_the_documentation_are_accepted(tmp_path):
    blocks = [block for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if block.startswith("groups:")]
    assert blocks
    for number, block in enumerate(blocks):
        (tmp_path / f"{number}.yaml").write_text(block)
        check("check", "rules", f"{number}.yaml", folder=tmp_path)


SERIES = {  # of a run that is well, one sample a minute: name with labels, and Prometheus' notation of the values
    'ray_perfusion_run_info{run_id="a"}': "1x40",
    'ray_perfusion_tasks_left{run_id="a",kind="render"}': "100-1x40",
    'ray_perfusion_last_unit_timestamp_seconds{run_id="a"}': "0+60x40",
    'ray_perfusion_lease_heartbeat_age_seconds{run_id="a"}': "5x40",
    'ray_perfusion_tasks_total{run_id="a",kind="render",outcome="made",code=""}': "0+10x40",
    'ray_perfusion_slots{run_id="a",state="quarantined"}': "0x40",
    'ray_perfusion_accelerator_spent_seconds{run_id="a"}': "0+60x40",
    'ray_perfusion_accelerator_budget_seconds{run_id="a"}': "3600x40",
    'ray_perfusion_storage_retries_total{run_id="a",process="driver",SessionName="s"}': "0x40",
}
FAILED = 'ray_perfusion_tasks_total{run_id="a",kind="render",outcome="failed",code="worker_died"}'
GONE = {  # a counter stays when the driver has ended, a gauge does not
    name: f"{values.removesuffix('x40')}x2 _x38" for name, values in SERIES.items() if "_total" not in name
}
CASES = [
    ("PerfusionNoUnitFinished", {'ray_perfusion_last_unit_timestamp_seconds{run_id="a"}': "60x40"}, True),
    (
        "PerfusionNoUnitFinished",
        {
            'ray_perfusion_last_unit_timestamp_seconds{run_id="a"}': "60x40",
            'ray_perfusion_tasks_left{run_id="a",kind="render"}': "0x40",
        },
        False,
    ),
    ("PerfusionHeartbeatOld", {'ray_perfusion_lease_heartbeat_age_seconds{run_id="a"}': "31x40"}, True),
    ("PerfusionTasksNotOk", {FAILED: "0+1x40"}, True),
    ("PerfusionTasksNotOk", {FAILED: "0+0.4x40"}, False),  # 4 % of the tasks
    ("PerfusionTasksNotOk", {FAILED: "0+1x40", **GONE}, False),
    ("PerfusionSlotsQuarantined", {'ray_perfusion_slots{run_id="a",state="quarantined"}': "2x40"}, True),
    ("PerfusionBudgetNearlySpent", {'ray_perfusion_accelerator_budget_seconds{run_id="a"}': "1800x40"}, True),
    ("PerfusionBudgetNearlySpent", {'ray_perfusion_accelerator_budget_seconds{run_id="a"}': "_x40"}, False),
    (
        "PerfusionStorageRetries",
        {'ray_perfusion_storage_retries_total{run_id="",process="worker",SessionName="s",WorkerId="w"}': "0 60x39"},
        True,
    ),
]


@promtool
def test_alerts_fire_when_they_should_and_only_then(printed, tmp_path):
    (tmp_path / "alerts.yaml").write_text(printed("alerts"))
    names = [alert.name for alert in alerts(Monitoring())]
    assert {name for name, _, fires in CASES if fires} == set(names)

    def one(series, fires):
        """All rules, 28 minutes after the run has begun; nothing but these fires."""
        return {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in {**SERIES, **series}.items()],
            "promql_expr_test": [
                {
                    "expr": f'count by (alertname) (ALERTS{{alertstate="firing",alertname="{name}"}})',
                    "eval_time": moment,
                    "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1}] if name in fires else [],
                }
                for name in names
                for moment in (["28m"] if name != "PerfusionStorageRetries" else ["10m"])
            ],
        }

    tests = [one({}, ())] + [one(series, (name,) if fires else ()) for name, series, fires in CASES]
    document = {"rule_files": ["alerts.yaml"], "evaluation_interval": "1m", "tests": tests}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(document))
    check("test", "rules", "tests.yaml", folder=tmp_path)
