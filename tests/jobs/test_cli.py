"""The `perfusion` command as a person or a script meets it: exit codes, JSON, sentences instead of tracebacks."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from jobs import cli
from jobs.run import run
from jobs.spec import dump_spec, load_spec
from perfusion_ops.mini.catalog import write_catalog
from pipeline.clock import SystemClock
from pipeline.plan.retry import DEAD_LETTER
from pipeline.run import Engine
from pipeline.runs.lease import acquire
from pipeline.runs.status import read_status
from pipeline.storage.objects import Storage
from tests.support import scorer_folders as small_scorers

COMMANDS = (
    "demo", "catalog", "validate", "plan", "run", "rerender", "retry", "status", "query", "score", "report", "schema",
)  # fmt: skip
# The least that the real thing can be asked for.
QUICK = {
    "train": {"steps": 1, "batch": 1},
    "render": {"steps": 1},
    "metric": {"captions": 400},
    "engine": {"slots": 1, "plan_memory": "200MB", "threads": 2},
}


@pytest.fixture
def perfusion(monkeypatch, capsysbinary):
    """Run the command in this process: (exit code, stdout, stderr)."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["perfusion", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        found = capsysbinary.readouterr()
        return ended.value.code or 0, found.out.decode(), found.err.decode()

    return call


def only_object(out):
    """The JSON object that is all of what was printed."""
    assert out.endswith("\n")
    assert len(out.splitlines()) == 1
    return json.loads(out)


class Shop:
    """A folder with a catalogue of two products, and specs over it."""

    def __init__(self, folder):
        self.folder = folder
        write_catalog(str(folder / "catalog"), 2, images_per_product=1)
        self.concepts = pq.read_table(folder / "catalog" / "concepts.parquet").to_pylist()
        self.prompts = [{"prompt": "a photo of a {product}", "tag": "plain"}]

    def spec(self, name, *, concepts=None, prompts=None, **changes):
        for manifest, rows in (("concepts", concepts or self.concepts), ("prompts", prompts or self.prompts)):
            pq.write_table(pa.Table.from_pylist(rows), self.folder / "catalog" / f"{name}-{manifest}.parquet")
        values = {
            "root": "results",
            "concepts": f"catalog/{name}-concepts.parquet",
            "prompts": f"catalog/{name}-prompts.parquet",
            **QUICK,
            **changes,
        }
        file = self.folder / f"{name}.yaml"
        file.write_text(dump_spec(values))
        return str(file)

    def spoilt(self, **changes):
        """Of each manifest one row that is good and some that are not."""
        concepts = [
            *self.concepts,
            {**self.concepts[0], "concept_id": "bad id", "images": self.concepts[0]["images"]},
            {**self.concepts[0], "concept_id": "lost", "images": ["nowhere.png"], "masks": None},
        ]
        prompts = [*self.prompts, {"prompt": "a {mug-9} on a shelf"}, {"prompt": "a {lost} here"}, {"prompt": "none"}]
        return self.spec("spoilt", concepts=concepts, prompts=prompts, **changes)


