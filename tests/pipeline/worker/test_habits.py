"""Settings that users of Stable Diffusion know, in whole runs: one key for each spelling, new pictures where asked."""

import numpy as np
import pytest
from PIL import Image

from tests.support.shop import check_accounts, go, open_shop, stock, tables

PROMPTS = [{"prompt": "a ({product})1.5 in the (snow)0.5", "seed": 3}, {"prompt": "a {product}", "seed": 4}]


def pixels(root, result):
    rows = tables(root, result.run_id)["renders"]
    return [np.asarray(Image.open(row["uri"].removeprefix("file://"))).astype(int) for row in rows]


@pytest.mark.timeout(180)
def test_a_run_is_the_same_in_every_spelling_of_its_scheduler(tmp_path):
    shop, root = open_shop(tmp_path), str(tmp_path / "root")
    first, _ = go(root, shop, render={"steps": 4, "scheduler": "Euler  A"})
    check_accounts(root, first, concepts=3, prompts=2, pictures=4)
    assert go(root, shop, render={"steps": 4, "scheduler": "euler_a"})[0].repeated
    other, engines = go(root, shop, render={"steps": 4, "scheduler": "DPM++ 2M SDE"})
    shapes = {task.shape.scheduler for unit in engines.units for task in unit.tasks}
    assert shapes == {"dpm++ 2m sde"}
    check_accounts(root, other, concepts=3, prompts=2, pictures=4)


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("setting", "changed"),
    [
        ({"guidance_rescale": 0.7}, [True, True]),
        ({"prompt_weights": True}, [True, False]),
        ({"vae_tiling": True}, [True, True]),
    ],
)
def test_a_setting_draws_the_rows_again_that_it_changes(tmp_path, setting, changed):
    shop, root = open_shop(tmp_path), str(tmp_path / "root")
    stock(shop, prompts=PROMPTS)
    plain, _ = go(root, shop, render={"steps": 3})
    asked, engines = go(root, shop, render={"steps": 3, **setting})
    seeds = {task.seed for unit in engines.units for task in unit.tasks}
    assert seeds == {seed for seed, again in zip((3, 4), changed, strict=True) if again}
    if "vae_tiling" not in setting:  # the pictures are no larger than one tile
        before, after = pixels(root, plain), pixels(root, asked)
        drawn = [(one != other).any() for one, other in zip(before, after, strict=True)]
        half = len(drawn) // 2
        assert drawn == [changed[0]] * half + [changed[1]] * half


@pytest.mark.timeout(180)
def test_a_long_prompt_is_refused_or_drawn_in_chunks_and_a_short_one_is_reused(tmp_path):
    shop, root = open_shop(tmp_path), str(tmp_path / "root")
    words = "on the beach with a red hat and a blue chair " * 5
    stock(shop, prompts=[{"prompt": f"a {{product}} {words}", "seed": 3}, {"prompt": "a {product}", "seed": 4}])
    plain, _ = go(root, shop, render={"steps": 3})
    refused = [row for row in tables(root, plain.run_id)["renders"] if row["status"] != "ok"]
    assert [(row["manifest_row"], row["error_code"]) for row in refused] == [(1, "prompt_too_long")]
    asked, engines = go(root, shop, render={"steps": 3, "prompt_chunks": 2})
    assert {task.seed for unit in engines.units for task in unit.tasks} == {3}
    check_accounts(root, asked, concepts=3, prompts=2, pictures=6)
    more, engines = go(root, shop, render={"steps": 3, "prompt_chunks": 4})
    assert not engines.units
    check_accounts(root, more, concepts=3, prompts=2, pictures=6)
