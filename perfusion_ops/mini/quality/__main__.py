"""`python -m perfusion_ops.mini.quality`: measure, print one JSON object last, exit 1 when a bar is missed."""

import argparse
import sys
from pathlib import Path

from perfusion_ops.config import Frozen
from perfusion_ops.mini import base_folder
from perfusion_ops.mini.quality.attention import NounAttention, noun_attention
from perfusion_ops.mini.quality.measure import BaseQuality, ScorerQuality, measure_base, measure_scorers, show
from perfusion_ops.mini.quality.prompts import requests
from perfusion_ops.mini.quality.sheet import contact_sheet

# What must be reached; stated once and never lowered to pass.
AT_LEAST = {"class_share": 0.97, "context_share": 0.98, "both_share": 0.80, "color_share": 0.90, "pattern_share": 0.90}
AT_MOST = {"identity_equal_error_rate": 0.03}

_SCENES = 2000
_ON_SHEET = 48


class Quality(Frozen):
    """One measurement: the figures, the bars they must meet (the shares are the base's), and whether all are met."""

    name: str = "quality"
    base: str
    base_digest: str
    scorers_digest: str
    scorer: ScorerQuality
    model: BaseQuality
    attention: NounAttention
    at_least: dict[str, float] = AT_LEAST
    at_most: dict[str, float] = AT_MOST
    ok: bool


def met(scorer: ScorerQuality, model: BaseQuality) -> bool:
    """Whether every bar is met; a share of nothing meets none."""
    shares = {name: getattr(model.drawn, name) for name in AT_LEAST}
    reached = all(share is not None and share >= AT_LEAST[name] for name, share in shares.items())
    return reached and all(getattr(scorer, name) <= bar for name, bar in AT_MOST.items())


def measure(base: Path, scorers: Path, out: Path, *, prompts: int, scenes: int = _SCENES) -> Quality:
    """Measure a base model and the scorers, and leave `contact.png` and `quality.json` in `out`.

    Args:
        base: a diffusers folder of the product world.
        scorers: a folder with `dual`, `identity` and `reader`.
        out: made when absent.
        prompts: 24 or more.
        scenes: real renders that the scorers are tested on, 240 or more.

    Raises:
        ValueError: too few prompts, or a folder that is not what it should be (BaseError, ScorerError).
        RuntimeError: a picture came out not finite.
    """
    from perfusion_ops.base.folder import describe
    from perfusion_ops.base_model import load_base
    from perfusion_ops.scoring.choice import choose_scorers
    from perfusion_ops.scoring.models import load_scorers

    asked = requests(prompts)
    choice = choose_scorers(text=str(scorers / "dual"), image=str(scorers / "identity"), reader=str(scorers / "reader"))
    loaded = load_scorers(choice, device="cpu")
    folder = describe(base)
    assert loaded.reader is not None
    show(f"testing the scorers on {scenes} scenes")
    scorer = measure_scorers(loaded, scenes)
    show(f"drawing {prompts} prompts with {folder.name}")
    model, drawn = measure_base(load_base(folder), loaded.reader, scorers / "reader", asked)
    attention = noun_attention(load_base(folder), max(prompts // 20, 2))
    quality = Quality(
        base=folder.name,
        base_digest=folder.digest,
        scorers_digest=choice.digest,
        scorer=scorer,
        model=model,
        attention=attention,
        ok=met(scorer, model),
    )
    out.mkdir(parents=True, exist_ok=True)
    contact_sheet(drawn[:_ON_SHEET], [request.prompt for request in asked[:_ON_SHEET]]).save(out / "contact.png")
    (out / "quality.json").write_text(quality.model_dump_json(indent=2) + "\n")
    return quality


def table(quality: Quality) -> str:
    """The figures for a person: the base beside its ceiling, and the scorers."""
    drawn, ceiling, alone = quality.model.drawn, quality.model.ceiling, quality.scorer.read
    lines = [f"{'':24}{'drawn':>8}{'real':>8}{'bar':>8}{'reader on its own scenes':>28}"]
    for name in type(drawn).model_fields:
        shares = [getattr(part, name) for part in (drawn, ceiling)]
        cells = ["" if share is None else f"{share:.4f}" for share in (*shares, AT_LEAST.get(name))]
        lines.append(f"{name:24}{cells[0]:>8}{cells[1]:>8}{cells[2]:>8}{getattr(alone, name):>28.4f}")
    lines += [
        f"{'frechet distance':24}{quality.model.frechet_distance:8.3f}{quality.model.frechet_distance_of_real:8.3f}",
        f"identity: equal error rate {quality.scorer.identity_equal_error_rate:.4f} "
        f"(bar {AT_MOST['identity_equal_error_rate']}), "
        f"within a category {quality.scorer.identity_equal_error_rate_within_category:.4f}",
        f"dual: recall at 1 of 200 {quality.scorer.dual_recall_at_1_of_200:.4f}",
        f"attention at a product's pixels: its noun {quality.attention.noun:.3f}, words before "
        f"{quality.attention.before:.3f}, after {quality.attention.after:.3f}, start {quality.attention.start:.3f}, "
        f"end and padding {quality.attention.end:.3f}; two products told apart {quality.attention.told_apart:.3f}",
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Exit 1 when a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m perfusion_ops.mini.quality", description=__doc__)
    parser.add_argument("--base", type=Path, default=base_folder(), help="diffusers folder; the embedded one")
    parser.add_argument("--scorers", type=Path, default=base_folder().parent / "scorers", help="the embedded ones")
    parser.add_argument("--out", type=Path, required=True, help="folder for contact.png and quality.json")
    parser.add_argument("--prompts", type=int, default=1000, help="24 or more; 1000 by default")
    parser.add_argument("--json", action="store_true", help="no table before the JSON object")
    given = parser.parse_args(arguments)
    try:
        quality = measure(given.base, given.scorers, given.out, prompts=given.prompts)
    except ValueError as error:
        parser.exit(2, f"{error}\n")
    if not given.json:
        sys.stdout.write(table(quality) + "\n")
    sys.stdout.write(quality.model_dump_json() + "\n")
    return 0 if quality.ok else 1


if __name__ == "__main__":
    sys.exit(main())
