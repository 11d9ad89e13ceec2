"""The report page: self-contained, escaped, complete in its counts, bounded in its size."""

import base64
import hashlib
import html
import io
import json
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from pipeline.contract.errors import MEANING, Code
from pipeline.contract.layout import image_path, table_path
from pipeline.contract.schemas import CONCEPTS, RENDERS
from pipeline.report.figures import BINS, SLOWEST
from pipeline.report.page import MAX_COMBINED, MIN_BYTES, write_report
from pipeline.report.sheets import CRISP_PX, RENDERS_PER_CONCEPT, THUMBNAIL_PX, PictureReader, thumbnail
from pipeline.runs.record import RunRecord
from pipeline.storage.objects import Storage
from tests.support.records import run_spec

RUN = "2026-11-20-nightly"
DATE = "2026-11-20"
WHEN = datetime(2026, 11, 20, 3, 0, tzinfo=UTC)


def key(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def encoded(colour: str, size: int = 64, form: str = "PNG") -> bytes:
    image = Image.new("RGB", (size, size), "white")
    ImageDraw.Draw(image).ellipse((size // 8, size // 8, size * 7 // 8, size * 7 // 8), fill=colour)
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def noise(seed: int, size: int) -> bytes:
    image = Image.frombytes("L", (size, size), hashlib.shake_256(str(seed).encode()).digest(size * size))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def concept(row: int, name: str | None, /, **changes: object) -> dict[str, object]:
    ok = {
        "manifest_row": row,
        "concept_id": name,
        "concept_key": key(name),
        "superclass": "mug",
        "images": 4,
        "status": "ok",
        "attempts": 1,
        "origin": "trained",
        "uri": f"memory://weights/{row}",
        "sha256": key(row),
        "bytes": 29_904,
        "accelerator_s": 2.0 + row / 10,
        "loss": 0.02,
        "batch": 4,
        "worker": "gpu-0",
        "finished_at": WHEN,
        "base": "mini",
        "base_digest": key("mini"),
    }
    return ok | changes


def bad(code: Code, message: str, status: str = "invalid", column: str | None = None) -> dict[str, object]:
    gone = dict.fromkeys(["origin", "uri", "sha256", "bytes", "loss"])
    return gone | {
        "status": status,
        "error_code": code,
        "error_message": message,
        "error_column": column,
        "accelerator_s": 0.0,
    }


def render(row: int, index: int, names: list[str], uri: str | None, /, **changes: object) -> dict[str, object]:
    ok = {
        "manifest_row": row,
        "image_index": index,
        "concept_id": names[0] if names else None,
        "concept_ids": names,
        "concept_keys": [key(name) for name in names],
        "render_key": key(row, index, names),
        "prompt": f"a photo of a {{{names[0] if names else 'product'}}} on the beach",
        "negative_prompt": "",
        "seed": index,
        "bias": 0.6,
        "temperature": 0.15,
        "lock": "local",
        "width": 64,
        "height": 64,
        "steps": 50,
        "guidance": 6.0,
        "scheduler": "ddim",
        "status": "ok",
        "attempts": 1,
        "origin": "rendered",
        "uri": uri,
        "sha256": key(uri),
        "bytes": 7_000,
        "accelerator_s": 0.02 + 0.001 * index,
        "batch": 16,
        "worker": "gpu-1",
        "finished_at": WHEN,
        "base": "mini",
        "base_digest": key("mini"),
    }
    return ok | changes


def publish(storage: Storage, concepts: list[dict], renders: list[dict], extra: list[pa.Field] | None = None) -> None:
    for table, schema, rows in (
        ("concepts", pa.schema([*CONCEPTS, *(extra or [])]), concepts),
        ("renders", pa.schema([*RENDERS, *(extra or [])]), renders),
    ):
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer)
        storage.write(table_path(table, DATE, RUN), buffer.getvalue())


def picture(storage: Storage, data: bytes) -> str:
    path = image_path(hashlib.sha256(data).hexdigest())
    storage.write(path, data)
    return storage.uri(path)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "root"))


def begin(storage, settings):
    """Record a run that was started with these settings."""
    RunRecord(storage, RUN).begin(run_spec(RUN, settings=settings))


