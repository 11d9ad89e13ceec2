"""`python -m tests.chaos`: one run on three Ray nodes and a real S3 server, hurt at random until it is done.

Workers, nodes and the driver are killed, a second driver is started on the same run, storage is shut off; all the while
a share of its requests is refused, broken or answered into the void. The hurts are drawn from a seed and spread over
the work, so that each meets another part of it. At the end every manifest row has one outcome, every object is there
with its digest, and the tables are those of a run that nobody disturbed. The last line printed is one JSON object; exit
1 when anything is not as it should be.
"""

import argparse
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image
from ray.cluster_utils import Cluster

from jobs.output import FAILED_ROWS, OK
from perfusion_ops.mini.catalog import write_catalog
from pipeline.storage.objects import Storage
from pipeline.tables.views import query
from tests.chaos.driver import BUSY
from tests.support.servers.s3_server import Server, s3_server
from tests.support.servers.storage_proxy import Road, storage_proxy

KINDS = ("worker", "node", "driver", "storage", "twin", "drain")
NODES = 3
DONE = (OK, FAILED_ROWS)
_OUTAGE_S = 5.0
_STUCK_S = 300.0  # without a new object
_SPREAD = 0.8  # of the work, over which the hurts are spread: the run continues while one acts
_LOOK_S = 0.5  # between two listings, which cost the server something
_NODE = {"node_ip_address": "127.0.0.1", "num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
_FAST_DEATHS = {
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 3,
    "health_check_initial_delay_ms": 500,
}
# What may differ from a run that nobody disturbed: times, places, and the batch that a row happened to be in.
_PASSING = "run_id, run_date, uri, worker, accelerator_s, attempts, finished_at, batch"


@dataclass
class Scene:
    """What there is to hurt."""

    folder: Path
    server: Server
    road: Road
    cluster: Cluster
    environment: dict
    driver: subprocess.Popen | None = None
    nodes: list = field(default_factory=list)
    hurts: Counter = field(default_factory=Counter)
    ends: Counter = field(default_factory=Counter)
    wasted_s: float = 0.0

    def start(self) -> subprocess.Popen:
        """One more attempt at the run."""
        command = [sys.executable, "-m", "tests.chaos.driver"]
        return subprocess.Popen(
            [*command, self.cluster.address, str(self.folder / "chaos.yaml")],
            env=self.environment, stdout=subprocess.PIPE, stderr=(self.folder / "drivers.log").open("ab"), text=True,
        )  # fmt: skip

    def end(self, driver: subprocess.Popen, seconds: float = 600) -> int:
        """Wait for an attempt, and hear what it says."""
        said, _ = driver.communicate(timeout=seconds)
        results = [line for line in said.splitlines() if line.startswith("{")]  # among what Ray tells at its end
        self.wasted_s += sum(json.loads(line)["engine"]["wasted_s"] for line in results)
        return driver.returncode


def hurt(scene: Scene, kind: str, chance: random.Random) -> bool:
    """Do one thing that nobody would do on purpose; False when the run was done before it was felt."""
    assert scene.driver is not None
    if kind == "worker":
        until, workers = time.monotonic() + _STUCK_S, []
        while not workers and scene.driver.poll() is None:
            assert time.monotonic() < until, "no worker to kill"
            ours = psutil.Process().children(recursive=True)
            workers = [each for each in ours if _name(each).startswith("ray::SlotActor")]
        if not workers:
            return False
        chance.choice(workers).kill()
    elif kind == "node":
        gone = scene.nodes.pop(chance.randrange(len(scene.nodes)))
        scene.cluster.remove_node(gone, allow_graceful=False)
        scene.nodes.append(scene.cluster.add_node(**_NODE))
    elif kind == "storage":
        scene.road.closed_until = time.monotonic() + _OUTAGE_S
    elif kind == "twin":
        pair = [scene.driver, scene.start()]
        while all(each.poll() is None for each in pair):
            time.sleep(0.2)
        refused, scene.driver = pair if pair[0].poll() is not None else pair[::-1]
        scene.ends[f"twin {scene.end(refused)}"] += 1
    else:
        scene.driver.send_signal(signal.SIGKILL if kind == "driver" else signal.SIGTERM)
        code = scene.end(scene.driver)
        scene.ends[f"{kind} {code}"] += 1
        scene.driver = scene.start()
        return code not in DONE
    return True


def _name(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def disturbed(scene: Scene, storage: Storage, hurts: list[str], total: int, chance: random.Random) -> int:
    """Run until it is done, whether or not all hurts came in time; returns the last attempt's exit code."""
    scene.driver = scene.start()
    most, since, done = -1, time.monotonic(), 0
    while True:
        made = sum(1 for folder in ("weights", "images") for _ in storage.list(folder))
        if made > most:
            most, since = made, time.monotonic()
        assert time.monotonic() - since < _STUCK_S, f"nothing new for {_STUCK_S:.0f} s, {made} of {total} objects made"
        if done < len(hurts) and made >= _SPREAD * total * done / len(hurts):
            _tell(f"{made:5} of {total} objects: {hurts[done]}")
            if hurt(scene, hurts[done], chance):
                scene.hurts[hurts[done]] += 1
            done, since = done + 1, time.monotonic()
        if scene.driver.poll() is not None:
            code = scene.end(scene.driver)
            if code in DONE:
                return code
            scene.ends[f"gave up {code}"] += 1
            scene.driver = scene.start()
        time.sleep(_LOOK_S)


def check(calm: Storage, storage: Storage, folder: Path) -> dict[str, object]:
    """Compare the tables and look at every object; returns what was counted.

    Raises:
        AssertionError: naming the first few of all that is not as it should be.
    """
    different, off, wrong = 0, 0, []
    for table, key in (("concepts", "concept_key"), ("renders", "render_key")):
        rows = [
            query(each, f"SELECT * FROM {table} ORDER BY manifest_row, concept_id, {key}") for each in (calm, storage)
        ]
        expected, found = (pa.Table.to_pylist(each.drop_columns(_PASSING.split(", "))) for each in rows)
        failed = query(
            storage, f"SELECT error_code, error_message FROM {table} WHERE status <> 'ok' LIMIT 3"
        ).to_pylist()
        assert not failed, f"rows of {table} failed: {failed}"
        manifest = pq.read_table(folder / ("prompts.parquet" if table == "renders" else "catalogue/concepts.parquet"))
        assert {row["manifest_row"] for row in found} == set(range(1, manifest.num_rows + 1))
        assert len({row[key] for row in found}) == len(found) == len(expected)
        for ours, theirs, mine, yours in zip(
            found, expected, rows[1]["uri"].to_pylist(), rows[0]["uri"].to_pylist(), strict=True
        ):
            data = storage.read(mine.removeprefix(f"{storage.root}/"))
            if (ours.pop("sha256"), ours.pop("bytes")) != (hashlib.sha256(data).hexdigest(), len(data)):
                wrong.append(f"{mine} is not what its row says")
            if table == "renders":
                there = calm.read(yours.removeprefix(f"{calm.root}/"))
                apart = np.abs(_pixels(data) - _pixels(there)).max()
                different, off = different + bool(apart), max(off, int(apart))
            loss, other = ours.pop("loss", 0.0), theirs.pop("loss", 0.0)
            if loss is None or abs(loss - other) > 1e-3 * abs(other):
                wrong.append(f"loss of {mine} is {loss}, not {other}")
            wrong += [
                f"{name} of {mine} is {ours[name]!r}, not {theirs[name]!r}"
                for name in ours
                if ours[name] != theirs[name]
            ]
    assert not wrong, f"{len(wrong)} things are wrong: " + "; ".join(wrong[:5])
    return {"pictures_that_differ": different, "by_at_most_of_255": off}


def _pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)), np.int16)


