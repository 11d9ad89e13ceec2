"""A column of a prompts manifest as it is carried through: written in a format, read back from the database."""

import tempfile
from pathlib import Path

from pipeline.database.plandb import EXTRA_ROW, PlanDB
from pipeline.manifest.prompts import load_prompts


def carried(path):
    """The type of the column `x` of a prompts manifest, its values, and the values as the database prints them."""
    with PlanDB(threads=1) as db:
        load_prompts(db, str(path))
        relation = db.connection.sql(f"SELECT x, CAST(x AS VARCHAR) AS text FROM prompts_extra ORDER BY {EXTRA_ROW}")
        return str(relation.types[0]), *map(list, zip(*relation.fetchall(), strict=True))


def from_json(*spellings):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p.jsonl"
        path.write_text("".join(f'{{"prompt": "{{product}}", "x": {spelling}}}\n' for spelling in spellings))
        return carried(path)
