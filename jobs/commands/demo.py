"""`perfusion catalog` and `perfusion demo`: a catalogue of the synthetic world, and a whole run of one."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.options import Json
from jobs.output import FAILED_ROWS, OK, complain, counted, location, say, say_json, writing

Folder = Annotated[str, typer.Option("--folder", help="folder for the catalogue and the spec")]
Root = Annotated[str | None, typer.Option("--root", help="results root; default: FOLDER/results", show_default=False)]
Products = Annotated[int, typer.Option("--products", min=2, max=100_000, help="products in the catalogue")]

Out = Annotated[str, typer.Argument(help="a new folder, or one that this command has written", show_default=False)]
Many = Annotated[int, typer.Option("--products", min=1, max=100_000, help="how many products")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="each seed gives another catalogue")]
Images = Annotated[int, typer.Option("--images", min=1, max=64, help="training photos per product")]


def demo(folder: Folder = "demo", root: Root = None, products: Products = 6, json: Json = False) -> None:
    """Train, render, score and report a small synthetic catalogue."""
    from jobs.run import run
    from jobs.score import score, tell
    from jobs.spec import dump_spec, load_spec, resolve
    from perfusion_ops.mini.catalog import write_catalog
    from perfusion_ops.mini.embedded import embedded_scorers
    from pipeline.runs.status import finished_run
    from pipeline.storage.objects import Storage

    home = Path(folder)
    spec = home / "spec.yaml"
    settings = {
        "root": resolve(root, Path.cwd()) if root else "results",
        "concepts": "catalog/concepts.parquet",
        "prompts": "catalog/prompts.parquet",
        "base": "mini",
    }
    with writing(folder):
        write_catalog(str(home / "catalog"), products)
        text = "# Written by `perfusion demo`; `perfusion run` takes it as well.\n" + dump_spec(settings)
        spec.write_text(text, encoding="utf-8")
    loaded = load_spec(str(spec))
    code = run(loaded, json=json)
    if code == OK:
        storage = Storage(loaded.root)
        summary, _ = score(storage, finished_run(storage), embedded_scorers())
        code = FAILED_ROWS if summary.errors else OK
        if not json:
            tell(summary)
    if code == OK and not json:
        say(f"  spec      {spec}")
        say(f'next: perfusion query {spec} "SELECT concept_id, count(*) FROM renders GROUP BY ALL"')
    elif code != OK:
        complain("the demo did not finish cleanly; see the lines above")
    raise typer.Exit(code)


def catalog(out: Out, products: Many = 100, seed: Seed = 0, images: Images = 4, json: Json = False) -> None:
    """Write a synthetic catalogue: photos, masks and both manifests."""
    from perfusion_ops.mini.catalog import write_catalog

    with writing(out):
        summary = write_catalog(out, products, seed=seed, images_per_product=images)
    if json:
        say_json(summary)
        return
    made = ((summary.products, "product"), (summary.images, "photo"), (summary.prompt_rows, "prompt row"))
    say(", ".join(counted(number, noun) for number, noun in made))
    say(f"  {location(summary.concepts)}")
    say(f"  {location(summary.prompts)}")