def page_of(storage: Storage, **options: int) -> str:
    uri = write_report(storage, RUN, **options)
    assert uri == storage.uri(f"runs/{RUN}/report/index.html")
    return storage.read(f"runs/{RUN}/report/index.html").decode("utf-8")


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, and the text outside of style."""

    VOID = frozenset({"meta", "img", "br", "hr", "link", "input"})

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.text += " "
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        self.text += " "
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "style" not in self._open:
            self.text += data

    def every(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def small_run(storage: Storage) -> None:
    colours = ["red", "green", "blue"]
    shots = [picture(storage, encoded(colour)) for colour in colours]
    names = ["mug-1", "mug-2", "bag-3"]
    publish(
        storage,
        [
            *(concept(row + 1, name, category="kitchen") for row, name in enumerate(names)),
            concept(
                4, "mug-1", **bad(Code.DUPLICATE_ID, "concept id 'mug-1' stands in row 1 too", column="concept_id")
            ),
            concept(5, None, **bad(Code.BAD_ID, "id 'ü' has characters that ids may not have", column="concept_id")),
        ],
        [
            *(render(1, index, [name], uri) for index, (name, uri) in enumerate(zip(names, shots, strict=True))),
            render(2, 0, names[:2], shots[0], origin="reused", finished_at=datetime(2026, 1, 1, tzinfo=UTC)),
            render(3, 0, ["mug-1"], None, **bad(Code.RENDER_NOT_FINITE, "the picture is not finite", "failed")),
            render(4, 0, ["mug-2"], None, **bad(Code.OUT_OF_RANGE, "x") | {"status": "withheld", "error_code": None}),
        ],
        [pa.field("category", pa.string())],
    )
    storage.write(
        f"runs/{RUN}/inputs.json", json.dumps({"mug-1": [*shots[:2], storage.uri("inputs/ab/gone")]}).encode()
    )
    begin(storage, {"base": "mini", "training": {"steps": 300}, "none": None})


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
    assert {link["href"] for link in page.every("a")} == {"#totals", "#failures", "#concepts", "#together", "#timings"}
    assert {str(link["href"])[1:] for link in page.every("a")} <= targets
    assert len(page.every("img")) > 5
    assert all(image["alt"] and image["width"] == "64" and image["class"] == "crisp" for image in page.every("img"))


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


@pytest.mark.parametrize(
    ("data", "note"),
    [
        (None, "The picture is not there any more."),
        (b"", "The picture is no JPEG, PNG or WebP."),
        (b"GIF89a but not really", "The picture is no JPEG, PNG or WebP."),
        (encoded("red")[:-40], "The picture cannot be read (OSError)."),
    ],
)
def test_picture_that_cannot_be_shown_becomes_a_labelled_placeholder(storage, data, note):
    if data is not None:
        storage.write("images/aa/x.png", data)
    publish(storage, [concept(1, "mug-1")], [render(1, 0, ["mug-1"], storage.uri("images/aa/x.png"))])
    page = Page(page_of(storage))
    assert not page.every("img")
    assert note in page.text
    assert [box["aria-label"] for box in page.every("div") if box.get("class") == "absent"] == [
        f"a photo of a {{mug-1}} on the beach: {note}"
    ]


def test_bomb_is_refused_by_its_header(storage):
    bomb = Image.new("1", (9000, 9000))
    buffer = io.BytesIO()
    bomb.save(buffer, "PNG")
    storage.write("images/aa/x.png", buffer.getvalue())
    found = PictureReader(storage).read(storage.uri("images/aa/x.png"))
    assert found.src is None
    assert found.note == "The picture has 9000 x 9000 pixels and is not shown."


@settings(max_examples=25)
@given(
    width=st.integers(1, 700),
    height=st.integers(1, 700),
    mode=st.sampled_from(["RGB", "RGBA", "L", "P", "1", "LA", "CMYK"]),
)
def test_thumbnail_is_small_and_keeps_shape(width, height, mode):
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, "JPEG" if mode == "CMYK" else "PNG")
    shown = thumbnail(buffer.getvalue())
    assert shown.src is not None
    decoded = Image.open(io.BytesIO(base64.b64decode(shown.src.partition(",")[2])))
    assert decoded.size == (shown.width, shown.height)
    assert max(decoded.size) == min(max(width, height), THUMBNAIL_PX)
    assert shown.crisp == (max(width, height) <= CRISP_PX)


def test_small_picture_keeps_every_pixel_and_no_metadata():
    original = Image.open(io.BytesIO(noise(3, 64))).convert("RGB")
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    original.save(buffer, "PNG", exif=exif)
    shown = thumbnail(buffer.getvalue())
    assert shown.src is not None
    decoded = Image.open(io.BytesIO(base64.b64decode(shown.src.partition(",")[2])))
    assert decoded.convert("RGB").tobytes() == original.tobytes()
    assert not decoded.getexif()


def test_photo_is_shown_upright():
    image = Image.new("RGB", (40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    shown = thumbnail(buffer.getvalue())
    assert (shown.width, shown.height) == (20, 40)


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


def test_sample_stays_when_the_catalogue_grows(storage):
    def shown(count: int) -> set[str]:
        publish(storage, [concept(row, f"mug-{row:03d}") for row in range(1, count + 1)], [])
        return set(re.findall(r'<h3><span class="mono theirs">([^<]+)<', page_of(storage, max_concepts=20)))

    first, second = shown(100), shown(101)
    assert len(first) == len(second) == 20
    assert len(first & second) >= 19


def test_all_codes_at_their_longest_fit_without_pictures(storage):
    worst = "\"'" * 5000
    wide = "\U0001f9f8" * 5000
    publish(
        storage,
        [concept(row, None, base=wide, **bad(Code.BAD_ID, worst, column=worst)) for row in (1, 2, 3)],
        [
            render(
                row, 0, [], None, prompt=worst, worker=wide, **bad(code, worst, column=worst) | {"accelerator_s": 9.0}
            )
            for code in Code
            for row in range(1, 5)
        ],
    )
    begin(storage, {f"{number}{worst}": worst for number in range(200)})
    source = page_of(storage, max_bytes=MIN_BYTES)
    assert len(source.encode()) <= MIN_BYTES
    assert "147 more settings in spec.json" in source
    assert all(meaning in html.unescape(source) for meaning in MEANING.values())


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


def test_run_without_renders_or_without_concepts_still_has_a_page(storage):
    publish(storage, [], [])
    text = " ".join(Page(page_of(storage)).text.split())
    assert "0 of 0 renders and 0 of 0 concepts are ready. Nothing went wrong." in text
    assert "This run made no render" in text
    storage.delete(table_path("concepts", DATE, RUN))
    assert "0 of 0 renders" in " ".join(Page(page_of(storage)).text.split())


def test_column_missing_from_an_older_file_reads_as_empty(storage):
    publish(storage, [concept(1, "mug-1")], [])
    older = pa.Table.from_pylist([concept(1, "mug-1")], schema=CONCEPTS).drop_columns(["loss", "batch"])
    buffer = io.BytesIO()
    pq.write_table(older, buffer)
    storage.write(table_path("concepts", DATE, RUN), buffer.getvalue())
    assert "mug-1" in page_of(storage)


def test_unknown_run_is_a_sentence(storage):
    small_run(storage)
    with pytest.raises(FileNotFoundError, match="run 'other' has published nothing under"):
        write_report(storage, "other")


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


def test_every_code_has_a_meaning():
    assert set(MEANING) == set(Code)


def test_extra_columns_may_bear_the_names_that_a_query_would_give_its_own(storage):
    names = ("total", "nth", "place", "value", "median")
    extra = dict.fromkeys(names, "theirs")
    uri = picture(storage, encoded("red"))
    ways = ("in the snow", "in space")
    renders = [
        render(row, index, ["mug-1"], uri, prompt=f"a {{mug-1}} {way}", **extra)
        for row, way in enumerate(ways, 1)
        for index in range(RENDERS_PER_CONCEPT)
    ]
    publish(storage, [concept(1, "mug-1", **extra)], renders, [pa.field(name, pa.string()) for name in names])
    page = page_of(storage)
    assert page.count("theirs") >= len(names)
    # Every prompt is shown before the second picture of any.
    assert all(page.count(way) > 1 for way in ways)
    assert page.count(ways[0]) == page.count(ways[1])
