"""The code of docs/python.md runs as it stands, and draws what it says it draws."""

import ast
import os
import re
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def run_cell(source, names):
    """Execute code as a notebook does; returns the value of an expression on the last line."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "docs/python.md", "exec"), names)
    return last and eval(compile(ast.Expression(last.value), "docs/python.md", "eval"), names)


def test_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    names = {}
    shown = [run_cell(block, names) for block in BLOCKS]
    [row] = [value for value in shown if isinstance(value, Image.Image)]
    assert row.size == (256, 64)
    assert len(row.getcolors(256 * 64)) > 1000
    assert Path("mug.safetensors").stat().st_size < 32 * 1024
    assert names["image"].size == (64, 64)


def test_every_use_has_code():
    uses = PAGE.split("\n## ")[1:]
    assert len(uses) == 3
    assert all("```python" in use for use in uses)
    assert len(BLOCKS) == PAGE.count("```python")


def test_every_function_that_the_page_uses_is_offered():
    import perfusion_ops

    assert set(re.findall(r"perfusion_ops\.([a-z_]+)\(", PAGE)) <= set(perfusion_ops.__all__)
