"""Several products in one picture: what is asked, and that the measure knows the true products and no others."""

import json

import numpy as np
import pytest

from perfusion_ops.mini.embedded import embedded_scorers
from perfusion_ops.mini.methods.scores import Judges
from perfusion_ops.mini.methods.sets import products
from perfusion_ops.mini.oracle.judge import Judgement
from perfusion_ops.mini.pairs import __main__ as pairs
from perfusion_ops.mini.pairs.entrants import real
from perfusion_ops.mini.pairs.measure import cut, measure
from perfusion_ops.mini.pairs.sets import KINDS, groups, real_scene
from perfusion_ops.mini.world.contexts import named_context
from perfusion_ops.mini.world.scene import render
from perfusion_ops.scoring.models import load_scorers

LIMITS = {"two": 20, "three": 10, "twins": 10}


@pytest.fixture(scope="module")
def judges():
    scorers = load_scorers(embedded_scorers(), device="cpu")
    return Judges(scorers.image, scorers.text, scorers.reader, 10)


def test_sets_are_disjoint_and_no_other_measurement_uses_them():
    every = {
        name: {item.instance for kind in KINDS for group in groups(name, kind, 99) for item in group.items}
        for name in ("tuning", "final")
    }
    others = {item.instance for name in ("tuning", "a", "b") for item in products(name, 1000)}
    assert not every["tuning"] & every["final"]
    assert not (every["tuning"] | every["final"]) & others
    # A product has a letter of its own in a set.
    assert all(len({number % 1000 for number in each}) == len(each) <= 24 for each in every.values())


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_name_every_product_and_a_place(kind):
    asked = groups("final", kind, 99)
    assert len(asked) == LIMITS[kind]
    assert asked[:3] == groups("final", kind, 3)
    for group in asked:
        categories = [item.look.category for item in group.items]
        assert (len(set(categories)) == 1) == (kind == "twins")
        assert len(set(group.items)) == len(group.items) == (3 if kind == "three" else 2)
        assert all(f"{{{number}}}" in group.prompt for number in range(len(group.items)))
        assert named_context(group.words) == group.background


def test_real_scenes_show_what_is_asked():
    for group in groups("tuning", "two", 99):
        has = real_scene(group, 3).describe()
        assert (has.relation, has.background) == (group.relation, group.background)
        assert has.looks == tuple(item.look for item in group.items)


def test_the_square_around_a_product_is_cut_out_and_stays_in_the_picture():
    group = groups("tuning", "two", 1)[0]
    scene = real_scene(group, 0)
    picture = render(scene)
    for number, placed in enumerate(scene.placed):
        view = placed.view
        found = Judgement(color=1, pattern=1, edges=1, overall=1, legible=True, scale=view.scale, x=view.x, y=view.y)
        mask = (picture.masks[number][..., None] * 255).repeat(3, 2).astype(np.uint8)
        share = cut(mask, found, 1.3).mean() / 255
        assert share > 1.5 * mask.mean() / 255
    whole = cut(picture.pixels, found.model_copy(update={"scale": 60.0}), 1.0)
    assert np.array_equal(whole, picture.pixels)


@pytest.mark.timeout(300)
def test_real_renders_succeed_and_those_of_other_products_do_not(judges):
    asked = groups("tuning", "two", 4)
    rows, pictures = measure(judges, "real", real, asked, 2)
    assert pictures.shape == (8, 64, 64, 3)
    assert sum(row.success for row in rows) >= 7
    assert all(row.classes and row.related for row in rows)
    others = groups("final", "two", 4)
    wrong, _ = measure(judges, "wrong", lambda group, seeds: real(others[group.number], seeds), asked, 2)
    assert not any(row.success for row in wrong)
    assert sum(row.classes for row in wrong) >= 7
    assert np.mean([row.overall for row in wrong]) < np.mean([row.overall for row in rows]) - 0.2


@pytest.mark.timeout(300)
def test_the_command_prints_lines_and_leaves_rows_and_sheets(tmp_path, capsys):
    out = tmp_path / "new"
    arguments = ["--out", str(out), "--set", "tuning", "--groups", "1", "--seeds", "1"]
    assert pairs.main([*arguments, "--steps", "1", "--training-steps", "1"]) == 0
    lines = json.loads(capsys.readouterr().out.splitlines()[-1])["lines"]
    assert [line["method"] for line in lines] == list(pairs.METHODS)
    assert lines[0]["success"]["mean"] == 1.0
    for name in pairs.METHODS:
        file = "tuning-two-real" if name == "real" else f"tuning-two-{name}-guidance4.5"
        assert (out / f"{file}.png").stat().st_size > 0
        assert len((out / f"{file}.jsonl").read_text().splitlines()) == 1


@pytest.mark.timeout(300)
def test_each_guidance_scale_draws_pictures_of_its_own_from_one_training(tmp_path, capsys, monkeypatch):
    together, train = pairs.RIVALS["loras"]
    trained = []

    def counted(parts, example, budget, word):
        trained.append(word)
        return train(parts, example, budget, word)

    monkeypatch.setitem(pairs.RIVALS, "loras", (together, counted))
    arguments = ["--out", str(tmp_path), "--groups", "1", "--seeds", "1", "--steps", "2", "--training-steps", "1"]
    assert pairs.main([*arguments, "--method", "word", "--method", "loras", "--guidance", "1", "4.5"]) == 0
    lines = json.loads(capsys.readouterr().out.splitlines()[-1])["lines"]
    asked = [("word", 1.0), ("word", 4.5), ("loras", 1.0), ("loras", 4.5)]
    assert [(line["method"], line["guidance"]) for line in lines] == asked
    drawn = {(tmp_path / f"final-two-{name}-guidance{scale:g}.png").read_bytes() for name, scale in asked}
    assert len(drawn) == 4
    assert len(trained) == len(set(trained)) == 2, "one training for each product"
