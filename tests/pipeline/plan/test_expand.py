"""Planning: keys follow content and nothing else, every row is accounted for, `where` can do no harm."""

import random

import duckdb
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from perfusion_ops.config import SamplingConfig
from pipeline.contract.errors import ManifestError, RowError
from pipeline.database.plandb import EXTRA_ROW, PlanDB
from pipeline.plan.expand import count_plan, plan_concepts, plan_requests
from pipeline.plan.where import Sandbox
from tests.support import reference_keys as keys
from tests.support.plans import TRAINING, concept, picture, planned, requests

CONCEPTS = [
    concept("mug-1", color="red", price=5),
    concept("mug-2", color="blue", price=9),
    concept("teddy-7", superclass=" teddy  bear", color="red", price=20, train='{"steps": 77}'),
]


def rows_by_key(db):
    return dict(db.connection.execute("SELECT concept_id, concept_key FROM concept_keys").fetchall())


def test_concept_keys_are_those_of_the_reference():
    with planned(CONCEPTS, []) as db:
        got = rows_by_key(db)
    expected = keys.concept_key(
        base_digest="base",
        metric_key="metric",
        training=TRAINING.model_copy(update={"steps": 77}),
        superclass="teddy bear",
        images=[(picture(f"teddy-7-{number}")["sha256"], None) for number in (2, 1)],
    )
    assert got["teddy-7"] == expected
    assert len(set(got.values())) == 3


def test_masks_belong_to_their_pictures():
    a, b, m, n = (picture(name) for name in "abmn")
    rows = [
        concept("one", images=[a, b], masks=[m, n]),
        concept("same", images=[b, a], masks=[n, m]),
        concept("swapped", images=[a, b], masks=[n, m]),
        concept("none", images=[a, b]),
    ]
    with planned(rows, []) as db:
        got = rows_by_key(db)
    assert got["one"] == got["same"]
    assert len(set(got.values())) == 3


def test_products_and_named_concepts_in_one_prompt():
    prompts = [{"prompt": "a {product} and {mug-1}, {product} again", "negative_prompt": "{teddy-7}, {mug-1}"}]
    with planned(CONCEPTS, prompts) as db:
        got = requests(
            db, "concept_ids", "prompt", "task_prompt", "negative_prompt", "task_negative_prompt", "error_code"
        )
    assert got == [
        (["mug-1", "teddy-7"], "a {mug-1} and {mug-1}, {mug-1} again", "a {0} and {0}, {0} again",
         "{teddy-7}, {mug-1}", "{1}, {0}", None),
        (["mug-2", "mug-1", "teddy-7"], "a {mug-2} and {mug-1}, {mug-2} again", "a {0} and {1}, {0} again",
         "{teddy-7}, {mug-1}", "{2}, {1}", None),
        (["teddy-7", "mug-1"], "a {teddy-7} and {mug-1}, {teddy-7} again", "a {0} and {1}, {0} again",
         "{teddy-7}, {mug-1}", "{0}, {1}", None),
    ]  # fmt: skip


def test_render_keys_are_those_of_the_reference():
    prompts = [{"prompt": "a {product} by {mug-1}", "bias": 0.1, "num_images": 2}]
    with planned(CONCEPTS, prompts, width=64, negative_prompt="no {mug-1}") as db:
        own = rows_by_key(db)
        got = requests(db, "render_key", "seed", "concept_keys")
    assert len(got) == 6
    for (render_key, seed, concepts), index in zip(got, [0, 1] * 3, strict=True):
        material = keys.render_material(
            base_digest="base",
            concepts=concepts,
            prompt="a {0} by {0}" if len(concepts) == 1 else "a {0} by {1}",
            negative_prompt="no {0}" if len(concepts) == 1 else "no {1}",
            steps=50,
            guidance=6.0,
            scheduler="ddim",
            width=64,
            height=None,
            bias=0.1,
            temperature=0.15,
            lock="local",
            edit_unconditional=False,
        )
        assert seed == keys.default_seed(material, 0, index)
        assert render_key == keys.render_key(material, seed)
        assert concepts[-1] == own["mug-1"]