@pytest.fixture
def shop(tmp_path):
    return Shop(tmp_path)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A shop whose spoilt spec was run for real, by the installed command on a Ray of its own."""
    shop = Shop(tmp_path_factory.mktemp("done"))
    words = [sys.executable, "-c", "from jobs.cli import main; main()", "run", shop.spoilt(), "--json"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    shop.run = subprocess.run(words, capture_output=True, text=True, timeout=500, check=False, env=environment)
    shop.root = str(shop.folder / "results")
    return shop


# Help and start


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


# Sentences


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
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
def test_what_is_wrong_is_said_in_a_sentence(perfusion, shop, monkeypatch, words, code, sentence):
    monkeypatch.chdir(shop.folder)
    shop.spec("good")
    found, out, err = perfusion(*(word.replace("SPEC", "good.yaml") for word in words))
    assert (found, out) == (code, "")
    assert "Traceback" not in err
    complaint = "".join(err.partition("perfusion: ")[1:])
    assert complaint.startswith("perfusion: ")
    assert sentence.replace("SPEC", "good.yaml") in complaint


def test_every_line_of_a_spec_s_faults_is_told(perfusion, shop):
    code, _, err = perfusion("plan", shop.spec("bad", seed=-1, rooot=1))
    assert code == 2
    assert [line.split(": ")[0] for line in err.splitlines()] == ["perfusion", "perfusion"]


def test_a_run_that_someone_works_on_is_1(perfusion, shop):
    spec = shop.spec("good")
    with pytest.raises(Interrupted):
        run(load_spec(spec), json=False, make_engine=interrupted)
    [status] = read_status(Storage(str(shop.folder / "results")), SystemClock())
    with acquire(Storage(str(shop.folder / "results")), status.run_id, clock=SystemClock()):
        code, out, err = perfusion("run", spec)
    assert (code, out) == (1, "")
    assert f"run {status.run_id!r} is held by process {os.getpid()}" in err.splitlines()[-1]


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


# Catalogue, checks and plans


def test_catalog(perfusion, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = perfusion("catalog", "shop", "--products", 2, "--images", 1)
    assert (code, err) == (0, "")
    assert out.splitlines()[0].startswith("2 products, 2 photos, ")
    assert out.split()[-2:] == ["shop/concepts.parquet", "shop/prompts.parquet"]
    code, out, _ = perfusion("catalog", "shop", "--products", 2, "--images", 1, "--json")
    assert only_object(out)["products"] == 2


def test_validate_shows_every_bad_row(perfusion, shop):
    code, out, _ = perfusion("validate", shop.spoilt())
    assert code == 2
    lines = out.splitlines()
    assert lines[:2] == ["concepts: 4 rows in 1 file", "prompts: 4 rows in 1 file"]
    assert [line for line in lines if line.startswith(("concepts row", "prompts row"))] == [
        "concepts row 3, column concept_id: bad_id",
        "concepts row 4, column images: image_missing",
        "prompts row 2, column prompt: unknown_concept",
        "prompts row 3, column prompt: concept_invalid",
        "prompts row 4, column prompt: no_placeholder",
    ]
    assert all(line.startswith("    ") for line in lines[3:-1:2])
    assert "nowhere.png" in out
    assert lines[-1] == "5 bad rows"


def test_validate_says_how_many_it_does_not_show(perfusion, shop):
    code, out, err = perfusion("validate", shop.spoilt(), "--show", 2)
    assert (code, "--limit" in err) == (2, False)
    assert out.splitlines()[-2:] == ["... and 3 more: show them with --show 5", "5 bad rows"]
    old = perfusion("validate", shop.spoilt(), "--limit", 2)
    assert old[:2] == (code, out)
    assert "--limit 2 is the old spelling, and the next version drops it: write --show 2" in old[2]
    code, out, _ = perfusion("validate", shop.spoilt(), "--json")
    found = only_object(out)
    assert (code, found["bad_rows"], len(found["shown"])) == (2, 5, 5)
    assert found["shown"][0].keys() == {"manifest", "row", "column_name", "code", "message"}


def test_validate_of_good_manifests(perfusion, shop):
    code, out, _ = perfusion("validate", shop.spec("good"))
    assert (code, out.splitlines()[-1]) == (0, "every row is good")
    code, out, _ = perfusion("validate", shop.spec("good"), "--json")
    assert (code, only_object(out)["bad_rows"]) == (0, 0)


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


def test_plan(perfusion, shop):
    code, out, _ = perfusion("plan", shop.spoilt())
    assert code == 0
    assert [line.split() for line in out.splitlines()[:3]] == [
        ["rows", "reused", "to", "do", "distinct", "to", "do", "bad"],
        ["concepts", "4", "0", "2", "2", "2"],
        ["renders", "5", "0", "2", "2", "3"],
    ]
    assert "5 bad rows: `perfusion validate` shows what is wrong" in out
    code, out, _ = perfusion("plan", shop.spoilt(), "--json")
    found = only_object(out)
    assert (code, found["bad_rows"], found["work"]["renders"]["to_do"]) == (0, 5, 2)


def test_schema(perfusion):
    code, out, err = perfusion("schema")
    assert (code, err) == (0, "")
    assert json.loads(out)["title"] == "RunSettings"


# Runs


class Interrupted(Exception):  # noqa: N818 (it stands for a machine that goes away)
    pass


@contextmanager
def interrupted(_):
    raise Interrupted
    yield


class Nobody:
    """No workers at all."""

    def slots(self):
        return ()

    def starting(self):
        return ()

    def wait(self, _):
        return ()


def stopped(during):
    """An engine that is asked to stop at once; `during` is called while the run holds its lease."""

    @contextmanager
    def make_engine(_):
        during()
        yield Engine(Nobody(), lambda: True)

    return make_engine


def test_stopped_is_4_and_status_tells_running_from_interrupted(perfusion, shop, capsysbinary):
    settings, seen, stdout = load_spec(shop.spec("good")), [], sys.stdout

    def look():
        with redirect_stdout(stdout):  # a run keeps it for its result
            seen.append(perfusion("status", settings.root))

    assert run(settings, json=False, make_engine=stopped(look)) == 4
    assert (
        "stopped with 2 concepts and 2 renders left: it was asked to end; run the same command again to resume"
        in capsysbinary.readouterr().err.decode()
    )
    [(code, out, _)] = seen
    assert code == 0
    assert out.splitlines()[1].split()[3:] == ["running", "none", "of", "2", "none", "of", "2"]
    assert f"is running: process {os.getpid()} on " in out.splitlines()[2]

    code, out, _ = perfusion("status", settings.root)
    assert code == 0
    assert out.splitlines()[1].split()[3] == "interrupted"
    assert "was interrupted: run the command that started it again to resume" in out.splitlines()[2]

    assert run(settings, json=True, make_engine=stopped(lambda: None)) == 4
    found = only_object(capsysbinary.readouterr().out.decode())
    assert (found["exit_code"], found["resumed"], found["left"]) == (4, True, {"concepts": 2, "renders": 2})
    assert (found["files"], found["report"]) == ([], None)
    _, out, _ = perfusion("status", settings.root, "--json")
    [status] = only_object(out)["runs"]
    assert (status["run_id"], status["state"]) == (found["run_id"], "interrupted")


def test_a_run_with_bad_rows_is_3_and_json_alone(done):
    assert done.run.returncode == 3, done.run.stderr
    found = only_object(done.run.stdout)
    assert found["exit_code"] == 3
    assert found["statuses"] == {"concepts": {"invalid": 2, "ok": 2}, "renders": {"invalid": 3, "ok": 2}}
    assert found["codes"]["concepts"] == {"bad_id": 1, "image_missing": 1}
    assert found["left"] == {"concepts": 0, "renders": 0}
    assert len(found["files"]) == 2
    assert "concepts 2/2 | renders 2/2" in done.run.stderr
    assert "Traceback" not in done.run.stderr


def test_the_same_again_reuses_and_tells_what_to_do(done, perfusion, monkeypatch):
    monkeypatch.chdir(done.folder)
    code, out, _ = perfusion("run", "spoilt.yaml")
    assert code == 3
    lines = out.splitlines()
    assert lines[1:4] == [
        "  concepts  2 invalid, 2 ok; 2 of them reused",
        "  renders   3 invalid, 2 ok; 2 of them reused",
        "  nothing to do: everything that can be made exists already",
    ]
    assert re.fullmatch(r"run run-\S+ of \d{4}-\d\d-\d\d already covers this spec \(checked in .*s\)", lines[0])
    assert (
        "  concepts  1 image_missing: There is no photo at an address in the manifest: correct the address, "
        "or put the photo there." in lines
    )
    tables, report = (line.split()[1] for line in lines[-2:])
    assert tables.startswith("results/tables/*/run_date=")
    assert len(list(done.folder.glob(f"{tables}/*.parquet"))) == 2
    assert (done.folder / report).read_text().startswith("<!")


def test_all_good_is_0(done, perfusion):
    spec = done.spec("good")
    code, out, _ = perfusion("run", spec, "--json")
    found = only_object(out)
    assert (code, found["exit_code"]) == (0, 0)
    assert found["reused"] == {"concepts": 2, "renders": 2}
    code, _, _ = perfusion("run", spec)
    assert code == 0


def test_status_of_finished_runs(done, perfusion):
    run_id = json.loads(done.run.stdout)["run_id"]
    code, out, _ = perfusion("status", done.root)
    first = next(line.split() for line in out.splitlines() if line.startswith(run_id))
    assert code == 0
    assert " ".join(first[3:]) == "finished 2 invalid, 2 ok of 4 3 invalid, 2 ok of 5"
    code, out, _ = perfusion("status", done.root, run_id, "--json")
    [status] = only_object(out)["runs"]
    assert (status["state"], status["statuses"]["concepts"]) == ("finished", {"invalid": 2, "ok": 2})


def test_report_again(done, perfusion, monkeypatch):
    monkeypatch.chdir(done.folder)
    run_id = json.loads(done.run.stdout)["run_id"]
    code, out, _ = perfusion("report", "results", run_id, "--concepts", 1)
    assert (code, out) == (0, f"results/runs/{run_id}/report/index.html\n")
    code, out, _ = perfusion("report", "results", run_id, "--json")
    assert only_object(out) == {
        "run_id": run_id,
        "report": f"file://{done.root}/runs/{run_id}/report/index.html",
    }


# Scores


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = small_scorers.all_three(tmp_path_factory.mktemp("scorers"))
    return [word for purpose, folder in found.items() for word in (f"--{purpose}", folder)]


def test_score_publishes_a_table_and_shows_it_in_the_report(done, perfusion, folders, monkeypatch):
    monkeypatch.chdir(done.folder)
    run_id = json.loads(done.run.stdout)["run_id"]
    code, out, err = perfusion("score", "results", run_id, *folders, "--json")
    found = only_object(out)
    assert (code, err, found["exit_code"], found["run_id"]) == (0, "", 0, run_id)
    assert (found["rows"], found["added"], found["errors"]) == (2, True, {})
    assert found["scorer"] == "text=dual(clip) image=identity(resnet) reader=reader(resnet)"
    assert 'id="scores"' in (done.folder / found["report"].removeprefix("file://")).read_text()
    sql = "SELECT count(*) AS n FROM scores JOIN renders USING (run_id, render_key) WHERE image_similarity <= 1"
    assert only_object(perfusion("query", "results", sql, "--json")[1]) == {"n": 2}

    newest = only_object(perfusion("status", "results", "--json")[1])["runs"][-1]["run_id"]
    code, out, _ = perfusion("score", "results", *folders[2:4], "--json")
    assert (code, only_object(out)["run_id"]) == (0, newest)

    code, out, _ = perfusion("score", "spoilt.yaml", run_id, *folders)
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == f"run {run_id}: scores of 2 renders by {found['scorer']}, which existed already"
    assert lines[1].split()[:2] == ["text_similarity", f"{found['text_similarity']:.4f}"]
    assert lines[3].split(maxsplit=1) == ["context_correct", "not scored"], "the prompt names no context"
    assert (done.folder / lines[-1].split()[1]).is_file()


def test_a_picture_that_is_gone_is_3_and_stands_in_the_table(done, perfusion, folders):
    run_id = json.loads(done.run.stdout)["run_id"]
    rows = rows_of(done, perfusion, f"SELECT uri FROM renders WHERE run_id = '{run_id}' AND status = 'ok'", "--json")
    picture = Path(json.loads(rows.splitlines()[0])["uri"].removeprefix("file://"))
    data = picture.read_bytes()
    picture.unlink()
    try:
        code, out, err = perfusion("score", done.root, run_id, *folders[:2])
    finally:
        picture.write_bytes(data)
    assert code == 3
    assert "Traceback" not in err
    assert "  1 image_missing: There is no photo at an address in the manifest" in out


def test_score_takes_finished_runs_alone(perfusion, shop, folders, monkeypatch):
    monkeypatch.chdir(shop.folder)
    shop.spec("good")
    code, out, err = perfusion("score", "good.yaml", *folders)
    assert (code, out) == (2, "")
    assert "there is no finished run under good.yaml: see `perfusion status good.yaml`" in err


# Queries


def rows_of(done, perfusion, sql, *words):
    code, out, err = perfusion("query", done.root, sql, *words)
    assert (code, err) == (0, "")
    return out


def test_query_as_json_is_one_object_a_row(done, perfusion):
    run_id = json.loads(done.run.stdout)["run_id"]
    out = rows_of(
        done,
        perfusion,
        f"SELECT status, concept_ids, error_code, bytes, accelerator_s, finished_at FROM renders "
        f"WHERE run_id = '{run_id}' ORDER BY manifest_row, concept_id",
        "--json",
    )
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["status"] for row in rows] == ["ok", "ok", "invalid", "invalid", "invalid"]
    assert sorted(row["concept_ids"][0] for row in rows[:2]) == sorted(row["concept_id"] for row in done.concepts)
    assert rows[0]["error_code"] is None
    assert rows[4]["concept_ids"] is None
    assert isinstance(rows[0]["bytes"], int)
    total = json.loads(rows_of(done, perfusion, "SELECT sum(bytes) AS s, sum(bytes) AS s FROM current", "--json"))
    assert total.keys() == {"s", "s_1"}
    assert isinstance(total["s"], int)


NESTED = """
SELECT ['a', NULL, 'b'] AS l, [[1]] AS deep, {'k': 1} AS s, NULL AS n, '' AS e, '\\xff'::BLOB AS b, INTERVAL 1 DAY AS i,
    0.5 AS d
