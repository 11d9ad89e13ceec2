"""The guarantees of storage, and a whole run: on a real S3 server, and on Azure's and Google's emulators.

`make stores` installs the emulators and runs this.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from perfusion_ops.base.folder import BaseError
from perfusion_ops.mini import base_folder
from perfusion_ops.mini.world import grammar
from pipeline.bases.captions import captions_digest
from pipeline.bases.find import find_base
from pipeline.report.sheets import PictureReader
from pipeline.run import execute
from pipeline.storage.objects import MissingObjectError, Storage, StorageError
from pipeline.tables.views import query
from tests.support.runs import Engines, Silent, keep_metric, manifest, photo, run_settings
from tests.support.servers.emulators import azurite, google
from tests.support.servers.s3_server import s3_server
from tests.support.servers.storage_proxy import Road, storage_proxy
from tests.support.storage_contract import creates_only_what_is_not_there

_ROWS = "SELECT * EXCLUDE (run_id, worker, accelerator_s, finished_at, run_date) FROM {table} ORDER BY ALL"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def storage(server, request):
    return Storage(f"s3://shop/{request.node.name}", server.options)


@pytest.fixture(scope="module", params=["s3", "az", "gs"])
def any_server(request, tmp_path_factory):
    """Scheme, environment and log of a store."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "s3":
        yield "s3", request.getfixturevalue("server").environment, None
    else:
        with {"az": azurite, "gs": google}[request.param](folder) as environment:
            yield request.param, environment, folder / "log.txt"


@pytest.fixture
def store(any_server, request, monkeypatch):
    """As a user has it: the way there and the secrets are in the environment."""
    scheme, environment, _ = any_server
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return Storage(f"{scheme}://shop/{request.node.originalname}")


@pytest.fixture
def exclusive_store(store):
    if store.root.startswith("gs:"):
        pytest.skip("Google's emulator knows no preconditions")
    return store


def test_of_many_who_create_one_object_one_wins(exclusive_store):
    with ThreadPoolExecutor(16) as pool:
        won = list(
            pool.map(lambda name: exclusive_store.create("lease/1.json", name), [b"%02d" % n for n in range(16)])
        )
    assert won.count(True) == 1
    assert exclusive_store.read("lease/1.json") == b"%02d" % won.index(True)


def test_create_leaves_the_object_that_is_there(exclusive_store):
    creates_only_what_is_not_there(exclusive_store)


def test_google_is_asked_to_create_only_what_is_not_there(store, any_server):
    scheme, _, log = any_server
    if scheme != "gs":
        pytest.skip("the others are tried themselves")
    assert store.create("lease", b"1")
    assert "ifGenerationMatch=0" in log.read_text()


def test_objects_come_back_empty_ones_too(store):
    store.write("a/empty", b"")
    store.write("a/x", b"one")
    store.write("a/x", b"two!")
    assert store.read("a/empty") == b""
    assert store.read("a/x", max_bytes=4) == b"two!"
    assert store.size("a/x") == 4
    assert dict(store.list("a")) == {"a/empty": 0, "a/x": 4}
    assert list(store.list("elsewhere")) == []
    store.delete("a/x")
    store.delete("a/x")
    assert not store.exists("a/x")
    with pytest.raises(MissingObjectError, match=f"there is no {store.root}/a/x"):
        store.read("a/x")
    store.write("a/y", b"1234")
    with pytest.raises(StorageError, match="larger than the limit of 3 bytes"):
        store.read("a/y", max_bytes=3)
    assert store.read("a/empty", max_bytes=3) == b""


def test_an_object_in_many_parts_is_created_exclusively_as_well(exclusive_store):
    large = bytes(range(256)) * (60 << 12)
    assert len(large) > exclusive_store.filesystem.blocksize
    assert exclusive_store.create("large", large)
    assert not exclusive_store.create("large", large[::-1])
    assert exclusive_store.read("large") == large
    assert exclusive_store.size("large") == len(large)


def test_a_list_of_several_pages_is_whole(storage):
    # A page of S3 has at most 1,000 objects.
    names = {f"images/{number % 256:02x}/{number:05d}.png": number % 7 for number in range(2_500)}
    storage.filesystem.pipe({storage.full(name): bytes(size) for name, size in names.items()})
    assert dict(storage.list("images")) == names
    assert dict(storage.list("images/07")) == {name: size for name, size in names.items() if "/07/" in name}


def test_a_wrong_secret_is_a_message_that_does_not_contain_it(server):
    options = {"s3": {**server.options["s3"], "secret": "wrong-but-private"}}
    storage = Storage("s3://shop/x", options)
    for use in (lambda: storage.read("a"), lambda: list(storage.list()), lambda: storage.create("a", b"")):
        with pytest.raises(StorageError, match="permission denied") as caught:
            use()
        assert "check the folder's owner or the credentials" in str(caught.value)
        assert "private" not in str(caught.value)


def test_a_bucket_that_does_not_exist_is_a_message(store):
    elsewhere = Storage(store.root.replace("//shop/", "//elsewhere/"))
    for use in (lambda: elsewhere.write("a", b"1"), lambda: elsewhere.create("a", b"1")):
        with pytest.raises(
            StorageError, match=f"{elsewhere.root}/a: .*not exist; create it or correct the address"
        ) as caught:
            use()
        assert "\n" not in str(caught.value)


