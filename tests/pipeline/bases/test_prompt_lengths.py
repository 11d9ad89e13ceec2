"""Prompts that are too long are found while they are planned: the very ones that the renderer would refuse."""

from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfusion_ops.base.chunks import capacity
from perfusion_ops.base.folder import describe
from perfusion_ops.base.tokenizer import TokenCounter, load_tokenizer
from perfusion_ops.config import SamplingConfig
from perfusion_ops.mini import base_folder
from perfusion_ops.text import PromptTooLongError, substitute, tokenize
from pipeline.contract.errors import Code
from pipeline.database.plandb import PlanDB
from pipeline.plan.expand import count_plan, plan_concepts, plan_requests
from tests.support.plans import TRAINING, concept, fill, picture, requests
from tests.support.tokenizer_folders import small_clip

TOKENIZERS = {"mini": load_tokenizer(describe(base_folder())), "clip": small_clip(40)}
MINI = TokenCounter(TOKENIZERS["mini"])
CONCEPTS = [
    concept("mug-1"),
    concept("hat-1", superclass="wide brimmed hat"),
    concept("twin-1"),
    concept("bear-1", superclass="teddy bear", train='{"lock": "trained"}'),
]
OFFSET = concept("lamp-1", superclass="red toy lamp", train='{"recipe": "offset", "lock": "trained"}')
SUPERCLASS = {row["concept_id"]: row["superclass"] for row in CONCEPTS}


def plan(prompts, counter=MINI, concepts=CONCEPTS, schedule=None, controls=None, pooled=False, **sampling):
    db = PlanDB(memory_limit="512MB", threads=2)
    fill(db, "concepts", concepts)
    fill(db, "prompts", prompts)
    plan_concepts(db, base_digest="base", metric_key="metric", training=TRAINING)
    plan_requests(
        db,
        base_digest="base",
        sampling=SamplingConfig(**sampling),
        seed=0,
        counter=counter,
        schedule=schedule,
        controls=controls,
        pooled=pooled,
    )
    return db


def test_a_prompt_that_is_too_long_for_every_concept_is_one_bad_row():
    words = "very " * 40
    prompts = [
        {"prompt": f"a {words}{{product}}", "num_images": 3},
        {"prompt": "a {product}", "negative_prompt": f"a {words}"},
        {"prompt": f"{{mug-1}} {words}"},
        {"prompt": "a {product}"},
    ]
    with plan(prompts) as db:
        rows = requests(db, "prompt_row", "error_code", "error_column", "error_message", "render_key IS NULL")
        assert count_plan(db).renders.invalid == 3
    bad = {row[0]: row[1:] for row in rows if row[1]}
    assert len(rows) == 3 + len(CONCEPTS)
    code, column, message, keyless = bad[1]
    assert (code, column, keyless) == (Code.PROMPT_TOO_LONG, "prompt", True)
    count = tokenize_count("mini", f"a {words}{{0}}")
    shown = f"a {words}{{product}}"[:197]
    assert message == f"prompt has {count} tokens with start and end, the base model reads 32: shorten '{shown}...'"
    assert bad[2][:2] == (Code.PROMPT_TOO_LONG, "negative_prompt")
    assert bad[3][:2] == (Code.PROMPT_TOO_LONG, "prompt")
    assert "{mug-1} very" in bad[3][2]


def tokenize_count(name, text):
    """What the renderer counts, from its own message or its own tokens."""
    try:
        return tokenize(TOKENIZERS[name], text).length
    except PromptTooLongError as error:
        return int(str(error).split()[3])


