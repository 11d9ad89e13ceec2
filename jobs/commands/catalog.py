"""`perfusion catalog`: a synthetic catalogue of any size, with photos, masks and both manifests."""

from typing import Annotated

import typer

from jobs.options import Json
from jobs.output import counted, location, say, say_json, writing

Out = Annotated[str, typer.Argument(help="a new folder, or one that this command has written", show_default=False)]
Products = Annotated[int, typer.Option("--products", min=1, max=100_000, help="how many products")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="each seed gives another catalogue")]
Images = Annotated[int, typer.Option("--images", min=1, max=64, help="training photos per product")]


def command(out: Out, products: Products = 100, seed: Seed = 0, images: Images = 4, json: Json = False) -> None:
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
