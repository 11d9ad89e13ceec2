"""`perfusion status` shows a finished run with the counts of its rows."""

import json

from tests.support.command import only_object


def test_status_of_finished_runs(done, perfusion):
    run_id = json.loads(done.run.stdout)["run_id"]
    code, out, _ = perfusion("status", done.root)
    first = next(line.split() for line in out.splitlines() if line.startswith(run_id))
    assert code == 0
    assert " ".join(first[3:]) == "finished 2 invalid, 2 ok of 4 3 invalid, 2 ok of 5"
    code, out, _ = perfusion("status", done.root, run_id, "--json")
    [status] = only_object(out)["runs"]
    assert (status["state"], status["statuses"]["concepts"]) == ("finished", {"invalid": 2, "ok": 2})
