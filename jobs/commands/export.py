"""`perfusion export`: concepts as files of other programs."""

from typing import Annotated

import typer

from jobs.options import Json
from jobs.output import location, say, say_json, writing
from perfusion_ops.export.form import Form

Concepts = Annotated[
    list[str],
    typer.Argument(
        metavar="CONCEPT...",
        help="ids or keys of concepts under --root, or concept files; several are exported to be used together",
        show_default=False,
    ),
]
To = Annotated[Form, typer.Option("--to", help="the program that reads the files", show_default=False)]
Root = Annotated[
    str | None, typer.Option("--root", metavar="TARGET", help="results root, or a spec file that names one")
]
Out = Annotated[str, typer.Option("--out", help="folder for the files")]
Base = Annotated[
    str | None,
    typer.Option("--base", help="base model that the concepts were trained on; default: the run's, or mini"),
]
MetricFile = Annotated[
    str | None, typer.Option("--metric", metavar="FILE", help="metric of concept files that lie under no root")
]
Bias = Annotated[float | None, typer.Option("--bias", min=-1, max=2, help="of the gate; default: the run's")]
Temperature = Annotated[
    float | None, typer.Option("--temperature", min=0.001, max=10, help="of the gate; default: the run's")
]


def command(
    concepts: Concepts,
    *,
    to: To,
    root: Root = None,
    out: Out = "export",
    base: Base = None,
    metric: MetricFile = None,
    bias: Bias = None,
    temperature: Temperature = None,
    json: Json = False,
) -> None:
    """Write concepts as files that other programs read.

    lora: for kohya's tools, A1111, Forge, ComfyUI, InvokeAI and diffusers; close to our pictures. diffusers, comfyui: a
    pipeline and a node that are exact.
    """
    from jobs.export import find, write

    chosen = find(concepts, root=root, base=base, metric=metric)
    with writing(out):
        done = write(chosen, to, out, bias=bias, temperature=temperature)
    if json:
        say_json(done)
        return
    for file in done["files"]:
        say(location(file))
    if done["errors"]:
        own, others = (f"{done['errors'][name]:.1%}" for name in ("own", "others"))
        say(
            f"on held-out prompts, {own} of the edit is missed at the concept's own token, and {others} of the keys and"
        )
        say("values at the other tokens; see docs/export.md")
