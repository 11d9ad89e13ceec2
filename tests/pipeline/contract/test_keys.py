"""Keys mean the same in Python and in SQL, and only what matters is in them."""

import hashlib
import inspect
import json

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfusion_ops.config import MetricConfig, SamplingConfig, TrainingConfig
from pipeline.contract import keys
from tests.support import reference_keys

CHECK = settings(max_examples=80)
# DuckDB's text holds what UTF-8 can: no lone surrogates.
TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
DIGEST = st.text("0123456789abcdef", min_size=8, max_size=8)
READING = st.sampled_from(["", None, "srgb", "alpha", "scaled"])
FLOAT = st.floats(allow_nan=False, allow_infinity=False)
RENDER = st.fixed_dictionaries(
    {
        "base_digest": DIGEST,
        "concepts": st.lists(DIGEST, max_size=3),
        "prompt": TEXT,
        "negative_prompt": TEXT,
        "steps": st.integers(1, 1000),
        "guidance": FLOAT,
        "scheduler": st.sampled_from(["ddim", "euler"]),
        "width": st.none() | st.integers(8, 4096),
        "height": st.none() | st.integers(8, 4096),
        "bias": FLOAT,
        "temperature": FLOAT,
        "lock": st.sampled_from(["local", "global"]),
        "edit_unconditional": st.booleans(),
        "modes": st.sampled_from([[], ["regional"], ["strength 0.5"], ["regional", "strength 2.0"]]),
    }
)


@pytest.fixture(scope="module")
def sql():
    connection = duckdb.connect()
    keys.install(connection)
    yield lambda expression, *values: connection.execute(f"SELECT {expression}", values).fetchone()[0]
    connection.close()


@CHECK
@given(value=FLOAT)
def test_floats_have_one_decimal_form(sql, value):
    assert sql("CAST(?::DOUBLE AS VARCHAR)", value) == repr(value)


@CHECK
@given(
    base=DIGEST,
    metric=DIGEST,
    superclass=TEXT,
    images=st.lists(st.tuples(DIGEST, st.none() | DIGEST), max_size=4),
    lr=st.floats(1e-9, 10),
    start=st.none() | DIGEST,
)
def test_concept_key_is_the_same_in_sql(sql, base, metric, superclass, images, lr, start):
    training = TrainingConfig(lr_value=lr)
    expected = reference_keys.concept_key(
        base_digest=base, metric_key=metric, training=training, superclass=superclass, images=images, start=start
    )
    given_masks = [mask for _, mask in images]
    got = sql(
        "concept_key(?, ?, ?, ?, ?::VARCHAR[], ?::VARCHAR[], ?::VARCHAR)",
        *(base, metric, keys.settings_json(training), superclass),
        *([image for image, _ in images], given_masks if any(given_masks) else None, start),
    )
    assert got == expected


def test_a_start_makes_another_concept_and_no_start_changes_no_key():
    common = {"base_digest": "b", "metric_key": "m", "training": TrainingConfig(), "superclass": "mug"}
    images = [("1", None), ("2", None)]
    plain = "1:b1:m" + reference_keys._text(keys.settings_json(TrainingConfig())) + "3:mug2[4:1:1-4:1:2-]"
    before = hashlib.sha256(f"perfusion concept 1 {plain}".encode()).hexdigest()  # as in earlier versions
    assert reference_keys.concept_key(images=images, **common) == before
    found = {reference_keys.concept_key(images=images, start=start, **common) for start in (None, "1", "2", "")}
    assert len(found) == 4


@CHECK
@given(digest=DIGEST, reading=READING)
def test_a_pictures_field_is_the_same_in_sql_and_its_digest_alone_without_a_reading(sql, digest, reading):
    expected = reference_keys.picture_field(digest, reading)
    assert sql("key_picture(?, ?)", digest, reading) == expected
    assert (expected == digest) == (not reading)


def test_readings_of_the_same_bytes_are_different_concepts():
    common = {"base_digest": "b", "metric_key": "m", "training": TrainingConfig(), "superclass": "mug"}
    fields = [reference_keys.picture_field("1", reading) for reading in ("", "srgb", "alpha", "scaled")]
    found = {reference_keys.concept_key(images=[(image, mask)], **common) for image in fields for mask in fields}
    assert len(found) == 16


