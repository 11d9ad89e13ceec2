"""Extra columns: carried with types of their own, from files and from partition folders."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.contract.errors import ManifestError
from pipeline.database.plandb import EXTRA_ROW
from pipeline.manifest.prompts import load_prompts
from tests.support.manifests import concepts, rows, write_parquet


def test_text_columns_get_the_type_that_all_their_values_have(db, tmp_path):
    path = tmp_path / "p.csv"
    path.write_text(
        "prompt,n,x,b,sku,mixed,none,big\n"
        "{product},1,1.5,true,01,1,,99999999999999999999\n"
        "{product},-20,2.0,false,2,a,,1\n"
    )
    load_prompts(db, str(path))
    types = dict(
        db.connection.execute(
            "SELECT column_name, data_type FROM information_schema.columns WHERE table_name = 'prompts_extra'"
        ).fetchall()
    )
    assert types == {
        EXTRA_ROW: "BIGINT",
        "n": "BIGINT",
        "x": "DOUBLE",
        "b": "BOOLEAN",
        "sku": "VARCHAR",
        "mixed": "VARCHAR",
        "none": "VARCHAR",
        "big": "VARCHAR",
    }


def test_train_as_a_struct_and_columns_of_any_type_are_carried_through(db, photos, tmp_path):
    table = pa.table(
        {
            "concept_id": ["a", "b"],
            "superclass": pa.array(["mug", "mug"]).dictionary_encode(),
            "images": pa.array(["photos/0.png", "photos/1.jpg"], pa.large_string()),
            "train": pa.array([{"steps": 5, "bias": None}, {"steps": None, "bias": None}]),
            "tags": [["x", "y"], []],
            "price": pa.array([1.25, None]),
            'od"d name': [1, 2],
        }
    )
    pq.write_table(table, tmp_path / "c.parquet")
    concepts(db, tmp_path / "c.parquet", tmp_path)
    found = rows(db, "concepts")
    assert [(row["error_code"], row["train"]) for row in found] == [(None, '{"steps": 5}'), (None, None)]
    assert rows(db, "concepts_extra") == [
        {"row": 1, "tags": ["x", "y"], "price": 1.25, 'od"d name': 1},
        {"row": 2, "tags": [], "price": None, 'od"d name': 2},
    ]


@pytest.mark.parametrize("uri", ["p", "p/season=*/*/*.parquet"])
def test_folders_named_like_columns_give_columns(db, uri, tmp_path):
    for season, year in (("SS26", 2026), ("a%20b", 2025), ("__HIVE_DEFAULT_PARTITION__", 2024)):
        folder = tmp_path / "x=1" / "p" / f"season={season}" / f"year={year}"
        folder.mkdir(parents=True)
        write_parquet(folder / "0.parquet", prompt=["{product}"], brand=["b"])
    load_prompts(db, str(tmp_path / "x=1" / uri))
    assert rows(db, "prompts_extra") == [
        {"row": 1, "brand": "b", "season": "SS26", "year": 2026},
        {"row": 2, "brand": "b", "season": None, "year": 2024},
        {"row": 3, "brand": "b", "season": "a b", "year": 2025},
    ]


def test_a_folder_may_not_name_a_column_that_the_files_have(db, tmp_path):
    (tmp_path / "p" / "brand=x").mkdir(parents=True)
    write_parquet(tmp_path / "p" / "brand=x" / "0.parquet", prompt=["{product}"], brand=["b"])
    with pytest.raises(ManifestError, match=r"has the column 'brand' more than once"):
        load_prompts(db, str(tmp_path / "p"))
