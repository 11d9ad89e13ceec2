"""Decides on which cluster a command runs its work."""

import os
from collections.abc import Mapping

from pydantic import ValidationError

from jobs.spec_file import SpecError
from pipeline.engine.machines import ClusterSettings
from pipeline.settings import RunSettings


def placed(
    settings: RunSettings, address: str | None = None, environment: Mapping[str, str] = os.environ
) -> RunSettings:
    """The settings with an address: that of `--address`, else the spec's, else that of RAY_ADDRESS, else `local`.

    Raises:
        SpecError: the address cannot be used.
    """
    given = {
        "--address": address,
        "cluster.address": settings.cluster.address,
        "RAY_ADDRESS": environment.get("RAY_ADDRESS"),
    }
    source, wanted = next(((name, value) for name, value in given.items() if value), ("the default", "local"))
    try:
        cluster = ClusterSettings.model_validate({**settings.cluster.model_dump(), "address": wanted})
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise SpecError(f"{source} is {wanted!r}: {message}") from error
    return settings.model_copy(update={"cluster": cluster})
