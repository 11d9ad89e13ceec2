"""`perfusion score`: how well a run's pictures fit their prompts and their products, as a table of its own."""

import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.commands.run import Json
from jobs.output import FAILED_ROWS, OK, counted, location, refuse, say, say_json
from jobs.target import Target, storage_of
from pipeline.contract.errors import MEANING, Code

if TYPE_CHECKING:  # these load slowly
    from perfusion_ops.scoring.choice import ScorerChoice
    from perfusion_ops.scoring.protocols import Scorers
    from pipeline.scores.score_run import ScoreSummary
    from pipeline.storage.objects import Storage

Run = Annotated[str | None, typer.Argument(help="the run; the newest finished one when absent", show_default=False)]
Scorer = Annotated[
    str | None, typer.Option("--scorer", help="mini (the default), or one folder for all it can", show_default=False)
]
Text = Annotated[str | None, typer.Option("--text", metavar="FOLDER", help="CLIP or SigLIP, for text_similarity")]
Image = Annotated[str | None, typer.Option("--image", metavar="FOLDER", help="DINO, CLIP, ..., for image_similarity")]
Reader = Annotated[str | None, typer.Option("--reader", metavar="FOLDER", help="classifier, for context_correct")]
Batch = Annotated[int, typer.Option("--batch", min=1, max=4096, help="pictures scored at once")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda")]

_EVERY_S = 10.0


def command(
    target: Target,
    run: Run = None,
    *,
    scorer: Scorer = None,
    text: Text = None,
    image: Image = None,
    reader: Reader = None,
    batch: Batch = 16,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Score pictures against prompts and training pictures.

    Publishes the table `scores` and shows it in the report of the run. The same scorers a second time add nothing.
    """
    from pipeline.scores.find import find_scorers

    if device not in ("auto", "cpu", "cuda"):
        refuse(f"there is no device {device!r}: give auto, cpu or cuda")
    storage = storage_of(target)
    choice = find_scorers(scorer, text=text, image=image, reader=reader)
    run_id = newest(storage, run)
    if run_id is None:
        refuse(f"there is no finished run{f' {run!r}' if run else ''} under {target}; see `perfusion status {target}`")
    summary, report = score(storage, run_id, choice, batch=batch, device=device)
    code = FAILED_ROWS if summary.errors else OK
    if json:
        say_json({**asdict(summary), "report": report, "exit_code": code})
    else:
        tell(summary)
        if report:
            say(f"  report            {location(report)}")
    raise typer.Exit(code)


def score(
    storage: "Storage", run_id: str, choice: "ScorerChoice", *, batch: int = 16, device: str = "auto"
) -> "tuple[ScoreSummary, str | None]":
    """Score one finished run; returns what came of it, and where its report was written anew if scores were added."""
    from pipeline.report.page import write_report
    from pipeline.scores.score_run import score_run

    summary = score_run(storage, run_id, choice, load=_loader(device), batch=batch, progress=_progress(time.monotonic))
    return summary, write_report(storage, run_id) if summary.added else None


def newest(storage: "Storage", run: str | None) -> str | None:
    """The newest finished run, or `run` if it is finished."""
    from pipeline.clock import SystemClock
    from pipeline.runs.status import read_status

    finished = [each.run_id for each in read_status(storage, SystemClock(), run) if each.state == "finished"]
    return finished[-1] if finished else None


def _loader(device: str) -> "Callable[[ScorerChoice], Scorers]":
    def load(choice: "ScorerChoice") -> "Scorers":
        from perfusion_ops.scoring.models import load_scorers

        return load_scorers(choice, device=device)

    return load


def _progress(clock: Callable[[], float]) -> Callable[[int, int], None]:
    """A line on stderr every ten seconds."""
    began = shown = clock()

    def progress(done: int, total: int) -> None:
        nonlocal shown
        if clock() - shown >= _EVERY_S:
            shown = clock()
            sys.stderr.write(f"scored {done:,} of {counted(total, 'picture')}, {done / (shown - began):.1f} a second\n")

    return progress


def tell(summary: "ScoreSummary") -> None:
    """Print what a run's scores come to."""
    again = "" if summary.added else ", which were there already"
    say(f"run {summary.run_id}: scores of {counted(summary.rows, 'picture')} by {summary.scorer}{again}")
    for name, mean in (("text_similarity", summary.text_similarity), ("image_similarity", summary.image_similarity)):
        say(f"  {name:17} {'not scored' if mean is None else f'{mean:.4f} on average'}")
    share = summary.context_correct
    those = f"of the {counted(summary.contexts, 'picture')} whose prompts name one context"
    say(f"  context_correct   {'not scored' if share is None else f'{share:.1%} {those}'}")
    for code, count in summary.errors.items():
        say(f"  {count:,} {code}: {MEANING[Code(code)]}")
    say(f"  table             {location(summary.uri)}")
