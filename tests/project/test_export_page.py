"""The code of docs/export.md runs as it stands on the files that `perfusion export` writes."""

import re
from pathlib import Path

from PIL import Image

from jobs.export import Chosen, write
from perfusion_ops.api.bases import load_base
from perfusion_ops.api.metrics import load_metric
from perfusion_ops.config import SamplingConfig
from perfusion_ops.export.form import Form
from perfusion_ops.mini import metric_file
from tests.support.exports import word_concept

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def test_the_page_draws_the_concept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    base = load_base("mini")
    metric = load_metric(base, metric_file())
    sampling = SamplingConfig.model_validate(base.folder.settings.sampling)
    chosen = Chosen((word_concept(base, metric, "mug", 0),), ("mug-00001",), ("",), base, metric, sampling)
    for form, out in ((Form.LORA, "export"), (Form.DIFFUSERS, "exact")):
        write(chosen, form, out, bias=None, temperature=None)
    pictures = []
    for block in BLOCKS:
        names = {}
        exec(compile(block, "docs/export.md", "exec"), names)
        pictures.append(names["picture"])
    assert len(pictures) == 2
    assert all(isinstance(picture, Image.Image) and picture.size == (64, 64) for picture in pictures)
    assert all(len(picture.getcolors(64 * 64)) > 500 for picture in pictures)


def test_every_form_is_described():
    assert all(f"| `{form}` |" in PAGE for form in Form)
