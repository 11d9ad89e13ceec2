"""Which cluster a command uses: the option's, else the spec's, else the environment's, else this machine."""

import itertools

import pytest

from jobs.placement.address import placed
from jobs.spec_file import SpecError
from pipeline.settings import RunSettings

REQUIRED = {"root": "r", "concepts": "c", "prompts": "p"}


def run_of(address=None, **cluster):
    given = {**cluster, **({} if address is None else {"address": address})}
    return RunSettings.model_validate({**REQUIRED, "cluster": given})


@pytest.mark.parametrize(
    ("option", "spec", "variable"),
    [*itertools.product((None, "option:1"), (None, "spec:2"), (None, "variable:3"))],
)
def test_the_first_that_is_given_wins(option, spec, variable):
    environment = {} if variable is None else {"RAY_ADDRESS": variable}
    expected = option or spec or variable or "local"
    assert placed(run_of(spec), option, environment).cluster.address == expected


def test_empty_ones_count_as_absent():
    assert placed(run_of(), "", {"RAY_ADDRESS": ""}).cluster.address == "local"
    assert placed(run_of("auto"), "", {"RAY_ADDRESS": "head:1"}).cluster.address == "auto"


@pytest.mark.parametrize("word", ["local", "auto"])
def test_words_win_over_what_comes_after_them(word):
    assert placed(run_of("spec:2"), word, {"RAY_ADDRESS": "head:1"}).cluster.address == word
    assert placed(run_of(word), None, {"RAY_ADDRESS": "head:1"}).cluster.address == word


def test_the_variable_is_that_of_the_process(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert placed(run_of()).cluster.address == "head:6379"
    monkeypatch.delenv("RAY_ADDRESS")
    assert placed(run_of()).cluster.address == "local"


def test_all_else_stays():
    before = run_of("auto", slots="2..4", gpus=0.5, labels={"zone": "a"}, shared_filesystem=True)
    after = placed(before, "head:1", {})
    assert after.cluster == before.cluster.model_copy(update={"address": "head:1"})
    assert after.model_copy(update={"cluster": before.cluster}) == before
    assert before.cluster.address == "auto"


@pytest.mark.parametrize(
    ("option", "variable", "source"),
    [("ray://head:10001", "auto", "--address"), (None, "ray://head:10001", "RAY_ADDRESS")],
)
def test_the_message_names_the_source(option, variable, source):
    with pytest.raises(SpecError, match=rf"^{source} is 'ray://head:10001': Ray Client \(ray://\) loses the run"):
        placed(run_of(), option, {"RAY_ADDRESS": variable})


def test_a_wrong_address_that_is_overridden_does_no_harm():
    assert placed(run_of(), "auto", {"RAY_ADDRESS": "ray://head:10001"}).cluster.address == "auto"


def test_a_spec_that_was_not_checked_is_named_too():
    spec = run_of()
    wrong = spec.model_copy(update={"cluster": spec.cluster.model_copy(update={"address": "head"})})
    with pytest.raises(SpecError, match=r"^cluster\.address is 'head': use 'local', 'auto' or host:port"):
        placed(wrong, None, {})