"""


def test_query_as_csv_takes_every_type(done, perfusion):
    out = rows_of(done, perfusion, NESTED, "--csv")
    [names, cells] = list(csv.reader(io.StringIO(out)))
    assert names == ["l", "deep", "s", "n", "e", "b", "i", "d"]
    assert cells == ["a;;b", "[[1]]", '{"k": 1}', "", "", "ff", "[0, 1, 0]", "0.5"]
    assert ',,"",' in out.splitlines()[1], "nothing and an empty text differ"
    assert rows_of(done, perfusion, "SELECT status FROM renders WHERE false", "--csv") == '"status"\n'


def test_query_as_a_table(done, perfusion):
    out = rows_of(done, perfusion, "SELECT concept_ids, error_code, bytes FROM renders WHERE status = 'ok'")
    lines = out.splitlines()
    assert lines[0].split() == ["concept_ids", "error_code", "bytes"]
    assert lines[1].split()[0] in {row["concept_id"] for row in done.concepts}
    assert rows_of(done, perfusion, NESTED).splitlines()[1].startswith("a;;b")
    assert rows_of(done, perfusion, "SELECT 1 AS a, 2 AS a").split() == ["a", "a", "1", "2"]


def test_query_without_sql_counts_and_takes_a_spec(done, perfusion):
    code, out, _ = perfusion("query", str(done.folder / "spoilt.yaml"))
    assert code == 0
    assert out.splitlines()[0].split() == ["status", "origin", "rows", "bytes"]


def test_nothing_published_yet_is_said(perfusion, shop):
    code, out, err = perfusion("query", shop.spec("good"), "SELECT count(*) AS n FROM renders", "--json")
    assert (code, only_object(out)) == (0, {"n": 0})
    assert "nothing is published under" in err


# The demo


def test_retry_of_a_run_without_failures_says_so(done, perfusion):
    run_id = json.loads(done.run.stdout)["run_id"]
    refused = "1 bad_id, 1 concept_invalid, 1 image_missing, 1 no_placeholder, 1 unknown_concept"
    assert perfusion("retry", done.root, run_id) == (
        0,
        f"no row of run {run_id} failed: nothing to do\n  5 rows were refused before any work ({refused}): "
        "correct what is wrong, then use `perfusion run`\n",
        "",
    )
    code, out, _ = perfusion("retry", done.root, run_id, "--code", "timed_out", "--json")
    assert (code, only_object(out)["rows"], only_object(out)["refused"]) == (0, 0, {})
    _, out, _ = perfusion("retry", done.root, run_id, "--code", "image_missing")
    assert f"no row of run {run_id} failed with image_missing: nothing to do" in out
    assert "1 row was refused before any work (1 image_missing): " in out


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--code", "oops"), "'oops' is not an error code: give one of bad_character, "),
        (("--code", ""), "'' is not an error code: give one of "),
        (("--code", "internal", "--dead-letters"), "--failed, --code and --dead-letters exclude each other"),
        (("--failed", "--only", "failed"), "--failed, --code and --dead-letters exclude each other"),
        (("--only", "everything"), "give --failed, --code CODE or --dead-letters"),
        (("--only", "code=oops"), "'oops' is not an error code"),
        (("run-none",), "there is no finished run 'run-none'"),
    ],
)
def test_retry_of_nothing_is_2(done, perfusion, words, why):
    code, _, err = perfusion("retry", done.root, *words)
    assert code == 2
    assert why in err


def all_failed(done, moved):
    """A copy of a shop's results whose tables say that no concept was made."""
    shutil.copytree(done.root, moved)
    for published in (moved / "tables" / "concepts").rglob("*.parquet"):
        rows = pq.read_table(published, partitioning=None)
        good = pc.equal(rows["status"], "ok")
        for name, value in (("status", "failed"), ("error_code", "worker_died")):
            column = pc.if_else(good, value, rows[name])
            rows = rows.set_column(rows.schema.get_field_index(name), name, column)
        pq.write_table(rows, published)
    return moved


