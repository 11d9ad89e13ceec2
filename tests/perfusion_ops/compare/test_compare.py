"""A comparison on the embedded base as if it were a stranger's: folder, photos, scorers, resume, figures, refusals."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from perfusion_ops.compare import __main__ as command
from perfusion_ops.compare.entrants import entrants
from perfusion_ops.compare.products import CompareError, find_products
from perfusion_ops.compare.report import score
from perfusion_ops.compare.study import PROMPTS, Picture
from perfusion_ops.mini import base_folder, scorers_folder
from perfusion_ops.mini.world.products import HELD_OUT, product
from perfusion_ops.mini.world.scene import photograph, render

ITEMS = (("mug", "one", 3), ("teddy_bear", "two", 4), ("mug", "three", 5))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    home = tmp_path_factory.mktemp("compare") / "photos"
    for superclass, name, number in ITEMS:
        folder = home / superclass / name
        folder.mkdir(parents=True)
        item = product(superclass.split("_", maxsplit=1)[0], HELD_OUT + 580_000 + number)
        for view in range(3):
            taken = render(photograph(item, view))
            Image.fromarray(taken.pixels).save(folder / f"{view}.png")
            if view < 2:
                Image.fromarray(np.rint(taken.masks[0] * 255).astype(np.uint8)).save(folder / f"{view}.mask.png")
    return home


def words(photos, *more):
    scorers = scorers_folder()
    return [
        *("--base", str(base_folder()), "--photos", str(photos), "--out", str(photos.parent / "out")),
        *("--text", str(scorers / "dual"), "--image", str(scorers / "identity"), "--device", "cpu"),
        *("--train-steps", "2", "--train-batch", "2", "--steps", "2", "--guidance", "2", "--guidance", "4"),
        *("--captions", "400", "--method", "lora-r4", *more),
    ]


def test_products_are_found_with_their_masks(photos):
    found = find_products(photos, 3)
    assert {(item.superclass, item.name) for item in found} == {("mug", "one"), ("teddy bear", "two"), ("mug", "three")}
    assert [item.name for item in find_products(photos, 2)] == [item.name for item in found], "the order is fixed"
    for item in found:
        assert [mask is not None for mask in item.masks] == [True, True, False]
        pictures = item.pictures()
        assert [(picture.mode, drawn.mode if drawn else None) for picture, drawn in pictures] == [
            ("RGB", "L"), ("RGB", "L"), ("RGB", None)
        ]  # fmt: skip
    assert len({item.digest for item in found}) == 3
    assert find_products(photos, 1)[0].digest != found[0].digest


def test_a_whole_comparison(photos, capsys):
    prompts = photos.parent / "prompts.txt"
    prompts.write_text("a photo of a {} on the beach\n\na photo of a {} in the snow\n")
    given = words(photos, "--prompts", str(prompts))
    assert command.main(given) == 0
    printed = capsys.readouterr()
    said = json.loads(printed.out.splitlines()[-1])
    assert (said["tuning_products"], said["products"], said["pictures"]) == (1, 2, 4)
    whole = json.loads((photos.parent / "out" / "compare.json").read_text())
    lines = {line["method"]: line for line in whole["lines"]}
    assert lines.keys() == {"word", "ours-paper", "ours-offset", "ours-references", "ours-convolutions", "lora-r4"}
    assert lines["word"]["numbers"] == 0
    assert lines["lora-r4"]["numbers"] > 10 * lines["ours-offset"]["numbers"]
    assert sum(line["against"] is None for line in lines.values()) == 1
    for line in lines.values():
        for name in ("score", "identity", "nearest", "text"):
            assert line[name]["low"] <= line[name]["mean"] <= line[name]["high"]
    assert said["recommendation"]["sampling"]["guidance"] in (2.0, 4.0)
    assert " minus ours-paper on 2 products" in said["recommendation"]["reason"]
    assert whole["masks"]["scenes"] == 1, "the tuning product alone"
    assert said["recommendation"]["mask_layers"] == whole["masks"]["layers"]
    # Three settings of five methods on one product and the word, and each chosen one on two others.
    files = sorted((photos.parent / "out" / "rows").glob("*.parquet"))
    assert len(files) == 5 * 3 + 1 + 6 * 2
    table = pq.read_table(files[0])
    assert table.num_rows == 4, "two prompts at two guidance scales"
    assert table["picture"][0].as_py().startswith(b"\x89PNG")

    stamps = [file.stat().st_mtime_ns for file in files]
    assert command.main(given) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == said
    assert [file.stat().st_mtime_ns for file in files] == stamps, "nothing is measured twice"


def picture(**changes):
    given = {"identity": 0.6, "nearest": True, "text": 0.25}
    costs = {"train_s": 1.0, "draw_s": 1.0, "numbers": 1, "size": 2}
    return Picture(guidance=2.0, prompt="a {}", seed=0, **{**given, **costs, **changes})


def test_a_score_is_the_harmonic_mean_of_two_shares():
    assert score([picture(), picture(identity=0.4)], 0.8, 0.3) == pytest.approx(2 / (0.8 / 0.5 + 0.3 / 0.25))
    assert score([picture(identity=0.9, text=0.4)], 0.8, 0.3) == 1.0, "more than the photos themselves is no better"
    assert score([picture(identity=-0.1)], 0.8, 0.3) == 0.0


def test_every_method_tries_as_many_settings():
    known = entrants({}, {"guidance": 7.0})
    assert {len(each.settings) for name, each in known.items() if name != "word"} == {3}
    assert next(iter(known)) == "word"
    assert len(PROMPTS) == len(set(PROMPTS)) == 20
    assert all(prompt.count("{}") == 1 for prompt in PROMPTS)


def test_what_is_wrong_is_said_before_anything_is_loaded(photos, tmp_path, capsys):
    def refused(*more):
        assert command.main(words(photos, *more)) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        return printed.err

    assert "there is no method 'lora'" in refused("--method", "lora")
    assert "--tuning is 3 of 3 products: leave at least one for the figures" in refused("--tuning", "3")
    assert "has 0 products: give at least two" in refused("--photos", str(tmp_path))
    (tmp_path / "prompts.txt").write_text("a photo of a mug\n")
    assert "prompt 1 of" in refused("--prompts", str(tmp_path / "prompts.txt"))
    (tmp_path / "mug" / "empty").mkdir(parents=True)
    with pytest.raises(CompareError, match="has no photo: put JPEG, PNG or WebP files there, or remove it"):
        find_products(tmp_path, 4)
    (tmp_path / "mug" / "empty" / "a.jpg").write_bytes(b"no picture")
    (tmp_path / "mug" / "other").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "mug" / "other" / "a.png")
    Image.new("L", (4, 4)).save(tmp_path / "mug" / "other" / "a.mask.png")
    found = {item.name: item for item in find_products(tmp_path, 4)}
    with pytest.raises(CompareError, match="cannot be read as a picture"):
        found["empty"].pictures()
    with pytest.raises(CompareError, match="make them equal"):
        found["other"].pictures()
