"""Scrapes the metrics of a run from a node of Ray."""

import socket
import urllib.request
from collections import defaultdict

from prometheus_client.parser import text_string_to_metric_families

from cluster.metric_table import METRICS


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def scrape(port):
    """Each sample of ours without the labels of Ray: {(name, *tags in the order of the list): value}."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        samples = [
            sample for family in families for sample in family.samples if sample.name.startswith("ray_perfusion")
        ]
    tags = {metric.exposed: metric.tags for metric in METRICS}
    found = defaultdict(float)
    for sample in samples:
        found[sample.name, *(sample.labels[tag] for tag in tags[sample.name])] += sample.value
    return found
