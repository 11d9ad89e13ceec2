"""Local photos and a local root are refused before a run on a cluster, unless all nodes mount the same folders."""

import sys
from pathlib import Path

import pytest

from jobs import cli
from jobs.spec import dump_spec
from pipeline.contract.errors import ManifestError
from pipeline.database.plandb import PlanDB
from pipeline.prepare import check
from pipeline.storage.objects import Storage
from tests.support.runs import METRIC, Silent, run_settings
from tests.support.shop import CONCEPTS, stock

PHOTOS = "3 photos or masks are on this machine's disk, such as "


def checked(root, shop, **cluster):
    settings = run_settings(root, shop, cluster=cluster)
    with PlanDB(memory_limit="200MB", threads=1) as db:
        return check(db, Storage(settings.root), settings, Silent())


def refusal(root, shop, **cluster):
    with pytest.raises(ManifestError) as caught:
        checked(root, shop, **cluster)
    return str(caught.value).splitlines()


@pytest.fixture
def validate(monkeypatch, capsys):
    """Run `perfusion validate` in this process: (exit code, stdout, stderr)."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["perfusion", "validate", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        found = capsys.readouterr()
        return ended.value.code or 0, found.out, found.err

    return call


@pytest.mark.parametrize("address", ["auto", "10.0.0.5:6379"])
def test_a_cluster_cannot_read_local_photos(shop, tmp_path, address):
    found = refusal(str(tmp_path / "root"), shop, address=address)
    assert len(found) == 2
    assert found[0].startswith(f"root is {tmp_path / 'root'}, which is on this machine's disk: ")
    assert found[1].startswith(f"{PHOTOS}{shop / 'bag-1.png'}: ")
    [line] = refusal("memory://prepare-photos", shop, address=address)
    assert line.startswith(PHOTOS)
    assert "set cluster.shared_filesystem to true" in line


def test_every_node_looks_for_shared_files(shop, tmp_path):
    root = str(tmp_path / "root")
    plain = checked(root, shop)
    found = checked(root, shop, address="auto", shared_filesystem=True)
    assert found.worker.local_files == (str(shop / "bag-1.png"), root)
    assert (found.digest, found.content) == (plain.digest, plain.content), "where a run works is no part of its id"


@pytest.mark.parametrize("cluster", [{}, {"address": "local"}, {"shared_filesystem": True}])
def test_this_machine_reads_its_own_files(shop, tmp_path, cluster):
    assert checked(str(tmp_path / "root"), shop, **cluster).worker.local_files == ()


def test_local_captions_are_refused_too(shop):
    (shop / "captions.txt").write_text("a photo of a mug\n" * 500)
    metric = METRIC.model_copy(update={"captions_uri": str(shop / "captions.txt"), "captions": 400})
    settings = run_settings("memory://prepare-captions", shop, metric=metric.model_dump(), cluster={"address": "auto"})
    with PlanDB(memory_limit="200MB", threads=1) as db, pytest.raises(ManifestError) as caught:
        check(db, Storage(settings.root), settings, Silent())
    assert f"metric.captions_uri is {shop / 'captions.txt'}, which is on this machine's disk: " in str(caught.value)


def test_photos_in_an_object_store_pass(shop):
    store = Storage("memory://prepare-store")
    for row in CONCEPTS:
        store.write(row["images"][0], (shop / row["images"][0]).read_bytes())
    stock(shop, [{**row, "images": [f"{store.root}/{row['images'][0]}"]} for row in CONCEPTS])
    assert checked("memory://prepare-root", shop, address="auto").worker.local_files == ()


def test_validate_on_a_cluster(shop, validate, monkeypatch):
    spec = Path(shop) / "spec.yaml"
    values = {"root": "results", "concepts": "concepts.parquet", "prompts": "prompts.parquet"}
    spec.write_text(dump_spec({**values, "engine": {"plan_memory": "200MB", "threads": 2}}))
    assert validate(str(spec))[0] == 0
    code, out, err = validate(str(spec), "--address", "auto")
    assert (code, out) == (2, "")
    assert f"{PHOTOS}{shop / 'bag-1.png'}" in err
    assert f"root is {shop / 'results'}, which is on this machine's disk" in err
    assert validate(str(spec), "--set", "cluster.address=auto")[0] == 2
    assert validate(str(spec), "--address", "auto", "--set", "cluster.shared_filesystem=true")[0] == 0
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.5:6379")
    assert validate(str(spec))[0] == 2
    assert validate(str(spec), "--address", "local")[0] == 0
