"""A spec as a schedule in Kubernetes: a CronJob that creates RayJobs, or a RayCronJob of KubeRay."""

from typing import Any

from jobs.deploy.documents import yaml_text
from jobs.deploy.kubernetes import job_comment, job_of, ray_job_spec, spec_document
from jobs.deploy.objects import FOLDER, LOCKED, config_map, metadata, mounted
from jobs.deploy.options import Deployment
from jobs.spec_file import SpecError
from pipeline.settings import RunSettings

# The pod must live as long as the RayJob: concurrencyPolicy looks at the pod. An outage of the API is no reason to end,
# a RayJob that stays away for ten minutes is.
_START = f"""\
set -u
job=$(kubectl create -f {FOLDER}/rayjob.yaml -o name) || exit 1
echo "created $job"
lost=0
while [ "$lost" -lt 20 ]; do
  sleep 30
  if status=$(kubectl get "$job" -o 'jsonpath={{.status.jobDeploymentStatus}} {{.status.jobStatus}}'); then
    lost=0
  else
    lost=$((lost + 1))
    continue
  fi
  case "$status" in
    "Complete SUCCEEDED") echo "$job: $status"; exit 0 ;;
    Complete*|Failed*|ValidationFailed*) echo "$job: $status" >&2; exit 1 ;;
  esac
done
echo "$job cannot be read" >&2
exit 1
"""


def cronjob(deployment: Deployment, settings: RunSettings) -> str:
    """A batch/v1 CronJob that creates a RayJob of `perfusion rerender` and waits for its end, and all that it needs.

    Raises:
        SpecError: an option is missing or too small, or the spec names local paths.
    """
    job = job_of("cronjob", deployment, settings, verb="rerender", needs=("image", "schedule"))
    about = metadata(deployment, deployment.name, queued=True)
    about = {"generateName": f"{about.pop('name')}-", **about}  # a name of its own for each run
    body = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": about, "spec": ray_job_spec(job)}
    files = {"rayjob.yaml": yaml_text((job_comment(job), body)), "start.sh": _START}
    return yaml_text(
        spec_document(job),
        (
            ["What the CronJob creates, and how it waits for the end."],
            config_map(deployment, _started(deployment), files),
        ),
        *(([], each) for each in _rights(deployment)),
        (
            [
                "A RayCronJob is not used: it has no concurrencyPolicy, so a slow run and the next one would overlap.",
                "The pod waits for the RayJob and ends as it does, so Forbid holds back the next run until then.",
                "RayJobs stay as a record. The operator deletes finished ones if its environment has",
                "DELETE_RAYJOB_CR_AFTER_JOB_FINISHES=true; keep ttl_s above 60 then, so that the pod sees the end.",
            ],
            _cron_job(deployment),
        ),
    )


def raycronjob(deployment: Deployment, settings: RunSettings) -> str:
    """A RayCronJob of `perfusion rerender`.

    Raises:
        SpecError: an option is missing, too small or not possible here, or the spec names local paths.
    """
    if deployment.kueue:
        raise SpecError(
            "kueue is not possible with raycronjob: KubeRay does not give its RayJobs the label of the queue, so they "
            "would stay suspended; use --kind cronjob"
        )
    job = job_of("raycronjob", deployment, settings, verb="rerender", needs=("image", "schedule"))
    body = {
        "apiVersion": "ray.io/v1",
        "kind": "RayCronJob",
        "metadata": metadata(deployment, deployment.name),
        "spec": {
            "schedule": deployment.schedule,
            "timeZone": deployment.time_zone,
            "suspend": False,
            "jobTemplate": ray_job_spec(job),
        },
    }
    return yaml_text(
        spec_document(job),
        (
            [
                "Needs KubeRay 1.7 with the feature gate RayCronJob=true.",
                "A RayCronJob has no concurrencyPolicy, so a slow run and the next one overlap. The lease of the run",
                "keeps them apart: the second one ends with exit code 1 and changes nothing, but its cluster started.",
                "A file of the kind cronjob starts nothing then.",
                *job_comment(job),
            ],
            body,
        ),
    )


def _started(deployment: Deployment) -> str:
    return f"{deployment.name}-rayjob"


def _rights(deployment: Deployment) -> list[dict[str, Any]]:
    """The identity of the pod that creates RayJobs. It can neither change nor delete one."""
    name = f"{deployment.name}-schedule"
    about = metadata(deployment, name)
    rbac = "rbac.authorization.k8s.io"
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": about},
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "Role",
            "metadata": about,
            "rules": [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get"]}],
        },
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "RoleBinding",
            "metadata": about,
            "roleRef": {"apiGroup": rbac, "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": deployment.namespace}],
        },
    ]


def _cron_job(deployment: Deployment) -> dict[str, Any]:
    container = {
        "name": "start",
        "image": deployment.kubectl_image,
        "command": ["sh", f"{FOLDER}/start.sh"],
        "env": [{"name": "HOME", "value": "/tmp"}],  # noqa: S108 (of the pod: kubectl keeps its cache there)
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}},
        "securityContext": LOCKED,
    }
    pod: dict[str, Any] = {
        "serviceAccountName": f"{deployment.name}-schedule",
        "restartPolicy": "Never",
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65534,
            "runAsGroup": 65534,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
    }
    mounted(pod, _started(deployment))
    # While the pod is away, Forbid would not hold. An autoscaler must not move it.
    about = {"annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}}
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": metadata(deployment, deployment.name),
        "spec": {
            "schedule": deployment.schedule,
            "timeZone": deployment.time_zone,
            "concurrencyPolicy": "Forbid",
            "startingDeadlineSeconds": deployment.starting_deadline_s,
            "successfulJobsHistoryLimit": 3,
            "failedJobsHistoryLimit": 3,
            # A second pod would create a second RayJob. KubeRay retries the run itself.
            "jobTemplate": {"spec": {"backoffLimit": 0, "template": {"metadata": about, "spec": pod}}},
        },
    }
