"""`perfusion plan` and `perfusion validate`: what a run would do, and which rows it would refuse."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.options import Address, Drawn, First, Json, Set, Spec
from jobs.output import OK, USAGE, complain, counted, say, say_json, table, tell_notices

if TYPE_CHECKING:
    from pipeline.plan.estimate import Estimate
    from pipeline.plan.selection import Selection
    from pipeline.prepare import Planned
    from pipeline.settings import RunSettings

Show = Annotated[int, typer.Option("--show", min=1, metavar="N", help="bad rows to show")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, hidden=True)]

_BAD_ROWS = """
SELECT * FROM (
    SELECT 'concepts' AS manifest, row, error_column AS column_name, error_code AS code, error_message AS message
    FROM concepts WHERE error_code IS NOT NULL
    UNION ALL
    SELECT 'prompts', prompt_row, error_column, error_code, error_message FROM requests WHERE error_code IS NOT NULL
) ORDER BY manifest, row, column_name LIMIT $limit
"""


def plan(
    spec: Spec,
    set_: Set = None,
    address: Address = None,
    *,
    limit: First = None,
    sample: Drawn = None,
    json: Json = False,
) -> None:
    """Show what a run would make, why, and at what cost. Needs no accelerator."""
    from jobs.placement.address import placed
    from jobs.run import part, tell_changes
    from jobs.spec import load_spec
    from pipeline.plan.estimate import estimate
    from pipeline.storage.objects import Storage

    settings = placed(load_spec(spec, set_ or ()), address)
    planned, bad, _ = _plan(settings, 0, part(limit, sample), explain=True)
    work, cost = planned.work, estimate(Storage(settings.root, settings.storage_options or None), planned.work)
    if json:
        base = {"base": planned.checked.base.name, "base_digest": planned.checked.base.digest}
        notices = planned.checked.notices
        say_json(
            {**base, "work": work, "changes": planned.changes, "estimate": cost, "bad_rows": bad, "notices": notices}
        )
        return
    tell_notices(planned.checked.notices)
    table(
        ("", "rows", "reused", "to do", "distinct to do", "bad"),
        [
            (name, *(f"{count:,}" for count in (each.rows, each.reused, each.to_do, each.keys_to_do, each.invalid)))
            for name, each in (("concepts", work.concepts), ("renders", work.renders))
        ],
    )
    tell_changes(planned.changes)
    _tell_cost(cost)
    say(f"base {planned.checked.base.name} {planned.checked.base.digest[:12]}")
    if bad:
        say(f"{counted(bad, 'bad row')}: `perfusion validate` shows what is wrong")


def validate(
    spec: Spec,
    set_: Set = None,
    address: Address = None,
    *,
    show: Show = 50,
    limit: Limit = None,
    json: Json = False,
) -> None:
    """Check both manifests and every photo, and show the bad rows. Needs no accelerator."""
    from jobs.placement.address import placed
    from jobs.spec import load_spec

    if limit is not None:
        complain(f"--limit {limit} is the old spelling, and the next version drops it: write --show {limit}")
    planned, bad, shown = _plan(placed(load_spec(spec, set_ or ()), address), limit or show)
    if json:
        checked = planned.checked
        manifests = {"concepts": checked.concepts, "prompts": checked.prompts}
        say_json({**manifests, "bad_rows": bad, "shown": shown, "notices": checked.notices})
    else:
        tell_notices(planned.checked.notices)
        for name, summary in (("concepts", planned.checked.concepts), ("prompts", planned.checked.prompts)):
            say(f"{name}: {counted(summary.rows, 'row')} in {counted(summary.files, 'file')}")
        for problem in shown:
            column = f", column {problem['column_name']}" if problem["column_name"] else ""
            say(f"{problem['manifest']} row {problem['row']}{column}: {problem['code']}\n    {problem['message']}")
        if bad > len(shown):
            say(f"... and {bad - len(shown):,} more: show them with --show {bad}")
        say("every row is good" if not bad else counted(bad, "bad row"))
    raise typer.Exit(USAGE if bad else OK)


def _tell_cost(cost: "Estimate") -> None:
    hours = {"training": cost.training_h, "rendering": cost.rendering_h}
    known = [f"{value:.2f} accelerator-hours of {what}" for what, value in hours.items() if value is not None]
    if cost.bytes is not None:
        known.append(f"{cost.bytes / 1e6:,.1f} MB")
    if cost.measured_by and known:
        say(f"  estimate  {', '.join(known)}, measured in {' and '.join(cost.measured_by)}")
    elif not cost.measured_by:
        say("  estimate  none: this root has no finished work to measure; try `perfusion run --sample 20`")


def _plan(
    settings: "RunSettings", limit: int, selection: "Selection | None" = None, *, explain: bool = False
) -> "tuple[Planned, int, list[dict[str, Any]]]":
    from jobs.progress import watching
    from pipeline.database.plandb import PlanDB
    from pipeline.database.query import rows
    from pipeline.plan.done import list_objects
    from pipeline.prepare import check, make_plan
    from pipeline.storage.objects import Storage

    with watching() as progress, PlanDB(memory_limit=settings.engine.plan_memory) as db:
        storage = Storage(settings.root, settings.storage_options or None)
        checked = check(db, storage, settings, progress, selection)
        progress.stage("plan", settings.root)
        list_objects(db, storage)
        planned = make_plan(db, storage, settings, checked, selection=selection, explain=explain)
        progress.planned(planned.work)
        shown = rows(db.connection, _BAD_ROWS, {"limit": limit})
        return planned, planned.work.concepts.invalid + planned.work.renders.invalid, shown
