"""Loading a base model: quiet, and without lasting effects on the libraries of the caller."""

import pytest
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from perfusion_ops.base_model import quiet_libraries

LIBRARIES = (diffusers_logging, transformers_logging)


def state():
    return [(each.get_verbosity(), each.is_progress_bar_enabled()) for each in LIBRARIES]


@pytest.fixture(autouse=True)
def restored():
    before = state()
    yield
    for each, (verbosity, bars) in zip(LIBRARIES, before, strict=True):
        each.set_verbosity(verbosity)
        (each.enable_progress_bar if bars else each.disable_progress_bar)()


@pytest.mark.parametrize("bars", [True, False])
@pytest.mark.parametrize("verbosity", [diffusers_logging.INFO, diffusers_logging.WARNING])
def test_quiet_libraries_get_back_what_the_caller_had_set(bars, verbosity):
    for each in LIBRARIES:
        each.set_verbosity(verbosity)
        (each.enable_progress_bar if bars else each.disable_progress_bar)()
    before = state()
    with quiet_libraries():
        assert state() == [(each.ERROR, False) for each in LIBRARIES]
    assert state() == before
    with pytest.raises(ValueError, match="inside"), quiet_libraries():
        raise ValueError("inside")
    assert state() == before == [(verbosity, bars)] * 2
