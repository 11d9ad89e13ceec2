"""How much is measured: two sizes that rank the methods, one for CI, and one that only shows that it holds together."""

from typing import Literal

from pydantic import Field

from perfusion_ops.config import Frozen
from perfusion_ops.mini.methods.sets import PROMPTS, SetName
from perfusion_ops.rivals.objective import Budget

SizeName = Literal["smoke", "ci", "half", "full"]


class Amount(Frozen):
    """Products, and pictures of each."""

    products: int = Field(ge=1, le=1000)
    prompts: int = Field(ge=1, le=PROMPTS)
    seeds: int = Field(ge=1, description="pictures of each prompt")
    steps: int = Field(ge=1, description="denoising steps")
    drift_prompts: int = Field(ge=0, le=24, description="unrelated prompts of each product; 0: drift is not measured")


class Size(Frozen):
    """One size of the measurement.

    Attributes:
        tuning: each setting of each method; None: every method keeps its first setting and `guidance`.
        final: each method with its chosen setting at its own best guidance scale.
        front: the same at the other guidance scales, of which only the front is shown.
        sets: final sets of products.
        photos: how many photographs a product is learned from, one measurement for each.
        settings: how many settings of each method the tuning tries.
        guidances: guidance scales that are drawn.
        guidance: where nothing was tuned.
        budget: of every training.
        strangers: products of the same class that a picture is compared with.
        ranked: whether it is large enough to rank the methods.
        resamples: of the bootstrap.
    """

    name: SizeName
    tuning: Amount | None
    final: Amount
    front: Amount
    sets: tuple[SetName, ...]
    photos: tuple[int, ...]
    settings: int
    guidances: tuple[float, ...]
    guidance: float
    budget: Budget
    strangers: int
    ranked: bool = False
    resamples: int = 4000


SIZES: dict[SizeName, Size] = {
    "smoke": Size(
        name="smoke",
        tuning=Amount(products=1, prompts=1, seeds=1, steps=1, drift_prompts=0),
        final=Amount(products=1, prompts=2, seeds=1, steps=1, drift_prompts=1),
        front=Amount(products=1, prompts=1, seeds=1, steps=1, drift_prompts=0),
        sets=("a",),
        photos=(2,),
        settings=1,
        guidances=(2.0, 4.0),
        guidance=2.0,
        budget=Budget(steps=1, batch=3),
        strangers=2,
        resamples=50,
    ),
    "ci": Size(
        name="ci",
        tuning=None,
        final=Amount(products=3, prompts=5, seeds=1, steps=10, drift_prompts=4),
        front=Amount(products=3, prompts=5, seeds=1, steps=10, drift_prompts=0),
        sets=("a",),
        photos=(4,),
        settings=1,
        guidances=(4.5,),
        guidance=4.5,
        budget=Budget(steps=60, batch=4),
        strangers=50,
    ),
    "half": Size(
        name="half",
        tuning=Amount(products=6, prompts=6, seeds=1, steps=20, drift_prompts=0),
        final=Amount(products=24, prompts=20, seeds=1, steps=20, drift_prompts=6),
        front=Amount(products=24, prompts=6, seeds=1, steps=20, drift_prompts=0),
        sets=("a", "b"),
        photos=(4, 1),
        settings=4,
        guidances=(3.0, 4.5, 7.0),
        guidance=4.5,
        budget=Budget(steps=200, batch=4),
        strangers=50,
        ranked=True,
    ),
    "full": Size(
        name="full",
        tuning=Amount(products=12, prompts=10, seeds=1, steps=20, drift_prompts=0),
        final=Amount(products=24, prompts=20, seeds=2, steps=20, drift_prompts=24),
        front=Amount(products=24, prompts=20, seeds=1, steps=20, drift_prompts=0),
        sets=("a", "b"),
        photos=(4, 1),
        settings=6,
        guidances=(3.0, 4.5, 7.0),
        guidance=4.5,
        budget=Budget(steps=200, batch=4),
        strangers=50,
        ranked=True,
    ),
}
