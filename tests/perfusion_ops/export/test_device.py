"""ONNX graphs and the host script draw the pictures that this program draws."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from perfusion_ops.concept import GatedConcept
from perfusion_ops.conditioning import PromptRow
from perfusion_ops.export.device.concept_file import device_concept
from perfusion_ops.export.device.graphs import graphs
from perfusion_ops.export.device.host import host_files
from perfusion_ops.export.lora import ExportError
from perfusion_ops.rendering import RenderRow, Sampler, render
from tests.support.tiny_base import random_metric, small_base
from tests.support.tiny_xl import xl_base

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def metric():
    return random_metric(24)


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def folder(request, tmp_path_factory):
    base = small_base(prediction=request.param)
    path = tmp_path_factory.mktemp("device")
    for name, data in {**graphs(base), **host_files(base)}.items():
        (path / name).write_bytes(data)
    # The graphs are made of the base model itself, which must still draw.
    return path, small_base(prediction=request.param)


def concept(base, metric, gate="sigmoid", text_digest=""):
    g = torch.Generator().manual_seed(1)
    inputs = [torch.randn(24, generator=g).half().float() for _ in range(3)]
    values = torch.randn(base.stack.key_rows, generator=g)
    return GatedConcept(
        "mug", *inputs, values, None, "local", base.folder.digest, metric.digest, text_digest=text_digest, gate=gate
    )


@pytest.mark.parametrize("gate", ["sigmoid", "linear"])
def test_the_host_script_draws_the_same_picture(folder, metric, tmp_path, gate):
    path, base = folder
    one = concept(base, metric, gate)
    row = PromptRow("a photo of a {0} in the snow", (one,), (0.6,), (0.15,))
    plain = PromptRow("a photo of a mug in the snow")
    # The small base's picture is 16 x 16, of latents of 8 x 8.
    wanted, without = (
        render(base, metric, [RenderRow(each, PromptRow(""), 7)], Sampler(16, 16, 4, 4.0, "ddim"))[0]
        for each in (row, plain)
    )
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    np.save(tmp_path / "noise.npy", noise[0].numpy())
    (tmp_path / "mug.safetensors").write_bytes(device_concept(base, metric, one, bias=0.6, temperature=0.15))
    words = [sys.executable, str(path / "draw.py"), "a photo of a {} in the snow", str(tmp_path / "mug.safetensors")]
    words += ["--noise", str(tmp_path / "noise.npy"), "--steps", "4", "--guidance", "4"]
    done = subprocess.run(
        [*words, "--out", str(tmp_path / "mug.png")], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    found = np.asarray(Image.open(tmp_path / "mug.png")).astype(int)
    assert abs(found - wanted.astype(int)).mean() <= 1
    assert abs(without.astype(int) - wanted.astype(int)).mean() > 2


@pytest.mark.parametrize(
    ("digest", "prompt", "message"),
    [("e" * 64, "a {}", "another base model"), ("d" * 64, "a {}" + " beach" * 40, "44 tokens, the model reads 32")],
)
def test_the_host_script_says_what_is_wrong(folder, metric, tmp_path, digest, prompt, message):
    path, base = folder
    other = dataclasses.replace(base, folder=dataclasses.replace(base.folder, digest=digest))
    file = device_concept(other, metric, concept(other, metric), bias=0.6, temperature=0.15)
    (tmp_path / "mug.safetensors").write_bytes(file)
    words = [sys.executable, str(path / "draw.py"), prompt, str(tmp_path / "mug.safetensors")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_concept_in_flash_takes_20_kilobytes_on_stable_diffusion_15(metric):
    base = small_base()
    one = concept(base, metric)
    extra = 3 * 2 * (768 - 24) + 4 * (768 - 24) + (12_480 - base.stack.key_rows) * (1 + 2 / 128)
    assert len(device_concept(base, metric, one, bias=0.6, temperature=0.15)) + extra < 21_000


def test_families_with_several_text_encoders_are_refused(tmp_path):
    with pytest.raises(ExportError, match="not of SDXL"):
        graphs(xl_base(tmp_path))
