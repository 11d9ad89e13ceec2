"""`python -m perfusion_ops.compare`: measure what is missing, print a table, and one JSON object last."""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from perfusion_ops.compare.entrants import WORD, entrants
from perfusion_ops.compare.layers import MaskLayers, calibrate
from perfusion_ops.compare.methods import Contestant, Studio
from perfusion_ops.compare.products import CompareError, Product, find_products
from perfusion_ops.compare.report import Report, choose, make_report, table
from perfusion_ops.compare.study import PROMPTS, Amounts, Judges, Study
from perfusion_ops.errors import PerfusionError
from perfusion_ops.rivals.objective import Budget

_TUNING_SHARE = 3  # one product in three


def open_study(  # noqa: PLR0917 - what a comparison is opened from
    base: Path,
    products: Sequence[Product],
    text: str,
    image: str,
    amounts: Amounts,
    out: Path,
    device: str,
    captions: int,
    *,
    tuning: int,
) -> tuple[Study, MaskLayers | None]:
    """Load a base folder in both forms, its metric and the scorers, and find the layers of its masks.

    Args:
        base: diffusers folder.
        products: all products.
        text: CLIP or SigLIP folder.
        image: DINO, CLIP, ... folder.
        amounts: how much is measured.
        out: folder of results; the metric is kept there.
        device: a torch device.
        captions: of which the metric is estimated.
        tuning: how many products, from the first, are used to find the layers of the masks.

    Raises:
        PerfusionError: a folder cannot be used.
    """
    from perfusion_ops.api.metrics import estimate_metric, load_metric, save_metric
    from perfusion_ops.base.folder import describe
    from perfusion_ops.rivals.ours import stacked
    from perfusion_ops.rivals.parts import load_parts
    from perfusion_ops.scoring.choice import choose_scorers
    from perfusion_ops.scoring.models import load_scorers

    folder, choice = describe(base), choose_scorers(text=text, image=image)
    scorers = load_scorers(choice, device=device)
    assert scorers.text is not None
    assert scorers.image is not None
    parts = load_parts(folder, device=device)
    whole = stacked(parts)
    out.mkdir(parents=True, exist_ok=True)
    kept = out / f"metric-{folder.digest[:16]}-{captions}.safetensors"
    if not kept.is_file():
        save_metric(estimate_metric(whole, captions=captions), kept)
    judges = Judges(scorers.image, scorers.text, tuple(products), choice.digest)
    masks = calibrate(whole, products[:tuning])
    if masks:
        settings = folder.settings.model_copy(update={"mask_layers": masks.layers})
        whole = replace(whole, folder=replace(folder, settings=settings))
    studio = Studio(parts, whole, load_metric(whole, kept).to(torch.device(device)))
    return Study(studio, folder.digest, judges, judges.means(), amounts, out), masks


def compare(study: Study, methods: dict[str, Contestant], tuning: int, masks: MaskLayers | None) -> Report:
    """Measure what is missing: every setting on the first `tuning` products, the best one on the others."""
    items = study.judges.products
    first, finals = items[:tuning], items[tuning:]
    choices = {}
    for method in (methods[WORD], *(each for each in methods.values() if each.name != WORD)):
        for place in range(len(method.settings)):
            _measure(study, method, place, first)
        choices[method.name] = choose(study, method, methods[WORD], first)
        _measure(study, method, choices[method.name].place, finals)
    report = make_report(study, methods, choices, finals, tuning, masks=masks)
    (study.out / "compare.json").write_text(report.model_dump_json(indent=2) + "\n")
    return report


def _measure(study: Study, method: Contestant, place: int, items: Sequence[Product]) -> None:
    for number, item in enumerate(items, 1):
        if study.measure(method, place, item):
            told = (
                f"{method.name}, setting {place + 1} of {len(method.settings)}: {item.name}, {number} of {len(items)}"
            )
            sys.stderr.write(f"{time.strftime('%H:%M:%S')} {told}\n")


@cache
def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m perfusion_ops.compare",
        description="Our method beside textual inversion, Custom Diffusion, LoRA and DreamBooth, on a base model and "
        "products of your own. Run it again to resume.",
    )
    parser.add_argument("--base", type=Path, required=True, help="diffusers folder of Stable Diffusion 1.x or 2.x")
    parser.add_argument("--photos", type=Path, required=True, help="FOLDER/<superclass>/<product>/*.jpg, two or more")
    parser.add_argument("--text", required=True, metavar="FOLDER", help="CLIP or SigLIP, for prompts")
    parser.add_argument("--image", required=True, metavar="FOLDER", help="DINO, CLIP, ..., for identity")
    parser.add_argument("--out", type=Path, required=True, help="folder of results, pictures included")
    parser.add_argument("--method", action="append", default=[], help="only this rival; may be repeated")
    parser.add_argument("--tuning", type=int, help="products that settings are chosen on; default: one in three")
    parser.add_argument("--prompts", type=Path, help="text file, a prompt with {} a line; default: 20 built-in ones")
    parser.add_argument("--photos-each", type=int, default=4, help="photos that a product is learned from")
    parser.add_argument("--seeds", type=int, default=1, help="pictures of each prompt")
    parser.add_argument("--steps", type=int, default=30, help="denoising steps of a picture")
    parser.add_argument("--guidance", type=float, action="append", default=[], help="may be repeated; default 4.5, 7.5")
    parser.add_argument("--train-steps", type=int, default=400, help="steps of each training")
    parser.add_argument("--train-batch", type=int, default=4, help="rows of a step")
    parser.add_argument("--captions", type=int, default=100_000, help="of which the metric is estimated")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 2 if the comparison cannot start."""
    given = _arguments().parse_args(arguments)
    try:
        products = find_products(given.photos, given.photos_each)
        tuning = given.tuning if given.tuning is not None else max(1, len(products) // _TUNING_SHARE)
        if not 1 <= tuning < len(products):
            raise CompareError(f"--tuning is {tuning} of {len(products)} products: leave at least one for the figures")
        amounts = Amounts(
            prompts=_prompts(given.prompts),
            seeds=given.seeds,
            steps=given.steps,
            guidances=tuple(given.guidance) or Amounts().guidances,
            budget=Budget(steps=given.train_steps, batch=given.train_batch),
        )
        study, masks = open_study(
            given.base,
            products,
            given.text,
            given.image,
            amounts,
            given.out,
            given.device,
            given.captions,
            tuning=tuning,
        )
        methods = _chosen(study, given.method)
    except PerfusionError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    report = compare(study, methods, tuning, masks)
    sys.stdout.write(table(report) + "\n" + report.model_dump_json(exclude={"lines"}) + "\n")
    return 0


def _chosen(study: Study, wanted: Sequence[str]) -> dict[str, Contestant]:
    settings = study.studio.parts.folder.settings
    known = entrants(settings.training, settings.sampling)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise CompareError(f"there is no method {unknown[0]!r}: use one of {', '.join(known)}")
    return {
        name: each for name, each in known.items() if not wanted or name in wanted or name == WORD or "ours" in name
    }


def _prompts(file: Path | None) -> tuple[str, ...]:
    if file is None:
        return PROMPTS
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    for number, line in enumerate(lines, 1):
        if line.count("{}") != 1:
            raise CompareError(f"prompt {number} of {file} is {line!r}: it needs {{}} once, for the product")
    if not lines:
        raise CompareError(f"{file} has no prompt: write one a line, with {{}} for the product")
    return tuple(lines)


if __name__ == "__main__":
    sys.exit(main())
