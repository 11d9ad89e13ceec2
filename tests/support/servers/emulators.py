"""Azure's and Google's own storage emulators on loopback, where they are installed (`make stores` installs both)."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import fsspec
import pytest

from tests.support.servers.s3_server import free_ports

_PATIENCE_S = 120
_AZURITE = Path(sys.prefix) / "azurite/node_modules/.bin/azurite-blob"
# Azurite knows this account alone, and its documentation publishes the key.
_ACCOUNT = "devstoreaccount1"
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@contextmanager
def azurite(folder: Path) -> Iterator[dict[str, str]]:
    """The environment that leads to a server with an empty container `shop`."""
    if not (_AZURITE.exists() and shutil.which("node") and find_spec("adlfs")):
        pytest.skip("no adlfs or no Azurite here: make stores")
    (port,) = free_ports(1)
    # The client is ahead of the emulator by an API version more often than not.
    options = ["--inMemoryPersistence", "--disableTelemetry", "--skipApiVersionCheck"]
    command = [str(_AZURITE), "--blobHost", "127.0.0.1", "--blobPort", str(port), *options]
    endpoint = f"http://127.0.0.1:{port}/{_ACCOUNT}"
    words = {"DefaultEndpointsProtocol": "http", "AccountName": _ACCOUNT, "AccountKey": _KEY, "BlobEndpoint": endpoint}
    variables = {"AZURE_STORAGE_CONNECTION_STRING": "".join(f"{key}={value};" for key, value in words.items())}
    with _running(command, endpoint, folder):
        fsspec.filesystem("az", connection_string=variables["AZURE_STORAGE_CONNECTION_STRING"]).mkdir("shop")
        yield variables


@contextmanager
def google(folder: Path) -> Iterator[dict[str, str]]:
    """A Google storage emulator with the bucket `shop`. It ignores preconditions, so every create succeeds."""
    program = Path(sys.executable).with_name("gcp-storage-emulator")
    if not (program.exists() and find_spec("gcsfs")):
        pytest.skip("no gcsfs or no emulator of Google's storage here: make stores")
    (port,) = free_ports(1)
    options = ["--in-memory", "--default-bucket=shop", "--host=127.0.0.1", f"--port={port}"]
    endpoint = f"http://127.0.0.1:{port}"
    with _running([str(program), "start", *options], endpoint, folder):
        # The second asks Google itself what kind of bucket it is.
        yield {"STORAGE_EMULATOR_HOST": endpoint, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}


@contextmanager
def _running(command: list[str], endpoint: str, folder: Path) -> Iterator[None]:
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=dict(os.environ))
        try:
            ends = time.monotonic() + _PATIENCE_S
            while not _answers(endpoint):
                if process.poll() is not None or time.monotonic() > ends:
                    raise AssertionError(
                        f"it does not start: {(folder / 'log.txt').read_text(errors='replace')[-2000:]}"
                    )
                time.sleep(0.2)
            yield
        finally:
            process.kill()
            process.wait(30)


def _answers(endpoint: str) -> bool:
    try:
        urlopen(endpoint, timeout=1).close()
    except HTTPError:
        return True
    except (URLError, OSError):
        return False
    return True
