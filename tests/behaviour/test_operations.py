"""docs/operations.md: its commands run as they stand, messages are those of the code, and policies are enough."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path

import aiobotocore.client
import pyarrow.parquet as pq
import pytest
import typer
import yaml

from jobs import output
from jobs.cli import app
from jobs.monitoring.alerts import alerts
from jobs.monitoring.options import Monitoring
from perfusion_ops.mini.catalog import write_catalog
from pipeline.clock import SystemClock
from pipeline.contract.errors import Code
from pipeline.runs.status import read_status
from pipeline.storage.objects import Storage
from pipeline.tables.views import query
from tests.support.night import Night, write_inputs
from tests.support.servers.s3_server import s3_server

# A core that other tests share takes minutes for a run.
pytestmark = pytest.mark.timeout(1800)

HERE = Path(__file__).parents[2]
PAGE = (HERE / "docs" / "operations.md").read_text(encoding="utf-8")
BIN = Path(sys.executable).parent
PACKAGES = ("jobs", "cluster", "pipeline", "perfusion_ops")
# The least that the real thing can be asked for.
SPEC = {
    "root": "results",
    "concepts": "shop/concepts.parquet",
    "prompts": "shop/prompts.parquet",
    "train": {"steps": 2, "batch": 1},
    "render": {"steps": 2},
    "cluster": {"slots": 1},
    "engine": {"plan_memory": "200MB", "threads": 2},
}
INPUTS = {name: f"{name}.parquet" for name in ("concepts", "prompts")}


# The commands


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def commands(block):
    """The commands of a block, and the exit code that a comment states for each: 0 if there is none."""
    waiting = ""
    for line in block.splitlines():
        waiting += line + "\n"
        whole = subprocess.run(["/bin/sh", "-n", "-c", waiting], capture_output=True, check=False).returncode == 0
        if whole and waiting.strip() and not line.endswith("\\"):
            stated = re.search(r"#.*exit code (\d+)", line)
            yield waiting, int(stated[1]) if stated else 0
            waiting = ""
    assert not waiting.strip(), f"this command has no end: {waiting}"


def test_a_block_is_divided_into_commands():
    block = 'one "\na # b\n" > c\ntwo \\\n  three  # exit code 3\n\nfour  # exit code 0'
    assert list(commands(block)) == [
        ('one "\na # b\n" > c\n', 0),
        ("two \\\n  three  # exit code 3\n", 3),
        ("\nfour  # exit code 0\n", 0),
    ]
    with pytest.raises(AssertionError, match="no end"):
        list(commands("echo 'a"))


def test_every_command_of_the_page_runs(tmp_path):
    write_catalog(str(tmp_path / "shop"), 1, images_per_product=1)
    prompts = pq.read_table(tmp_path / "shop" / "prompts.parquet")
    pq.write_table(prompts.slice(0, 2), tmp_path / "shop" / "prompts.parquet")
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(SPEC))
    environment = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "NO_COLOR": "1"}
    environment = {**os.environ, **environment, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    said = []
    for command, code in (each for block in blocks("sh") for each in commands(block)):
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900, check=False,
        )  # fmt: skip
        assert done.returncode == code, f"{command}ended with {done.returncode}: {done.stdout}{done.stderr}"
        said.append(done.stdout)
    assert len(said) > 15
    assert "this root has no finished work to measure" in said[0]
    assert "measured in run-" in said[2]
    [(kind, machine, number, *_), _] = [line.split() for line in said[3].splitlines()[1:]]
    assert (kind, machine == os.uname().nodename.split(":")[0], number) == ("concept", True, "1")
    nights = [json.loads(line) for line in (tmp_path / "nights.jsonl").read_text().splitlines()]
    assert [night["exit_code"] for night in nights] == [0]
    assert any("already covers this spec" in text for text in said)
    files = said[-1].split()[1:]
    assert len(files) == 2
    assert all((tmp_path / file).is_file() for file in files)


def inline():
    """Every `perfusion …` of the text, without its placeholders."""
    return sorted(set(re.findall(r"`(perfusion [^`…]+)`", re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL))))


@pytest.mark.parametrize("words", inline())
def test_a_command_in_the_text_exists(words):
    _, name, *rest = shlex.split(words)
    group = typer.main.get_command(app)
    found = group.get_command(typer.Context(group), name)
    assert found is not None
    if rest:
        found.make_context(name, rest)


# Symptoms


def symptoms():
    """The tables of the section: cells of each row by the head of the first column."""
    found, head = {}, ""
    for line in PAGE.split("\n## Symptoms\n")[1].split("\n## ")[0].splitlines():
        if not line.startswith("|"):
            head = ""
        elif not head:
            head = line.split("|")[1].strip()
            found[head] = []
        elif not line.startswith("|---"):
            found[head].append([cell.strip() for cell in line.strip("|").split(" | ")])
    return found


def texts():
    """Every text in the source, with `…` for each value that is put into it."""
    for path in (path for package in PACKAGES for path in (HERE / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield re.sub(r"%[sdg]", "…", node.value)


def test_messages_are_quoted_as_they_are_printed():
    program = ("perfusion", "ray", "kubectl", "journalctl", "split_part(worker,")
    cells = [cell for rows in symptoms().values() for row in rows for cell in row]
    quotes = {quote for cell in cells for quote in re.findall(r"`([^`]+)`", cell)}
    quotes = {quote for quote in quotes if " " in quote and quote.split()[0] not in program}
    assert len(quotes) > 20
    known = list(texts())
    assert {quote for quote in quotes if not any(quote in text for text in known)} == set()


def test_every_alert_exit_code_and_code_of_failed_work_has_a_row():
    rows = symptoms()
    assert all(len(row) == 3 and all(row) for table in rows.values() for row in table)
    named = {head: [re.findall(r"^(\d+)|`(\w+)`", row[0]) for row in table] for head, table in rows.items()}
    named = {
        head: {one or other for found in table for one, other in found if one or head != "exit code"}
        for head, table in named.items()
    }
    assert named["alert"] == {alert.name for alert in alerts(Monitoring())}
    ends = (output.OK, output.CRASH, output.USAGE, output.FAILED_ROWS, output.STOPPED, output.INTERRUPTED)
    assert named["exit code"] == {"137", *map(str, ends)}
    codes = list(Code)
    work = {*codes[codes.index(Code.CONCEPT_FAILED) :], Code.IMAGE_CHANGED} - {Code.PROMPT_TOO_LONG}
    assert named["code of a row"] == {"invalid", *work}


# Permissions


def identity(name, *actions):
    credentials = [{"accessKey": name, "secretKey": f"{name}-secret"}]
    return {"name": name, "credentials": credentials, "actions": [f"{action}:shop" for action in actions]}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    others = [identity("runner", "Read", "Write", "List"), identity("reader", "Read", "List")]
    with s3_server(tmp_path_factory.mktemp("s3"), others=others) as running:
        yield running


@pytest.fixture
def requests(monkeypatch):
    """What is asked of S3 in this process: operation, and key or prefix."""
    found = Counter()
    send = aiobotocore.client.AioBaseClient._make_api_call

    async def recorded(client, operation, parameters):
        found[operation, parameters.get("Key", parameters.get("Prefix"))] += 1
        return await send(client, operation, parameters)

    monkeypatch.setattr(aiobotocore.client.AioBaseClient, "_make_api_call", recorded)
    return found


def environment(server, name):
    secrets = {"AWS_ACCESS_KEY_ID": name, "AWS_SECRET_ACCESS_KEY": f"{name}-secret"}
    return {**server.environment, **secrets}


def is_allowed(policy, operation, name, root):
    """Whether a policy of the page allows a request: the share of IAM's rules that the page uses."""
    put = ("PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload")
    action = {"HeadObject": "GetObject", "ListObjectsV2": "ListBucket", **dict.fromkeys(put, "PutObject")}
    text = json.dumps(policy).replace("BUCKET", "shop").replace("ROOT", root)
    for statement in json.loads(text)["Statement"]:
        listed = [value if isinstance(value, list) else [value] for value in map(statement.get, ("Action", "Resource"))]
        prefix = statement.get("Condition", {}).get("StringLike", {}).get("s3:prefix")
        resource = "arn:aws:s3:::shop" if prefix else f"arn:aws:s3:::shop/{name}"
        if (
            f"s3:{action.get(operation, operation)}" in listed[0]
            and any(fnmatchcase(resource, pattern) for pattern in listed[1])
            and (prefix is None or fnmatchcase(name, prefix))
        ):
            return True
    return False