def test_global_locking_is_too_long_for_some_concepts_alone():
    # With the one token of 'mug' the prompt has exactly the 32 tokens that the base model reads.
    edge = "{product} " + "a " * 29
    prompts = [
        {"prompt": edge, "lock": "global", "num_images": 2},
        {"prompt": edge, "lock": "local"},
        {"prompt": "a {product}", "negative_prompt": edge, "lock": "global"},
        {"prompt": "{product} " + "a " * 28 + "{hat-1}", "lock": "global", "where_expr": "concept_id = 'mug-1'"},
    ]
    with plan(prompts) as db:
        found = requests(
            db, "prompt_row", "concept_ids[1]", "error_code", "error_column", "render_key IS NULL", "error_message"
        )
    for row, name, code, column, keyless, message in found:
        long = row != 2 and (name in {"hat-1", "bear-1"} or row == 4)
        assert (code, keyless) == ((Code.PROMPT_TOO_LONG, True) if long else (None, False)), (row, name)
        if long:
            assert column == ("negative_prompt" if row == 3 else "prompt")
            assert f"'{name}'" in message
            assert "{0}" not in message
            assert "{product}" in message
            assert "the base model reads 32 tokens" in message
    counts = [row[0] for row in found]
    assert [counts.count(row) for row in (1, 2, 3)] == [8, 4, 4]
    hat = next(row[-1] for row in found if row[:2] == (1, "hat-1"))
    assert hat.startswith("prompt has 41 tokens with start and end for concept 'hat-1': lock 'global' reads")


def test_recipe_offset_counts_the_superclass_in_every_prompt():
    edge = "{product} " + "a " * 29  # room for one token in the place of {product}
    prompts = [
        {"prompt": edge},
        {"prompt": "a {product}", "negative_prompt": edge},
        {"prompt": "{product} " + "a " * 26},
        {"prompt": "{product} and " + "a " * 25 + "{mug-1}"},
    ]
    with plan(prompts, concepts=[CONCEPTS[0], OFFSET]) as db:
        found = requests(db, "prompt_row", "concept_ids[1]", "error_code", "error_column", "error_message")
    bad = {row[:2]: row[2:] for row in found if row[2]}
    assert set(bad) == {(1, "lamp-1"), (2, "lamp-1"), (4, "lamp-1")}
    code, column, message = bad[1, "lamp-1"]
    assert (code, column) == (Code.PROMPT_TOO_LONG, "prompt")
    assert message.startswith(
        "prompt has 35 tokens with start and end for concept 'lamp-1': recipe 'offset' writes the superclass after"
    )
    assert message.endswith(f"shorten the superclass or '{edge}'")
    assert bad[2, "lamp-1"][1] == "negative_prompt"


PARTS = st.lists(
    st.sampled_from(
        ["{product}", "{mug-1}", "{hat-1}", "{lamp-1}", "a", "on the beach", "submarine", "杯", "{bear-1}"]
    ),
    max_size=14,
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {"prompt": PARTS, "negative_prompt": PARTS, "lock": st.sampled_from(["local", "global", "trained", None])}
    ),
    min_size=4,
    max_size=8,
)


@pytest.mark.parametrize("name", list(TOKENIZERS))
@settings(deadline=None, max_examples=15)
@given(ROWS, st.sampled_from([" ", ""]), st.sampled_from(["paper", "regional"]))
def test_the_plan_refuses_what_the_renderer_would(name, rows, glue, combine):
    prompts = [
        {
            "prompt": glue.join([*row["prompt"], "{product}"]),
            "negative_prompt": glue.join(row["negative_prompt"]),
            "lock": row["lock"],
        }
        for row in rows
    ]
    with plan(prompts, TokenCounter(TOKENIZERS[name]), [*CONCEPTS, OFFSET], combine=combine) as db:
        found = requests(db, "prompt_row", "concept_ids", "error_code", "error_column", "lock", "error_message")
    expected = [
        (number, *_verdict(name, row, product, combine))
        for number, row in enumerate(prompts, 1)
        for product in ([None] if _too_long_alone(name, row) else [*SUPERCLASS, "lamp-1"])
    ]
    assert sorted((row, code or "", column or "") for row, _, code, column, _, _ in found) == sorted(expected)
    assert not [message for *_, message in found if message and "{0}" in message]


def _too_long_alone(name, row):
    return any(
        tokenize_count(name, _numbered(row[column])[0]) > _limit(name) for column in ("prompt", "negative_prompt")
    )


def _limit(name):
    return TOKENIZERS[name].model_max_length


