"""Options and arguments that several commands share, each with its help text."""

from enum import StrEnum
from typing import Annotated

import typer


class LogFormat(StrEnum):
    """What is written to stderr: text for people, or JSON lines for programs."""

    TEXT = "text"
    JSON = "json"


Log = Annotated[
    LogFormat,
    typer.Option("--log", envvar="PERFUSION_LOG", show_envvar=True, help="stderr as text, or as JSON lines"),
]

Spec = Annotated[str, typer.Argument(help="spec file: .yaml, .toml or .json", show_default=False)]
Target = Annotated[str, typer.Argument(help="results root, or a spec file that names one", show_default=False)]
Run = Annotated[str | None, typer.Argument(help="run id; default: the newest finished run", show_default=False)]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="override one setting of the spec")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object instead of text")]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="ADDRESS",
        help="Ray cluster: local, auto or host:port; default: the spec's, RAY_ADDRESS, or local",
        show_default=False,
    ),
]
First = Annotated[
    int | None, typer.Option("--limit", min=1, metavar="N", help="only the first N renders", show_default=False)
]
Drawn = Annotated[
    int | None,
    typer.Option("--sample", min=1, metavar="N", help="only a random sample of N renders", show_default=False),
]
