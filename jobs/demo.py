"""`perfusion demo`: a small catalogue of the embedded world, trained, rendered, published and reported."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.output import OK, complain, say
from jobs.run import Json, run
from jobs.spec import dump_spec, load_spec

Folder = Annotated[str, typer.Option("--folder", help="where the catalogue and the spec go")]
Root = Annotated[str | None, typer.Option("--root", help="where results go; FOLDER/results when absent")]
Products = Annotated[int, typer.Option("--products", min=2, max=100_000, help="products in the catalogue")]


def command(folder: Folder = "demo", root: Root = None, products: Products = 6, json: Json = False) -> None:
    """Train a few products with the embedded model, render them, publish, and write a report."""
    from pipeline.catalog import write_catalog

    home = Path(folder)
    catalog = home / "catalog"
    write_catalog(str(catalog), products)
    spec = home / "spec.yaml"
    spec.write_text(
        "# Written by `perfusion demo`; `perfusion run` takes it as well.\n"
        + dump_spec(
            {
                "root": root or "results",
                "concepts": "catalog/concepts.parquet",
                "prompts": "catalog/prompts.parquet",
                "base": "mini",
            }
        ),
        encoding="utf-8",
    )
    code = run(load_spec(str(spec)), json=json)
    if code == OK and not json:
        say(f"  spec    {spec}")
        say(f'\nnext: perfusion query {spec} "SELECT concept_id, count(*) FROM renders GROUP BY ALL"')
    elif code != OK:
        complain("the demo did not come out whole; the lines above say why")
    raise typer.Exit(code)