@pytest.mark.parametrize(
    ("prompt", "negative", "regional"),
    [
        ("a {mug-2} by {mug-1}", "", True),
        ("a {mug-2} by {mug-2}", "", False),
        ("a {mug-2}", "no {mug-1}", False),
        ("a lamp", "no {mug-1} and no {mug-2}", False),
    ],
)
def test_only_prompts_with_several_concepts_have_a_key_that_says_regional(prompt, negative, regional):
    """Rows with one concept or none keep the keys that they had before there was `combine`."""
    prompts = [{"prompt": prompt, "negative_prompt": negative, "seed": 1}]
    found = []
    for combine in ("paper", "regional"):
        with planned(CONCEPTS, prompts, combine=combine) as db:
            found += requests(db, "render_key")
    assert (found[0] != found[1]) == regional


@pytest.mark.parametrize(
    ("prompt", "negative", "changes"),
    [
        ("a {lamp-1}", "", True),
        ("a {product}", "", True),
        ("a {mug-1} by {lamp-1}", "", True),
        ("a {mug-1}", "no {lamp-1}", False),
        ("a {mug-1}", "", False),
        ("a lamp", "", False),
    ],
)
def test_only_prompts_with_an_offset_have_a_key_that_says_its_strength(prompt, negative, changes):
    prompts = [{"prompt": prompt, "negative_prompt": negative, "seed": 1}]
    found = {}
    for strength in (1.0, 0.5, 2.0):
        with planned([*CONCEPTS, concept("lamp-1", train='{"recipe": "offset"}')], prompts, strength=strength) as db:
            found[strength] = {str(ids): key for ids, key in requests(db, "concept_ids", "render_key")}
    for ids, key in found[1.0].items():
        others = {found[strength][ids] for strength in (0.5, 2.0)}
        assert len({key, *others}) == (3 if changes and "lamp-1" in ids else 1), ids


@pytest.mark.parametrize(
    ("setting", "guidance", "modes"),
    [
        ({"guidance_rescale": 0.7}, 6.0, ["rescale 0.7"]),
        ({"guidance_rescale": 1.0, "vae_tiling": True}, 1.5, ["rescale 1.0", "vae tiling"]),
        ({"guidance_rescale": 0.7}, 1.0, []),
        ({"vae_tiling": True}, 1.0, ["vae tiling"]),
        ({}, 6.0, []),
    ],
)
def test_settings_of_the_picture_are_in_the_keys_of_the_rows_that_they_change(setting, guidance, modes):
    prompts = [{"prompt": text, "seed": 1, "guidance": guidance} for text in ("a {product}", "a {mug-1}")]
    with planned(CONCEPTS, prompts, **setting) as db:
        own = rows_by_key(db)
        got = requests(db, "render_key", "concept_ids")
    assert {ids[0] for _, ids in got} == set(own)
    for key, [name] in got:
        material = keys.render_material(
            base_digest="base", concepts=[own[name]], prompt="a {0}", negative_prompt="", steps=50, guidance=guidance,
            scheduler="ddim", width=None, height=None, bias=0.6, temperature=0.15, lock="local",
            edit_unconditional=False, modes=modes,
        )  # fmt: skip
        assert key == keys.render_key(material, 1)


TEXTS = st.text(alphabet="ab ü,'\"\\$%", max_size=8)


