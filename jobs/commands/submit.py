"""`perfusion submit`, `logs`, `stop` and `jobs`: runs on a cluster that this machine is not a part of."""

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.options import Json, Set, Spec
from jobs.output import OK, complain, say, say_json, table

if TYPE_CHECKING:
    from cluster.job_api import Job, JobApi

_POLL_S = 1.0

Dashboard = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="URL",
        help="the cluster's dashboard, such as http://head:8265; default: RAY_API_SERVER_ADDRESS",
        show_default=False,
    ),
]
Submission = Annotated[str, typer.Argument(help="name of a submission", show_default=False)]
Wait = Annotated[bool, typer.Option("--wait", help="print the log until the run ends, and end with its exit code")]
Follow = Annotated[bool, typer.Option("--follow", help="print what follows until the run ends")]


def submit(spec: Spec, address: Dashboard = None, set_: Set = None, *, wait: Wait = False, json: Json = False) -> None:
    """Run a spec on a cluster, as a job of Ray.

    The spec and local manifests travel. Everything else must be where the cluster can read it. A spec that is already
    waiting or running there is refused.
    """
    from cluster.attach import shipped
    from jobs.placement.parcel import packed
    from jobs.placement.submission import dashboard, exit_code
    from jobs.placement.submission import submit as send
    from jobs.spec import load_spec

    settings = load_spec(spec, set_ or ())
    url = dashboard(address)
    with packed(settings) as parcel:
        api = _connected(url)
        name = send(api, parcel, settings, spec=spec, code=shipped() if settings.cluster.ship_code else {})
    if not wait:
        if json:
            say_json({"submission": name, "address": url})
        else:
            say(name)
            complain(f"follow it with `perfusion logs {name} --address {url} --follow`")
        raise typer.Exit(OK)
    complain(f"submitted as {name}")
    job = _followed(api, name)
    if json:
        say_json({"submission": name, "state": job.state, "message": job.message, "exit_code": exit_code(job)})
    raise typer.Exit(exit_code(job))


def logs(submission: Submission, address: Dashboard = None, *, follow: Follow = False) -> None:
    """Print what a submitted run has printed."""
    api = _of(address)
    if follow:
        _followed(api, submission)
    else:
        say(api.log(submission).rstrip("\n"))


def stop(submission: Submission, address: Dashboard = None) -> None:
    """Ask a submitted run to stop, and wait until it has.

    Running units may finish within policy.drain_s. The same submission resumes the run.
    """
    api = _of(address)
    if not api.stop(submission):
        say(f"{submission} had ended already: {api.job(submission).state}")
        return
    job = _ended(api, submission)
    say(f"{submission} is {job.state}")


def jobs(address: Dashboard = None, *, json: Json = False) -> None:
    """List submitted runs."""
    from jobs.placement.submission import spec_name

    found = [job for job in _of(address).jobs() if spec_name(job)]
    if json:
        say_json({"jobs": found})
        return
    if not found:
        say("no run was submitted")
        return
    table(
        ("submission", "spec", "state", "began", "exit code"),
        [
            (job.id, spec_name(job), job.state, _when(job.began), "" if job.exit_code is None else job.exit_code)
            for job in found
        ],
    )


def _of(address: str | None) -> "JobApi":
    from jobs.placement.submission import dashboard

    return _connected(dashboard(address))


def _connected(url: str) -> "JobApi":
    from cluster.job_api import JobApi

    return JobApi(url)


def _followed(api: "JobApi", name: str) -> "Job":
    """Print the log of a job until it ends; returns how it ended."""
    for text in api.follow(name):
        say(text.rstrip("\n"))
    return _ended(api, name)


def _ended(api: "JobApi", name: str) -> "Job":
    from cluster.job_api import ENDED

    while (job := api.job(name)).state not in ENDED:
        time.sleep(_POLL_S)
    return job


def _when(seconds: float | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
