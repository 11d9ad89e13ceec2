"""Where a ControlNet comes from, that it is copied whole, and what is refused."""

import fsspec
import pytest
from diffusers import ControlNetModel

from perfusion_ops.base.folder import BaseError, describe
from pipeline.bases.controls import find_control, find_controls
from tests.support.tiny_base import small_parts
from tests.support.tiny_control import control_folder, sd_folder

MEMORY = fsspec.filesystem("memory")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PERFUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return describe(sd_folder(tmp_path_factory.mktemp("base") / "sd"))


@pytest.fixture
def net(tmp_path):
    return control_folder(tmp_path / "canny", small_parts()["unet"])


@pytest.fixture
def bucket(request):
    root = f"/controls-{request.node.name}"
    MEMORY.mkdirs(root)
    yield root
    MEMORY.rm(root, recursive=True)


def test_a_folder_by_path_and_by_url_is_the_same(net, base, monkeypatch):
    digest = find_control(str(net), base).digest
    assert find_control(f"file://{net}", base).digest == digest
    monkeypatch.chdir(net.parent)
    assert find_control("canny", base).path == net
    monkeypatch.setenv("HOME", str(net.parent))
    assert find_control("~/canny", base).digest == digest


def test_an_object_store_is_copied_once_and_only_what_is_loaded(net, base, bucket, cache):
    (net / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"another precision")
    (net / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    MEMORY.put(str(net), f"{bucket}/canny", recursive=True)
    found = find_control(f"memory:/{bucket}/canny", base)
    assert found.digest == find_control(str(net), base).digest
    assert found.path.is_relative_to(cache)
    names = {file.name for file in found.path.iterdir()}
    assert names == {"config.json", "diffusion_pytorch_model.safetensors", ".complete"}
    MEMORY.rm(f"{bucket}/canny/config.json")
    assert find_control(f"memory:/{bucket}/canny", base) == found


def test_a_copy_without_weights_is_tried_again(net, base, bucket):
    MEMORY.put(str(net / "config.json"), f"{bucket}/canny/config.json")
    with pytest.raises(BaseError, match="cannot be copied"):
        find_control(f"memory:/{bucket}/canny", base)
    name = "diffusion_pytorch_model.safetensors"
    MEMORY.put(str(net / name), f"{bucket}/canny/{name}")
    assert find_control(f"memory:/{bucket}/canny", base).digest == find_control(str(net), base).digest


def test_weights_in_several_files_are_copied(net, base, bucket):
    model = ControlNetModel.from_pretrained(net)
    (net / "diffusion_pytorch_model.safetensors").unlink()
    model.save_pretrained(net, max_shard_size="50KB")
    MEMORY.put(str(net), f"{bucket}/canny", recursive=True)
    assert find_control(f"memory:/{bucket}/canny", base).digest == find_control(str(net), base).digest


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nowhere", "there is no ControlNet 'nowhere': give a folder, an object-store URI or a hub id"),
        ("s3:/bucket/x", "there is no ControlNet 's3:/bucket/x': "),
        ("owner/name", "the ControlNet 'owner/name' is no local folder and cannot be downloaded from the hub"),
        ("memory://no-such-bucket/x", "the ControlNet memory://no-such-bucket/x cannot be copied: "),
    ],
)
def test_what_is_not_there_is_refused_with_its_name(base, place, message):
    with pytest.raises(BaseError) as error:
        find_controls({"pose": place}, base)
    assert str(error.value).startswith("controls.pose: ")
    assert message in str(error.value)
