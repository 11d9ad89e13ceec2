"""Prompts with weights: other keys only where they are used, bad ones named, and tokens counted without the signs."""

import pytest

from perfusion_ops.base.folder import describe
from perfusion_ops.base.tokenizer import TokenCounter, load_tokenizer
from perfusion_ops.config import SamplingConfig
from perfusion_ops.mini import base_folder
from pipeline.database.plandb import PlanDB
from pipeline.plan.expand import plan_concepts, plan_requests
from tests.support import reference_keys as keys
from tests.support.plans import TRAINING, concept, fill, planned, requests

CONCEPTS = [concept("mug-1", season="summer (late)"), concept("hat-1", season="snow")]


@pytest.mark.parametrize("prompt", ["a {product}", "a {mug-1}", "a {mug-1} by {product}"])
def test_prompts_without_parentheses_keep_their_keys(prompt):
    prompts = [{"prompt": prompt, "seed": 1, "negative_prompt": "1.3, dark"}]
    found = []
    for weighted in (False, True):
        with planned(CONCEPTS, prompts, prompt_weights=weighted) as db:
            found.append(requests(db, "render_key"))
    assert found[0] == found[1]


@pytest.mark.parametrize("text", ["a ({product})1.3 on (a table)0.5", "a {product} by {mug-1} in (snow)2"])
def test_prompts_with_weights_have_keys_of_their_own(text):
    found = {}
    for weighted in (False, True):
        with planned(CONCEPTS, [{"prompt": text, "seed": 1}], prompt_weights=weighted) as db:
            found[weighted] = requests(db, "render_key", "concept_keys", "task_prompt", "error_code")
    for weighted, rows in found.items():
        for key, own, task, code in rows:
            assert code is None
            material = keys.render_material(
                base_digest="base", concepts=own, prompt=task, negative_prompt="", steps=50, guidance=6.0,
                scheduler="ddim", width=None, height=None, bias=0.6, temperature=0.15, lock="local",
                edit_unconditional=False, modes=["prompt weights"] if weighted else [],
            )  # fmt: skip
            assert key == keys.render_key(material, 1)
    assert [task for *_, task, _ in found[True]] == [task for *_, task, _ in found[False]]


def test_other_parentheses_are_a_problem_of_the_row_only_if_weights_are_read():
    prompts = [
        {"prompt": "a {product} (red)"},
        {"prompt": "a {product}", "negative_prompt": "(dark"},
        {"prompt": r"a {product} \(red\)"},
    ]
    with planned(CONCEPTS[:1], prompts, prompt_weights=True) as db:
        bad, negative, good = requests(db, "error_code", "error_column", "error_message")
    assert bad[:2] == ("bad_character", "prompt")
    assert "the parenthesis at character 13 begins or ends no weight such as (word)1.3" in bad[2]
    assert negative[:2] == ("bad_character", "negative_prompt")
    assert good == (None, None, None)
    with planned(CONCEPTS[:1], prompts) as db:
        assert {code for (code,) in requests(db, "error_code")} == {None}


def test_parentheses_of_a_product_s_own_text_stay_text():
    prompts = [{"prompt": "a {product} in ({product.season} light)1.2"}]
    with planned(CONCEPTS, prompts, prompt_weights=True) as db:
        got = requests(db, "task_prompt", "error_code")
    assert got == [("a {0} in (snow light)1.2", None), (r"a {0} in (summer \(late\) light)1.2", None)]
    with planned(CONCEPTS, prompts) as db:
        assert requests(db, "task_prompt")[1] == ("a {0} in (summer (late) light)1.2",)


@pytest.mark.parametrize(("words", "fits"), [(26, True), (27, False)])
def test_tokens_are_counted_without_the_signs_of_weights(words, fits):
    counter = TokenCounter(load_tokenizer(describe(base_folder())))
    # Two marks, "a", the product, "in", "snow", and the words; the model reads 32.
    prompt = "a ({product})1.3 in (" + "red " * words + ")0.5{product.season}"
    with PlanDB(memory_limit="512MB", threads=2) as db:
        fill(db, "concepts", CONCEPTS[1:])
        fill(db, "prompts", [{"prompt": prompt, "seed": 1}])
        plan_concepts(db, base_digest="base", metric_key="metric", training=TRAINING)
        plan_requests(db, base_digest="base", sampling=SamplingConfig(prompt_weights=True), seed=0, counter=counter)
        [(code, message)] = requests(db, "error_code", "error_message")
    assert code == (None if fits else "prompt_too_long"), message