def test_the_policies_allow_what_a_runner_and_a_reader_ask_for(server, requests, tmp_path, monkeypatch):
    write_inputs(tmp_path)
    for name, value in environment(server, "runner").items():
        monkeypatch.setenv(name, value)
    shop = Night(tmp_path, "s3://shop/night/root")
    result = shop.go(storage_options={"s3": {"endpoint_url": server.endpoint}})
    assert result.published.statuses == {"concepts": {"ok": 2}, "renders": {"ok": 4}}
    runner, reader = map(json.loads, blocks("json"))
    assert {each for each in requests if not is_allowed(runner, *each, "night/root")} == set()
    assert {operation for operation, _ in requests} >= {"PutObject", "DeleteObject", "ListObjectsV2", "GetObject"}
    assert not is_allowed(runner, "DeleteObject", "night/root/tables/renders/x.parquet", "night/root")
    assert not is_allowed(runner, "GetObject", "day/root/x", "night/root")
    requests.clear()
    options = {"key": "reader", "secret": "reader-secret", "endpoint_url": server.endpoint}
    storage = Storage(shop.root, {"s3": options})
    assert [run.state for run in read_status(storage, SystemClock())] == ["finished"]
    assert query(storage, "SELECT count(*) AS n FROM current").to_pylist() == [{"n": 4}]
    assert requests
    assert {each for each in requests if not is_allowed(reader, *each, "night/root")} == set()
    assert not is_allowed(reader, "PutObject", "night/root/cache/x", "night/root")


