"""`perfusion schema` prints the schema of the spec."""

import json


def test_schema(perfusion):
    code, out, err = perfusion("schema")
    assert (code, err) == (0, "")
    assert json.loads(out)["title"] == "RunSettings"
