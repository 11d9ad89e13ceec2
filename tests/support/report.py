"""Published tables for reports: rows of concepts and renders, pictures, and the page as a browser sees it."""

import hashlib
import io
import json
from datetime import UTC, datetime
from html.parser import HTMLParser

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from pipeline.contract.errors import Code
from pipeline.contract.layout import image_path, table_path
from pipeline.contract.schemas import CONCEPTS, RENDERS
from pipeline.report.page import write_report
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
