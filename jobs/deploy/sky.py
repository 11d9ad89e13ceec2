"""A spec as a task of SkyPilot: Ray on all nodes, the run on the first of them."""

from typing import Any

from jobs.deploy.documents import yaml_text
from jobs.deploy.options import Deployment
from jobs.deploy.sizing import ensure_remote, fleet_of, travelling_spec
from jobs.spec_file import SpecError
from pipeline.settings import RunSettings

_STOPPED = 4  # exit code of a run that can be resumed
_RUN = """\
# Ray's own cluster, beside the one of SkyPilot: its address is given, because `auto` could find the other one.
~/sky_templates/ray/start_cluster
if [ "$SKYPILOT_NODE_RANK" = 0 ]; then
  head=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)
  perfusion run ~/spec.yaml --address "$head:6379" --json
fi
"""
# Exit code 3: the run finished, and the tables name the rows that are not ok.
_ACCEPTING = "--json || { code=$?; [ $code -eq 3 ] || exit $code; }\n"


def skypilot(deployment: Deployment, settings: RunSettings) -> str:
    """A task of SkyPilot: Ray on all nodes, `perfusion run` on the first.

    Raises:
        SpecError: an option is missing or too small, or the spec names local paths or another type of GPU is needed.
    """
    deployment.require("skypilot", ["image"])
    ensure_remote(settings)
    fleet = fleet_of(deployment, settings)
    node = fleet.node
    resources: dict[str, Any] = {"infra": deployment.sky.infra} if deployment.sky.infra else {}
    if node.gpus:
        if not settings.cluster.accelerator:
            raise SpecError(
                "skypilot must know the type of GPU: set cluster.accelerator in the spec, such as L4 or A100"
            )
        resources["accelerators"] = f"{settings.cluster.accelerator}:{node.gpus}"
    resources |= {
        "cpus": f"{node.cpus}+",
        "memory": f"{_gigabytes(deployment.memory)}+",
        "use_spot": fleet.spot.most > 0,
        "image_id": f"docker:{deployment.image}",
        "job_recovery": {
            "strategy": "FAILOVER",
            "max_restarts_on_errors": deployment.backoff_limit,
            "recover_on_exit_codes": [_STOPPED],
        },
    }
    spec = travelling_spec(settings, fleet)
    task = {
        "name": deployment.name,
        "num_nodes": fleet.most,
        "resources": resources,
        "envs": {"RAY_AUTH_MODE": "token"},
        "secrets": dict.fromkeys(("RAY_AUTH_TOKEN", *deployment.sky.secret_env)),
        "setup": f"cat > ~/spec.yaml <<'PERFUSION_SPEC'\n{spec}PERFUSION_SPEC\n",
        "run": _RUN if deployment.failed_rows == "fail" else _RUN.replace("--json\n", _ACCEPTING),
    }
    given = " ".join(f"--secret {name}" for name in task["secrets"])
    comment = [
        "export RAY_AUTH_TOKEN=$(openssl rand -hex 32)",
        f"sky jobs launch {given} THIS_FILE",
        "",
        "A run resumes from what it has stored, so a recovery on other machines is the same command.",
        "SkyPilot starts all nodes or none, and all as spot or none. Their number is the largest that the options or",
        "the spec allow.",
    ]
    return yaml_text((comment, task))


def _gigabytes(quantity: str) -> int:
    """A Kubernetes quantity in whole GiB, rounded up."""
    number, unit = quantity.rstrip("KMGTik"), quantity.lstrip("0123456789")
    factors = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
    factors |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    return -(-int(number) * factors[unit] // 2**30)
