"""The OpenLineage client, set up from the section `lineage`, the environment and the client's own `openlineage.yml`."""

import os
import re
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from openlineage.client.client import OpenLineageClient

from jobs.lineage.events import JobRun
from jobs.spec_file import SpecError
from pipeline.contract.messages import clip, plain
from pipeline.settings import LineageSettings

_TIMEOUT_S = 2.0  # to connect, and between two bytes of the answer
_MESSAGE_BYTES = 2_000
_USER = re.compile(r"//[^/@\s'\"]*@")
_KEY = "OPENLINEAGE_API_KEY"


def open_client(settings: LineageSettings) -> OpenLineageClient:
    """A client for the receiver that the settings name; without one, that of OPENLINEAGE_URL or of `openlineage.yml`.

    Raises:
        SpecError: there is no receiver, or the client refuses its configuration.
    """
    before = set(os.environ)
    try:
        client = OpenLineageClient(config=_config(settings))
    except Exception as error:  # noqa: BLE001 (its transports raise types of their own)
        raise SpecError(
            f"the OpenLineage client cannot be set up ({explain(error)}): correct the section lineage, the variables "
            "OPENLINEAGE_... or openlineage.yml"
        ) from None
    finally:
        # The client copies OPENLINEAGE_URL and the key to further variables, which workers would inherit.
        for name in set(os.environ) - before:
            del os.environ[name]
    if client.transport.kind == "console" and not (client.config.transport or {}).get("type"):
        raise SpecError(
            "lineage has no receiver: set lineage.url or lineage.file, OPENLINEAGE_URL, or a transport in "
            "openlineage.yml; or remove the section lineage"
        )
    return client


def explain(error: BaseException) -> str:
    """An error on one line, cut to 2,000 bytes, without the key and without secrets of an address."""
    text = str(error).strip()
    if key := os.environ.get(_KEY):
        text = text.replace(key, "…")
    text = plain(_USER.sub("//", text))
    return clip(text or type(error).__name__, _MESSAGE_BYTES)


def parent_of(variable: str, environment: Mapping[str, str] = os.environ) -> JobRun | None:
    """The run that a variable such as OPENLINEAGE_PARENT_ID names as `namespace/job/run id`; None without one.

    Raises:
        SpecError: the value has another form.
    """
    value = environment.get(variable)
    if not value:
        return None
    namespace, _, rest = value.partition("/")
    name, _, run_id = rest.rpartition("/")
    with suppress(ValueError):
        if namespace and name:
            return JobRun(namespace, name, str(uuid.UUID(run_id)))
    raise SpecError(f"{variable} is {value!r}, which is not NAMESPACE/JOB/UUID: correct it or unset it")


def _config(settings: LineageSettings) -> dict[str, Any]:
    """The part of the client's configuration that the settings decide; the client merges it over its own."""
    if settings.file is not None:
        path = Path(settings.file.removeprefix("file://"))
        with suppress(OSError):  # the client will say that it cannot write there
            path.parent.mkdir(parents=True, exist_ok=True)
        return {"transport": {"type": "file", "log_file_path": str(path), "append": True}}
    if settings.url is None:
        return {}
    # The outbox tries again; urllib3 would warn each time, and hide the status of the answer.
    retry = {"total": 0, "status_forcelist": []}
    http: dict[str, Any] = {"type": "http", "url": settings.url, "timeout": _TIMEOUT_S, "retry": retry}
    if endpoint := os.environ.get("OPENLINEAGE_ENDPOINT"):
        http["endpoint"] = endpoint
    if key := os.environ.get(_KEY):
        http["auth"] = {"type": "api_key", "apiKey": key}
    return {"transport": http}