def test_a_reader_may_look_and_cannot_run(server, tmp_path, monkeypatch):
    write_inputs(tmp_path)
    for name, value in environment(server, "runner").items():
        monkeypatch.setenv(name, value)
    shop = Night(tmp_path, "s3://shop/day/root")
    shop.go(storage_options={"s3": {"endpoint_url": server.endpoint}})
    admin = Storage(shop.root, server.options)
    before = sorted(admin.list())
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump({**SPEC, "root": shop.root, **INPUTS}))

    def as_reader(*words):
        done = subprocess.run(
            [BIN / "perfusion", *words],
            cwd=tmp_path, env={**os.environ, **environment(server, "reader")},
            capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        return (
            done.returncode,
            done.stdout,
            [line for line in done.stderr.splitlines() if line.startswith("perfusion:")],
        )

    code, out, errors = as_reader("status", shop.root)
    assert (code, "finished" in out, errors) == (0, True, [])
    code, out, errors = as_reader("query", shop.root, "SELECT count(*) FROM current")
    assert (code, out.split()[-1], errors) == (0, "4", [])
    refused = r"perfusion: cannot (create|write) s3://shop/day/root/\S+: permission denied \(.*\); check .* credentials"
    for words in (("run", "spec.yaml", "--set", "seed=3"), ("report", shop.root)):
        code, out, errors = as_reader(*words)
        assert (code, out, len(errors)) == (1, "", 1)
        assert re.fullmatch(refused, errors[0])
    assert sorted(admin.list()) == before
