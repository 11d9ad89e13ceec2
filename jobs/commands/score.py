"""`perfusion score`: how well a run's renders fit their prompts and their products, as a table of its own."""

from dataclasses import asdict
from typing import Annotated

import typer

from jobs.options import Json, Run, Target
from jobs.output import FAILED_ROWS, OK, location, refuse, say, say_json

Scorer = Annotated[
    str | None, typer.Option("--scorer", help="mini (default), or one folder for all its scores", show_default=False)
]
Text = Annotated[str | None, typer.Option("--text", metavar="FOLDER", help="CLIP or SigLIP, for text_similarity")]
Image = Annotated[str | None, typer.Option("--image", metavar="FOLDER", help="DINO, CLIP, ..., for image_similarity")]
Reader = Annotated[str | None, typer.Option("--reader", metavar="FOLDER", help="classifier, for context_correct")]
Batch = Annotated[int, typer.Option("--batch", min=1, max=4096, help="renders scored at once")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda")]


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
    """Score renders against their prompts and the products' photos.

    Publishes the table `scores` and adds it to the report of the run. Scoring with the same scorers again is a no-op.
    """
    from jobs.score import score, tell
    from jobs.target import finished_run_of
    from pipeline.scores.find import find_scorers

    if device not in ("auto", "cpu", "cuda"):
        refuse(f"there is no device {device!r}: give auto, cpu or cuda")
    choice = find_scorers(scorer, text=text, image=image, reader=reader)
    storage, run_id = finished_run_of(target, run)
    summary, report = score(storage, run_id, choice, batch=batch, device=device)
    code = FAILED_ROWS if summary.errors else OK
    if json:
        say_json({**asdict(summary), "report": report, "exit_code": code})
    else:
        tell(summary)
        if report:
            say(f"  report            {location(report)}")
    raise typer.Exit(code)
