"""Loading of base models: what it leaves behind in the libraries that it silences."""

import pytest
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from perfusion_ops.base_model import quiet_libraries

LIBRARIES = (diffusers_logging, transformers_logging)


def settings():
    return [(each.get_verbosity(), each.is_progress_bar_enabled()) for each in LIBRARIES]


def apply(values):
    for each, (verbosity, bars) in zip(LIBRARIES, values, strict=True):
        each.set_verbosity(verbosity)
        each.enable_progress_bar() if bars else each.disable_progress_bar()


def silenced():
    with quiet_libraries():
        raise KeyError(str(settings()))


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("level", [10, 50])
def test_silenced_libraries_get_their_own_settings_back(shown, level):
    found = settings()
    try:
        apply([(level, shown)] * 2)
        with pytest.raises(KeyError, match=r"False.*False") as error:
            silenced()
        assert str([(40, False)] * 2) in str(error.value)
        assert settings() == [(level, shown)] * 2
    finally:
        apply(found)
