"""A spec as a RayJob of KubeRay, with the ConfigMap that holds the spec."""

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import yaml

from jobs.deploy.documents import yaml_text
from jobs.deploy.objects import FOLDER, config_map, metadata, mounted, ray_pod
from jobs.deploy.options import Deployment, Pool
from jobs.deploy.sizing import (
    Bounds,
    Fleet,
    ensure_remote,
    fleet_of,
    plain_labels,
    resources_offered,
    travelling_spec,
)
from pipeline.settings import RunSettings

_MARGIN_S = 20  # between Ray's kill of the run and the kubelet's kill of the pod
_ACCEPTING = """\
# Exit code 3: the run finished, and the tables name the rows that are not ok.
{command}
code=$?
[ "$code" -eq 3 ] && exit 0
exit "$code"
"""


@dataclass(frozen=True)
class Job:
    """A run on a cluster of its own. `verb`: run or rerender."""

    deployment: Deployment
    settings: RunSettings
    fleet: Fleet
    verb: str

    @property
    def stop_s(self) -> int:
        """Seconds that the run gets to stop."""
        return self.settings.policy.stop_s


def job_of(kind: str, deployment: Deployment, settings: RunSettings, *, verb: str, needs: tuple[str, ...]) -> Job:
    """What a kind of file runs.

    Raises:
        SpecError: an option in `needs` is absent, another is too small, or the spec names local paths.
    """
    deployment.require(kind, needs)
    ensure_remote(settings)
    return Job(deployment, settings, fleet_of(deployment, settings), verb)


def rayjob(deployment: Deployment, settings: RunSettings) -> str:
    """A ConfigMap and a RayJob that runs `perfusion run` once.

    Raises:
        SpecError: an option is missing or too small, or the spec names local paths.
    """
    job = job_of("rayjob", deployment, settings, verb="run", needs=("image",))
    about = metadata(deployment, deployment.name, queued=True)
    body = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": about, "spec": ray_job_spec(job)}
    return yaml_text(spec_document(job), (job_comment(job), body))


def spec_document(job: Job) -> tuple[list[str], dict[str, Any]]:
    """The ConfigMap with the spec, as the first document of a file."""
    files = {"spec.yaml": travelling_spec(job.settings, job.fleet)}
    if job.deployment.failed_rows == "accept":
        files["run.sh"] = _ACCEPTING.format(command=_command(job))
    comment = ["Apply this file with `kubectl apply -f`. It names secrets and holds none."]
    return comment, config_map(job.deployment, f"{job.deployment.name}-spec", files)


def job_comment(job: Job) -> list[str]:
    """Lines that explain what a reader of the RayJob may wonder about."""
    lines = [
        "The run resumes from what it has stored: another attempt (backoffLimit) repeats no finished work on its new",
        "cluster. Attempts may overlap for a moment; the lease of the run keeps them apart.",
    ]
    if job.deployment.failed_rows == "fail":
        lines.append(
            "A run with rows that are not ok ends with exit code 3. KubeRay counts that as failed and retries it."
        )
    if job.deployment.kueue:
        lines += [
            "Kueue starts the job when its queue has room for all of it. Kueue refuses Ray's autoscaler unless a",
            "feature gate allows it, so the number of workers is fixed: the largest that options and spec allow.",
        ]
    return lines


def ray_job_spec(job: Job) -> dict[str, Any]:
    """The `spec` of a RayJob."""
    deployment = job.deployment
    fixed = deployment.kueue is not None
    cluster: dict[str, Any] = {
        "rayVersion": version("ray"),
        "authOptions": {"mode": "token"},  # Ray does not listen beyond loopback without a token
        "enableInTreeAutoscaling": not fixed,
    }
    if not fixed:
        cluster["autoscalerOptions"] = {"version": "v2", "upscalingMode": "Default", "idleTimeoutSeconds": 300}
    cluster["headGroupSpec"] = _head(job)
    cluster["workerGroupSpecs"] = [_workers(job, *each, fixed=fixed) for each in job.fleet.pools(deployment)]
    return {
        "entrypoint": _command(job) if deployment.failed_rows == "fail" else f"bash {FOLDER}/run.sh",
        "submissionMode": "K8sJobMode",
        "suspend": fixed,
        "backoffLimit": deployment.backoff_limit,
        "activeDeadlineSeconds": deployment.deadline_s,
        "preRunningDeadlineSeconds": deployment.pre_running_deadline_s,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": deployment.ttl_s,
        # Ray sends SIGKILL to a job this long after SIGTERM.
        "runtimeEnvYAML": yaml.safe_dump({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(job.stop_s)}}),
        "rayClusterSpec": cluster,
    }


def _command(job: Job) -> str:
    return f"perfusion {job.verb} {FOLDER}/spec.yaml --address auto --json"


def _head(job: Job) -> dict[str, Any]:
    size = {"cpu": str(job.deployment.head_cpus), "memory": job.deployment.head_memory}
    pod = ray_pod(job.deployment, "ray-head", size, grace_s=job.stop_s + _MARGIN_S)
    mounted(pod, f"{job.deployment.name}-spec")
    # No CPU for Ray: the head is for the run's own process, and no worker starts there.
    return {"rayStartParams": {"num-cpus": "0"}, "template": {"spec": pod}}


def _workers(job: Job, name: str, bounds: Bounds, pool: Pool, *, fixed: bool) -> dict[str, Any]:
    size = {"cpu": str(job.fleet.node.cpus), "memory": job.deployment.memory}
    if job.fleet.node.gpus:
        size["nvidia.com/gpu"] = str(job.fleet.node.gpus)
    least = bounds.most if fixed else bounds.least
    group: dict[str, Any] = {"groupName": name, "replicas": least, "minReplicas": least, "maxReplicas": bounds.most}
    group["rayStartParams"] = {}
    # What the autoscaler must know of a node before there is one.
    if offered := resources_offered(job.settings, job.fleet):
        group["resources"] = {resource: str(amount) for resource, amount in offered.items()}
    if labels := plain_labels(job.settings):
        group["labels"] = labels
    pod = ray_pod(job.deployment, "ray-worker", size, grace_s=job.stop_s + _MARGIN_S, pool=pool)
    # When the pod is deleted, Ray drains the node for this long: the run lets its units end and sends no more.
    pod["containers"][0]["env"] = [{"name": "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "value": str(job.stop_s)}]
    return {**group, "template": {"spec": pod}}