# `{product}` alone has SQL of its own, because millions of rows go through it; every name in full goes the other way.
@settings(max_examples=20, phases=[Phase.explicit, Phase.generate])  # to shrink takes minutes
@given(
    texts=st.lists(TEXTS, min_size=2, max_size=4),
    negative=st.lists(TEXTS, min_size=1, max_size=3),
    num_images=st.integers(1, 3),
    bias=st.sampled_from([None, 0.1, 0.75]),
    width=st.sampled_from([None, 64]),
)
def test_a_prompt_of_the_product_alone_is_as_if_it_named_every_concept(texts, negative, num_images, bias, width):
    rest = {"num_images": num_images, "bias": bias, "width": width}

    def naming(name):
        return {"prompt": name.join(texts), "negative_prompt": name.join(negative), **rest}

    names = [row["concept_id"] for row in CONCEPTS]
    columns = ["concept_ids", "image_index", "prompt", "task_prompt", "negative_prompt", "task_negative_prompt"]
    columns += ["concept_keys", "seed", "render_key", "bias", "width", "height", "steps", "lock", "error_code"]
    with planned(CONCEPTS, [naming("{product}")]) as db:
        alone = requests(db, *columns)
    with planned(CONCEPTS, [naming(f"{{{name}}}") for name in names]) as db:
        named = requests(db, *columns)
    assert alone == named
    assert [row[:4] for row in alone] == [
        ([name], index, f"{{{name}}}".join(texts), "{0}".join(texts)) for name in names for index in range(num_images)
    ]


def test_equal_concepts_under_two_names_are_one_direction():
    twin = concept("twin", images=CONCEPTS[0]["images"])
    with planned([*CONCEPTS, twin], [{"prompt": "{twin} beside {mug-1}"}, {"prompt": "{mug-1} beside {twin}"}]) as db:
        got = requests(db, "concept_ids", "task_prompt", "render_key")
    assert [row[:2] for row in got] == [(["twin", "mug-1"], "{0} beside {0}"), (["mug-1", "twin"], "{0} beside {0}")]
    assert got[0][2] == got[1][2]


def test_seeds():
    prompts = [
        {"prompt": "{mug-1}", "seed": 5, "num_images": 3},
        {"prompt": "{mug-1}", "seed": 2**63 - 1},
        {"prompt": "{mug-1}", "seed": 2**63 - 2, "num_images": 3},
        {"prompt": "{mug-1}", "num_images": 2},
        {"prompt": "{mug-1}"},
    ]
    with planned(CONCEPTS, prompts) as db:
        got = requests(db, "prompt_row", "seed", "error_code")
        keys_of = dict(requests(db, "(prompt_row, image_index)", "render_key"))
    assert got[:5] == [(1, 5, None), (1, 6, None), (1, 7, None), (2, 2**63 - 1, None), (3, 2**63 - 2, "out_of_range")]
    assert got[5][1] != got[6][1]
    assert got[5][1] == got[7][1]
    assert keys_of[4, 0] == keys_of[5, 0] != keys_of[4, 1]


def test_bad_rows_are_one_request_each_and_say_why():
    concepts = [
        *CONCEPTS,
        concept("broken", error_code="image_missing", error_column="images", error_message="there is no x.png"),
        concept("mug-1", error_code="duplicate_id", error_column="concept_id", error_message="row 1 has it"),
    ]
    prompts = [
        {"prompt": "", "error_code": "empty_prompt", "error_column": "prompt", "error_message": "write one"},
        {"prompt": "{mug-11} and {product}"},
        {"prompt": "{xyzzy-plugh}", "num_images": 9},
        {"prompt": "{broken}"},
        {"prompt": "{mug-1}", "where_expr": "price > 3"},
        {"prompt": "{product}", "where_expr": "price > 100"},
        {"prompt": "{product}", "where_expr": "prise > 100"},
        {"prompt": "{product}", "negative_prompt": "{gone}"},
        {"prompt": "{mug-1}", "where_expr": "  "},
    ]
    with planned(concepts, prompts) as db:
        got = requests(
            db, "prompt_row", "error_code", "error_column", "error_message", "render_key IS NULL", "concept_ids"
        )
        counted = count_plan(db)
    assert [row[:3] for row in got] == [
        (1, "empty_prompt", "prompt"),
        (2, "unknown_concept", "prompt"),
        (3, "unknown_concept", "prompt"),
        (4, "concept_invalid", "prompt"),
        (5, "bad_where", "where"),
        (6, "no_match", "where"),
        (7, "bad_where", "where"),
        (8, "unknown_concept", "negative_prompt"),
        (9, None, None),
    ]
    messages = [row[3] for row in got]
    assert "'mug-11'" in messages[1]
    assert "write 'mug-1'" in messages[1]
    assert "if that is meant" not in messages[2]
    assert "row 4" in messages[3]
    assert "there is no x.png" in messages[3]
    assert "color, price" in messages[6]
    assert [row[4] for row in got] == [True] * 8 + [False]
    assert got[1][5] == ["mug-11"]
    assert (counted.renders.rows, counted.renders.invalid, counted.renders.to_do) == (9, 8, 1)
    assert (counted.concepts.rows, counted.concepts.invalid, counted.concepts.keys) == (5, 2, 3)