def test_retry_of_rows_whose_photos_are_still_missing_says_so_and_is_2(done, perfusion, tmp_path):
    moved = all_failed(done, tmp_path / "moved")
    photos = [path for path in (done.folder / "catalog").rglob("*.png") if "mask" not in str(path)]
    for path in photos:
        path.rename(path.with_suffix(".away"))
    try:
        code, out, err = perfusion("retry", moved)
    finally:
        for path in photos:
            path.with_suffix(".away").rename(path)
    assert (code, out) == (2, "")
    assert "2 concepts cannot be done again: the first of them: row 1 of the concepts manifest, " in err
    assert "is still refused (image_missing, column images: " in err
    assert "have changed" not in err
    code, _, err = perfusion("retry", moved, "--set", "train.steps=7")
    assert code == 2
    assert "photos, masks or training settings of " in err
    assert "image_missing" not in err.splitlines()[-1]


# Options, and the words by which the new run knows its rows: an unfinished retry of an earlier version is resumed.
RETRIES = (
    ((), "failed"),
    (("--failed",), "failed"),
    (("--dead-letters",), "from=dead-letter"),
    (("--code", "worker_died"), "code=worker_died"),
    (("--only", "failed"), "failed"),
    (("--only", "from=dead-letter"), "from=dead-letter"),
    (("--only", "code=worker_died"), "code=worker_died"),
)


