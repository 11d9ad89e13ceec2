"""`python -m perfusion_ops.mini.methods`: measure what is missing, print a table, and one JSON object last."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from perfusion_ops.compare.methods import Studio
from perfusion_ops.mini import base_folder, metric_file, scorers_folder
from perfusion_ops.mini.methods.cells import base_identity
from perfusion_ops.mini.methods.entrants import contestants
from perfusion_ops.mini.methods.measure import Bench, run, score_again
from perfusion_ops.mini.methods.record import bring
from perfusion_ops.mini.methods.report import Methods, Reporter, finals_of, table, tuned
from perfusion_ops.mini.methods.scores import Judges
from perfusion_ops.mini.methods.sets import SetName
from perfusion_ops.mini.methods.sizes import SIZES, Size
from perfusion_ops.mini.methods.summary import Features
from perfusion_ops.mini.methods.tuning import Plan, choose


def open_bench(size: Size) -> tuple[Bench, Plan, Features]:
    """Load the embedded base and its scorers."""
    from perfusion_ops.base.folder import describe
    from perfusion_ops.metric import read_metric
    from perfusion_ops.mini.embedded import embedded_scorers
    from perfusion_ops.mini.quality.measure import trunk_features
    from perfusion_ops.rivals.ours import stacked
    from perfusion_ops.rivals.parts import load_parts
    from perfusion_ops.scoring.models import load_scorers

    folder, choice = describe(base_folder()), embedded_scorers()
    parts, scorers = load_parts(folder), load_scorers(choice, device="cpu")
    assert scorers.image is not None
    assert scorers.text is not None
    assert scorers.reader is not None
    studio = Studio(parts, stacked(parts), read_metric(metric_file().read_bytes(), base_digest=folder.digest))
    entrants = contestants()
    judges = Judges(scorers.image, scorers.text, scorers.reader, size.strangers)
    features = partial(trunk_features, scorers_folder() / "reader")
    return Bench(studio, judges, entrants), Plan(size, base_identity(folder), choice.digest), features


def measure(
    size: Size,
    out: Path,
    *,
    methods: Sequence[str] = (),
    sets: Sequence[SetName] = (),
    photos: Sequence[int] = (),
    rescore: bool = False,
    record: Path | None = None,
) -> Methods:
    """Measure what is missing, then report on all that is complete; leaves figures and `methods.json` in `out`.

    Args:
        size: how much.
        out: made when absent; cells that it holds are not measured again.
        methods: names to measure now; default: all.
        sets: of `tuning`, `a`, `b`, to measure now; default: all of the size.
        photos: of the size's numbers of photos, those to measure final sets with now; default: all.
        rescore: first judge the pictures of all complete cells of the size again, after the judge has changed.
        record: folder of complete cells without pictures: they are not measured again, and new ones are added.

    Raises:
        ImportError: peft is not installed.
        ValueError: a name is unknown.
    """
    from perfusion_ops.rivals.lora import adapter_library

    known = list(contestants())
    unknown = [name for name in methods if name not in known]
    if unknown:
        raise ValueError(f"there is no method {unknown[0]!r}: use one of {', '.join(known)}")
    if any(name.startswith("lora") for name in methods or known):
        adapter_library()  # if it is missing, that is said before hours of work
    if strange := sorted(set(photos) - set(size.photos)):
        choices = ", ".join(map(str, size.photos))
        raise ValueError(f"size {size.name} has no measurement with {strange[0]} photos: use one of {choices}")
    bench, plan, features = open_bench(size)
    entrants = [each for name, each in bench.contestants.items() if not methods or name in methods]
    out.mkdir(parents=True, exist_ok=True)
    if record:
        bring(record, out)
    if rescore:
        everything = list(bench.contestants.values())
        score_again(bench, [cell for each in everything for cells in plan.tuning(each) for cell in cells], out)
        score_again(bench, finals_of(plan, everything, out), out)
    measured = 0
    if not sets or "tuning" in sets:
        # Breadth first: an early look at the folder sees every method.
        for place in range(size.settings):
            for each in entrants:
                measured += run(bench, [cell for cells in plan.tuning(each)[place : place + 1] for cell in cells], out)
    finals: list[SetName] = [*size.sets] if not sets else [*(each for each in sets if each in size.sets)]
    for count in photos or size.photos:
        for name in finals:
            measured += run(bench, [plan.real(name)], out)
            for each in tuned(plan, entrants, out):
                measured += run(bench, plan.final(choose(plan, each, out), each, name, count), out)
    reporter = Reporter(plan, list(bench.contestants.values()), out, features)
    report = reporter.report(measured)
    (out / "methods.json").write_text(report.model_dump_json(indent=2) + "\n")
    (out / "tuning.txt").write_text("".join(f"{line}\n" for line in reporter.tuning()))
    if record:
        reporter.keep(report, record)
    return report


def main(arguments: list[str] | None = None) -> int:
    """Exit 1 when a bar is missed or something is not complete."""
    parser = argparse.ArgumentParser(prog="python -m perfusion_ops.mini.methods", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of cells, figures and methods.json")
    parser.add_argument(
        "--size", choices=list(SIZES), default="ci", help="half and full take many hours; ci by default"
    )
    parser.add_argument("--record", type=Path, help="folder of finished cells without pictures, to continue and add to")
    parser.add_argument("--method", action="append", default=[], help="measure this one now; may be repeated")
    parser.add_argument("--set", action="append", default=[], choices=("tuning", "a", "b"), help="the same for sets")
    parser.add_argument("--photos", action="append", default=[], type=int, help="the same for numbers of photos")
    parser.add_argument("--rescore", action="store_true", help="judge all pictures again, after the judge has changed")
    parser.add_argument("--json", action="store_true", help="no table before the JSON object")
    given = parser.parse_args(arguments)
    try:
        report = measure(
            SIZES[given.size],
            given.out,
            methods=given.method,
            sets=given.set,
            photos=given.photos,
            rescore=given.rescore,
            record=given.record,
        )
    except (ValueError, ImportError) as error:
        parser.exit(2, f"{error}\n")
    if not given.json:
        sys.stdout.write(table(report) + "\n")
    sys.stdout.write(report.model_dump_json(exclude={"lines"}) + "\n")
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
