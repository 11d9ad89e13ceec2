"""Scores one finished run, shows the progress, and prints the result."""

import sys
import time
from collections.abc import Callable

from jobs.output import counted, location, say
from perfusion_ops.scoring.choice import ScorerChoice
from perfusion_ops.scoring.protocols import Scorers
from pipeline.contract.errors import MEANING, Code
from pipeline.report.page import write_report
from pipeline.scores.score_run import ScoreSummary, score_run
from pipeline.storage.objects import Storage

_EVERY_S = 10.0


def score(
    storage: Storage, run_id: str, choice: ScorerChoice, *, batch: int = 16, device: str = "auto"
) -> tuple[ScoreSummary, str | None]:
    """Score the renders of one finished run, and publish the scores.

    Args:
        storage: the root of the run.
        run_id: a finished run.
        choice: the scorers.
        batch: renders scored at once.
        device: auto, cpu or cuda.

    Returns:
        The summary, and the URI of the report if it was rewritten because scores were added.
    """

    def load(choice: ScorerChoice) -> Scorers:
        from perfusion_ops.scoring.models import load_scorers  # loads PyTorch; not called if the scores exist

        return load_scorers(choice, device=device)

    summary = score_run(storage, run_id, choice, load=load, batch=batch, progress=_progress(time.monotonic))
    return summary, write_report(storage, run_id) if summary.added else None


def _progress(clock: Callable[[], float]) -> Callable[[int, int], None]:
    """A function of (done, total) that writes a line on stderr at most every ten seconds."""
    began = shown = clock()

    def progress(done: int, total: int) -> None:
        nonlocal shown
        if clock() - shown >= _EVERY_S:
            shown = clock()
            sys.stderr.write(f"scored {done:,} of {counted(total, 'render')}, {done / (shown - began):.1f} renders/s\n")

    return progress


def tell(summary: ScoreSummary) -> None:
    """Print the mean of each score, the errors by code, and the table's location."""
    again = "" if summary.added else ", which existed already"
    say(f"run {summary.run_id}: scores of {counted(summary.rows, 'render')} by {summary.scorer}{again}")
    for name, mean in (("text_similarity", summary.text_similarity), ("image_similarity", summary.image_similarity)):
        say(f"  {name:17} {'not scored' if mean is None else f'{mean:.4f} on average'}")
    share = summary.context_correct
    those = f"of the {counted(summary.contexts, 'render')} whose prompts name one context"
    say(f"  context_correct   {'not scored' if share is None else f'{share:.1%} {those}'}")
    for code, count in summary.errors.items():
        say(f"  {count:,} {code}: {MEANING[Code(code)]}")
    say(f"  table             {location(summary.uri)}")