def test_retry_help_lists_the_codes_of_dead_letters(perfusion):
    _, out, _ = perfusion("retry", "--help")
    listed = " ".join(out.split()).partition("--dead-letters retry only ")[2].partition(" --")[0]
    assert set(listed.split(", ")) == DEAD_LETTER
    assert "--only" not in out


def test_retry_takes_the_settings_of_the_run_from_where_it_lies_now(done, perfusion, monkeypatch, tmp_path):
    moved, ran = all_failed(done, tmp_path / "moved"), []
    monkeypatch.setattr("jobs.run.run", lambda settings, **given: ran.append((settings, given)) or 3)
    for words, which in RETRIES:
        code, _, err = perfusion("retry", moved, *words, "--set", "engine.slots=3")
        assert code == 3
        assert ("old spelling" in err) == ("--only" in words)
        run_id = read_status(Storage(str(moved)), SystemClock())[-1].run_id
        assert re.search(rf"retrying [1-9]\d* rows? of run {run_id}", err)
        settings, given = ran.pop()
        stored = json.loads((moved / "runs" / run_id / "spec.json").read_text())["settings"]
        engine = {**stored["engine"], "slots": 3}
        assert settings.model_dump(mode="json") == {**stored, "root": f"file://{moved}", "engine": engine}
        assert len(given["selection"].keys.concepts) >= 1
        assert given["selection"].name == f"retry {run_id} {which}", "it is part of the identity of the new run"