def _numbered(text, product="mug-1"):
    """A prompt with its ids by number, each placeholder with one of its own."""
    parts = text.replace("{product}", f"{{{product}}}").split("{")
    names = [part.split("}")[0] for part in parts[1:]]
    rest = [part.split("}")[1] for part in parts[1:]]
    return parts[0] + "".join(f"{{{number}}}{after}" for number, after in enumerate(rest)), names


def _verdict(name, row, product, combine):
    """What becomes of a picture when it is asked of the code that renders it."""
    both = [(column, *_numbered(row[column], product or "mug-1")) for column in ("prompt", "negative_prompt")]
    for column, text, _ in both:
        if tokenize_count(name, text) > _limit(name):
            return Code.PROMPT_TOO_LONG, column
    if row["lock"] == "trained" and {*both[0][2], *both[1][2]} - {"bear-1"}:
        return Code.OUT_OF_RANGE, "lock"
    for column, text, names in both:
        nouns = [OFFSET["superclass"] if each == "lamp-1" else "" for each in names]
        superclasses = [{**SUPERCLASS, "lamp-1": OFFSET["superclass"]}[each] for each in names]
        try:
            if row["lock"] == "global":
                substitute(TOKENIZERS[name], text, superclasses, nouns)
            if column == "prompt" and combine == "regional" and len(_contents(names)) > 1:
                _tokenize_apart(name, text, names, nouns, superclasses)
            else:
                tokenize(TOKENIZERS[name], text, nouns)
        except PromptTooLongError:
            return Code.PROMPT_TOO_LONG, column
    return "", ""


def _contents(names):
    """The distinct concepts behind ids: the twin has the mug's content."""
    return {"mug-1" if each == "twin-1" else each for each in names}


def _tokenize_apart(name, text, names, nouns, superclasses):
    """Tokenise what each concept of a regional row is encoded in."""
    contents = ["mug-1" if each == "twin-1" else each for each in names]
    for own in (None, *set(contents)):
        spelled = [number for number, each in enumerate(contents) if each != own]
        written = [superclasses[n] if n in spelled else nouns[n] for n in range(len(names))]
        tokenize(TOKENIZERS[name], text, written, spelled)


LONG = st.lists(
    st.sampled_from(["{product}", "{hat-1}", "{lamp-1}", *["a"] * 8, "on the beach", "submarine", "杯"]),
    min_size=20,
    max_size=90,
)


@pytest.mark.parametrize("name", list(TOKENIZERS))
@settings(deadline=None, max_examples=15)
@given(st.lists(LONG, min_size=4, max_size=8), st.sampled_from(["local", "global"]), st.integers(2, 3))
def test_what_the_plan_accepts_fits_into_its_chunks(name, rows, lock, chunks):
    prompts = [{"prompt": " ".join([*row, "{product}"]), "lock": lock} for row in rows]
    counter = TokenCounter(TOKENIZERS[name])
    with plan(prompts, counter, [*CONCEPTS, OFFSET], prompt_chunks=chunks) as db:
        found = requests(db, "prompt_row", "concept_ids[-1]", "prompt", "error_code")
    room = capacity(counter.limit, chunks)
    for _, _, shown, code in found:
        text, names = _numbered(shown)
        nouns = [OFFSET["superclass"] if each == "lamp-1" else "" for each in names]
        superclasses = [{**SUPERCLASS, "lamp-1": OFFSET["superclass"]}[each] for each in names if each != "product"]
        tokens = partial(tokenize, TOKENIZERS[name], text, nouns, chunks=chunks)
        if code is None:
            assert tokens().chunks == chunks
            if lock == "global":
                substitute(TOKENIZERS[name], text, superclasses, nouns, chunks=chunks)
        else:
            # At most the positions that each border may leave empty are counted as taken.
            words = " ".join(superclasses) if lock == "global" or any(nouns) else ""
            taken = counter.count(" ".join(text.split())) + 3 * len(names) + counter.count(words)
            assert code == Code.PROMPT_TOO_LONG
            assert taken > room - (chunks - 1) * 4 - 2