def write_inputs(folder: Path, concepts: int, prompts: int) -> int:
    """A catalogue and both specs; returns the number of pictures."""
    write_catalog(str(folder / "catalogue"), concepts, images_per_product=2, processes=1)
    ids = pq.read_table(folder / "catalogue" / "concepts.parquet")["concept_id"].to_pylist()
    texts = [f"a photo of a {{product}} on a {color} background" for color in ("red", "blue", "green", "yellow")]
    texts = [texts[number % 4] + ", seen from the side" * (number // 4) for number in range(prompts)]
    texts += [f"a {{{one}}} next to a {{{other}}}" for one, other in zip(ids[::2], ids[1::2], strict=False)]
    pq.write_table(pa.table({"prompt": texts}), folder / "prompts.parquet")
    common = {
        "concepts": str(folder / "catalogue" / "concepts.parquet"),
        "prompts": str(folder / "prompts.parquet"),
        "base": "mini",
        "train": {"steps": 20, "batch": 2},
        "render": {"steps": 4},
        "engine": {"group_size": 4, "render_batch": 8, "checkpoint_s": 2, "flush_s": 2},
    }
    for name, root in (("calm", str(folder / "calm")), ("chaos", "s3://shop/chaos")):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"root": root, **common}))
    return concepts * prompts + len(ids) // 2