def test_a_part_of_a_plan_is_planned_alone(shop, perfusion):
    code, out, _ = perfusion("plan", shop.spec("good"), "--limit", 1, "--json")
    assert (code, only_object(out)["work"]["renders"]["rows"]) == (0, 1)
    code, out, _ = perfusion("plan", shop.spec("good"), "--sample", 5, "--json")
    assert (code, only_object(out)["work"]["renders"]["rows"]) == (0, 2)
    code, _, err = perfusion("run", shop.spec("good"), "--sample", 5, "--limit", 5)
    assert code == 2
    assert "--limit and --sample exclude each other: give one of them" in err


def test_demo_writes_a_spec_that_means_the_same_later(perfusion, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = []

    def remember(settings, *, json):
        ran.append((settings, json))
        return 3

    monkeypatch.setattr("jobs.run.run", remember)
    code, _, err = perfusion("demo", "--folder", "here", "--root", "there", "--products", 2)
    assert code == 3
    assert "the demo did not finish cleanly" in err
    assert ran[0][0].root == str(tmp_path / "there")
    monkeypatch.chdir("/")
    assert load_spec(str(tmp_path / "here" / "spec.yaml")) == ran[0][0]


def test_demo_scores_what_it_has_rendered(done, perfusion, tmp_path, monkeypatch):
    # The run itself is another test's; here it is one that has ended well.
    monkeypatch.setattr("jobs.run.run", lambda settings, *, json: 0)
    code, out, _ = perfusion("demo", "--folder", tmp_path / "here", "--root", done.root, "--products", 2)
    assert code == 0
    assert "by mini" in out
    sql = "SELECT count(*) AS n FROM scores WHERE scorer = 'mini' AND image_similarity BETWEEN -1 AND 1"
    assert only_object(rows_of(done, perfusion, sql, "--json"))["n"] > 0
    code, out, _ = perfusion("demo", "--folder", tmp_path / "here", "--root", done.root, "--products", 2, "--json")
    assert (code, out) == (0, "")


def test_a_plan_that_has_too_little_memory_ends_with_the_setting(perfusion, tmp_path):
    shop = Shop(tmp_path)
    spec = shop.spec("memory")
    code, out, err = perfusion("plan", spec, "--set", "engine.plan_memory=2MB")
    assert code == 1
    assert "engine.plan_memory = 2MB: set engine.plan_memory to 4MB or more" in err
    assert "Traceback" not in out + err
