"""Names: as the naming specification has them, stable, and without secrets."""

import uuid

import pytest

from jobs.lineage.naming import PACKAGE, DatasetName, attempt_id, base_name, dataset_name, job_name


@pytest.mark.parametrize(
    ("uri", "account", "expected"),
    [
        ("/data/a.parquet", None, ("file", "/data/a.parquet")),
        ("file:///data/../data/a.csv", None, ("file", "/data/a.csv")),
        ("s3://bucket/shop/a.parquet", None, ("s3://bucket", "shop/a.parquet")),
        ("gs://bucket/shop/", None, ("gs://bucket", "shop")),
        ("s3://bucket", None, ("s3://bucket", "/")),
        ("az://box/shop/a.csv", "store", ("abfss://box@store.dfs.core.windows.net", "shop/a.csv")),
        ("az://box@store.dfs.core.windows.net/a", None, ("abfss://box@store.dfs.core.windows.net", "a")),
        ("az://box/a", None, ("az://box", "a")),
        ("memory://box/a", None, ("memory", "box/a")),
        ("https://host:8443/a.csv?sig=secret", None, ("https://host:8443", "a.csv")),
        ("https://me:secret@host/a.csv#x", None, ("https://host", "a.csv")),
        ("s3://bucket/in/*.parquet", None, ("s3://bucket", "in")),
        ("s3://bucket/in/season=*/part-?.parquet", None, ("s3://bucket", "in")),
        ("/data/[ab].csv", None, ("file", "/data")),
        ("s3://bucket/*.csv", None, ("s3://bucket", "/")),
    ],
)
def test_data_sets(uri, account, expected):
    assert dataset_name(uri, account) == DatasetName(*expected)


def test_a_relative_path_is_made_absolute(tmp_path):  # the current folder is tmp_path
    assert dataset_name("a.csv") == DatasetName("file", str(tmp_path / "a.csv"))


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("mini", (PACKAGE, "mini")),
        ("/models/sd", ("file", "/models/sd")),
        ("s3://bucket/models/sd", ("s3://bucket", "models/sd")),
        ("owner/name", ("hf", "owner/name")),
    ],
)
def test_base_models(base, expected):
    assert base_name(base) == DatasetName(*expected)


@pytest.mark.parametrize(
    ("root", "expected"),
    [
        ("s3://bucket/campaign", "bucket/campaign"),
        ("s3://bucket", "bucket"),
        ("/data/results", "data/results"),
        ("memory://box/x", "box/x"),
    ],
)
def test_a_job_is_named_by_its_root(root, expected):
    assert job_name(root) == expected


def test_the_id_of_an_attempt_depends_on_root_run_and_lease_alone():
    first = attempt_id("s3://bucket/campaign", "run-0123456789ab-0001", 1)
    uri = "s3://bucket/campaign/runs/run-0123456789ab-0001/lease/1.json"
    assert first == str(uuid.uuid5(uuid.NAMESPACE_URL, uri))
    others = {
        attempt_id("s3://bucket/campaign", "run-0123456789ab-0001", 2),
        attempt_id("s3://bucket/campaign", "run-0123456789ab-0002", 1),
        attempt_id("s3://bucket/other", "run-0123456789ab-0001", 1),
    }
    assert len({first, *others}) == 4
