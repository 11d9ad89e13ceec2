"""`perfusion report` writes the page of a finished run and says where it is."""

import json

from tests.support.command import only_object


def test_report_again(done, perfusion, monkeypatch):
    monkeypatch.chdir(done.folder)
    run_id = json.loads(done.run.stdout)["run_id"]
    code, out, _ = perfusion("report", "results", run_id, "--concepts", 1)
    assert (code, out) == (0, f"results/runs/{run_id}/report/index.html\n")
    code, out, _ = perfusion("report", "results", run_id, "--json")
    assert only_object(out) == {
        "run_id": run_id,
        "report": f"file://{done.root}/runs/{run_id}/report/index.html",
    }
