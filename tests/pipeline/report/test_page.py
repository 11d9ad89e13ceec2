"""The report page: self-contained, escaped, complete in its counts, bounded in its size."""

import base64
import hashlib
import html
import json
import re
from datetime import timedelta

import duckdb
import pyarrow as pa
import pytest

from pipeline.contract.errors import MEANING, Code
from pipeline.contract.layout import table_path
from pipeline.report.page import MAX_COMBINED, MIN_BYTES, write_report
from pipeline.report.timeline import COLUMNS, MAX_LANES
from pipeline.storage.objects import Storage
from tests.support.report import (
    DATE,
    RUN,
    WHEN,
    Page,
    bad,
    begin,
    concept,
    encoded,
    key,
    noise,
    page_of,
    picture,
    publish,
    render,
    small_run,
)


def test_page_loads_nothing_and_runs_nothing(storage):
    small_run(storage)
    source = page_of(storage)
    page = Page(source)
    assert not {"script", "link", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in page.elements}
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/webp;base64,", "#")), value
    assert not re.search(r"@import|url\(", source)
    policies = [meta["content"] for meta in page.every("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    style = re.search(r"<style>(.*?)</style>", source, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert policies == [
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    ]


def test_every_link_has_its_target_and_every_picture_its_text(storage):
    small_run(storage)
    page = Page(page_of(storage))
    targets = {attributes.get("id") for _, attributes in page.elements}
    sections = ("totals", "failures", "concepts", "together", "workers", "timings")
    assert {link["href"] for link in page.every("a")} == {f"#{section}" for section in sections}
    assert {str(link["href"])[1:] for link in page.every("a")} <= targets
    assert len(page.every("img")) > 5
    assert all(image["alt"] and image["width"] == "64" and image["class"] == "crisp" for image in page.every("img"))


def test_queries_on_the_page_run_and_find_what_is_not_shown(storage):
    small_run(storage)
    queries = dict(re.findall(r'<code id="sql-(\w+)">(.*?)</code>', page_of(storage, max_concepts=1), re.DOTALL))
    results = {name: duckdb.sql(html.unescape(sql)).fetchall() for name, sql in queries.items()}
    assert len(results["failures"]) == 4
    assert {row[0] for row in results["concepts"]} == {"mug-1", "mug-2", "bag-3", None}


def test_queries_survive_a_quote_in_the_root(tmp_path):
    storage = Storage(str(tmp_path / "o'brien"))
    small_run(storage)
    (sql,) = re.findall(r'<code id="sql-failures">(.*?)</code>', page_of(storage), re.DOTALL)
    assert len(duckdb.sql(html.unescape(sql)).fetchall()) == 4


HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>&{{ 7919*7907 }}\u202egnp.\u0000\n"


def test_text_of_strangers_is_escaped_everywhere(storage):
    shot = picture(storage, encoded("red"))
    wrong = bad(Code.INTERNAL, HOSTILE, "failed", column=HOSTILE)
    publish(
        storage,
        [
            concept(
                1,
                HOSTILE,
                superclass=HOSTILE,
                base=HOSTILE,
                base_digest=HOSTILE,
                worker=HOSTILE,
                **{HOSTILE.replace("\0", ""): HOSTILE},
            ),
            concept(2, f"2{HOSTILE}", **wrong),
            concept(3, "mug", **wrong | {"error_code": HOSTILE, "status": HOSTILE}),
        ],
        [
            render(1, 0, [HOSTILE], shot, prompt=HOSTILE, render_key=HOSTILE, origin=HOSTILE),
            render(1, 1, [HOSTILE], HOSTILE, prompt=HOSTILE),
            render(1, 2, [HOSTILE, "mug"], shot, prompt=HOSTILE),
            render(2, 0, [HOSTILE], None, **wrong),
        ],
        [pa.field(HOSTILE.replace("\0", ""), pa.string())],
    )
    storage.write(f"runs/{RUN}/inputs.json", json.dumps({HOSTILE: [HOSTILE, "https://example.com/x.png"]}).encode())
    begin(storage, {HOSTILE: [HOSTILE, "\ud800"]})
    source = page_of(storage)
    page = Page(source)
    assert not page.every("script")
    assert all(str(image["src"]).startswith("data:") and "onerror" not in image for image in page.every("img"))
    assert "62615533" not in page.text  # the template engine would have multiplied
    assert "{{ 7919*7907 }}" in page.text
    assert not re.search("[\u202e\x00]", source)
    assert "Pictures behind https:// are not fetched for a report." in page.text


@pytest.mark.parametrize("max_bytes", [MIN_BYTES, 1_500_000])
def test_size_cap_is_kept_and_what_is_left_out_is_counted(storage, max_bytes):
    names = [f"mug-{number:03d}" for number in range(200)]
    shots = [picture(storage, noise(number, 200)) for number in range(8)]
    publish(
        storage,
        [concept(row + 1, name) for row, name in enumerate(names)],
        [
            *(render(1, index, [name], shots[index % 8]) for index, name in enumerate(names)),
            *(render(2, index, names[index : index + 2], shots[index % 8]) for index in range(50)),
        ],
    )
    storage.write(f"runs/{RUN}/inputs.json", json.dumps(dict.fromkeys(names, shots[:3])).encode())
    source = page_of(storage, max_concepts=200, max_bytes=max_bytes)
    assert len(source.encode()) <= max_bytes
    page = Page(source)
    shown = [item for item in page.every("article") if item.get("class") == "panel card"]
    assert 0 < len(shown) < 200
    text = " ".join(page.text.split())
    assert f"{len(shown)} of 200 concepts are shown, {200 - len(shown)} are not" in text
    pairs = len([item for item in page.every("div") if item.get("class") == "pair"])
    assert 0 < pairs <= MAX_COMBINED
    assert f"{pairs} of 50 renders are shown, {50 - pairs} are not" in text
    ids = re.findall(r'<h3><span class="mono theirs">([^<]+)<', source)
    assert ids == sorted(ids)
    assert page_of(storage, max_concepts=200, max_bytes=max_bytes) == source


def test_all_codes_at_their_longest_fit_without_pictures(storage):
    worst = "\"'" * 5000
    wide = "\U0001f9f8" * 5000
    busy = [  # every lane goes up and down in each column
        render(9, 0, [], None, worker=f"{lane}{worst}", accelerator_s=0.9 if step % 2 else 0.01, finished_at=when)
        for lane in range(MAX_LANES + 10)
        for step, when in enumerate(WHEN + timedelta(seconds=second) for second in range(COLUMNS))
    ]
    publish(
        storage,
        [concept(row, None, base=wide, **bad(Code.BAD_ID, worst, column=worst)) for row in (1, 2, 3)],
        [
            render(
                row, 0, [], None, prompt=worst, worker=wide, **bad(code, worst, column=worst) | {"accelerator_s": 9.0}
            )
            for code in Code
            for row in range(1, 5)
        ]
        + busy,
    )
    begin(storage, {f"{number}{worst}": worst for number in range(200)})
    source = page_of(storage, max_bytes=MIN_BYTES)
    assert len(source.encode()) <= MIN_BYTES
    assert "147 more settings in spec.json" in source
    assert all(meaning in html.unescape(source) for meaning in MEANING.values())


def test_run_without_renders_or_without_concepts_still_has_a_page(storage):
    publish(storage, [], [])
    text = " ".join(Page(page_of(storage)).text.split())
    assert "0 of 0 renders and 0 of 0 concepts are ready. Nothing went wrong." in text
    assert "This run made no render" in text
    storage.delete(table_path("concepts", DATE, RUN))
    assert "0 of 0 renders" in " ".join(Page(page_of(storage)).text.split())


@pytest.mark.parametrize(
    ("options", "name"), [({"max_bytes": 10}, "max_bytes is 10"), ({"max_concepts": -1}, "max_concepts is -1")]
)
def test_limits_that_make_no_sense_are_refused(storage, options, name):
    small_run(storage)
    with pytest.raises(ValueError, match=name):
        write_report(storage, RUN, **options)


def test_other_filesystems_hold_the_page_too():
    storage = Storage(f"memory://report-{key('memory')[:8]}")
    small_run(storage)
    assert "4 of 6 renders" in page_of(storage)
