"""A cluster of several hosts: who may attach, which nodes are fit, and jobs sent from outside.

The hosts are network namespaces with their own processes (`tests.support.hosts`); all else is real.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cluster.fitness import PROGRAM
from perfusion_ops.mini.catalog import write_catalog
from tests.support.hosts import GCS_PORT, answers, network, wait_until, why_not

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
TOKEN = "fedcba9876543210" * 4
PERFUSION = str(BIN / "perfusion")

pytestmark = [pytest.mark.hosts, pytest.mark.skipif(bool(why_not()), reason=why_not()), pytest.mark.timeout(900)]

MISMATCH = """
import json, sys
from ray._raylet import GcsClient
gcs = GcsClient(address=sys.argv[1])
place = (b"CLUSTER_METADATA", b"cluster")
found = json.loads(gcs.internal_kv_get(*place))
found["ray_version"] = sys.argv[2]
gcs.internal_kv_put(place[0], json.dumps(found).encode(), True, place[1])
"""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    """A head without CPUs, a worker, a worker without this program, and a machine outside the cluster."""
    folder = tmp_path_factory.mktemp("hosts")
    environment = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "OMP_NUM_THREADS": "1",
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    with network(folder, environment) as net:
        head, full, _ = net.host("head"), net.host("full"), net.host("outside")
        bare = net.host("bare", hidden=[place / name for place in {ROOT, installed()} for name in PROGRAM])
        head.head("--num-cpus", "0")
        wait_until(lambda: answers(f"http://{head.address}:8265"), 120, "the head")
        full.join(head, "--num-cpus", "1", "--resources", json.dumps({"full": 1}))
        bare.join(head, "--num-cpus", "1", "--resources", json.dumps({"bare": 1}))
        count = f"import ray; ray.init(address='{head.address}:{GCS_PORT}', logging_level=50); print(len(ray.nodes()))"
        wait_until(lambda: head.run(sys.executable, "-c", count).stdout.strip() == "3", 120, "two workers")
        yield net.hosts


def installed():
    """Where this interpreter finds the program by itself, which may be another checkout than this one."""
    show = "import cluster, pathlib; print(pathlib.Path(cluster.__file__).parents[1])"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = subprocess.run(
        [sys.executable, "-c", show], cwd="/", env=environment, capture_output=True, text=True, check=False
    )
    return Path(found.stdout.strip()) if found.returncode == 0 else ROOT


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A spec of two products on a disk that every host sees."""
    folder = tmp_path_factory.mktemp("shop")
    write_catalog(str(folder / "catalogue"), 2, images_per_product=1, processes=1)
    (folder / "prompts.csv").write_text("prompt\na photo of a {product}\n")
    spec = {
        "root": "results",
        "concepts": "catalogue/concepts.parquet",
        "prompts": "prompts.csv",
        "train": {"steps": 3, "batch": 2},
        "render": {"steps": 2},
        "metric": {"captions": 200},
        "cluster": {"shared_filesystem": True},
    }
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    return folder


def attach(host, head, shop, *more, port=GCS_PORT, **options):
    """Run the spec on a host, as a driver of the cluster; returns exit code, output and messages."""
    command = [PERFUSION, "run", str(shop / "spec.yaml"), "--json", "--address", f"{head.address}:{port}"]
    sets = [word for each in more for word in ("--set", each)]
    done = host.run(*command, *sets, **options)
    return done.returncode, done.stdout, done.stderr


def test_a_machine_that_is_no_node_is_told_so(hosts, shop):
    code, _, err = attach(hosts["outside"], hosts["head"], shop)
    assert code == 1
    assert "this machine is not a node of the Ray cluster" in err
    assert "perfusion submit" in err
    assert not (shop / "results").exists()


def test_a_wrong_port_and_a_wrong_token_are_told_at_once(hosts, shop):
    code, _, err = attach(hosts["head"], hosts["head"], shop, port=GCS_PORT + 1)
    assert (code, "nothing answers at" in err) == (1, True)
    code, _, err = attach(hosts["head"], hosts["head"], shop, env={"RAY_AUTH_TOKEN": "0" * 64})
    assert code == 1
    assert "asks for a token" in err
    code, _, err = attach(hosts["head"], hosts["head"], shop, env={"RAY_AUTH_TOKEN": ""})
    assert code == 1
    assert "asks for a token" in err
    assert TOKEN not in err


