"""Connects to a Ray cluster that runs already.

The first connection is made in a process of its own: Ray waits for minutes for a head that does not answer, prints
while it does so, and aborts the process in some cases where this machine is not a node of the cluster.
"""

import contextlib
import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from cluster.errors import ClusterError
from cluster.fitness import package_folders

_ANSWER_S = 5.0  # for the head to accept a connection
_FIND_NODE_S = "10"  # for Ray to find the cluster's node on this machine
_TRY_S = 90.0  # for a process to import Ray and connect
_TRIAL = """
import logging, sys
import ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.CRITICAL)
except Exception as error:
    print(type(error).__name__, str(error), str(error.__cause__ or ""), sep="\\n")
    sys.exit(3)
ray.shutdown()
"""
_REFUSED = 3


def ensure_reachable(address: str) -> None:
    """Try a connection to `auto` or `host:port`, without connecting this process.

    Raises:
        ClusterError: nothing answers, this machine is no node of the cluster, versions differ, or the token is wrong.
    """
    if address != "auto":
        _ensure_answer(address)
    command = [sys.executable, "-c", _TRIAL, address]
    environment = {**_environment(), "RAY_gcs_server_request_timeout_seconds": _FIND_NODE_S}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TRY_S, check=False, env=environment)
    except subprocess.TimeoutExpired:
        raise ClusterError(
            f"the Ray cluster at {address} accepts connections but does not answer within {_TRY_S:g} s: look at it "
            "with `ray status`"
        ) from None
    if done.returncode == _REFUSED:
        kind, _, text = done.stdout.partition("\n")
        raise ClusterError(_explained(address, kind, " ".join(text.split())))
    if done.returncode and "raylet" in done.stderr:
        raise ClusterError(_not_a_node(address))
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ClusterError(f"Ray cannot connect to {address} (its process ended with {done.returncode}): {last[:300]}")


@contextlib.contextmanager
def attached(address: str, runtime_env: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Within the block, this process is a driver on the cluster at `auto` or `host:port`; the cluster stays.

    Args:
        address: of the cluster; call `ensure_reachable` with it before.
        runtime_env: what workers get, as Ray describes it.

    Raises:
        ClusterError: Ray already runs in this process, or the connection fails.
    """
    os.environ.update(_environment())
    import ray

    if ray.is_initialized():
        raise ClusterError("Ray already runs in this process: call ray.shutdown() first, or use another process")
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env=dict(runtime_env) if runtime_env else None,
        )
    except Exception as error:
        ray.shutdown()
        raise ClusterError(_explained(address, type(error).__name__, " ".join(str(error).split()))) from error
    try:
        yield
    finally:
        ray.shutdown()


def shipped() -> dict[str, Any]:
    """A runtime environment that sends this program's packages to the nodes."""
    return {"py_modules": [str(folder) for folder in package_folders()]}


def _not_a_node(address: str) -> str:
    return (
        f"this machine is not a node of the Ray cluster at {address}: start the run on one of its nodes, or send it "
        "there with `perfusion submit`"
    )


def _environment() -> dict[str, str]:
    # Python's patch version has no influence on Ray's protocol; the nodes' own check compares what matters.
    return {"RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL": "minor", **os.environ}


def _ensure_answer(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()
    except OSError as error:
        raise ClusterError(
            f"nothing answers at {address} ({error.strerror or error}): is the cluster running, and is this the port "
            "of its head (6379 unless `ray start --port` says otherwise)?"
        ) from error


def _explained(address: str, kind: str, text: str) -> str:
    """One sentence for an error of Ray and its remedy."""
    if "AuthenticationError" in (kind, *re.findall(r"\w+Error", text)):
        return (
            f"the Ray cluster at {address} asks for a token: set RAY_AUTH_MODE=token, and put the token into "
            "RAY_AUTH_TOKEN, a file named by RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
        )
    versions = re.findall(r"Ray: (\S+) Python: (\S+)", text)
    if "Version mismatch" in text and len(versions) == 2:
        (ray_there, python_there), (ray_here, python_here) = versions
        return (
            f"the cluster at {address} has Ray {ray_there} and Python {python_there}, this machine Ray {ray_here} and "
            f"Python {python_here}: Ray and the minor version of Python must be equal, so install those of the cluster"
        )
    if "No node info found" in text:
        return _not_a_node(address)
    if kind == "ConnectionError" and address == "auto":
        return "no Ray cluster runs on this machine: start it with `ray start`, or leave cluster.address out"
    return f"Ray cannot connect to {address}: {kind}: {text[:300]}"
