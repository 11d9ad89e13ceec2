"""The cells that are kept with the code are of this base and of these settings: none of them is measured again."""

from pathlib import Path

from perfusion_ops.base.folder import describe
from perfusion_ops.mini import base_folder
from perfusion_ops.mini.embedded import embedded_scorers
from perfusion_ops.mini.methods.cells import base_identity
from perfusion_ops.mini.methods.entrants import contestants
from perfusion_ops.mini.methods.report import finals_of
from perfusion_ops.mini.methods.sizes import SIZES
from perfusion_ops.mini.methods.tuning import Plan


def test_the_repository_s_record_is_of_this_base_and_of_these_settings():
    record = Path(__file__).parents[4] / "benchmarks" / "methods"
    plan = Plan(SIZES["half"], base_identity(describe(base_folder())), embedded_scorers().digest)
    entrants = list(contestants().values())
    tried = [cell for each in entrants for cells in plan.tuning(each) for cell in cells]
    known = {cell.file(record).name for cell in [*tried, *finals_of(plan, entrants, record)]}
    recorded = {path.name for path in (record / "cells").iterdir()}
    assert recorded, "there is no record"
    assert recorded <= known
