"""Clusters for a spec as files of Ray's cluster launcher, on AWS and Google Cloud.

Local paths of the spec are no fault here: `perfusion submit` carries manifests, and refuses what it cannot carry.
"""

from typing import Any

from jobs.deploy.documents import yaml_text
from jobs.deploy.options import Deployment
from jobs.deploy.sizing import Fleet, fleet_of, plain_labels, resources_offered, slots_of
from jobs.spec_file import SpecError
from pipeline.settings import RunSettings

_TOKEN = "/perfusion/ray_auth_token"  # noqa: S105 (a path)
_HEAD = "head"


def ray_aws(deployment: Deployment, settings: RunSettings) -> str:
    """A cluster of Ray's launcher on AWS.

    Raises:
        SpecError: an option is missing or too small.
    """
    deployment.require("ray-aws", ["image"])
    fleet = fleet_of(deployment, settings)
    aws = deployment.aws
    provider: dict[str, Any] = {"type": "aws", "region": aws.region}
    if aws.zones:
        provider["availability_zone"] = ",".join(aws.zones)
    provider["cache_stopped_nodes"] = False

    def machine(kind: str) -> dict[str, Any]:
        config: dict[str, Any] = {"InstanceType": kind}
        if aws.image_id:
            config["ImageId"] = aws.image_id
        if aws.instance_profile:
            config["IamInstanceProfile"] = {"Name": aws.instance_profile}
        config["BlockDeviceMappings"] = [
            {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": aws.disk_gb, "VolumeType": "gp3"}}
        ]
        # A container asks for credentials over one more hop than its host.
        config["MetadataOptions"] = {"HttpTokens": "required", "HttpPutResponseHopLimit": 2}
        return config

    kind = aws.worker_type or ("g6.2xlarge" if fleet.node.gpus else "m7i.2xlarge")
    configs = {name: machine(kind) for name, _, _ in fleet.pools(deployment)}
    if "spot" in configs:
        configs["spot"]["InstanceMarketOptions"] = {"MarketType": "spot"}
    return _launcher(deployment, settings, fleet, provider, {_HEAD: machine(aws.head_type), **configs})


def ray_gcp(deployment: Deployment, settings: RunSettings) -> str:
    """A cluster of Ray's launcher on Google Cloud.

    Raises:
        SpecError: an option is missing or too small.
    """
    deployment.require("ray-gcp", ["image"])
    gcp = deployment.gcp
    if not gcp.project:
        raise SpecError("ray-gcp needs the option gcp.project: add 'gcp: {project: my-project}'")
    fleet = fleet_of(deployment, settings)
    provider = {"type": "gcp", "project_id": gcp.project, "region": gcp.region, "availability_zone": gcp.zone}

    def machine(kind: str, gpus: int, *, spot: bool = False) -> dict[str, Any]:
        disk = {"diskSizeGb": gcp.disk_gb, "sourceImage": gcp.source_image}
        config: dict[str, Any] = {
            "machineType": kind,
            "disks": [{"boot": True, "autoDelete": True, "type": "PERSISTENT", "initializeParams": disk}],
        }
        scheduling: dict[str, Any] = {"preemptible": True} if spot else {}
        if gpus:
            config["metadata"] = {"items": [{"key": "install-nvidia-driver", "value": "True"}]}
            scheduling["onHostMaintenance"] = "TERMINATE"  # a machine with GPUs cannot move to another host
        if gpus and gcp.accelerator_type:
            config["guestAccelerators"] = [{"acceleratorType": gcp.accelerator_type, "acceleratorCount": gpus}]
        if scheduling:
            config["scheduling"] = [scheduling]
        return config

    gpus = fleet.node.gpus
    kind = gcp.worker_type or ("n2-standard-8" if not gpus or gcp.accelerator_type else "g2-standard-8")
    configs = {name: machine(kind, gpus, spot=name == "spot") for name, _, _ in fleet.pools(deployment)}
    return _launcher(deployment, settings, fleet, provider, {_HEAD: machine(gcp.head_type, 0), **configs})


def _launcher(
    deployment: Deployment,
    settings: RunSettings,
    fleet: Fleet,
    provider: dict[str, Any],
    machines: dict[str, dict[str, Any]],
) -> str:
    """A file of the launcher; `machines`: the provider's own settings of each type of node."""
    node = fleet.node
    offered = {"CPU": node.cpus, **({"GPU": node.gpus} if node.gpus else {}), **resources_offered(settings, fleet)}
    types: dict[str, Any] = {
        # The head has no resources: the run's own process and Ray's are all that it has room for.
        _HEAD: {"resources": {"CPU": 0}, "min_workers": 0, "max_workers": 0, "node_config": machines[_HEAD]}
    }
    labels = {"labels": plain_labels(settings)} if plain_labels(settings) else {}
    for name, bounds, _ in fleet.pools(deployment):
        types[name] = {
            "resources": offered,
            **labels,
            "min_workers": bounds.least,
            "max_workers": bounds.most,
            "node_config": machines[name],
        }
    start = "ulimit -n 65536; ray start"
    cluster = {
        "cluster_name": deployment.name,
        "max_workers": fleet.most,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 5,
        "docker": {
            "image": deployment.image,
            "container_name": "perfusion",
            "run_options": [
                "--ulimit nofile=65536:65536",
                "--env RAY_AUTH_MODE=token",
                f"--env RAY_AUTH_TOKEN_PATH={_TOKEN}",
            ],
        },
        "provider": provider,
        "auth": {"ssh_user": "ubuntu"},
        "file_mounts": {_TOKEN: "~/.ray/auth_token"},
        "head_node_type": _HEAD,
        "available_node_types": types,
        "head_start_ray_commands": [
            "ray stop",
            f"{start} --head --port=6379 --dashboard-host=127.0.0.1 --autoscaling-config=~/ray_bootstrap_config.yaml",
        ],
        "worker_start_ray_commands": ["ray stop", f"{start} --address=$RAY_HEAD_IP:6379"],
    }
    # The cluster starts without workers that would show what a worker takes, so the command says it.
    taken = {"gpus": f"{node.worker_gpus:g}", "cpus": f"{node.worker_cpus:g}", "slots": slots_of(settings, fleet)}
    comment = [
        "ray get-auth-token --generate   # once; the token lies in ~/.ray/auth_token, and the nodes get it from there",
        "ray up THIS_FILE",
        "ray dashboard THIS_FILE         # in another terminal: a tunnel to the cluster's Job API",
        "RAY_AUTH_MODE=token perfusion submit SPEC --address http://127.0.0.1:8265 --wait \\",
        "  " + " ".join(f"--set cluster.{name}={value}" for name, value in taken.items()),
        "ray down THIS_FILE",
    ]
    return yaml_text((comment, cluster))