@contextmanager
def scene_in(folder: Path, seed: int):
    """Everything started, nothing hurt yet."""
    with ExitStack() as stack:
        (folder / "s3").mkdir()
        server = stack.enter_context(s3_server(folder / "s3"))
        road = Road(refused=0.05, broken=0.02, lost=0.02, late=0.01, seed=seed)
        endpoint = stack.enter_context(storage_proxy(server.endpoint, road))
        environment = {**os.environ, **server.environment, "AWS_ENDPOINT_URL": endpoint, "OMP_NUM_THREADS": "1"}
        environment |= {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # else drivers look for the nodes off the loopback
        os.environ.update(environment)  # the nodes' processes are started from this one
        cluster = Cluster(initialize_head=True, head_node_args={**_NODE, "_system_config": _FAST_DEATHS})
        stack.callback(cluster.shutdown)
        scene = Scene(folder, server, road, cluster, environment)
        scene.nodes += [cluster.add_node(**_NODE) for _ in range(NODES - 1)]
        try:
            yield scene
        finally:
            if scene.driver is not None and scene.driver.poll() is None:
                scene.driver.kill()
                scene.driver.wait()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concepts", type=int, default=200)
    parser.add_argument("--prompts", type=int, default=10, help="pictures of each concept")
    parser.add_argument("--hurts", type=int, default=36)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    chance = random.Random(given.seed)
    hurts = [KINDS[number % len(KINDS)] for number in range(given.hurts)]
    chance.shuffle(hurts)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="perfusion-chaos-") as name:
        folder = Path(name)
        pictures = write_inputs(folder, given.concepts, given.prompts)
        _tell("a run that nobody disturbs")
        command = [str(Path(sys.executable).with_name("perfusion")), "run", str(folder / "calm.yaml"), "--json"]
        subprocess.run([*command, "--set", "cluster.slots=2"], check=True, stdout=subprocess.DEVNULL)
        calm_s = time.monotonic() - began
        with scene_in(folder, given.seed) as scene:
            storage = Storage("s3://shop/chaos", scene.server.options)
            code = disturbed(scene, storage, hurts, given.concepts + pictures, chance)
            figures = check(Storage(str(folder / "calm")), storage, folder)
            useful = query(
                storage, "SELECT sum(accelerator_s) AS s FROM (FROM concepts UNION ALL BY NAME FROM renders)"
            )
    figures |= {
        "concepts": given.concepts,
        "renders": pictures,
        "hurts": dict(scene.hurts),
        "hurts_in_all": scene.hurts.total(),
        "ends_of_attempts": dict(scene.ends),
        "requests": dict(scene.road.met),
        "useful_accelerator_s": useful["s"][0].as_py(),
        "wasted_accelerator_s_as_told": scene.wasted_s,
        "calm_s": calm_s,
        "seconds": time.monotonic() - began,
        "exit_code": code,
    }
    twins = {end for end in scene.ends if end.startswith("twin")}
    # Whoever comes when all is published is told so.
    ok = code == OK and scene.hurts.total() >= 5 / 6 * given.hurts and twins <= {f"twin {BUSY}", f"twin {OK}"}
    print(json.dumps({"name": "chaos", **figures, "ok": ok}))  # noqa: T201
    return 0 if ok else 1


def _tell(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
