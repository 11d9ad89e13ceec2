"""Error codes: each has a meaning."""

from pipeline.contract.errors import MEANING, Code


def test_every_code_has_a_meaning():
    assert set(MEANING) == set(Code)
