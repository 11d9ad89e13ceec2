"""A run is submitted once at a time, under a name that counts; and an ended job has the exit code of its run."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cluster.errors import ClusterError
from cluster.job_api import ENDED, OPEN, Job
from jobs.placement.parcel import Parcel
from jobs.placement.submission import SubmissionError, dashboard, exit_code, spec_name, submit
from jobs.spec_file import SpecError
from pipeline.settings import RunSettings

SETTINGS = RunSettings.model_validate({"root": "s3://b/r", "concepts": "s3://b/c", "prompts": "s3://b/p"})
DIGEST = "0123456789abcdef" * 4
NAME = "perfusion-0123456789ab"


@dataclass
class Board:
    """`cluster.job_api.JobApi` with the jobs in memory."""

    states: dict = field(default_factory=dict)
    submitted: dict = field(default_factory=dict)

    def jobs(self):
        return [job(name, state) for name, state in self.states.items()]

    def submit(self, name, entrypoint, *, folder, metadata, runtime_env):
        if name in self.states:
            raise ClusterError(f"there is a job {name}")
        self.states[name] = "PENDING"
        self.submitted[name] = {
            "entrypoint": entrypoint,
            "folder": folder,
            "metadata": metadata,
            "runtime_env": runtime_env,
        }


def job(name="j", state="SUCCEEDED", code=None, metadata=None):
    return Job(name, state, "", code, 1.0, None, metadata or {})


def send(board, digest=DIGEST, settings=SETTINGS, code=None, spec="shop.yaml"):
    return submit(board, Parcel(Path("/scratch/parcel"), digest), settings, spec=spec, code=code or {})


# The dashboard


def test_the_option_wins_over_the_environment():
    environment = {"RAY_API_SERVER_ADDRESS": "http://other:8265"}
    assert dashboard("http://head:8265", environment) == "http://head:8265"
    assert dashboard("https://head", {}) == "https://head"
    for absent in (None, ""):
        assert dashboard(absent, environment) == "http://other:8265"


def test_the_variable_is_that_of_the_process(monkeypatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://head:8265")
    assert dashboard(None) == "http://head:8265"


@pytest.mark.parametrize("environment", [{}, {"RAY_API_SERVER_ADDRESS": ""}, {"RAY_ADDRESS": "http://head:8265"}])
def test_no_dashboard(environment):
    with pytest.raises(SpecError, match="give the cluster's dashboard: --address http://head:8265, or set RAY_API_SER"):
        dashboard(None, environment)


@pytest.mark.parametrize("address", ["auto", "head:6379", "ray://head:10001", "head", "ftp://head:8265"])
def test_an_address_of_another_kind(address):
    for option, environment in ((address, {}), (None, {"RAY_API_SERVER_ADDRESS": address})):
        with pytest.raises(SpecError) as caught:
            dashboard(option, environment)
        assert str(caught.value) == f"{address} is not the address of a dashboard: it is like http://head:8265"


# Submissions


def test_what_is_submitted():
    board = Board()
    code = {"py_modules": ["/src/jobs"]}
    settings = SETTINGS.model_copy(update={"policy": SETTINGS.policy.model_copy(update={"drain_s": 95.5})})
    assert send(board, settings=settings, code=code, spec="/home/me/shop.yaml") == f"{NAME}-0001"
    assert board.submitted == {
        f"{NAME}-0001": {
            "entrypoint": "python -m jobs run spec.yaml --address auto --json",
            "folder": Path("/scratch/parcel"),
            "metadata": {"perfusion_spec": "shop.yaml"},
            "runtime_env": {"py_modules": ["/src/jobs"], "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "136"}},
        }
    }


def test_without_code_the_cluster_s_own_is_used():
    board = Board()
    send(board)
    [sent] = board.submitted.values()
    assert set(sent["runtime_env"]) == {"env_vars"}


@pytest.mark.parametrize("state", ENDED)
def test_names_of_the_same_content_count_up(state):
    board = Board()
    names = []
    for _ in range(3):
        names.append(send(board))
        board.states[names[-1]] = state
    assert names == [f"{NAME}-0001", f"{NAME}-0002", f"{NAME}-0003"]


def test_the_count_follows_the_largest_number():
    assert send(Board({f"{NAME}-0002": "FAILED", f"{NAME}-0010": "STOPPED"})) == f"{NAME}-0011"
    assert send(Board({f"{NAME}-9999": "FAILED", f"{NAME}-0001": "STOPPED"})) == f"{NAME}-10000"
    assert send(Board({f"{NAME}-10000": "FAILED"})) == f"{NAME}-10001"


def test_other_content_has_a_count_of_its_own():
    other = "f" * 64
    board = Board(
        {"raysubmit_x": "RUNNING", f"other-{NAME}-0007": "RUNNING", f"perfusion-{other[:12]}-0004": "RUNNING"}
    )
    assert send(board) == f"{NAME}-0001"
    with pytest.raises(SubmissionError, match="perfusion-ffffffffffff-0004"):
        send(board, digest=other)


@pytest.mark.parametrize("state", OPEN)
def test_an_open_submission_is_refused_by_name_and_state(state):
    board = Board({f"{NAME}-0001": "SUCCEEDED", f"{NAME}-0002": state})
    with pytest.raises(SubmissionError) as caught:
        send(board)
    assert str(caught.value) == (
        f"this spec is submitted already: job {NAME}-0002 is {state}; follow it with `perfusion logs {NAME}-0002 "
        f"--follow`, or stop it with `perfusion stop {NAME}-0002`"
    )
    assert board.submitted == {}


def test_an_older_submission_that_is_open_is_refused_too():
    with pytest.raises(SubmissionError, match=f"{NAME}-0001 is RUNNING"):
        send(Board({f"{NAME}-0001": "RUNNING", f"{NAME}-0002": "FAILED"}))


def test_the_cluster_s_refusal_is_passed_on():
    class Full(Board):
        def submit(self, *_, **__):
            raise ClusterError("the cluster refuses: full")

    with pytest.raises(ClusterError, match="full"):
        send(Full())


def test_jobs_of_this_program_are_known_by_their_metadata():
    board = Board()
    send(board, spec="folder/shop.toml")
    [sent] = board.submitted.values()
    assert spec_name(job(metadata=sent["metadata"])) == "shop.toml"
    assert spec_name(job(metadata={"other": "x"})) is None


# Exit codes


@pytest.mark.parametrize(
    ("state", "code", "expected"),
    [
        ("SUCCEEDED", 0, 0),
        ("SUCCEEDED", None, 0),
        ("STOPPED", None, 4),
        ("STOPPED", 0, 4),
        ("STOPPED", 143, 4),
        ("FAILED", 1, 1),
        ("FAILED", 2, 2),
        ("FAILED", 3, 3),
        ("FAILED", 4, 4),
        ("FAILED", None, 1),
    ],
)
def test_the_exit_code_of_an_ended_job(state, code, expected):
    assert exit_code(job(state=state, code=code)) == expected


@pytest.mark.parametrize("state", OPEN)
def test_a_job_that_has_not_ended_has_no_exit_code(state):
    with pytest.raises(AssertionError):
        exit_code(job(state=state))


def test_every_state_is_open_or_ended():
    from ray.job_submission import JobStatus

    assert {status.value for status in JobStatus} == {*OPEN, *ENDED}
