"""Parts of Kubernetes objects: metadata, ConfigMaps, pods."""

from collections.abc import Mapping
from typing import Any

from jobs.deploy.options import Deployment, Pool

FOLDER = "/etc/perfusion"  # where pods find the files of a ConfigMap
# What no container here needs.
LOCKED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def metadata(deployment: Deployment, name: str, *, queued: bool = False) -> dict[str, Any]:
    """Metadata of an object; `queued`: with the labels of the Kueue queue, if the deployment has one."""
    labels = {"app.kubernetes.io/name": "perfusion", "app.kubernetes.io/instance": deployment.name}
    if queued and deployment.kueue:
        labels["kueue.x-k8s.io/queue-name"] = deployment.kueue.queue
        if deployment.kueue.priority_class:
            labels["kueue.x-k8s.io/priority-class"] = deployment.kueue.priority_class
    return {"name": name, "namespace": deployment.namespace, "labels": labels}


def config_map(deployment: Deployment, name: str, data: Mapping[str, str]) -> dict[str, Any]:
    """A ConfigMap with files."""
    head = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata(deployment, name)}
    return {**head, "data": dict(data)}


def mounted(pod: dict[str, Any], config: str) -> None:
    """Give the first container of a pod the files of a ConfigMap at FOLDER."""
    pod["containers"][0]["volumeMounts"] = [{"name": "files", "mountPath": FOLDER, "readOnly": True}]
    pod["volumes"] = [{"name": "files", "configMap": {"name": config}}]


def ray_pod(
    deployment: Deployment, container: str, size: Mapping[str, str], *, grace_s: int, pool: Pool | None = None
) -> dict[str, Any]:
    """The spec of a pod with a node of Ray.

    Args:
        deployment: the options.
        container: name of its container.
        size: resources that it requests, and is limited to.
        grace_s: seconds from the request to end until the pod is killed.
        pool: where Kubernetes may put it; None: anywhere.
    """
    body: dict[str, Any] = {
        "name": container,
        "image": deployment.image,
        "resources": {"requests": dict(size), "limits": dict(size)},
        "securityContext": LOCKED,
    }
    if deployment.secrets:
        body["envFrom"] = [{"secretRef": {"name": name}} for name in deployment.secrets]
    pod: dict[str, Any] = {
        "restartPolicy": "Never",  # the autoscaler replaces a node, never a container
        "terminationGracePeriodSeconds": grace_s,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [body],
    }
    if deployment.service_account:
        pod["serviceAccountName"] = deployment.service_account
    if pool and pool.node_selector:
        pod["nodeSelector"] = pool.node_selector
    if pool and pool.tolerations:
        pod["tolerations"] = [each.model_dump(exclude_none=True) for each in pool.tolerations]
    return pod
