"""Runs whose concepts start from a word embedding: trained from it, made again if it changes, refused if wrong."""

import hashlib

import pytest
import safetensors.torch
import torch

from perfusion_ops.base_model import load_base
from perfusion_ops.training.state import start
from pipeline.bases.find import find_base
from pipeline.contract.errors import Code, RowError
from pipeline.contract.units import InputImage
from pipeline.inputs.pictures import InputLimits
from pipeline.inputs.store import InputStore
from pipeline.storage.objects import Storage
from pipeline.worker.training_data import load_example
from tests.support.runs import concept
from tests.support.shop import CONCEPTS, check_accounts, go, open_shop, stock, tables

pytestmark = pytest.mark.timeout(300)
PROMPT = {"prompt": "a photo of a {product} on the beach", "seed": 1}


def embedding(seed=0, width=128):
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def shop(tmp_path):
    """Two rows of one product, one of which starts from a file."""
    open_shop(tmp_path)
    write(tmp_path)
    fill(tmp_path, start="mug.safetensors")
    return tmp_path


def write(folder, seed=0, width=128):
    safetensors.torch.save_file({"<mug>": embedding(seed, width)}, folder / "mug.safetensors")


def fill(folder, start):
    stock(folder, [CONCEPTS[0], {**CONCEPTS[0], "concept_id": "mug-2", "start": start}], [PROMPT])


def weights(root, row):
    return Storage(root).read(row["uri"].removeprefix(Storage(root).root + "/"))


def test_a_concept_from_a_start_is_another_one_and_the_rest_keeps_its_key(shop, tmp_path):
    root = str(tmp_path / "root")
    fill(shop, None)
    before, _ = go(root, shop)
    fill(shop, "mug.safetensors")
    result, _ = go(root, shop)
    check_accounts(root, result, concepts=2, prompts=1, pictures=2)
    plain, begun = tables(root, result.run_id)["concepts"]
    [one, other] = tables(root, before.run_id)["concepts"]
    assert one["concept_key"] == other["concept_key"] == plain["concept_key"] != begun["concept_key"]
    assert (plain["origin"], begun["origin"]) == ("reused", "trained")
    assert weights(root, plain) != weights(root, begun)
    first, second = tables(root, result.run_id)["renders"]
    assert first["sha256"] != second["sha256"]


def test_a_file_that_changed_is_trained_from_again_and_one_that_moved_is_not(shop, tmp_path):
    root = str(tmp_path / "root")
    go(root, shop)
    again, engines = go(root, shop)
    assert (again.repeated, engines.units) == (True, [])
    (shop / "mug.safetensors").rename(shop / "moved.pt")  # the content decides what a file is, not its name
    fill(shop, "moved.pt")
    moved, engines = go(root, shop)
    assert engines.units == []
    assert [row["origin"] for row in tables(root, moved.run_id)["concepts"]] == ["reused", "reused"]
    write(shop, seed=9)
    fill(shop, "mug.safetensors")
    changed, _ = go(root, shop)
    assert [row["origin"] for row in tables(root, changed.run_id)["concepts"]] == ["reused", "trained"]


def test_a_file_that_does_not_fit_fails_its_row_alone(shop, tmp_path):
    root = str(tmp_path / "root")
    write(shop, width=768)
    result, _ = go(root, shop)
    good, bad = tables(root, result.run_id)["concepts"]
    assert (good["status"], bad["status"]) == ("ok", "invalid")
    assert (bad["error_code"], bad["error_column"]) == ("bad_start", "start")
    assert "holds 768 numbers in '<mug>', and words of the base model have 128" in bad["error_message"]


# The worker


@pytest.fixture(scope="module")
def base():
    return load_base(find_base("mini"))


def task(folder, name, sha256=None):
    data = (folder / name).read_bytes()
    reference = InputImage(f"file://{folder}/{name}", sha256 or hashlib.sha256(data).hexdigest())
    found = concept(folder, "it")
    return type(found)(**{**vars(found), "start": reference})


def test_the_worker_s_word_starts_at_the_file_s_vector(base, tmp_path):
    write(tmp_path, seed=3)
    example = load_example(base, task(tmp_path, "mug.safetensors"), InputStore(InputLimits()))
    assert torch.equal(start(base, example).embedding.detach(), embedding(3))
    plain = load_example(base, concept(tmp_path, "it"), InputStore(InputLimits()))
    assert plain.start is None


def test_a_file_that_was_replaced_after_the_plan_is_an_error_of_its_row(base, tmp_path):
    write(tmp_path)
    with pytest.raises(RowError, match="run again to start from the new file") as error:
        load_example(base, task(tmp_path, "mug.safetensors", "0" * 64), InputStore(InputLimits()))
    assert (error.value.code, error.value.column) == (Code.IMAGE_CHANGED, "start")
    write(tmp_path, width=7)
    with pytest.raises(RowError, match="start: the file holds 7 numbers") as error:
        load_example(base, task(tmp_path, "mug.safetensors"), InputStore(InputLimits()))
    assert (error.value.code, error.value.column) == (Code.BAD_START, "start")
