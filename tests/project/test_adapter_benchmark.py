"""The comparison with adapters of diffusers and peft: rows that are drawn together, what is timed and asserted."""

import numpy as np
import pytest
import torch

from benchmarks.adapter_ways import Fuse, Hotswap, Loras, Mixed, Ours, Reload, Row, Switch, pipeline_of
from benchmarks.adapters import Cell, batches, check, fastest, measured
from benchmarks.bases import base_of, made_up_concepts, parts_of, plain_metric
from perfusion_ops.rendering import Sampler

pytest.importorskip("peft")

CPU = torch.device("cpu")
SAMPLER = Sampler(64, 64, 2, 4.5, "ddim")


class Stub:
    """A way that records its calls; pictures are empty."""

    def __init__(self, fills):
        self.fills, self.calls = fills, []

    def prepare(self):
        self.calls.append(("prepare",))

    def hold(self, products):
        self.calls.append(("hold", products))

    def change(self, product):
        self.calls.append(("change", product))

    def leave(self, product):
        self.calls.append(("leave", product))

    def draw(self, rows):
        self.calls.append(("draw", [(row.product, row.prompt) for row in rows]))

    def held_bytes(self):
        return 7

    def release(self):
        self.calls.append(("release",))


@pytest.fixture(scope="module")
def ways(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    parts = parts_of("mini", CPU, torch.float32)
    pipe = pipeline_of(parts, torch.float32)
    base = base_of("mini", parts)
    metric = plain_metric(base)
    loras = Loras(folder / "loras", pipe.unet, 4, 2)
    found = {
        f"ours_{recipe}": Ours(base, metric, made_up_concepts(base, metric, 2, recipe), SAMPLER, folder / recipe)
        for recipe in ("paper", "offset")
    }
    for kind in (Switch, Reload, Hotswap, Fuse, Mixed):
        found[kind.__name__.lower()] = kind(pipe, loras, SAMPLER)
    return found


def test_a_cell_is_measured_with_whole_products_and_at_least_one():
    assert Cell(64, 4).drawn(16) == Cell(4, 4)
    assert Cell(8, 1).drawn(16) == Cell(8, 1)
    assert Cell(8, 16).drawn(4) == Cell(1, 16)


def test_ways_that_switch_draw_the_rows_of_a_product_and_others_fill_their_batches():
    cell, drawn = Cell(4, 3), Cell(2, 3)
    switching = batches(cell, drawn, 2, fills=False, by_product=True)
    assert switching == [(n, [[Row(n, 0), Row(n, 1)], [Row(n, 2)]]) for n in range(2)]
    [(none, mixed)] = batches(cell, drawn, 4, fills=True, by_product=True)
    assert none is None
    assert mixed == [[Row(0, 0), Row(0, 1), Row(0, 2), Row(1, 0)], [Row(1, 1), Row(1, 2)]]
    [(_, ours)] = batches(cell, drawn, 4, fills=True, by_product=False)
    assert ours == [[Row(n, 0) for n in range(4)], [Row(0, 1), Row(1, 1)]]


def test_all_products_are_loaded_and_times_of_those_drawn_are_scaled(monkeypatch):
    seconds = {"hold": 1.0, "change": 0.5, "draw": 2.0, "leave": 0.25}
    way = Stub(fills=False)

    def timed(call, _):
        call()
        return seconds[way.calls[-1][0]]

    monkeypatch.setattr("benchmarks.adapters.timed", timed)
    cost = measured(way, Cell(8, 2), Cell(2, 2), 2, CPU)
    assert way.calls[1] == ("hold", 8)
    assert [call[0] for call in way.calls] == ["prepare", "hold", *(["change", "draw", "leave"] * 2), "release"]
    assert cost.loading_s == 1.0 + 8 * 0.75
    assert cost.drawing_s == 8 * 2.0
    assert cost.held_bytes == 7


def test_the_fastest_batch_is_one_that_the_rows_fill():
    curve = {1: 1.0, 2: 0.7, 4: 0.5, 8: 0.6}
    assert [fastest(curve, most) for most in (1, 3, 4, 16)] == [1, 2, 4, 4]


@pytest.mark.timeout(300)
def test_every_way_draws_the_product_that_it_is_asked_for(ways):
    check(ways, exact=True)


@pytest.mark.timeout(300)
def test_a_way_that_draws_another_product_is_noticed(ways, monkeypatch):
    change = ways["switch"].change
    monkeypatch.setattr(ways["switch"], "change", lambda product: change(0))
    with pytest.raises(AssertionError, match="switch: two products differ by 0"):
        check(ways, exact=True)
    monkeypatch.setattr(ways["switch"], "change", lambda product: change(1 - product))
    with pytest.raises(AssertionError, match="reload and switch differ"):
        check(ways, exact=True)


@pytest.mark.timeout(300)
def test_bytes_of_the_products_in_memory(ways):
    numbers = ways["switch"].loras.disk_bytes // 2
    held = {}
    for name, way in ways.items():
        way.prepare()
        way.hold(2)
        way.change(0)
        held[name] = way.held_bytes()
        way.leave(0)
        way.release()
        assert way.held_bytes() == 0, name
    assert held["switch"] == held["mixed"] == 2 * held["reload"]
    assert held["reload"] == held["hotswap"] == held["fuse"]
    assert np.isclose(held["reload"], 4 * numbers, rtol=0.2)  # float32, of a file in float16 with a header
    assert 0 < held["ours_offset"] < held["ours_paper"] < held["reload"] / 5
