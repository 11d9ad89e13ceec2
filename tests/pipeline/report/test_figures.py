"""The figures of the report: counts, failures and seconds are those of the published tables."""

import re

import duckdb
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.contract.errors import MEANING, Code
from pipeline.report.figures import BINS, SLOWEST
from tests.support.report import Page, bad, concept, encoded, key, page_of, picture, publish, render, small_run


def test_counts_are_those_of_the_tables(storage):
    small_run(storage)
    text = " ".join(Page(page_of(storage)).text.split())
    count = {
        table: dict(
            duckdb.sql(
                f"SELECT status, count(*) FROM '{storage.root}/tables/{table}/*/*/*.parquet' GROUP BY status"
            ).fetchall()
        )
        for table in ("concepts", "renders")
    }
    assert count == {"concepts": {"ok": 3, "invalid": 2}, "renders": {"ok": 4, "failed": 1, "withheld": 1}}
    assert "4 of 6 renders and 3 of 5 concepts are ready" in text
    assert (
        "2 need a correction in a manifest. 1 went wrong and may succeed when run again. "
        "1 has a status that this version does not know." in text
    )
    assert "Renders 6 rows ✓ ok 4 66.7 % ✕ failed 1 16.7 % ? withheld 1 16.7 %" in text
    assert "Renders 3 rendered, 1 reused" in text
    assert "Concepts 3 trained, 0 reused" in text
    # 3 pictures in 20 + 21 + 22 ms; what is reused cost this run nothing
    assert f"Renders per second {3 / 0.063:.3g} of accelerator time" in text
    assert "6.66 s 6.6 s training, 63 ms rendering" in text
    assert "118 KB 89.7 KB concepts, 28.0 KB renders" in text
    assert "Workers 2" in text
    assert "First result 2026-11-20 03:00 UTC" in text
    assert "training.steps = 300" in text
    assert "none =" not in text


def test_rows_that_share_an_object_count_it_once(storage):
    shot = picture(storage, encoded("red"))
    twin = {"render_key": key("twin"), "accelerator_s": 0.5, "bytes": 10_000}
    publish(storage, [concept(1, "mug-1")], [render(row, 0, ["mug-1"], shot, **twin) for row in (1, 2, 3)])
    text = " ".join(Page(page_of(storage)).text.split())
    assert "3 of 3 renders" in text
    assert "Renders 1 rendered, 0 reused" in text
    assert "500 ms rendering" in text
    assert "10.0 KB renders" in text
    assert "1 render made by this run" in text


def test_failures_are_grouped_with_meaning_and_first_rows(storage):
    shot = picture(storage, encoded("red"))
    failing = [
        render(row, index, ["mug-1"], None, **bad(Code.PROMPT_TOO_LONG, f"row {row} has 93 tokens", column="prompt"))
        for row in range(2, 9)
        for index in range(3)
    ]
    publish(storage, [concept(1, "mug-1")], [render(1, 0, ["mug-1"], shot), *failing])
    text = " ".join(Page(page_of(storage)).text.split())
    assert f"21 prompt_too_long ▲ invalid 21 renders in 7 manifest rows {MEANING[Code.PROMPT_TOO_LONG]}" in text
    assert "prompts 2 prompt row 2 has 93 tokens (3 renders) prompts 3 prompt" in text
    assert "prompts 4 prompt row 4" in text
    assert "prompts 5" not in text
    assert "and 4 more manifest rows" in text


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seconds=st.lists(st.floats(0, 1e5, allow_subnormal=False), min_size=1, max_size=60))
def test_histogram_holds_every_object(storage, seconds):
    publish(storage, [concept(row, f"mug-{row}", accelerator_s=value) for row, value in enumerate(seconds, 1)], [])
    figure = re.search(r'<figure class="panel histogram">\s*<h3>Per concept.*?</figure>', page_of(storage), re.DOTALL)
    assert figure is not None
    bars = [int(count.replace(",", "")) for count in re.findall(r": ([\d,]+)</title>", figure[0])]
    assert sum(bars) == len(seconds)
    assert len(bars) <= BINS


def test_slowest_rows_of_both_kinds_come_first(storage):
    publish(
        storage,
        [concept(row, f"mug-{row}", accelerator_s=50.0 + row) for row in range(1, 30)],
        [
            *(render(1, index, [f"mug-{index}"], None, accelerator_s=index / 10) for index in range(1, 30)),
            render(2, 0, ["mug-1"], None, accelerator_s=9.0, origin="reused"),
        ],
    )
    page = page_of(storage)
    rows = re.findall(r"<tr><td class=\"nowrap\">(\w+), row \d+</td>.*?<td class=\"right\">([\d.]+) s</td></tr>", page)
    assert [(kind, float(value)) for kind, value in rows] == [
        *(("picture", (29 - index) / 10) for index in range(SLOWEST)),
        *(("concept", 79.0 - index) for index in range(SLOWEST)),
    ]
