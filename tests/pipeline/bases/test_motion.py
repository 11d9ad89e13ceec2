"""Motion adapters: where they come from, what their identity is, and which runs are refused before they start."""

import json
import shutil

import fsspec
import pytest

from perfusion_ops.base.folder import BaseError, describe
from perfusion_ops.base.motion import check_motion, describe_motion
from perfusion_ops.config import SamplingConfig
from pipeline.bases.find import cache_folder, find_base
from pipeline.bases.motion import check_task, find_motion
from tests.support.tiny_inpaint import inpaint_folder
from tests.support.tiny_motion import adapter, video_folders
from tests.support.tiny_pixart import pixart_folder

MEMORY = fsspec.filesystem("memory")
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PERFUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return video_folders(tmp_path_factory.mktemp("motion"))


@pytest.fixture
def motion(made, tmp_path):
    """A copy that may be spoilt."""
    shutil.copytree(made / "motion", tmp_path / "motion")
    return tmp_path / "motion"


def edit(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_a_folder_says_what_it_is(motion):
    found = find_motion(str(motion))
    assert (found.path, found.name, found.most_frames, found.blocks) == (motion, "motion", 32, (16, 32))
    assert found.schedule == {}
    assert len(found.digest) == 64
    assert find_motion(f"file://{motion}") == found


def test_whatever_decides_what_is_drawn_changes_its_digest_and_nothing_else_does(motion, tmp_path):
    digests = [find_motion(str(motion)).digest]
    (motion / "README.md").write_text("hello")
    (motion / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"another precision")
    (motion / "diffusion_pytorch_model.bin").write_bytes(b"code")
    shutil.copytree(motion, tmp_path / "moved")
    assert find_motion(str(motion)).digest == find_motion(str(tmp_path / "moved")).digest == digests[0]
    (motion / WEIGHTS).write_bytes((motion / WEIGHTS).read_bytes() + b"\n")
    digests.append(find_motion(str(motion)).digest)
    edit(motion / "config.json", motion_max_seq_length=24)
    digests.append(find_motion(str(motion)).digest)
    (motion / "scheduler").mkdir()
    (motion / "scheduler" / "scheduler_config.json").write_text('{"beta_schedule": "linear"}')
    found = find_motion(str(motion))
    assert len({*digests, found.digest}) == 4
    assert (found.most_frames, found.schedule) == (24, {"beta_schedule": "linear"})


def test_weights_in_several_files_are_all_of_the_digest(tmp_path):
    adapter().save_pretrained(tmp_path / "motion", max_shard_size="20KB")
    parts = sorted(file.name for file in (tmp_path / "motion").glob("*.safetensors"))
    assert len(parts) > 1
    digests = {find_motion(str(tmp_path / "motion")).digest}
    for name in (*parts, "diffusion_pytorch_model.safetensors.index.json"):
        file = tmp_path / "motion" / name
        file.write_bytes(file.read_bytes() + b" ")
        digests.add(find_motion(str(tmp_path / "motion")).digest)
    assert len(digests) == len(parts) + 2


def test_a_url_is_copied_once(motion):
    (motion / "scheduler").mkdir()
    (motion / "scheduler" / "scheduler_config.json").write_text('{"beta_schedule": "linear"}')
    (motion / "pickled.bin").write_bytes(b"not taken")
    MEMORY.put(str(motion), "/motion-adapters/one", recursive=True)
    found = find_motion("memory://motion-adapters/one")
    assert found.digest == find_motion(str(motion)).digest
    assert found.path.is_relative_to(cache_folder())
    names = {file.relative_to(found.path).as_posix() for file in found.path.rglob("*") if file.is_file()}
    assert names == {"config.json", WEIGHTS, "scheduler/scheduler_config.json", ".complete"}
    MEMORY.rm("/motion-adapters", recursive=True)
    assert find_motion("memory://motion-adapters/one") == found


def test_what_is_no_motion_adapter_is_refused_with_the_reason(motion, made, tmp_path):
    for source, message in (
        (str(tmp_path / "nowhere"), "there is no motion adapter"),
        ("nobody/nothing", "is no local folder and cannot be downloaded from the hub"),
        ("s3:/bucket/motion", "there is no motion adapter 's3:/bucket/motion'"),
        (str(made / "base"), "it has no config.json"),
        (str(made / "base" / "unet"), "holds a UNet2DConditionModel"),
    ):
        with pytest.raises(BaseError) as caught:
            find_motion(source)
        assert message in str(caught.value)
    edit(motion / "config.json", conv_in_channels=9)
    with pytest.raises(BaseError, match="takes pictures beside the prompt"):
        find_motion(str(motion))
    edit(motion / "config.json", conv_in_channels=None)
    (motion / WEIGHTS).rename(motion / "diffusion_pytorch_model.bin")
    with pytest.raises(BaseError, match=r"no .safetensors weights"):
        find_motion(str(motion))
    (motion / "config.json").write_text("{")
    with pytest.raises(BaseError, match=r"config.json is damaged"):
        find_motion(str(motion))


def test_an_adapter_of_another_family_is_refused(made, tmp_path):
    base = describe(made / "base")
    check_motion(describe_motion(made / "motion"), base)
    adapter(block_out_channels=(16, 32, 32)).save_pretrained(tmp_path / "other")
    with pytest.raises(BaseError, match="its blocks have 16, 32, 32 channels, and those of the denoiser 16, 32;"):
        check_motion(describe_motion(tmp_path / "other"), base)
    pixart_folder(tmp_path / "pixart")
    with pytest.raises(BaseError, match=r"works with SD 1\.x, and pixart is of the family PixArt-Sigma"):
        check_motion(describe_motion(made / "motion"), describe(tmp_path / "pixart"))
    inpaint_folder(tmp_path / "inpaint")
    with pytest.raises(BaseError, match="is a model for inpainting"):
        check_motion(describe_motion(made / "motion"), describe(tmp_path / "inpaint"))


def test_settings_that_contradict_each_other_are_refused(made):
    base, motion = find_base(str(made / "base")), find_motion(str(made / "motion"))

    def refusal(with_motion, **given):
        with pytest.raises(BaseError) as caught:
            check_task(SamplingConfig.model_validate(given), given, motion if with_motion else None, base)
        return str(caught.value)

    check_task(SamplingConfig(), {}, None, base)
    check_task(SamplingConfig(frames=24, fps=12), {}, None, base)  # defaults of a base model
    for given in ({"task": "video"}, {"task": "video", "frames": 32, "fps": 60, "format": "mp4"}):
        check_task(SamplingConfig.model_validate(given), given, motion, base)
    assert "the spec has no motion: set motion" in refusal(False, task="video")
    assert "set render.task to 'video', or leave motion out" in refusal(True)
    assert "render.frames is 24 and render.task 'picture'" in refusal(False, frames=24)
    assert "render.fps is 8 and render.task 'picture'" in refusal(False, fps=8)
    assert "draws at most 32 frames" in refusal(True, task="video", frames=33)
    assert "guidance_rescale is 0.7, which videos do not have" in refusal(True, task="video", guidance_rescale=0.7)


def test_the_format_holds_the_task():
    assert SamplingConfig(task="video").format == "webp"
    assert SamplingConfig(task="video", webp_quality=80).webp_quality == 80
    assert SamplingConfig.model_validate({"task": "video", "format": "mp4"}).format == "mp4"
    assert SamplingConfig().format == "png"
    for given, message in (
        ({"task": "video", "format": "png"}, "set format to 'webp' or 'mp4'"),
        ({"format": "mp4"}, "set task to 'video'"),
        ({"task": "video", "format": "mp4", "webp_quality": 80}, "webp_quality is 80 and format 'mp4'"),
        ({"task": "video", "frames": 1}, "greater than or equal to 2"),
        ({"task": "video", "fps": 61}, "less than or equal to 60"),
    ):
        with pytest.raises(ValueError, match=message):
            SamplingConfig.model_validate(given)
