"""Ray's Job API: submit a command to a cluster, list what was submitted, read logs, stop.

The address is that of the cluster's dashboard, such as http://head:8265. If the cluster wants a token, Ray's client
takes it from RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token; it is sent and never written.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import ClusterError

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
OPEN = ("PENDING", "RUNNING")
# Loggers of Ray's client that choose INFO for themselves, and tell of uploads between the lines of the run.
_TALKATIVE = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")


@dataclass(frozen=True)
class Job:
    """A submitted job.

    Attributes:
        id: its submission id.
        state: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        message: of Ray, about the state.
        exit_code: of its command; None until it has ended, and if it was stopped.
        began: seconds since 1970; None while it waits.
        ended: seconds since 1970; None until it has ended.
        metadata: what the submitter recorded.
    """

    id: str
    state: str
    message: str
    exit_code: int | None
    began: float | None
    ended: float | None
    metadata: Mapping[str, str]


class JobApi:
    """The jobs of one cluster."""

    def __init__(self, address: str) -> None:
        """Connect.

        Raises:
            ClusterError: nothing answers, or the token is missing or wrong.
        """
        self.address = address.rstrip("/")
        with self._explained():
            from ray.job_submission import JobSubmissionClient

            for name in _TALKATIVE:
                logging.getLogger(name).setLevel(logging.WARNING)
            self._client = JobSubmissionClient(self.address)

    def submit(
        self, job: str, entrypoint: str, *, folder: Path, metadata: Mapping[str, str], runtime_env: Mapping[str, Any]
    ) -> None:
        """Start a command on the head, in a copy of `folder`.

        Raises:
            ClusterError: there is a job of this id, or the cluster refuses.
        """
        with self._explained():
            self._client.submit_job(
                submission_id=job,
                entrypoint=entrypoint,
                metadata=dict(metadata),
                runtime_env={**runtime_env, "working_dir": str(folder)},
            )

    def jobs(self) -> list[Job]:
        """All submitted jobs, the oldest first.

        Raises:
            ClusterError: the cluster does not answer.
        """
        with self._explained():
            found = [_job(each) for each in self._client.list_jobs() if each.submission_id]
        return sorted(found, key=lambda job: (job.began or float("inf"), job.id))

    def job(self, job: str) -> Job:
        """One job.

        Raises:
            ClusterError: there is none of this id.
        """
        with self._explained(job):
            return _job(self._client.get_job_info(job))

    def log(self, job: str) -> str:
        """What the command has printed so far.

        Raises:
            ClusterError: as `job`.
        """
        with self._explained(job):
            return self._client.get_job_logs(job)

    def follow(self, job: str) -> Iterator[str]:
        """What the command prints, as it does so, until it ends.

        Raises:
            ClusterError: as `job`.
        """
        loop = asyncio.new_event_loop()
        lines = self._client.tail_job_logs(job)
        try:
            with self._explained(job):
                while True:
                    try:
                        yield loop.run_until_complete(anext(lines))
                    except StopAsyncIteration:
                        return
        finally:
            loop.close()

    def stop(self, job: str) -> bool:
        """Send SIGTERM to the command, which drains; returns False if it had ended already.

        Raises:
            ClusterError: as `job`.
        """
        with self._explained(job):
            return self._client.stop_job(job)

    @contextlib.contextmanager
    def _explained(self, job: str | None = None) -> Iterator[None]:
        """Turn errors of Ray's client into one sentence with a remedy."""
        from ray.exceptions import AuthenticationError

        try:
            yield
        except (AuthenticationError, RuntimeError, OSError) as error:
            text = " ".join(str(error).split())
            if isinstance(error, AuthenticationError):
                message = (
                    f"the cluster at {self.address} asks for a token: set RAY_AUTH_MODE=token, and put the token into "
                    "RAY_AUTH_TOKEN, a file named by RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
                )
            elif job is not None and "404" in text:
                message = f"there is no job {job!r} at {self.address}: `perfusion jobs` lists those that there are"
            elif "Failed to connect" in text or isinstance(error, OSError):
                message = (
                    f"nothing answers at {self.address}: is this the address of the cluster's dashboard (port 8265 "
                    "unless `ray start --dashboard-port` says otherwise), and can this machine reach it?"
                )
            else:
                message = f"the cluster at {self.address} refuses: {text[:300]}"
            raise ClusterError(message) from error


def _job(found: Any) -> Job:
    return Job(
        id=found.submission_id,
        state=str(getattr(found.status, "value", found.status)),
        message=" ".join((found.message or "").split()),
        exit_code=found.driver_exit_code,
        began=None if found.start_time is None else found.start_time / 1000,
        ended=None if not found.end_time else found.end_time / 1000,
        metadata=found.metadata or {},
    )
