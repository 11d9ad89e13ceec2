"""`python -m perfusion_ops.mini.pairs`: draw and judge several products in one picture; JSON comes last."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np

from perfusion_ops.compare.intervals import bootstrap
from perfusion_ops.compare.methods import Studio
from perfusion_ops.mini import base_folder, metric_file
from perfusion_ops.mini.methods.scores import Judges
from perfusion_ops.mini.pairs.entrants import RIVALS, WAYS, Drawing, Rivals, real
from perfusion_ops.mini.pairs.measure import Draw, Row, measure
from perfusion_ops.mini.pairs.sets import KINDS, SetName, groups
from perfusion_ops.mini.quality.sheet import contact_sheet
from perfusion_ops.rivals.objective import Budget

_STRANGERS = 50
_RESAMPLES = 4000
METHODS = ("real", *WAYS, *RIVALS)


def open_studio(base: Path | None) -> tuple[Studio, Judges]:
    """The base model in both forms and the embedded scorers."""
    from perfusion_ops.api.metrics import estimate_metric
    from perfusion_ops.base.folder import describe
    from perfusion_ops.metric import read_metric
    from perfusion_ops.mini.embedded import embedded_scorers
    from perfusion_ops.rivals.ours import stacked
    from perfusion_ops.rivals.parts import load_parts
    from perfusion_ops.scoring.models import load_scorers

    folder = describe(base or base_folder())
    parts, scorers = load_parts(folder), load_scorers(embedded_scorers(), device="cpu")
    assert scorers.image is not None
    assert scorers.text is not None
    assert scorers.reader is not None
    ours = stacked(parts)
    file = metric_file() if base is None else base.parent / "metric.safetensors"
    metric = (
        read_metric(file.read_bytes(), base_digest=folder.digest) if file.exists() else estimate_metric(ours, 20_000)
    )
    return Studio(parts, ours, metric), Judges(scorers.image, scorers.text, scorers.reader, _STRANGERS)


def figures(rows: Sequence[Row]) -> dict[str, Any]:
    """Shares over the pictures of one method and kind; `success` with its interval over groups."""
    numbers = sorted({row.number for row in rows})
    each = [float(np.mean([row.success for row in rows if row.number == number])) for number in numbers]
    by_relation = {
        relation: float(np.mean([row.success for row in rows if row.relation == relation]))
        for relation in dict.fromkeys(row.relation for row in rows)
    }
    related = [row.related for row in rows if row.related is not None]
    return {
        "method": rows[0].method,
        "kind": rows[0].kind,
        "pictures": len(rows),
        "success": bootstrap(each, resamples=_RESAMPLES).model_dump(),
        "classes": float(np.mean([row.classes for row in rows])),
        "own": float(np.mean([own for row in rows for own in row.own])),
        "first_own": float(np.mean([row.own[0] for row in rows])),
        "overall": float(np.mean([score for row in rows for score in row.overall])),
        "context": float(np.mean([row.context for row in rows])),
        "related": float(np.mean(related)) if related else None,
        "by_relation": by_relation,
    }


def _drawings(studio: Studio, name: str, given: argparse.Namespace) -> Iterator[tuple[float | None, Draw]]:
    """Each guidance scale and what draws at it; real renders have no scale."""
    if name == "real":
        yield None, real
        return
    if name in WAYS:
        draw = Drawing(studio, WAYS[name], 1.0, given.steps, given.training_steps, given.out / "concepts")
    else:
        draw = Rivals(studio, *RIVALS[name], 1.0, given.steps, Budget(steps=given.training_steps, batch=4))
    # Copies share what was learned.
    yield from ((scale, replace(draw, guidance=scale)) for scale in given.guidance)


def _line(found: dict[str, Any]) -> str:
    success = found["success"]
    parts = " ".join(f"{name} {share:.2f}" for name, share in found["by_relation"].items())
    return (
        f"{found['kind']:6} {found['method']:22} guidance {found['guidance'] or '-'}  "
        f"success {success['mean']:.3f} [{success['low']:.3f}, {success['high']:.3f}]  "
        f"classes {found['classes']:.3f}  own {found['own']:.3f}  "
        f"judge {found['overall']:.3f}  context {found['context']:.3f}  "
        f"relation {'-' if found['related'] is None else format(found['related'], '.3f')}  ({parts})"
    )


def main(arguments: list[str] | None = None) -> int:
    """Measure what the arguments ask for."""
    parser = argparse.ArgumentParser(prog="python -m perfusion_ops.mini.pairs", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of concepts, rows and contact sheets")
    parser.add_argument("--base", type=Path, help="another base model of the same world; default: the embedded one")
    parser.add_argument("--set", choices=get_args(SetName), default="final")
    parser.add_argument("--kind", action="append", choices=KINDS, default=[], help="default: two products")
    parser.add_argument("--method", action="append", choices=METHODS, default=[], help="default: all")
    parser.add_argument("--groups", type=int, default=20, help="prompts of each kind")
    parser.add_argument("--seeds", type=int, default=4, help="pictures of each prompt")
    parser.add_argument("--guidance", type=float, nargs="+", default=[4.5], help="scales; each has lines of its own")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps")
    parser.add_argument("--training-steps", type=int, default=200)
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    studio, judges = open_studio(given.base)
    lines = []
    for name in given.method or METHODS:
        for (guidance, draw), kind in product(_drawings(studio, name, given), given.kind or ("two",)):
            if name == "real" and kind != "two":
                continue  # the world draws at most two products
            asked = groups(given.set, kind, given.groups)
            rows, pictures = measure(judges, name, draw, asked, given.seeds)
            lines.append({**figures(rows), "guidance": guidance})
            sys.stdout.write(_line(lines[-1]) + "\n")
            sys.stdout.flush()
            file = f"{given.set}-{kind}-{name}" + ("" if guidance is None else f"-guidance{guidance:g}")
            captions = [f"{'+' if row.success else '-'} {asked[n // given.seeds].words}" for n, row in enumerate(rows)]
            contact_sheet(pictures, captions).save(given.out / f"{file}.png")
            (given.out / f"{file}.jsonl").write_text("".join(row.model_dump_json() + "\n" for row in rows))
    sys.stdout.write(json.dumps({"lines": lines}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