def test_one_chunk_is_the_limit_unless_the_spec_says_more():
    long = "a " * 40 + "{product}"
    with plan([{"prompt": long}]) as one, plan([{"prompt": long}], prompt_chunks=2) as two:
        assert [code for (code,) in requests(one, "error_code")] == [Code.PROMPT_TOO_LONG]
        assert {code for (code,) in requests(two, "error_code")} == {None}
    with plan([{"prompt": "a {mug-1}"}]) as one, plan([{"prompt": "a {mug-1}"}], prompt_chunks=2) as two:
        assert requests(one, "render_key") == requests(two, "render_key")


def test_a_pooled_vector_and_a_control_net_read_superclasses():
    edge = "{hat-1} " + "a " * 29  # 32 tokens with the concept, 41 with its superclass
    control = {"control": "canny", "control_picture": picture("edges")}
    for base, rows in (({"pooled": True}, [{"prompt": edge}]), ({}, [{"prompt": edge, **control}])):
        with plan(rows, controls={"canny": "d"}, **base) as db:
            [(code, column, message)] = requests(db, "error_code", "error_column", "error_message")
        assert (code, column) == (Code.PROMPT_TOO_LONG, "prompt")
        assert "prompt has 41 tokens with start and end for concept 'hat-1'" in message
    with plan([{"prompt": edge}]) as db:
        assert requests(db, "error_code") == [(None,)]


def test_combining_by_region_counts_superclasses():
    edge = "{mug-1} on a {hat-1} " + "a " * 26  # 32 tokens with a token for each concept
    prompts = [{"prompt": edge}, {"prompt": "{mug-1} on a {mug-1} " + "a " * 26}, {"prompt": "a {mug-1} and a {hat-1}"}]
    with plan(prompts, combine="regional") as db:
        found = requests(db, "prompt_row", "error_code", "error_column", "error_message")
    assert [row[1] for row in found] == [Code.PROMPT_TOO_LONG, None, None]
    assert found[0][2] == "prompt"
    assert found[0][3].startswith(
        "prompt has 41 tokens with start and end for concepts 'mug-1', 'hat-1': render.combine"
    )
    assert found[0][3].endswith("or set render.combine to 'paper'")
    with plan(prompts) as db:
        assert [code for (code,) in requests(db, "error_code")] == [None] * 3


def test_a_negative_prompt_of_the_spec_is_named_as_such():
    with plan([{"prompt": "a {product}"}], negative_prompt="ugly " * 40) as db:
        [(message,)] = requests(db, "error_message")
    assert message.endswith(", which is render.negative_prompt of the spec")


def test_keys_that_nobody_trains_are_told_before_anything_is_trained():
    prompts = [{"prompt": "a {product}", "lock": "trained"}, {"prompt": "a {bear-1} and a {mug-1}", "lock": "trained"}]
    with plan(prompts) as db:
        found = requests(db, "prompt_row", "concept_ids[1]", "error_code", "error_column", "error_message")
    bad = [row for row in found if row[2]]
    assert [row[:4] for row in bad] == [
        *((1, name, Code.OUT_OF_RANGE, "lock") for name in ("hat-1", "mug-1", "twin-1")),
        (2, "bear-1", Code.OUT_OF_RANGE, "lock"),
    ]
    assert "concept 'hat-1' learns no keys of its own" in bad[0][4]
    assert "concept 'mug-1'" in bad[3][4]


def test_a_sampler_that_the_base_cannot_follow_is_told_at_once():
    prompts = [{"prompt": "a {product}", "steps": steps} for steps in (999, 1000)]
    prompts.append({"prompt": "a {product}", "scheduler": "pndm"})
    schedule = {"num_train_timesteps": 1000, "steps_offset": 1, "prediction_type": "epsilon"}
    with plan(prompts, schedule=schedule) as db:
        found = {row: rest for row, *rest in requests(db, "prompt_row", "error_code", "error_column", "error_message")}
    assert [found[1][0], found[2][:2], found[3][0]] == [None, [Code.OUT_OF_RANGE, "steps"], None]
    assert "steps is 1000: scheduler 'ddim'" in found[2][2]
    with plan(prompts, schedule={**schedule, "prediction_type": "sample"}) as db:
        found = {row: rest for row, *rest in requests(db, "prompt_row", "error_code", "error_column")}
    assert found[3] == [Code.OUT_OF_RANGE, "scheduler"]
