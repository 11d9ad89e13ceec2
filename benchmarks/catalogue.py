"""An invented catalogue, planned: products by number, each with one photograph, and prompts by number."""

from perfusion_ops.base.tokenizer import TokenCounter, load_tokenizer
from perfusion_ops.config import SamplingConfig, TrainingConfig
from pipeline.bases.find import find_base
from pipeline.database.plandb import EXTRA_ROW, PlanDB, Stage
from pipeline.plan.expand import plan_concepts, plan_requests


def fill(db: PlanDB, concepts: int, prompts: int) -> None:
    """Fill the manifests' tables with good rows; every prompt is for every concept."""
    db.connection.execute(
        """
        INSERT INTO concepts BY NAME
        SELECT range + 1 AS row, 'product-' || range AS concept_id, 'mug' AS superclass,
            [{'uri': 'memory://' || range, 'sha256': sha256('photo ' || range)}] AS images
        FROM range(?)
        """,
        [concepts],
    )
    db.connection.execute(
        "INSERT INTO prompts BY NAME SELECT range + 1 AS row, 'a {product} in place ' || range AS prompt FROM range(?)",
        [prompts],
    )
    for manifest in ("concepts", "prompts"):
        db.connection.execute(f"CREATE TABLE {manifest}_extra AS SELECT row AS {EXTRA_ROW} FROM {manifest}")


def plan(db: PlanDB) -> None:
    """Give every row its key, from scratch."""
    plan_concepts(db, base_digest="base", metric_key="metric", training=TrainingConfig())
    counter = TokenCounter(load_tokenizer(find_base("mini")))
    plan_requests(db, base_digest="base", sampling=SamplingConfig(), seed=0, counter=counter)
    db.mark_filled(Stage.DONE)
