"""What the tests of rendered files share: a spec in object stores, options, and how to find an object in a file."""

import yaml

from jobs.commands.cluster import Kind

KINDS = [kind.value for kind in Kind]
ENDINGS = {"airflow": "py.txt", "dagster": "py.txt", "systemd": "sh", "cron": "crontab"}  # not .py: nobody lints them
IN_YAML = [kind for kind in KINDS if kind not in ENDINGS]
IN_PYTHON = ["airflow", "dagster"]
SPEC = {
    "root": "s3://shop/results",
    "concepts": "s3://shop/concepts.parquet",
    "prompts": "s3://shop/prompts.parquet",
    "base": "gs://models/base",
    "cluster": {"slots": "4..32", "gpus": 1, "cpus": 3, "accelerator": "L4", "labels": {"team": "shop", "zone": "!b"}},
    "policy": {"drain_s": 45},
}
OPTIONS = {
    "image": "registry.example/perfusion:1.0",
    "namespace": "shop",
    "schedule": "0 2 * * 1-5",
    "time_zone": "Europe/Berlin",
    "service_account": "shop-runner",
    "secrets": ["shop-bucket", "shop-hub"],
    "spot": {
        "max": 24,
        "node_selector": {"cloud.google.com/gke-spot": "true"},
        "tolerations": [
            {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
        ],
    },
    "sky": {"secret_env": ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]},
    "aws": {"instance_profile": "shop-runner", "zones": ["us-west-2a", "us-west-2b"]},
    "gcp": {"project": "shop-1"},
    "host": {"program": "/opt/perfusion/bin/perfusion", "spec": "/srv/shop/spring catalog.yaml", "user": "shop"},
    "failed_rows": "fail",
}
# A crontab has no time zone of its own.
FOR = {"cron": {name: value for name, value in OPTIONS.items() if name != "time_zone"}}
QUEUED = {**OPTIONS, "kueue": {"queue": "night", "priority_class": "low"}, "failed_rows": "accept"}


def documents(text):
    return list(yaml.safe_load_all(text))


def of_kind(text, kind):
    """The only document of a kind."""
    (found,) = [each for each in documents(text) if each["kind"] == kind]
    return found
