"""The report's section on scores: there when there are any, right in its figures, and as careful as the rest."""

import html
import io
import re
from datetime import UTC, datetime

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.contract.errors import Code
from pipeline.contract.layout import run_path, scores_path
from pipeline.contract.schemas import SCORES
from pipeline.report.page import MIN_BYTES, write_report
from pipeline.report.scores import EXTREMES, MAX_BINS, MAX_SCORERS, scorer_figures
from tests.support.scores import DATE, RUN, Root, key

HOSTILE = "<script>alert('x')</script>\"&{{ 7*7 }}"


@pytest.fixture
def root(tmp_path):
    root = Root(tmp_path / "root")
    root.concept("mug-1", "mug", 1)
    for seed in range(20):
        root.render(f"a {{mug-1}} number {seed}", "mug-1", seed=seed)
    return root.publish()


def put(root, scorer, rows, *, when=1):
    digest = key(scorer)
    common = {"scorer": scorer, "scorer_digest": digest}
    common["scored_at"] = datetime(2026, 11, 20, when, tzinfo=UTC)
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([common | row for row in rows], schema=SCORES), sink)
    root.storage.write(scores_path(DATE, RUN, digest), sink.getvalue())
    return digest


def scored(root, **columns):
    """A row for each render with these values, taken in turn."""
    return [
        {"render_key": render["render_key"], **{name: values[number % len(values)] for name, values in columns.items()}}
        for number, render in enumerate(root.renders)
    ]


def page(root, **options):
    write_report(root.storage, RUN, **options)
    return root.storage.read(run_path(RUN, "report/index.html")).decode()


def text(source):
    body = re.sub(r"<style>.*?</style>", " ", source, flags=re.DOTALL)
    return html.unescape(" ".join(re.sub(r"<[^>]*>", " ", body).split()))


def test_a_run_without_scores_has_no_section(root):
    source = page(root)
    assert 'id="scores"' not in source
    assert "#scores" not in source


def test_figures_are_those_of_the_table(root):
    similarity = [0.3 + number / 100 for number in range(20)]
    rows = scored(root, image_similarity=similarity, text_similarity=[0.25], context_correct=[True, True, False, None])
    rows[3] |= {"image_similarity": None, "error_code": Code.IMAGE_MISSING, "error_message": "x"}
    put(root, "mini", rows)
    source = page(root)
    found = text(source)
    mean = np.mean([value for number, value in enumerate(similarity) if number != 3])
    assert "Scores" in found
    assert "Renders scored 20 2026-11-20 01:00 UTC" in found
    assert f"Mean image similarity {mean:.4f} of 19 renders" in found
    assert "Mean text similarity 0.2500 of 20 renders" in found
    assert "Contexts shown as asked 66.7 % 10 of 15 that name one" in found
    assert "1 lacks a score: image_missing" in found
    assert '<a href="#scores">' in source
    # The ends, each once and in order; they are pictures of this very run.
    ends = [float(value) for value in re.findall(r'<b>([-0-9.]+)</b> <span class="muted">image similarity', source)]
    wanted = [value for number, value in enumerate(similarity) if number != 3]
    assert ends == pytest.approx(wanted[:EXTREMES] + wanted[-EXTREMES:], abs=1e-4)
    tiles = source.partition('id="scores"')[2].partition("</section>")[0]
    assert tiles.count("<img ") == 2 * EXTREMES
    [sql] = re.findall(r'<code id="sql-scores">(.*?)</code>', source, re.DOTALL)
    assert duckdb.sql(html.unescape(sql)).to_arrow_table().num_rows == 20


def test_few_pictures_come_once(root):
    rows = scored(root, text_similarity=[0.1])[:4]
    put(root, "text only", rows)
    source = page(root)
    assert source.count('<span class="muted">text similarity') == 4
    assert "Contexts shown" not in source


def test_scorers_stand_apart_and_the_latest_come_first(root):
    for number in range(MAX_SCORERS + 2):
        put(root, f"scorer-{number}", scored(root, image_similarity=[number / 10]), when=number)
    found = text(page(root))
    shown = re.findall(r"scorer-(\d) [0-9a-f]{12}", found)
    assert shown == [str(number) for number in reversed(range(2, MAX_SCORERS + 2))]
    assert f"The latest {MAX_SCORERS} of {MAX_SCORERS + 2} sets of scorers are shown." in found


def test_a_scorer_s_name_is_escaped_and_the_page_keeps_to_its_size(root):
    put(root, HOSTILE, scored(root, image_similarity=[-0.5, 0.0, 1.0], error_code=[HOSTILE]))
    source = page(root, max_bytes=MIN_BYTES)
    assert "<script" not in source
    assert "{{ 7*7 }}" in text(source)
    assert len(source.encode()) <= MIN_BYTES


@settings(max_examples=40)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30))
def test_every_score_is_in_one_bin_of_its_histogram(tmp_path_factory, values):
    root = Root(tmp_path_factory.mktemp("bins"))
    put(root, "x", [{"render_key": key(number), "text_similarity": value} for number, value in enumerate(values)])
    with duckdb.connect() as connection:
        [figures] = scorer_figures(connection, root.storage, RUN)
    [spread] = figures.spreads
    assert sum(spread.counts) == spread.total == len(values)
    assert len(spread.counts) <= MAX_BINS
    slack = spread.width * 1e-6
    assert spread.low - slack <= min(values)
    assert max(values) <= spread.low + len(spread.counts) * spread.width + slack
    assert spread.counts[0] > 0
    assert spread.counts[-1] > 0