def test_another_version_of_ray_is_told_with_both_versions(hosts, shop):
    head = hosts["head"]
    address = f"{head.address}:{GCS_PORT}"
    changed = head.run(sys.executable, "-c", MISMATCH, address, "2.59.1")
    assert changed.returncode == 0, changed.stderr
    try:
        code, _, err = attach(head, head, shop)
    finally:
        import ray

        head.run(sys.executable, "-c", MISMATCH, address, ray.__version__)
    assert code == 1
    assert f"has Ray 2.59.1 and Python {sys.version.split()[0]}, this machine Ray {ray.__version__}" in err


def test_a_node_without_the_program_is_named_and_gets_it_if_the_spec_says_so(hosts, shop):
    head, bare = hosts["head"], hosts["bare"]
    only_bare = "cluster.resources={bare: 1}"
    code, out, err = attach(head, head, shop, only_bare)
    assert (code, out) == (1, "")
    assert f"node {bare.address}: it cannot import perfusion" in err
    assert "cluster.ship_code" in err
    code, out, err = attach(head, head, shop, only_bare, "cluster.ship_code=true")
    assert code == 0, err[-3000:]
    assert json.loads(out)["statuses"] == {"concepts": {"ok": 2}, "renders": {"ok": 2}}


def test_a_node_that_does_not_see_the_root_is_named(hosts, shop, tmp_path):
    full, head = hosts["full"], hosts["head"]
    # /tmp/ray is another folder on each host.
    code, _, err = attach(head, head, shop, "root=/tmp/ray/results", "cluster.resources={full: 1}")
    assert code == 1
    assert f"node {full.address}: it does not see /tmp/ray/results" in err
    assert "mount the same folders on every node" in err


def test_too_few_machines_end_the_run_with_4_and_what_it_waited_for(hosts, shop):
    code, out, err = attach(
        hosts["head"], hosts["head"], shop, "train.seed=1", "cluster.slots=5..8", "cluster.join_s=1",
        "cluster.resources={full: 1}",
    )  # fmt: skip
    assert code == 4, err[-3000:]
    assert "the cluster has room for 1 of at least 5 workers; each needs 1 CPU, 1 full" in err
    assert json.loads(out)["exit_code"] == 4


def test_local_paths_are_refused_unless_every_node_mounts_them(hosts, shop):
    code, _, err = attach(hosts["head"], hosts["head"], shop, "cluster.shared_filesystem=false")
    assert code == 2
    assert f"root is {shop}/results, which is on this machine's disk" in err
    assert "2 photos or masks are on this machine's disk" not in err or "such as" in err


def test_jobs_are_sent_from_outside_followed_stopped_and_never_twice(hosts, shop):
    head = hosts["head"]
    url = f"http://{head.address}:8265"

    def perfusion(*arguments, **environment):
        return subprocess.run(
            [PERFUSION, *arguments, "--address", url],
            env={**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, **environment},
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip

    spec, sets = str(shop / "spec.yaml"), ["--set", "cluster.resources={full: 1}", "--set", "train.steps=2000"]
    refused = perfusion("submit", spec, RAY_AUTH_TOKEN="0" * 64)
    assert refused.returncode == 1
    assert "asks for a token" in refused.stderr, refused.stderr
    sent = perfusion("submit", spec, *sets)
    assert sent.returncode == 0, sent.stderr
    name = sent.stdout.strip()
    assert name.startswith("perfusion-")
    assert name.endswith("-0001")
    again = perfusion("submit", spec, *sets)
    assert again.returncode == 2
    assert f"job {name} is" in again.stderr
    stopped = perfusion("stop", name)
    assert stopped.stdout.strip() == f"{name} is STOPPED"
    assert perfusion("stop", name).stdout.strip() == f"{name} had ended already: STOPPED"
    waited = perfusion("submit", spec, "--set", "cluster.resources={full: 1}", "--wait", "--json")
    assert waited.returncode == 0, waited.stdout + waited.stderr
    ended = json.loads(waited.stdout.splitlines()[-1])
    assert (ended["state"], ended["exit_code"]) == ("SUCCEEDED", 0)
    wrong = perfusion("submit", spec, "--set", "concepts=/nowhere.csv", "--wait")
    assert wrong.returncode == 2, wrong.stdout + wrong.stderr
    listed = perfusion("jobs")
    assert listed.stdout.count("spec.yaml") == 3
    assert "there is no job 'nothing'" in perfusion("logs", "nothing").stderr
    assert "run-" in perfusion("logs", ended["submission"]).stdout
