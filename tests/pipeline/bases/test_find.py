"""Where a base model comes from, that it is copied once and whole, and what is refused."""

import hashlib
import json
import shutil

import fsspec
import pytest

from perfusion_ops.base.folder import BaseError
from perfusion_ops.families.stable_diffusion import STABLE_DIFFUSION
from perfusion_ops.mini import base_folder
from pipeline.bases.find import cache_folder, find_base

MEMORY = fsspec.filesystem("memory")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PERFUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path):
    """A copy of the embedded base that may be spoilt."""
    shutil.copytree(base_folder(), tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def bucket(folder, request):
    """The same under a URL of an object store."""
    root = f"/bases-{request.node.name}/sd"
    MEMORY.put(str(folder), root, recursive=True)
    yield f"memory:/{root}"
    MEMORY.rm(root.rsplit("/", 1)[0], recursive=True)


def test_mini_is_the_embedded_one():
    found = find_base("mini")
    assert (found.name, found.path) == ("mini", base_folder())
    assert len(found.digest) == 64


def test_a_folder_by_path_and_by_url_is_the_same_model(folder, monkeypatch):
    digest = find_base("mini").digest
    assert find_base(str(folder)).digest == digest
    assert find_base(f"file://{folder}").digest == digest
    monkeypatch.chdir(folder.parent)
    assert find_base("copy").path == folder
    monkeypatch.setenv("HOME", str(folder.parent))
    assert find_base("~/copy").digest == digest


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model.safetensors", "tokenizer/merges.txt", "perfusion.json"])
def test_whatever_decides_the_model_changes_its_digest(folder, part):
    before = find_base(str(folder)).digest
    (folder / part).write_bytes((folder / part).read_bytes() + b"\n")
    assert find_base(str(folder)).digest != before


def test_what_decides_nothing_does_not(folder):
    before = find_base(str(folder)).digest
    (folder / "README.md").write_text("hello")
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "config.json").write_text("{}")
    assert find_base(str(folder)).digest == before


def test_a_url_is_copied_once(bucket, cache):
    MEMORY.pipe_file(f"{MEMORY._strip_protocol(bucket)}/unet/pickled.bin", b"not taken")
    first = find_base(bucket)
    assert first.digest == find_base("mini").digest
    assert first.path.is_relative_to(cache)
    assert {path.suffix for path in first.path.rglob("*") if path.is_file()} == {".json", ".txt", ".safetensors", ""}
    assert not list(first.path.rglob("*.partial"))
    root = MEMORY._strip_protocol(bucket)
    kept = {name: MEMORY.cat_file(name) for name in MEMORY.find(root)}
    MEMORY.rm(root, recursive=True)
    try:
        assert find_base(bucket) == first
    finally:
        for name, data in kept.items():
            MEMORY.pipe_file(name, data)


def test_same_uri_at_another_endpoint_is_another_copy(bucket):
    plain = find_base(bucket)
    here, there = ({"memory": {"endpoint_url": f"http://{name}:9000"}} for name in ("here", "there"))
    assert find_base(bucket, here).path != plain.path
    assert find_base(bucket, here).path != find_base(bucket, there).path
    nested = {"client_kwargs": {"endpoint_url": "http://here:9000"}, "token": "secret"}
    assert (
        find_base(bucket, nested).path
        == find_base(bucket, {**nested, "token": "rotated"}).path
        == find_base(bucket, here).path
    )
    assert find_base(bucket, here).digest == plain.digest


def test_the_loras_of_a_url_are_copied_with_it(folder, bucket):
    settings = json.loads((folder / "perfusion.json").read_text())
    (folder / "perfusion.json").write_text(json.dumps({**settings, "loras": [{"file": "style.safetensors"}]}))
    (folder / "loras").mkdir()
    (folder / "loras/style.safetensors").write_bytes(len(b"{}").to_bytes(8, "little") + b"{}")
    root = MEMORY._strip_protocol(bucket)
    for name in ("perfusion.json", "loras/style.safetensors"):
        MEMORY.pipe_file(f"{root}/{name}", (folder / name).read_bytes())
    found = find_base(bucket)
    assert (found.path / "loras/style.safetensors").is_file()
    assert found.digest == find_base(str(folder)).digest


def test_a_copy_that_broke_off_is_made_whole(bucket, cache):
    target = cache / "bases" / hashlib.sha256(bucket.encode()).hexdigest()[:32]
    (target / "unet").mkdir(parents=True)
    (target / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"half")
    assert find_base(bucket).digest == find_base("mini").digest


def test_a_url_without_its_own_settings_is_a_plain_model(bucket):
    MEMORY.rm_file(f"{MEMORY._strip_protocol(bucket)}/perfusion.json")
    assert find_base(bucket).settings.training == {}


@pytest.mark.parametrize("source", ["memory://nothing/here", "nosuchscheme://bucket/model", "memory://"])
def test_url_that_cannot_be_copied_is_a_message(source):
    with pytest.raises(BaseError, match=rf"the base model {source} cannot be copied: .+") as caught:
        find_base(source)
    assert "\n" not in str(caught.value)


def test_hub_id_without_a_network_is_a_message(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        BaseError, match=r"'owner/name' is no local folder and cannot be downloaded from the hub: .+"
    ) as caught:
        find_base("owner/name")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["gone", "./gone/model", "/gone/model", "~/gone/model", "a/b/c", "file:///gone"])
def test_source_that_names_nothing_is_a_message(source):
    with pytest.raises(
        BaseError, match=r"there is no base model .*: give 'mini', a folder, an object-store URI or a hub"
    ):
        find_base(source)


def test_a_folder_that_is_no_model(folder):
    (folder / "model_index.json").unlink()
    with pytest.raises(
        BaseError, match=r"is not a base model: it has no model_index\.json; give a folder saved by diffusers"
    ):
        find_base(str(folder))


@pytest.mark.parametrize("text", ["", "[1]", "not json"])
def test_an_index_that_cannot_be_read(folder, text):
    (folder / "model_index.json").write_text(text)
    with pytest.raises(BaseError, match=r"model_index\.json"):
        find_base(str(folder))


def test_weights_that_can_run_code_are_not_read(folder):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(BaseError, match=r"unet has no .safetensors weights; other formats can run code"):
        find_base(str(folder))


def test_another_kind_of_pipeline_is_refused(folder):
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionPipeline", "FluxPipeline"))
    with pytest.raises(BaseError, match="holds a FluxPipeline; this version works with StableDiffusionPipeline"):
        find_base(str(folder))


@pytest.mark.parametrize("text", ["{}", '{"nam": 1}', '{"resolution": 4}', "not json"])
def test_a_model_s_own_settings_are_checked(folder, text):
    (folder / "perfusion.json").write_text(text)
    if text == "{}":
        assert find_base(str(folder)).settings.resolution is None
    else:
        with pytest.raises(BaseError, match=r"perfusion\.json is not usable"):
            find_base(str(folder))


def test_cache_is_the_user_s_own_unless_said_otherwise(monkeypatch, cache):
    assert cache_folder() == cache
    monkeypatch.delenv("PERFUSION_CACHE")
    monkeypatch.setenv("HOME", "/home/someone")
    assert str(cache_folder()) == "/home/someone/.cache/perfusion"


def test_every_part_is_there():
    assert {path.name for path in base_folder().iterdir() if path.is_dir()} == set(STABLE_DIFFUSION.parts)
