"""`python -m tests.hosts`: the same spec on a laptop, on an attached cluster that is hurt, and submitted to a cluster.

A store, a head and workers are hosts of their own (`tests.support.hosts`). While the attached run works, one worker's
network is cut for a minute, another worker is lost for good, and a third joins late. The published tables of all three
runs must be equal but for times, workers and batches. The last line printed is one JSON object; exit 1 when anything is
not as it should be.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from perfusion_ops.mini.catalog import write_catalog
from pipeline.storage.objects import Storage
from pipeline.tables.views import query
from tests.support.hosts import GCS_PORT, Host, answers, network, wait_until
from tests.support.servers.s3_server import s3_server

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
CUT_S = 60.0
TOKEN = "0123456789abcdef" * 4
# What may differ between two machines that run the same spec.
PASSING = "run_id, run_date, uri, worker, accelerator_s, attempts, finished_at, batch"


def write_inputs(folder: Path, concepts: int, prompts: int) -> int:
    """A catalogue whose photos are inside the manifest, as no node sees this disk; returns the number of pictures."""
    write_catalog(str(folder / "catalogue"), concepts, images_per_product=2, processes=1)
    rows = pq.read_table(folder / "catalogue" / "concepts.parquet", columns=["concept_id", "superclass", "images"])
    photos = [
        [(folder / "catalogue" / name.removeprefix("file://")).read_bytes() for name in each]
        for each in rows["images"].to_pylist()
    ]
    pq.write_table(rows.set_column(2, "images", pa.array(photos, pa.list_(pa.binary()))), folder / "concepts.parquet")
    texts = [f"a photo of a {{product}} on a {color} background" for color in ("red", "blue", "green", "yellow")]
    texts = [texts[number % 4] + ", seen from the side" * (number // 4) for number in range(prompts)]
    pq.write_table(pa.table({"prompt": texts}), folder / "prompts.parquet")
    spec = {
        "concepts": "concepts.parquet",
        "prompts": "prompts.parquet",
        "train": {"steps": 60, "batch": 4},
        "render": {"steps": 8},
        "engine": {"group_size": 4, "render_batch": 8, "checkpoint_s": 2, "flush_s": 2},
    }
    for name, root in (
        ("laptop", str(folder / "laptop")),
        ("attached", "s3://shop/attached"),
        ("sent", "s3://shop/sent"),
    ):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"root": root, **spec}))
    return concepts * prompts


def equal_tables(one: Storage, other: Storage) -> int:
    """Compare the published tables; returns their number of rows.

    Raises:
        AssertionError: they differ; it shows the first rows that do.
    """
    count = 0
    for table, key in (("concepts", "concept_key"), ("renders", "render_key")):
        found = [
            query(
                each, f"SELECT * EXCLUDE ({PASSING}) FROM {table} ORDER BY manifest_row, concept_id, {key}"
            ).to_pylist()
            for each in (one, other)
        ]
        different = [pair for pair in zip(*found, strict=True) if pair[0] != pair[1]]
        assert not different, f"{len(different)} rows of {table} differ: {different[:1]}"
        assert all(row["status"] == "ok" for row in found[0])
        count += len(found[0])
    return count


class Story:
    """What happens to the attached run, step by step, as its work advances."""

    def __init__(self, storage: Storage, total: int, driver: subprocess.Popen, log: Path) -> None:
        self.storage = storage
        self.total = total
        self.driver = driver
        self.log = log

    def made(self) -> int:
        return sum(1 for folder in ("weights", "images") for _ in self.storage.list(folder))

    def at(self, share: float, what: str, act: Callable[[], object]) -> None:
        """Do something once a share of the objects is made."""

        def ready() -> bool:
            assert self.driver.poll() is None, f"the run ended before this: {what}; {self.log.read_text()[-3000:]}"
            return self.made() >= share * self.total

        wait_until(ready, 600, f"{share:.0%} of the work")
        tell(f"{self.made():4} of {self.total} objects: {what}")
        act()


def attached(storage: Storage, folder: Path, total: int, hosts: dict[str, Host], join: Callable[[], object]) -> dict:
    """The run on the cluster that is hurt; returns its result."""
    head, first, second = hosts["head"], hosts["w1"], hosts["w2"]
    out, err = (folder / "attached.json").open("w"), (folder / "attached.log").open("w")
    command = [str(BIN / "perfusion"), "run", str(folder / "attached.yaml"), "--json"]
    driver = head.start(*command, "--address", f"{head.address}:{GCS_PORT}", stdout=out, stderr=err)
    story = Story(storage, total, driver, folder / "attached.log")
    story.at(0.10, f"the network of w1 is cut for {CUT_S:g} s", lambda: first.connect(False))
    until = time.monotonic() + CUT_S
    story.at(0.25, "w2 is lost for good, w3 joins", lambda: (join(), second.kill()))
    time.sleep(max(0.0, until - time.monotonic()))
    tell("the network of w1 is back")
    first.connect(True)
    code = driver.wait(1200)
    assert code == 0, f"exit {code}: {(folder / 'attached.log').read_text()[-3000:]}"
    return json.loads((folder / "attached.json").read_text())


def submitted(folder: Path, url: str) -> dict:
    """The run that is sent to the cluster from outside; returns what its submission printed."""
    spec = str(folder / "sent.yaml")
    first = perfusion("submit", spec, "--address", url, "--json")
    assert first.returncode == 0, first.stderr
    name = json.loads(first.stdout)["submission"]
    again = perfusion("submit", spec, "--address", url)
    assert again.returncode == 2, again.stderr
    assert name in again.stderr, again.stderr
    listed = perfusion("jobs", "--address", url)
    assert name in listed.stdout, listed.stderr
    stopped = perfusion("stop", name, "--address", url)
    assert "STOPPED" in stopped.stdout, stopped.stdout + stopped.stderr
    waited = perfusion("submit", spec, "--address", url, "--wait", "--json")
    assert waited.returncode == 0, (waited.stdout + waited.stderr)[-3000:]
    ended = json.loads(waited.stdout.splitlines()[-1])
    assert ended["submission"] != name, "the second submission has a name of its own"
    return ended


def perfusion(*arguments: str) -> subprocess.CompletedProcess:
    """The command, on this machine."""
    command = [str(BIN / "perfusion"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concepts", type=int, default=60)
    parser.add_argument("--prompts", type=int, default=8, help="pictures of each concept")
    given = parser.parse_args(arguments)
    began = time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="perfusion-hosts-")))
        pictures = write_inputs(folder, given.concepts, given.prompts)
        total = given.concepts + pictures
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"}
        os.environ |= {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        tell("the laptop's run")
        command = [str(BIN / "perfusion"), "run", str(folder / "laptop.yaml"), "--json", "--set", "cluster.slots=2"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        net = stack.enter_context(network(folder))
        store = net.host("store")
        (store.folder / "s3").mkdir()
        server = stack.enter_context(s3_server(store.folder / "s3", ip=store.address, inside=store.prefix()))
        os.environ |= server.environment
        hosts = {name: net.host(name) for name in ("head", "w1", "w2")}
        head = hosts["head"]
        head.head("--num-cpus", "0")
        wait_until(lambda: answers(f"http://{head.address}:8265"), 120, "the head")
        for name in ("w1", "w2"):
            hosts[name].join(head, "--num-cpus", "1", restart=True)
        storage = Storage("s3://shop/attached", server.options)

        def join() -> None:
            hosts["w3"] = net.host("w3")
            hosts["w3"].join(head, "--num-cpus", "1")

        result = attached(storage, folder, total, hosts, join)
        rows = equal_tables(Storage(str(folder / "laptop")), storage)
        workers = query(
            storage,
            "SELECT split_part(worker, ':', 1) AS host, count(*) AS rows "
            "FROM (FROM concepts UNION ALL BY NAME FROM renders) GROUP BY ALL ORDER BY ALL",
        ).to_pylist()
        tell("the submitted run")
        sent = submitted(folder, f"http://{head.address}:8265")
        equal_tables(Storage(str(folder / "laptop")), Storage("s3://shop/sent", server.options))
        token_written = [str(path) for path in written(folder) if TOKEN.encode() in path.read_bytes()]
    figures = {
        "name": "hosts",
        "concepts": given.concepts,
        "renders": pictures,
        "rows_equal": rows,
        "rows_by_worker": {each["host"]: each["rows"] for each in workers},
        "outages": result["engine"]["outages"],
        "retries": result["engine"]["retries"],
        "submission": sent["state"],
        "files_with_the_token": token_written,
        "seconds": round(time.monotonic() - began),
    }
    ok = figures["rows_by_worker"].keys() == {"w1", "w2", "w3"} and not token_written and sent["exit_code"] == 0
    print(json.dumps({**figures, "ok": ok}))  # noqa: T201
    return 0 if ok else 1


def written(folder: Path) -> list[Path]:
    """Every file that this program wrote: specs, logs of drivers, the laptop's root, and the store's data."""
    return [path for path in folder.rglob("*") if path.is_file() and "ray" not in path.relative_to(folder).parts[:2]]


def tell(text: str) -> None:
    """A line of progress."""
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
