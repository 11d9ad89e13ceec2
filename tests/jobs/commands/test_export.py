"""`perfusion export` finds concepts by id, key and file, writes their files, and says what it cannot do."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from jobs.spec import load_spec
from pipeline.run import execute
from tests.support.command import Shop, rows_of
from tests.support.runs import Engines, Silent


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A shop whose run has ended: two concepts of recipe `paper`, and one of recipe `offset`."""
    shop = Shop(tmp_path_factory.mktemp("trained"))
    concepts = [{**row, "train": None} for row in shop.concepts]
    concepts += [{**concepts[0], "concept_id": "shifted", "train": json.dumps({"recipe": "offset"})}]
    train = {"steps": 1, "batch": 1, "recipe": "paper"}
    result = execute(
        load_spec(shop.spec("paper", concepts=concepts, train=train)), make_engine=Engines(), observer=Silent()
    )
    assert result.published is not None
    shop.root = str(shop.folder / "results")
    return shop


def metadata(file):
    with safe_open(file, "pt") as found:
        return found.metadata()


def test_a_concept_of_a_root_by_its_id_and_by_its_key(trained, perfusion, tmp_path):
    mug = trained.concepts[0]["concept_id"]
    code, out, err = perfusion("export", mug, "--to", "lora", "--root", trained.root, "--out", tmp_path / "a")
    assert (code, err) == (0, "")
    lora = tmp_path / "a" / "lora" / f"{mug}.safetensors"
    assert out.splitlines()[0] == str(lora)
    assert "of the edit is missed at the concept's own token" in out
    found = metadata(lora)
    sql = f"SELECT concept_key AS k FROM concepts WHERE concept_id = '{mug}'"
    [key] = [json.loads(line)["k"] for line in rows_of(trained, perfusion, sql, "--json").splitlines()]
    assert found["perfusion.concept_key"] == key
    assert found["perfusion.bias"] == "0.7"  # of the embedded base
    words = ("export", key[:12], "--to", "lora", "--root", trained.root, "--bias", "0.5", "--json")
    code, out, _ = perfusion(*words, "--out", tmp_path / "b")
    assert code == 0
    done = json.loads(out)
    assert (done["bias"], done["temperature"]) == (0.5, 0.15)
    assert set(done["errors"]) == {"own", "others", "without", "empty"}
    assert metadata(tmp_path / "b" / "lora" / f"{mug}.safetensors")["perfusion.bias"] == "0.5"


def test_a_pair_to_every_program(trained, perfusion, tmp_path):
    ids = [row["concept_id"] for row in trained.concepts]
    name = "+".join(ids)
    for form, files in {
        "lora": [f"lora/{name}.safetensors", *(f"embeddings/{each}.safetensors" for each in ids)],
        "diffusers": ["pipeline.py", "concepts.safetensors"],
        "comfyui": [
            "custom_nodes/perfusion/__init__.py",
            f"custom_nodes/perfusion/concepts/{name}.safetensors",
            *(f"models/embeddings/{each}.safetensors" for each in ids),
        ],
    }.items():
        out = tmp_path / form
        code, _, err = perfusion("export", *ids, "--to", form, "--root", trained.root, "--out", out)
        assert (code, err) == (0, "")
        assert sorted(str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()) == sorted(files)


def test_a_concept_file_with_its_metric(trained, perfusion, tmp_path):
    [file, *_] = sorted(Path(trained.root, "weights").rglob("*.safetensors"))
    [metric] = sorted(Path(trained.root, "metrics").rglob("*.safetensors"))
    copied = tmp_path / "my mug.safetensors"
    shutil.copy(file, copied)
    code, _, err = perfusion("export", copied, "--to", "diffusers", "--out", tmp_path / "out")
    assert code == 1
    assert "another metric" in err
    words = ("export", copied, "--to", "comfyui", "--metric", metric, "--out", tmp_path / "out")
    code, _, err = perfusion(*words)
    assert (code, err) == (0, "")
    assert set(load_file(tmp_path / "out" / "models" / "embeddings" / "my-mug.safetensors")) == {"emb_params"}


def test_what_is_not_there_and_what_cannot_be_exported(trained, perfusion, tmp_path):
    def message(*words):
        code, _, err = perfusion("export", *words, "--out", tmp_path / "out")
        assert code == 2
        return err

    assert "no finished run under" in message("nothing", "--to", "lora", "--root", trained.root)
    assert "no finished run under" in message("%", "--to", "lora", "--root", trained.root)
    assert "there is no concept file nothing" in message("nothing", "--to", "lora")
    assert "there is no folder" in message("a", "--to", "lora", "--root", tmp_path / "nowhere")
    assert "shifted has the recipe 'offset'" in message("shifted", "--to", "lora", "--root", trained.root)
    assert not (tmp_path / "out").exists()
    assert "Invalid value" in message("shifted", "--to", "pickle", "--root", trained.root)
