"""The `perfusion` command as a person or a script meets it: exit codes, JSON, messages instead of tracebacks."""

import json
import os
import subprocess
import sys
from importlib.metadata import version

import pyarrow.parquet as pq
import pytest

from jobs.run import run
from jobs.spec import load_spec
from tests.support.command import only_object, stopped

COMMANDS = (
    "demo", "catalog", "validate", "plan", "run", "rerender", "nightly", "retry", "submit", "jobs", "logs", "stop",
    "status", "query", "score", "sweep", "report", "export", "schema", "cluster",
)  # fmt: skip


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help(perfusion, command):
    code, out, err = perfusion(*command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: perfusion {' '.join(command)}".strip())
    assert max(map(len, out.splitlines())) <= 80
    if not command:
        assert [line.split()[0] for line in out.partition("Commands:\n")[2].splitlines()] == list(COMMANDS)
        assert "..." not in out.partition("Commands:")[2]


def test_version(perfusion):
    code, out, err = perfusion("--version")
    assert (code, out, err) == (0, f"perfusion {version('perfusion-pipeline')}\n", "")


def test_python_m_jobs_is_the_same_command(shop):
    done = subprocess.run([sys.executable, "-m", "jobs", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: perfusion ")
    wrong = [sys.executable, "-m", "jobs", "status", str(shop.folder / "nowhere")]
    assert subprocess.run(wrong, capture_output=True, text=True, check=False).returncode == 2


def test_shell_completion_knows_the_commands(shop):
    environment = {
        **os.environ,
        "_PERFUSION_COMPLETE": "complete_bash",
        "COMP_WORDS": "perfusion re",
        "COMP_CWORD": "1",
    }
    words = [sys.executable, "-m", "jobs"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["rerender", "retry", "report"]


@pytest.mark.parametrize(
    "words", [(), ("frobnicate",), ("run",), ("catalog", "x", "--products", "0"), ("query", "--x")]
)
def test_wrong_usage_is_2(perfusion, words):
    code, out, err = perfusion(*words)
    assert code == 2
    assert "Usage: perfusion" in out + err
    assert "Traceback" not in err


def test_importing_the_command_line_loads_no_package_that_does_the_work():
    """Help and completion answer at once: commands import what they need when they run."""
    code = "import sys, jobs.cli; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert loaded >= {"typer", "jobs", "perfusion_ops"}
    assert loaded & {*HEAVY, "pipeline", "cluster", "duckdb", "pyarrow", "numpy", "PIL", "pydantic", "fsspec"} == set()


HEAVY = ("torch", "diffusers", "transformers", "ray", "matplotlib")


@pytest.mark.parametrize(
    ("words", "loaded"),
    [
        (["--help"], []),
        (["plan", "SPEC", "--json"], ["transformers"]),  # for the base model's tokenizer alone
        (["status", "SPEC"], []),
        (["query", "SPEC"], []),
    ],
)
def test_what_needs_no_accelerator_loads_none_of_the_heavy_packages(shop, words, loaded):
    words = [shop.spec("good") if word == "SPEC" else word for word in words]
    code = f"""
import sys
sys.argv = ["perfusion", *{words!r}]
from jobs.cli import main
try:
    main()
except SystemExit as end:
    sys.stderr.write(f"{{end.code}} {{sorted({{*{HEAVY!r}}} & {{*sys.modules}})}}")
"""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stderr.splitlines()[-1] == f"0 {loaded}"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("status", "nowhere"), 2, "there is no folder nowhere: give the root of a run, or its spec file"),
        (("query", "nowhere"), 2, "there is no folder nowhere"),
        (("report", "nowhere"), 2, "there is no folder nowhere"),
        (("run", "nowhere.yaml"), 2, "the spec nowhere.yaml cannot be read: No such file or directory"),
        (("status", "nowhere.yaml"), 2, "the spec nowhere.yaml cannot be read"),
        (("run", "nowhere.txt"), 2, "nowhere.txt is not a spec: its name must end in .yaml"),
        (("plan", "SPEC", "--set", "concepts=gone.parquet"), 2, "gone.parquet"),
        (("plan", "SPEC", "--set", "root=s3:/bucket/x"), 2, "write s3://bucket/x"),
        (("plan", "SPEC", "--set", "base=file:models/sd"), 2, "lacks the '://' of a URI"),
        (("status", "file:results"), 2, "lacks the '://' of a URI"),
        (("plan", "SPEC", "--set", "base=gone"), 2, "there is no base model 'gone'"),
        (("plan", "SPEC", "--set", "trian.steps=1"), 2, "trian is not a setting; did you mean 'train'?"),
        (("run", "SPEC", "--set", "root=good.yaml/inside"), 1, "good.yaml/inside"),
        (("status", "SPEC", "run-1"), 2, "there is no run 'run-1' under SPEC: `perfusion status SPEC` lists them"),
        (("report", "SPEC"), 2, "there is no finished run under SPEC"),
        (("report", "SPEC", "run-1"), 2, "there is no finished run 'run-1' under SPEC"),
        (("score", "nowhere"), 2, "there is no folder nowhere"),
        (("score", "SPEC", "--text", "gone"), 2, "there is no folder gone: give 'mini' or a local folder"),
        (("score", "SPEC", "--scorer", "catalog"), 2, "catalog is not a scorer: it has no config.json"),
        (("score", "SPEC", "--scorer", "mini", "--text", "catalog"), 2, "the scorer 'mini' is for all purposes"),
        (("score", "SPEC", "--device", "tpu"), 2, "there is no device 'tpu': give auto, cpu or cuda"),
        (("query", "SPEC", "SELEC 1"), 2, "the query cannot be run: Parser Error"),
        (("query", "SPEC", "SELECT nothing FROM renders"), 2, "the query cannot be run: Binder Error"),
        (("query", "SPEC", ""), 2, "the query gives no rows: write a SELECT"),
        (("query", "SPEC", "SELECT 1", "--json", "--csv"), 2, "--json and --csv exclude each other"),
        (("catalog", "good.yaml"), 2, "good.yaml"),
        (("demo", "--folder", "good.yaml"), 2, "good.yaml"),
    ],
)
def test_what_is_wrong_is_a_message_without_a_traceback(perfusion, shop, monkeypatch, words, code, message):
    monkeypatch.chdir(shop.folder)
    shop.spec("good")
    found, out, err = perfusion(*(word.replace("SPEC", "good.yaml") for word in words))
    assert (found, out) == (code, "")
    assert "Traceback" not in err
    complaint = "".join(err.partition("perfusion: ")[1:])
    assert complaint.startswith("perfusion: ")
    assert message.replace("SPEC", "good.yaml") in complaint


def test_every_line_of_a_spec_s_faults_is_told(perfusion, shop):
    code, _, err = perfusion("plan", shop.spec("bad", seed=-1, rooot=1))
    assert code == 2
    assert [line.split(": ")[0] for line in err.splitlines()] == ["perfusion", "perfusion"]


def test_interrupted_before_the_work_is_130(perfusion, monkeypatch, shop):
    def control_c(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.prepare.check", control_c)
    code, out, err = perfusion("plan", shop.spec("good"))
    assert (code, out) == (130, "")
    assert err == "perfusion: stopped; run the same command again to resume\n"


def test_a_reader_that_goes_away_is_no_crash(shop):
    code = "from jobs.cli import main; main()"
    words = [sys.executable, "-c", code, "query", shop.spec("good"), "SELECT * FROM range(300000)", "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == {"range": 0}
        process.stdout.close()
        assert process.stderr is not None
        err = process.stderr.read().decode()
    assert "Traceback" not in err


def test_what_was_skipped_is_said_by_every_command_that_reads_manifests(perfusion, shop, capsysbinary):
    """Both manifests have an index that pandas wrote without a name; a plan of both was refused for it."""
    spec = shop.spec("good")
    for manifest in ("concepts", "prompts"):
        path = shop.folder / "catalog" / f"good-{manifest}.parquet"
        frame = pq.read_table(path).to_pandas()
        frame.index = [5, 9][: len(frame)]
        frame.index = frame.index.astype("float64")
        frame.to_parquet(path)
        assert "__index_level_0__" in pq.read_schema(path).names
    for command in ("validate", "plan"):
        code, out, err = perfusion(command, spec)
        notices = [line for line in err.splitlines() if "__index_level_0__" in line]
        assert (code, len(notices)) == (0, 2)
        assert all(line.startswith("perfusion: file://") for line in notices)
        assert "__index_level_0__" not in out
        code, out, err = perfusion(command, spec, "--json")
        assert [notice in line for notice, line in zip(only_object(out)["notices"], notices, strict=True)] == [True] * 2
        assert "__index_level_0__" not in err
    assert run(load_spec(spec), json=True, make_engine=stopped(lambda: None)) == 4
    found = capsysbinary.readouterr()
    assert len(only_object(found.out.decode())["notices"]) == 2
    assert run(load_spec(spec), json=False, make_engine=stopped(lambda: None)) == 4
    assert capsysbinary.readouterr().err.decode().count("__index_level_0__") == 2
