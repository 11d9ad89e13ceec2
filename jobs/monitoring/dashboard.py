"""The dashboard as JSON for Grafana 10 and later: panels flow into its grid of 24 columns."""

import json
from typing import Any

from cluster import metric_table as table
from jobs.monitoring.options import Monitoring
from jobs.monitoring.panels import Panel, panels

_SOURCE = {"type": "prometheus", "uid": "${source}"}
_COLUMNS = 24
_SIZES = {"stat": (4, 4), "timeseries": (12, 8)}  # columns, rows


def dashboard(options: Monitoring) -> str:
    """The JSON of a dashboard, to import or to provision."""
    return json.dumps(_document(panels(options)), indent=2)


def _document(shown: list[Panel]) -> dict[str, Any]:
    return {
        "uid": "perfusion-run",
        "title": "Perfusion runs",
        "description": "Runs of perfusion on Ray. Metrics: docs/monitoring.md.",
        "tags": ["perfusion"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [_source(), _run()]},
        "panels": [
            {"id": number, "gridPos": place, **_panel(panel)}
            for number, (panel, place) in enumerate(zip(shown, _places(shown), strict=True), 1)
        ],
    }


def _source() -> dict[str, Any]:
    return {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _run() -> dict[str, Any]:
    query = f"label_values({table.RUN.exposed}, run_id)"
    return {
        "name": "run_id",
        "label": "Run",
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": "runs"},
        "definition": query,
        "refresh": 2,  # whenever the time range changes
        "sort": 0,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _places(shown: list[Panel]) -> list[dict[str, int]]:
    """Where each panel is: from left to right, in rows of equal height."""
    found: list[dict[str, int]] = []
    x = y = height = 0
    for panel in shown:
        w, h = _SIZES[panel.kind]
        if x + w > _COLUMNS or (x and h != height):
            x, y = 0, y + height
        found.append({"x": x, "y": y, "w": w, "h": h})
        x, height = x + w, h
    return found


def _panel(panel: Panel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.limit is not None:
        steps.append({"color": "red", "value": panel.limit})
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0, "thresholds": {"mode": "absolute", "steps": steps}}
    if panel.kind == "timeseries":
        stacking = {"mode": "normal" if panel.stacked else "none", "group": "A"}
        defaults["custom"] = {"fillOpacity": 25 if panel.stacked else 0, "stacking": stacking, "showPoints": "auto"}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.help,
        "datasource": _SOURCE,
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": _SOURCE,
                "expr": query.expr,
                "legendFormat": query.legend,
                "instant": panel.kind == "stat",
                "range": panel.kind == "timeseries",
            }
            for number, query in enumerate(panel.queries)
        ],
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _STAT if panel.kind == "stat" else _LINES,
    }


_STAT = {
    "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    "colorMode": "value",
    "graphMode": "none",
    "textMode": "auto",
}
_LINES = {
    "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
    "tooltip": {"mode": "multi", "sort": "desc"},
}