def test_no_good_concept_at_all():
    with planned([concept("m", error_code="bad_id", error_message="no")], [{"prompt": "{product}"}]) as db:
        assert requests(db, "error_code", "error_column") == [("no_match", "prompt")]


def test_two_good_rows_of_one_id_are_refused():
    with pytest.raises(ManifestError, match="'mug-1'"):
        planned([CONCEPTS[0], CONCEPTS[0]], [])


@pytest.mark.parametrize(
    ("own", "others", "word"),
    [
        ({"color": 1}, {"Color": 2}, "both manifests"),
        ({"Status": 1}, {}, "my_Status"),
        ({}, {"Images": 1}, "my_Images"),
    ],
)
def test_extra_columns_that_would_clash_stop_the_plan(own, others, word):
    with pytest.raises(ManifestError, match=word):
        planned([concept("a", **own)], [{"prompt": "{a}", **others}])


SAFE_PROMPTS = st.lists(
    st.fixed_dictionaries(
        {
            "prompt": st.lists(
                st.sampled_from(["a ", "{product}", "{mug-1}", "{teddy-7}", "{nobody}", "{broken}", "ü "]), min_size=1
            ).map("".join),
            "where_expr": st.sampled_from([None, "color = 'red'", "price > 1000", "nonsense("]),
            "num_images": st.sampled_from([None, 1, 3]),
            "seed": st.sampled_from([None, 0, 12]),
        }
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=15)
@given(prompts=SAFE_PROMPTS, extra=SAFE_PROMPTS, order=st.randoms(use_true_random=False))
def test_order_and_company_do_not_change_keys(prompts, extra, order):
    concepts = [*CONCEPTS, concept("broken", error_code="no_images", error_message="none")]

    def plan(concepts, prompts):
        with planned(concepts, [{"mark": None, **row} for row in prompts]) as db:
            rows = db.connection.execute(
                "SELECT mark, image_index, concept_ids, render_key, seed, error_code, error_message "
                f"FROM requests JOIN prompts_extra ON {EXTRA_ROW} = prompt_row"
            ).fetchall()
            assert {row[0] for row in rows} == {row.get("mark") for row in prompts}
            return sorted((row for row in rows if row[0] is not None), key=repr)

    marked = [{**row, "mark": number} for number, row in enumerate(prompts, 1)]
    first = plan(concepts, marked)
    shuffled = marked + extra
    order.shuffle(shuffled)
    order.shuffle(concepts)
    # The message for a broken concept names its row, which did move.
    without_row = [(*row[:6], None if row[5] == "concept_invalid" else row[6]) for row in first]
    again = [(*row[:6], None if row[5] == "concept_invalid" else row[6]) for row in plan(concepts, shuffled)]
    assert sorted(again, key=repr) == sorted(without_row, key=repr)


def test_a_new_concept_changes_no_other_key():
    prompts = [{"prompt": "{product} and {mug-1}"}]
    with planned(CONCEPTS, prompts) as db:
        before = set(requests(db, "prompt", "render_key"))
    with planned([concept("new", color="red", price=1), *CONCEPTS], prompts) as db:
        after = set(requests(db, "prompt", "render_key"))
    assert before < after
    assert len(after) == 4


def test_planning_again_replaces():
    with planned(CONCEPTS, [{"prompt": "{product}"}]) as db:
        first = requests(db, "*")
        plan_concepts(db, base_digest="base", metric_key="metric", training=TRAINING)
        plan_requests(db, base_digest="base", sampling=SamplingConfig(), seed=0)
        assert requests(db, "*") == first
        plan_requests(db, base_digest="other", sampling=SamplingConfig(), seed=0)
        assert {row[4] for row in requests(db, "*")}.isdisjoint({row[4] for row in first})


def test_a_hundred_thousand_requests():
    shuffled = random.Random(1).sample(range(1000), 1000)
    concepts = [concept(f"mug-{number}", price=number) for number in shuffled]
    prompts = [{"prompt": f"a photo of a {{product}} on shelf {number}"} for number in range(100)]
    prompts.append({"prompt": "cheap {product}", "where_expr": "price < 10"})
    with planned(concepts, prompts) as db:
        counted = count_plan(db)
        [(products,)] = db.connection.execute(
            "SELECT count(DISTINCT concept_ids[1]) FROM requests WHERE prompt_row = 101"
        ).fetchall()
    assert counted.renders.rows == counted.renders.keys == counted.renders.keys_to_do == 100_010
    assert counted.concepts.keys == 1000
    assert products == 10


@pytest.mark.parametrize(
    "expression",
    [
        "1=1; DROP TABLE concepts",
        "concept_id IN (SELECT column0 FROM read_csv('/etc/passwd'))",
        "concept_id IN (SELECT content FROM read_text('/etc/hostname'))",
        "concept_id IN (SELECT * FROM '/etc/passwd')",
        "concept_id IN (SELECT concept_id FROM prompts)",
        "concept_id IN (SELECT concept_id FROM CONCEPTS_LEAK)",
        "getenv('HOME') <> ''",
        "true) OR (true",
        "true, true",
        "price",
        "max(price) = price",
        "price > 3 ORDER BY 1",
        "superclass::INTEGER = 3",
        "(SELECT count(*) FROM range(1000000000000) a, range(1000000000) b) > 0",
        "'",
        "*",
    ],
)
def test_where_can_do_no_harm(expression):
    CONCEPTS_LEAK = __import__("pyarrow").table({"concept_id": ["mug-1"]})  # noqa: F841 (DuckDB looks for names)
    with planned(CONCEPTS, []) as db:
        with Sandbox(db.connection, seconds=3.0) as sandbox:
            with pytest.raises(RowError, match="cannot be used") as caught:
                sandbox.matching(expression)
            assert caught.value.code == "bad_where"
            assert sandbox.matching("price < 6")["concept_id"].to_pylist() == ["mug-1"]
        assert db.connection.execute("SELECT count(*) FROM concepts").fetchall() == [(3,)]


@pytest.mark.parametrize(
    "statement", ["SET enable_external_access = true", "ATTACH 'x.db'", "COPY concepts TO 'x.csv'"]
)
def test_the_sandbox_cannot_be_unlocked(statement):
    with planned(CONCEPTS, []) as db, Sandbox(db.connection) as sandbox, pytest.raises(duckdb.Error):
        sandbox._connection.execute(statement)


def test_where_sees_every_kind_of_column():
    rows = [concept("a", **{"Größe cm": 3, "select": "x", "tags": ["new", "sale"]}), concept("b")]
    with planned(rows, []) as db, Sandbox(db.connection) as sandbox:
        for expression in ['"Größe cm" = 3', "\"select\" = 'x'", "list_contains(tags, 'sale')", "concept_id = 'a'"]:
            assert sandbox.matching(expression)["concept_id"].to_pylist() == ["a"]


def test_an_empty_plan_is_no_plan():
    with PlanDB() as db:
        plan_concepts(db, base_digest="base", metric_key="metric", training=TRAINING)
        plan_requests(db, base_digest="base", sampling=SamplingConfig(), seed=0)
        assert count_plan(db).renders.rows == 0
