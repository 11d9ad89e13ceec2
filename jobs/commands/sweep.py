"""`perfusion sweep`: the same renders at a grid of sampling settings, and the best settings of each concept."""

from typing import Annotated

import typer

from jobs.commands.score import Batch, Device, Image, Reader, Scorer, Text
from jobs.options import Address, Drawn, First, Json, Set, Spec
from jobs.output import refuse

Dials = Annotated[
    list[str] | None,
    typer.Option(
        "--dial",
        metavar="NAME=A,B,...",
        help="values of guidance, strength, bias, temperature or lock; may be repeated; default: by recipe",
        show_default=False,
    ),
]
Rule = Annotated[str, typer.Option("--select", metavar="RULE", help="knee, harmonic or min-identity=X")]


def command(
    spec: Spec,
    set_: Set = None,
    dial: Dials = None,
    select: Rule = "knee",
    *,
    address: Address = None,
    limit: First = None,
    sample: Drawn = None,
    scorer: Scorer = None,
    text: Text = None,
    image: Image = None,
    reader: Reader = None,
    batch: Batch = 16,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Find each concept's best sampling settings.

    Renders the plan at every point of a grid, without training, and scores it. Writes a page with each concept's front,
    and a file of points for the spec's `points`.
    """
    from jobs.placement.address import placed
    from jobs.run import part
    from jobs.spec import load_spec
    from jobs.spec_file import parse_yaml
    from jobs.sweep import Scoring, sweep
    from pipeline.scores.find import find_scorers
    from pipeline.sweep.front import parse_select
    from pipeline.sweep.grid import make_grid

    if device not in ("auto", "cpu", "cuda"):
        refuse(f"there is no device {device!r}: give auto, cpu or cuda")
    dials: dict[str, list[object]] = {}
    for each in dial or ():
        name, equals, values = each.partition("=")
        if not equals:
            refuse(f"--dial {each!r} is not NAME=A,B,...: write it as in --dial guidance=3,4.5,7")
        dials.setdefault(name.strip(), []).extend(parse_yaml(value) for value in values.split(",") if value.strip())
    code = sweep(
        placed(load_spec(spec, set_ or ()), address),
        grid=make_grid(dials) if dials else None,
        select=parse_select(select),
        selection=part(limit, sample),
        scoring=Scoring(find_scorers(scorer, text=text, image=image, reader=reader), batch, device),
        json=json,
    )
    raise typer.Exit(code)
