"""Sends a run to a cluster as a job, once at a time, and finds it again by its name."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from cluster.job_api import ENDED, OPEN, Job, JobApi
from jobs.output import OK, STOPPED
from jobs.placement.parcel import SPEC, Parcel
from jobs.spec_file import SpecError
from pipeline.settings import RunSettings

_ENTRYPOINT = f"python -m jobs run {SPEC} --address auto --json"
_METADATA = "perfusion_spec"


class SubmissionError(SpecError):
    """The cluster has an open job of the same spec and manifests; the message names it and its state."""


def dashboard(address: str | None, environment: Mapping[str, str] = os.environ) -> str:
    """The address of the Job API: the option's, or that of RAY_API_SERVER_ADDRESS.

    Raises:
        SpecError: there is none, or it is of another kind.
    """
    found = address or environment.get("RAY_API_SERVER_ADDRESS") or ""
    if not found:
        raise SpecError("give the cluster's dashboard: --address http://head:8265, or set RAY_API_SERVER_ADDRESS")
    if not found.startswith(("http://", "https://")):
        raise SpecError(f"{found} is not the address of a dashboard: it is like http://head:8265")
    return found


def submit(api: JobApi, parcel: Parcel, settings: RunSettings, *, spec: str, code: Mapping[str, object]) -> str:
    """Start the run on the cluster; returns the name of the submission.

    The name is a digest of the spec and the manifests, and a number that counts the submissions of the same content.

    Args:
        api: the cluster.
        parcel: what travels.
        settings: of the run.
        spec: name of the spec file, for people.
        code: a runtime environment that brings this program's code; empty: the cluster has it.

    Raises:
        SubmissionError: a job of the same content waits or runs.
        ClusterError: the cluster refuses.
    """
    name = f"perfusion-{parcel.digest[:12]}"
    before = [job for job in api.jobs() if re.fullmatch(rf"{name}-\d+", job.id)]
    for job in before:
        if job.state in OPEN:
            raise SubmissionError(
                f"this spec is submitted already: job {job.id} is {job.state}; follow it with "
                f"`perfusion logs {job.id} --follow`, or stop it with `perfusion stop {job.id}`"
            )
    number = 1 + max((int(job.id.rpartition("-")[2]) for job in before), default=0)
    api.submit(
        f"{name}-{number:04d}",
        _ENTRYPOINT,
        folder=parcel.folder,
        metadata={_METADATA: Path(spec).name},
        # Ray sends SIGKILL to a job this long after SIGTERM.
        runtime_env={**code, "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(settings.policy.stop_s)}},
    )
    return f"{name}-{number:04d}"


def spec_name(job: Job) -> str | None:
    """The spec file that a job was submitted from; None if it is not a job of this program."""
    return job.metadata.get(_METADATA)


def exit_code(job: Job) -> int:
    """The exit code of the run of an ended job: the run's own, 4 if it was stopped, 1 if it never started."""
    assert job.state in ENDED
    if job.state == "STOPPED":
        return STOPPED
    if job.state == "SUCCEEDED":
        return OK
    return job.exit_code if job.exit_code is not None else 1
