"""Exports of three shop systems become runs by the statements that docs/manifests.md shows, as they stand there."""

import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from pipeline.storage.objects import Storage
from tests.support.runs import keep_metric, manifest, photo
from tests.support.shop import go, tables

HERE = Path(__file__).parents[2]
EXPORTS = HERE / "tests" / "files" / "exports"
TEXT = (HERE / "docs" / "manifests.md").read_text()
STATEMENTS = {
    re.search(r"read_csv\('([^']+)'", block)[1]: block
    for block in re.findall(r"```sql\n(.*?)```", TEXT, re.DOTALL)
    if "read_csv(" in block
}
CDN = "https://cdn.example.com/"
PHOTOS = ("mug-front", "mug-side", "mug-top", "tote")

# Of each export: the folder of its photos, and the rows: id, superclass, photos in their order, an extra column.
EXPECTED = {
    "shopify-products.csv": (
        "files",
        [
            ("blue-enamel-mug", "Mug", ["mug-front", "mug-top", "mug-side"], ("skus", ["00042", "00043"])),
            ("canvas-tote", "Bag", ["tote"], ("skus", ["1E10"])),
        ],
    ),
    "woocommerce-products.csv": (
        "wp-content/uploads/2026/03",
        [
            ("44", "Mug", ["mug-front", "mug-top"], ("sku", "0044")),
            ("45", "Bag", ["tote"], ("sku", "TOTE-1.10")),
        ],
    ),
    "google-merchant-feed.tsv": (
        "feed",
        [
            ("00042", "Mug", ["mug-front", "mug-side", "mug-top"], ("price", "12.00 USD")),
            ("1E10", "Bag", ["tote"], ("title", 'Canvas Tote, 12" handles')),
        ],
    ),
}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path):
    """Photos behind a web server on this machine; returns its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "served")) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_each_export_has_a_statement_and_the_document_allows_its_photos():
    assert sorted(STATEMENTS) == sorted(EXPECTED) == sorted(path.name for path in EXPORTS.iterdir())
    assert f"inputs:\n  allow: [{CDN}]\n" in TEXT
    assert all(CDN in path.read_text(encoding="utf-8") for path in EXPORTS.iterdir())


@pytest.mark.parametrize("name", list(EXPECTED))
def test_an_export_becomes_a_run(name, server, tmp_path, monkeypatch):
    folder, expected = EXPECTED[name]
    for number, each in enumerate(PHOTOS):
        photo(tmp_path / "served" / folder / f"{each}.png", seed=number)
    text = (EXPORTS / name).read_bytes()
    (tmp_path / name).write_bytes(text.replace(CDN.encode(), server.encode()))
    monkeypatch.chdir(tmp_path)
    duckdb.connect().execute(STATEMENTS[name])
    rows = pq.read_table("concepts.parquet").to_pylist()
    assert [row["concept_id"] for row in rows] == [row[0] for row in expected]
    for row, (_, _, photos, _) in zip(rows, expected, strict=True):
        paths = [address.removeprefix(f"{server}{folder}/").partition("?")[0] for address in row["images"]]
        assert paths == [f"{each}.png" for each in photos]

    manifest("prompts.parquet", [{"prompt": "a photo of a {product} on the beach"}])
    root = str(tmp_path / "root")
    keep_metric(Storage(root))
    result, _ = go(root, tmp_path, inputs={"allow": [server]})
    assert result.published.statuses == {"concepts": {"ok": 2}, "renders": {"ok": 2}}
    found = tables(root, result.run_id)
    for table in ("concepts", "renders"):
        by_id = {row["concept_id"]: row for row in found[table]}
        assert list(by_id) == [row[0] for row in expected]
        assert [by_id[concept_id][column] for concept_id, _, _, (column, _) in expected] == [
            value for *_, (_, value) in expected
        ]
    assert [(row["superclass"], row["images"]) for row in found["concepts"]] == [
        (superclass, len(photos)) for _, superclass, photos, _ in expected
    ]
