"""`perfusion validate` and `perfusion plan`: every bad row is shown, and the work of a run or of a part is counted."""

from tests.support.command import Shop, only_object


def test_validate_shows_every_bad_row(perfusion, shop):
    code, out, _ = perfusion("validate", shop.spoilt())
    assert code == 2
    lines = out.splitlines()
    assert lines[:2] == ["concepts: 4 rows in 1 file", "prompts: 4 rows in 1 file"]
    assert [line for line in lines if line.startswith(("concepts row", "prompts row"))] == [
        "concepts row 3, column concept_id: bad_id",
        "concepts row 4, column images: image_missing",
        "prompts row 2, column prompt: unknown_concept",
        "prompts row 3, column prompt: concept_invalid",
        "prompts row 4, column prompt: no_placeholder",
    ]
    assert all(line.startswith("    ") for line in lines[3:-1:2])
    assert "nowhere.png" in out
    assert lines[-1] == "5 bad rows"


def test_validate_says_how_many_it_does_not_show(perfusion, shop):
    code, out, err = perfusion("validate", shop.spoilt(), "--show", 2)
    assert (code, "--limit" in err) == (2, False)
    assert out.splitlines()[-2:] == ["... and 3 more: show them with --show 5", "5 bad rows"]
    old = perfusion("validate", shop.spoilt(), "--limit", 2)
    assert old[:2] == (code, out)
    assert "--limit 2 is the old spelling, and the next version drops it: write --show 2" in old[2]
    code, out, _ = perfusion("validate", shop.spoilt(), "--json")
    found = only_object(out)
    assert (code, found["bad_rows"], len(found["shown"])) == (2, 5, 5)
    assert found["shown"][0].keys() == {"manifest", "row", "column_name", "code", "message"}


def test_validate_of_good_manifests(perfusion, shop):
    code, out, _ = perfusion("validate", shop.spec("good"))
    assert (code, out.splitlines()[-1]) == (0, "every row is good")
    code, out, _ = perfusion("validate", shop.spec("good"), "--json")
    assert (code, only_object(out)["bad_rows"]) == (0, 0)


def test_plan(perfusion, shop):
    code, out, _ = perfusion("plan", shop.spoilt())
    assert code == 0
    assert [line.split() for line in out.splitlines()[:3]] == [
        ["rows", "reused", "to", "do", "distinct", "to", "do", "bad"],
        ["concepts", "4", "0", "2", "2", "2"],
        ["renders", "5", "0", "2", "2", "3"],
    ]
    assert "5 bad rows: `perfusion validate` shows what is wrong" in out
    code, out, _ = perfusion("plan", shop.spoilt(), "--json")
    found = only_object(out)
    assert (code, found["bad_rows"], found["work"]["renders"]["to_do"]) == (0, 5, 2)


def test_a_part_of_a_plan_is_planned_alone(shop, perfusion):
    code, out, _ = perfusion("plan", shop.spec("good"), "--limit", 1, "--json")
    assert (code, only_object(out)["work"]["renders"]["rows"]) == (0, 1)
    code, out, _ = perfusion("plan", shop.spec("good"), "--sample", 5, "--json")
    assert (code, only_object(out)["work"]["renders"]["rows"]) == (0, 2)
    code, _, err = perfusion("run", shop.spec("good"), "--sample", 5, "--limit", 5)
    assert code == 2
    assert "--limit and --sample exclude each other: give one of them" in err


def test_a_plan_that_has_too_little_memory_ends_with_the_setting(perfusion, tmp_path):
    shop = Shop(tmp_path)
    spec = shop.spec("memory")
    code, out, err = perfusion("plan", spec, "--set", "engine.plan_memory=2MB")
    assert code == 1
    assert "engine.plan_memory = 2MB: set engine.plan_memory to 4MB or more" in err
    assert "Traceback" not in out + err