@pytest.fixture
def shop(tmp_path):
    """Two products and two prompts, three pictures in all."""
    kinds = {"a": "mug", "b": "bag"}
    rows = [{"concept_id": name, "superclass": kind, "images": [f"{name}.png"]} for name, kind in kinds.items()]
    for seed, row in enumerate(rows):
        photo(tmp_path / row["images"][0], seed=seed)
    manifest(tmp_path / "concepts.parquet", rows)
    manifest(tmp_path / "prompts.parquet", [{"prompt": "a {product} on the beach"}, {"prompt": "{a} next to {b}"}])
    return tmp_path


@pytest.mark.parametrize(
    "road",
    [Road(refused=0.05, broken=0.05, lost=0.2, late=0.02), Road(lag_s=30)],
    ids=["errors", "lag"],
)
def test_a_bad_road_to_storage_costs_time_and_nothing_else(server, storage, shop, road, monkeypatch):
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    keep_metric(storage)
    engines = Engines()
    with storage_proxy(server.endpoint, road) as endpoint:
        # After each lost answer the client waits out its time limit, which is 15 s by default.
        options = {"s3": {"endpoint_url": endpoint, "config_kwargs": {"read_timeout": 3}}}
        settings = run_settings(storage.root, shop, storage_options=options)
        result = execute(settings, make_engine=engines, observer=Silent())
    assert result.published is not None
    assert result.published.statuses == {"concepts": {"ok": 2}, "renders": {"ok": 3}}
    assert len(engines.keys) == 5
    for table in ("concepts", "renders"):
        for row in query(storage, f"FROM {table}").to_pylist():
            data = storage.read(row["uri"].removeprefix(f"{storage.root}/"))
            assert (row["sha256"], row["bytes"]) == (hashlib.sha256(data).hexdigest(), len(data))
    # Something did go wrong on the way.
    assert all(road.met[fate] for fate in ({"refused", "broken", "lost"} if road.lost else {"left out"})), road.met


def test_storage_options_reach_base_captions_and_photos(server, shop, monkeypatch):
    """The root is local; base model, captions and photos lie at an endpoint that only the spec names."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("PERFUSION_CACHE", str(shop / "cache"))
    there = Storage("s3://shop/inputs", server.options)
    there.filesystem.put(str(base_folder()), there.full("base"), recursive=True)
    there.write("captions.txt", "\n".join(grammar.captions(3000, 4)).encode())
    photos = {name: f"photos/{name}.png" for name in ("a", "b")}
    for name, path in photos.items():
        there.write(path, (shop / f"{name}.png").read_bytes())
        (shop / f"{name}.png").unlink()
    kinds = {"a": "mug", "b": "bag"}
    manifest(
        shop / "concepts.parquet",
        [{"concept_id": name, "superclass": kind, "images": [there.uri(photos[name])]} for name, kind in kinds.items()],
    )
    options = {"s3": {"endpoint_url": server.endpoint}}
    places = {"base": there.uri("base"), "metric": {"captions": 2000, "captions_uri": there.uri("captions.txt")}}
    settings = run_settings(shop / "root", shop, storage_options=options, **places)
    engines = Engines()
    result = execute(settings, make_engine=engines, observer=Silent())
    assert result.published is not None
    assert result.published.statuses == {"concepts": {"ok": 2}, "renders": {"ok": 3}}
    assert result.planned.checked.base.digest == find_base("mini").digest
    page = Path(result.report.removeprefix("file://")).read_text()
    # Two photos and two renders on the cards; one more render of both, with the photo of each.
    assert (page.count("data:image/webp;base64,"), "cannot be read" in page) == (7, False)
    again = execute(settings, make_engine=Engines(), observer=Silent())
    assert again.repeated

    nowhere = {"s3": {"endpoint_url": "http://127.0.0.1:1", "config_kwargs": {"retries": {"max_attempts": 0}}}}
    monkeypatch.setenv("PERFUSION_CACHE", str(shop / "other cache"))
    with pytest.raises(BaseError, match=r"s3://shop/inputs/base cannot be copied: cannot read .*connect"):
        execute(settings.model_copy(update={"storage_options": nowhere}), make_engine=Engines(), observer=Silent())
    with pytest.raises(StorageError, match=r"cannot read the captions file s3://shop/inputs/captions.txt .*connect"):
        captions_digest(settings.metric, nowhere)
    shown = PictureReader(Storage(str(shop / "root"), nowhere)).read(there.uri(photos["a"]))
    assert shown.src is None
    assert shown.note.startswith(
        "cannot read s3://shop/inputs/photos/a.png: EndpointConnectionError: Could not connect"
    )


def test_a_run_there_is_the_run_on_a_disk(store, shop):
    found = []
    for root in (str(shop / "root"), store.root):
        there = Storage(root)
        keep_metric(there)
        for expected in (5, 0):
            engines = Engines()
            result = execute(run_settings(root, shop), make_engine=engines, observer=Silent())
            assert result.published is not None
            assert result.published.statuses == {"concepts": {"ok": 2}, "renders": {"ok": 3}}
            assert len(engines.keys) == expected
            assert result.repeated == (expected == 0)
        rows = [query(there, _ROWS.format(table=table)).to_pylist() for table in ("concepts", "renders")]
        for row in (row for table in rows for row in table):
            data = there.read(row.pop("uri").removeprefix(f"{there.root}/"))
            assert (row["sha256"], row["bytes"]) == (hashlib.sha256(data).hexdigest(), len(data))
        found.append(rows)
    assert found[0] == found[1]