@CHECK
@given(fields=RENDER, seed=st.integers(0, 2**63 - 1), base_seed=st.integers(0, 2**63 - 1), index=st.integers(0, 999))
def test_render_key_and_seed_are_the_same_in_sql(sql, fields, seed, base_seed, index):
    material = reference_keys.render_material(**fields)
    order = list(inspect.signature(reference_keys.render_material).parameters)
    order.insert(2, order.pop(order.index("modes")))
    assert (
        sql(
            "render_material(?, ?::VARCHAR[], ?::VARCHAR[], ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            *(fields[name] for name in order),
        )
        == material
    )
    assert sql("render_key(?, ?)", material, seed) == reference_keys.render_key(material, seed)
    derived = reference_keys.default_seed(material, base_seed, index)
    assert sql("default_seed(?, ?, ?)", material, base_seed, index) == derived
    assert 0 <= derived < 2**31


@CHECK
@given(
    image_format=st.sampled_from(["png", "webp", "mp4"]),
    quality=st.none() | st.integers(1, 100),
    fps=st.none() | st.integers(1, 60),
)
def test_what_a_file_adds_to_a_key_is_the_same_in_sql(sql, image_format, quality, fps):
    expected = reference_keys.render_file(image_format, quality, fps)
    assert sql("render_file(?, ?::INTEGER, ?::INTEGER)", image_format, quality, fps) == expected
    assert (expected == "") == (image_format == "png" and fps is None)


@CHECK
@given(one=RENDER, other=RENDER, quality=st.none() | st.integers(1, 100))
def test_a_file_makes_another_key_than_any_other_field(one, other, quality):
    file = reference_keys.render_file("webp", quality)
    material = reference_keys.render_material(**one)
    assert material + file != reference_keys.render_material(**other)
    assert reference_keys.render_key(material + file, 3) != reference_keys.render_key(material, 3)


@CHECK
@given(one=RENDER, other=RENDER)
def test_different_renders_have_different_texts(one, other):
    assert (reference_keys.render_material(**one) == reference_keys.render_material(**other)) == (one == other)


def test_neighbouring_fields_do_not_run_into_each_other():
    fields = {
        "base_digest": "b", "concepts": [], "steps": 1, "guidance": 1.0, "scheduler": "ddim", "width": None,
        "height": None, "bias": 0.0, "temperature": 1.0, "lock": "local", "edit_unconditional": False,
    }  # fmt: skip
    texts = [("a", "b"), ("ab", ""), ("", "ab"), ("a1:b", ""), ("1:a", "b"), ("-", ""), ("", "-")]
    materials = {reference_keys.render_material(prompt=p, negative_prompt=n, **fields) for p, n in texts}
    assert len(materials) == len(texts)
    one = reference_keys.render_material(**(fields | {"concepts": ["a", "b"], "prompt": "", "negative_prompt": ""}))
    two = reference_keys.render_material(**(fields | {"concepts": ["a1:b"], "prompt": "", "negative_prompt": ""}))
    assert one != two


def test_order_of_images_and_white_space_do_not_matter_but_the_rest_does():
    common = {"base_digest": "b", "metric_key": "m", "training": TrainingConfig()}
    images = [("1", None), ("2", "x"), ("3", None)]
    key = reference_keys.concept_key(superclass="teddy bear", images=images, **common)
    assert key == reference_keys.concept_key(superclass=" teddy\u00a0\tbear ", images=images[::-1], **common)
    others = [
        reference_keys.concept_key(superclass="teddybear", images=images, **common),
        reference_keys.concept_key(superclass="teddy bear", images=images[:2], **common),
        reference_keys.concept_key(superclass="teddy bear", images=[("1", "x"), ("2", None), ("3", None)], **common),
        reference_keys.concept_key(
            superclass="teddy bear", images=images, **(common | {"training": TrainingConfig(steps=1)})
        ),
        reference_keys.concept_key(superclass="teddy bear", images=images, **(common | {"base_digest": "c"})),
        reference_keys.concept_key(superclass="teddy bear", images=images, **(common | {"metric_key": "n"})),
    ]
    assert len({key, *others}) == 7


def test_settings_are_complete_and_canonical():
    text = keys.settings_json(TrainingConfig(bias=-0.0, steps=7))
    complete = TrainingConfig(bias=0.0, steps=7).model_dump(exclude=set(TrainingConfig.not_in_old_keys))
    assert json.loads(text) == complete
    assert text == keys.settings_json(TrainingConfig(steps=7, bias=0.0))


