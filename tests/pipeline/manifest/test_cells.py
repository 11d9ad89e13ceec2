"""Cells of prompts: every kind of bad one has its code, its column and the limits in its message."""

from pipeline.contract.errors import Code
from pipeline.manifest.prompts import load_prompts
from tests.support.manifests import P, rows, write_jsonl

BAD_PROMPTS = [
    ({"prompt": None}, Code.MISSING_VALUE),
    ({"prompt": ""}, Code.EMPTY_PROMPT),
    ({"prompt": " \u00a0 "}, Code.EMPTY_PROMPT),
    ({"prompt": "a photo"}, Code.NO_PLACEHOLDER),
    ({"prompt": "a {product"}, Code.BAD_PLACEHOLDER),
    ({"prompt": "a product}"}, Code.BAD_PLACEHOLDER),
    ({"prompt": "a {{product}}"}, Code.BAD_PLACEHOLDER),
    ({"prompt": "a {}"}, Code.BAD_PLACEHOLDER),
    ({"prompt": "a {../x}"}, Code.BAD_PLACEHOLDER),
    ({"prompt": "a {Größe cm}"}, Code.BAD_PLACEHOLDER),
    ({"negative_prompt": "{product. a{b}"}, Code.BAD_PLACEHOLDER),
    ({"prompt": "a {product}\n"}, Code.BAD_CHARACTER),
    ({"prompt": "a {product}\x00"}, Code.BAD_CHARACTER),
    ({"prompt": "a {product}\udfff"}, Code.BAD_CHARACTER),
    ({"prompt": "{product}" + "x" * 2000}, Code.TEXT_TOO_LONG),
    ({"prompt": 7}, Code.WRONG_TYPE),
    ({"negative_prompt": "{"}, Code.BAD_PLACEHOLDER),
    ({"where": 5}, Code.WRONG_TYPE),
    ({"seed": -1}, Code.OUT_OF_RANGE),
    ({"seed": 2**63}, Code.OUT_OF_RANGE),
    ({"seed": 10**400}, Code.OUT_OF_RANGE),
    ({"seed": 1.5}, Code.WRONG_TYPE),
    ({"seed": True}, Code.WRONG_TYPE),
    ({"seed": "7"}, Code.WRONG_TYPE),
    ({"seed": 1, "num_images": 2}, Code.SEED_CONFLICT),
    ({"num_images": 0}, Code.OUT_OF_RANGE),
    ({"num_images": 1001}, Code.OUT_OF_RANGE),
    ({"bias": float("nan")}, Code.NOT_FINITE),
    ({"bias": 10**400}, Code.OUT_OF_RANGE),
    ({"bias": 2.5}, Code.OUT_OF_RANGE),
    ({"temperature": 0}, Code.OUT_OF_RANGE),
    ({"guidance": float("inf")}, Code.NOT_FINITE),
    ({"guidance": -1}, Code.OUT_OF_RANGE),
    ({"lock": "both"}, Code.OUT_OF_RANGE),
    ({"lock": 1}, Code.WRONG_TYPE),
    ({"scheduler": "euler_aa"}, Code.OUT_OF_RANGE),
    ({"scheduler": 1}, Code.WRONG_TYPE),
    ({"width": 12}, Code.OUT_OF_RANGE),
    ({"height": 8192}, Code.OUT_OF_RANGE),
    ({"steps": 0}, Code.OUT_OF_RANGE),
]


def test_every_kind_of_bad_prompt_has_its_code_and_the_good_ones_stay_good(db, tmp_path):
    table, expected = [], []
    for change, code in BAD_PROMPTS:
        table += [P | change, P | {"seed": 5, "bias": 0.5, "width": 512, "scheduler": "dpm++"}]
        expected += [code.value, None]
    summary = load_prompts(db, str(write_jsonl(tmp_path / "p.jsonl", table)))
    found = rows(db, "prompts")
    assert [(row["row"], row["error_code"]) for row in found] == list(enumerate(expected, 1))
    assert summary.good == len(BAD_PROMPTS)
    for row in found:
        if row["error_code"] is None:
            assert (row["seed"], row["bias"], row["width"], row["scheduler"]) == (5, 0.5, 512, "dpm++")
            assert row["num_images"] == 1
        else:
            assert (
                row["error_column"] in row["error_message"]
                or "placeholder" in row["error_message"]
                or "brace" in row["error_message"]
            )
    ranges = {row["error_column"]: row["error_message"] for row in found if row["error_code"] == "out_of_range"}
    assert "between -1 and 2" in ranges["bias"]
    assert "above 0 and at most 10" in ranges["temperature"]
    assert "between 8 and 4096 and be a multiple of 8" in ranges["height"]
    assert "write 'euler_a' if that is meant, or use one of ddim, dpm++, euler" in ranges["scheduler"]


def test_a_prompt_may_name_a_column_of_any_name(db, tmp_path):
    names = ("product.Größe cm", "product.o'clock", "product..", "season")
    table = [P | {"prompt": f"a {{product}} of {{{name}}}", "negative_prompt": f"{{{name}}}"} for name in names]
    assert load_prompts(db, str(write_jsonl(tmp_path / "p.jsonl", table))).good == len(names)
