"""The text of a product's columns counts as the renderer counts it, whatever the text is glued to."""

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from perfusion_ops.base.folder import describe
from perfusion_ops.base.tokenizer import TokenCounter, load_tokenizer
from perfusion_ops.config import SamplingConfig
from perfusion_ops.mini import base_folder
from perfusion_ops.text import PromptTooLongError, tokenize
from pipeline.contract.errors import Code
from pipeline.database.plandb import PlanDB
from pipeline.plan.expand import plan_concepts, plan_requests
from tests.support.plans import TRAINING, concept, fill, requests
from tests.support.tokenizer_folders import small_clip

TOKENIZERS = {"mini": load_tokenizer(describe(base_folder())), "clip": small_clip(24)}
MINI = TokenCounter(TOKENIZERS["mini"])


class WholeTexts(TokenCounter):
    """Counts like a tokenizer whose tokens may cross blanks."""

    def __init__(self, tokenizer):
        super().__init__(tokenizer)
        self._by_word = False


def plan(concepts, prompts, counter):
    db = PlanDB(memory_limit="512MB", threads=2)
    fill(db, "concepts", concepts)
    fill(db, "prompts", prompts)
    plan_concepts(db, base_digest="base", metric_key="metric", training=TRAINING)
    plan_requests(db, base_digest="base", sampling=SamplingConfig(), seed=0, counter=counter)
    return db


GLUE = st.sampled_from(["", " ", "pre", "ish", ", ", ".", "'s", "'", "a b", "é", "submarine ", "0", "<|endoftext|>"])
CELL = st.sampled_from(
    ["s", "mug", "dark blue", "'s", "S. ", "杯 é", "12", "...", "re sub marine", "x" * 30, "1 2 3 4"]
)
PARTS = st.lists(
    st.tuples(GLUE, st.sampled_from(["{product}", "{product.one}", "{two}", "{mug-2}", "a "]), GLUE), max_size=8
)


@pytest.mark.parametrize("name", list(TOKENIZERS))
@pytest.mark.parametrize("kind", [TokenCounter, WholeTexts])
@settings(max_examples=8, phases=[Phase.explicit, Phase.generate])  # to shrink takes minutes
@given(
    rows=st.lists(st.tuples(PARTS, PARTS), min_size=2, max_size=5),
    cells=st.lists(st.tuples(CELL, CELL), min_size=4, max_size=4),
)
def test_the_plan_refuses_what_the_renderer_would(name, kind, rows, cells):
    tokenizer = TOKENIZERS[name]
    concepts = [concept(f"mug-{number}", one=one, two=two) for number, (one, two) in enumerate(cells, 1)]
    texts = [("".join(map("".join, prompt)) + "{product}", "".join(map("".join, other))) for prompt, other in rows]
    prompts = [{"prompt": prompt, "negative_prompt": other} for prompt, other in texts]
    with plan(concepts, prompts, kind(tokenizer)) as db:
        found = requests(
            db, "prompt_row", "concept_ids[1]", "task_prompt", "task_negative_prompt", "error_code", "error_column",
            "error_message")  # fmt: skip
    whole_rows = {row for row, _, task, *_ in found if task is None}
    assert len(found) == len(concepts) * (len(prompts) - len(whole_rows)) + len(whole_rows)
    for _, _, prompt, negative, code, column, message in found:
        if prompt is None:
            assert code == Code.PROMPT_TOO_LONG
            continue
        long = [each for each, text in (("prompt", prompt), ("negative_prompt", negative)) if too_long(tokenizer, text)]
        assert (code, column) == ((Code.PROMPT_TOO_LONG, long[0]) if long else (None, None))
        if long:
            assert f"{long[0]} has {too_long(tokenizer, prompt if column == 'prompt' else negative)} tokens" in message
    for row in whole_rows:  # its own words alone are too long
        filled = [text.replace("{product.one}", " ").replace("{two}", " ") for text in texts[row - 1]]
        numbered = [text.replace("{product}", "{0}").replace("{mug-2}", "{1}") for text in filled]
        assert any(too_long(tokenizer, text) for text in numbered)


def too_long(tokenizer, text):
    """What the renderer counts, from its own message; 0 if the prompt fits."""
    try:
        tokenize(tokenizer, text)
    except PromptTooLongError as error:
        return int(str(error).split()[3])
    return 0


def test_a_prompt_is_too_long_for_the_product_with_the_long_text_alone():
    rows = [concept("mug-1", title="red"), concept("mug-2", title="very " * 30), concept("mug-3", title="")]
    prompts = [{"prompt": "a {product} {title}"}, {"prompt": "a {product}", "negative_prompt": "{product.title}, a"}]
    with plan(rows, prompts, MINI) as db:
        found = requests(db, "prompt_row", "concept_ids[1]", "error_code", "error_column", "error_message")
    assert [row[:4] for row in found] == [
        (1, "mug-1", None, None),
        (1, "mug-2", Code.PROMPT_TOO_LONG, "prompt"),
        (1, "mug-3", Code.MISSING_VALUE, "prompt"),
        (2, "mug-1", None, None),
        (2, "mug-2", Code.PROMPT_TOO_LONG, "negative_prompt"),
        (2, "mug-3", Code.MISSING_VALUE, "negative_prompt"),
    ]
    count = too_long(TOKENIZERS["mini"], "a {0} " + "very " * 30)
    assert found[1][4] == (
        f"prompt has {count} tokens with start and end for concept 'mug-2' with the text of its columns, and the base "
        "model reads 32: shorten this text or 'a {product} {title}'"
    )


def test_each_text_is_counted_once(monkeypatch):
    rows = [concept(f"mug-{number}", season=("summer", "winter")[number % 2]) for number in range(1, 50)]
    prompts = [{"prompt": f"a {{product}} in {{season}}, place {number}"} for number in range(20)]
    counter, counted = TokenCounter(TOKENIZERS["clip"]), []
    count = counter.count
    monkeypatch.setattr(counter, "count", lambda text: counted.append(text) or count(text))
    with plan(rows, prompts, counter):
        pass
    assert sorted(text for text in counted if "er," in text) == ["summer,", "winter,"]