def test_settings_that_came_later_are_in_a_key_only_if_they_are_used():
    """The text below is in the keys of every root that existed before the recipes."""
    assert keys.settings_json(TrainingConfig()) == (
        '{"batch":16,"bias":0.75,"ema":0.99,"fit":"crop","flip":false,"lock":"local","lr_embedding":0.006,'
        '"lr_value":0.03,"seed":0,"steps":400,"temperature":0.1}'
    )
    changes = [
        {"recipe": "offset"},
        {"decay": "cosine"},
        {"stratified": True},
        {"gate": "linear"},
        {"store": "int8"},
        {"references": 1},
        {"conv_rank": 1},
        {"lr_conv": 0.01},
    ]
    assert {name for change in changes for name in change} == set(TrainingConfig.not_in_old_keys)
    texts = {keys.settings_json(TrainingConfig(**change)) for change in [{}, *changes]}
    assert len(texts) == 1 + len(changes)
    for change in changes:
        assert json.loads(keys.settings_json(TrainingConfig(**change))).items() >= change.items()


def test_sampling_settings_that_came_later_are_in_a_run_s_identity_only_if_they_are_used():
    """Otherwise the first run after an upgrade would not know that it is finished."""
    old = json.loads(keys.settings_json(SamplingConfig()))
    webp = {"format": "webp"}
    changes = [
        *({"strength": 0.5}, {"combine": "regional"}, webp, {**webp, "webp_quality": 80}),
        *({"guidance_rescale": 0.7}, {"vae_tiling": True}, {"prompt_weights": True}),
        {**webp, "task": "video", "frames": 8, "fps": 24},
        {"prompt_chunks": 2},
    ]
    assert {name for change in changes for name in change} == set(SamplingConfig.not_in_old_keys)
    assert not old.keys() & SamplingConfig.not_in_old_keys
    for change in changes:
        assert json.loads(keys.settings_json(SamplingConfig(**change))) == {**old, **change}


def test_metric_key_follows_base_settings_and_captions():
    some = {
        keys.metric_key(base_digest="b", metric=MetricConfig()),
        keys.metric_key(base_digest="c", metric=MetricConfig()),
        keys.metric_key(base_digest="b", metric=MetricConfig(ridge=0.0)),
        keys.metric_key(base_digest="b", metric=MetricConfig(), captions_sha256="d"),
    }
    assert len(some) == 4


def test_a_key_never_changes_by_accident():
    """Objects are stored under these digests: a change here orphans every object made so far."""
    material = reference_keys.render_material(
        base_digest="b", concepts=["k"], prompt="a {0}", negative_prompt="", steps=50, guidance=6.0, scheduler="ddim",
        width=None, height=512, bias=0.6, temperature=0.15, lock="local", edit_unconditional=False,
    )  # fmt: skip
    assert material == "1:b1[1:k]5:a {0}0:2:503:6.04:ddim-3:5123:0.64:0.155:local5:false"
    regional = reference_keys.render_material(
        base_digest="b", concepts=["k", "l"], prompt="a {0} on a {1}", negative_prompt="", steps=50, guidance=6.0,
        scheduler="ddim", width=None, height=512, bias=0.6, temperature=0.15, lock="local", edit_unconditional=False,
        modes=["regional"],
    )  # fmt: skip
    assert regional == "1:b2[1:k1:l]8:regional14:a {0} on a {1}0:2:503:6.04:ddim-3:5123:0.64:0.155:local5:false"
    assert reference_keys.render_key(material, 3) == "7e02461e482c7753b95a8f0649e226e2b2877c75d85d2bd22e7448acb33cc515"
    files = [reference_keys.render_file(*file) for file in (("png", None), ("webp", None), ("webp", 80))]
    assert files == ["", "4:webp", "7:webp 80"]
    concept = reference_keys.concept_key(
        base_digest="b", metric_key="m", superclass="teddy bear", images=[("1", None), ("2", "x")],
        training=TrainingConfig(
            steps=400, batch=16, lr_value=0.03, lr_embedding=0.006, bias=0.75, temperature=0.1, ema=0.99, lock="local",
            flip=False, fit="crop", seed=0,
        ),
    )  # fmt: skip
    assert concept == "4bad2cf7c90a2f7cbdd19603b913094ca704d6c5da6176b22c993e86262485fc"
