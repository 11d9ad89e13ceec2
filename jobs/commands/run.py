"""`perfusion run` and `perfusion rerender`: from a spec to published tables."""

import typer

from jobs.options import Address, Drawn, First, Json, Set, Spec


def command(
    spec: Spec,
    set_: Set = None,
    address: Address = None,
    *,
    limit: First = None,
    sample: Drawn = None,
    json: Json = False,
) -> None:
    """Train every product, render every prompt, publish the tables. Rerun to resume; unchanged work is reused.

    --limit and --sample run a part of the work as a run of its own. The full run reuses its results.
    """
    from jobs.placement.address import placed
    from jobs.run import part, run
    from jobs.spec import load_spec

    raise typer.Exit(run(placed(load_spec(spec, set_ or ()), address), json=json, selection=part(limit, sample)))


def rerender(spec: Spec, set_: Set = None, address: Address = None, json: Json = False) -> None:
    """Render what is new or out of date, and say why.

    A render is out of date if its base model, weights, settings or prompt changed. Everything else is reused.
    """
    from jobs.placement.address import placed
    from jobs.run import run
    from jobs.spec import load_spec

    raise typer.Exit(run(placed(load_spec(spec, set_ or ()), address), json=json, explain=True))
