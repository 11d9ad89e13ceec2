"""From measured pictures to a choice, a table and a recommendation.

A method's *score* on a product is the harmonic mean of two shares: its identity as a share of the mean cosine between
different photos of the product, and its text similarity as a share of that of the base model itself with the superclass
in the prompt. Both are cut at 1.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from perfusion_ops.compare.entrants import WORD
from perfusion_ops.compare.intervals import Interval, bootstrap, harmonic_mean, paired
from perfusion_ops.compare.layers import MaskLayers
from perfusion_ops.compare.methods import Contestant, OursSettings
from perfusion_ops.compare.products import Product
from perfusion_ops.compare.study import Picture, Study
from perfusion_ops.config import Frozen, TrainingConfig

RESAMPLES = 4000
_PAPER = "ours-paper"
_OURS = (_PAPER, "ours-offset", "ours-references", "ours-convolutions")


class Choice(Frozen):
    """The setting and guidance scale of a method that scored best on the tuning products."""

    method: str
    place: int
    guidance: float
    score: float


class Line(Frozen):
    """One method on the final products: means and 95 % intervals over products, and costs.

    Attributes:
        method, guidance: and the scale that its tuning chose.
        settings: that its tuning chose.
        score: see the module.
        identity, nearest, text: see `study.Picture`.
        numbers, size: learned numbers, and bytes of their file.
        train_s, draw_s: mean seconds of a training, and of a picture.
        against: of our best method, the mean paired difference of scores: ours minus this method's.
    """

    method: str
    guidance: float
    settings: dict[str, Any]
    score: Interval
    identity: Interval
    nearest: Interval
    text: Interval
    numbers: int
    size: int
    train_s: float
    draw_s: float
    against: Interval | None


class Recommendation(Frozen):
    """What to put into the base folder's perfusion.json, and why."""

    training: dict[str, Any]
    sampling: dict[str, Any]
    mask_layers: tuple[str, ...]
    reason: str


class Report(Frozen):
    """One comparison."""

    name: str = "compare"
    base: str
    scorers: str
    tuning_products: int
    products: int
    pictures: int
    masks: MaskLayers | None
    lines: tuple[Line, ...]
    recommendation: Recommendation


def ceilings(study: Study, items: Sequence[Product]) -> dict[str, float]:
    """The mean cosine between different photos of each product, by digest; 1 for a product with one photo."""
    found = {}
    for item in items:
        photos = study.judges.photos(item)
        apart = (photos @ photos.T)[~np.eye(len(photos), dtype=bool)]
        found[item.digest] = float(apart.mean()) if apart.size else 1.0
    return found


def score(pictures: Sequence[Picture], ceiling: float, word_text: float) -> float:
    """See the module; `word_text` is the text similarity of the base model itself."""
    identity = float(np.mean([each.identity for each in pictures])) / max(ceiling, 1e-6)
    text = float(np.mean([each.text for each in pictures])) / max(word_text, 1e-6)
    return harmonic_mean([min(max(identity, 0.0), 1.0), min(max(text, 0.0), 1.0)])


def choose(study: Study, method: Contestant, word: Contestant, tuning: Sequence[Product]) -> Choice:
    """The best setting and guidance scale of a method whose tuning is measured; ties go to the first.

    Raises:
        FileNotFoundError: something is not measured.
    """
    scored = scorer(study, word, tuning)
    found = [
        Choice(method=method.name, place=place, guidance=scale, score=float(np.mean(scored(method, place, scale))))
        for place in range(len(method.settings))
        for scale in study.amounts.guidances
    ]
    return max(found, key=lambda choice: choice.score)


def scorer(study: Study, word: Contestant, items: Sequence[Product]) -> Callable[[Contestant, int, float], list[float]]:
    """A function of method, setting and guidance scale that gives the score of each product.

    The text similarity of the word is that of its own best guidance scale.
    """
    reach = ceilings(study, items)
    words = {
        item.digest: max(_mean(study.rows(word, 0, item, scale), "text") for scale in study.amounts.guidances)
        for item in items
    }

    def scored(method: Contestant, place: int, guidance: float) -> list[float]:
        return [
            score(study.rows(method, place, item, guidance), reach[item.digest], words[item.digest]) for item in items
        ]

    return scored


def make_report(
    study: Study,
    methods: Mapping[str, Contestant],
    choices: Mapping[str, Choice],
    finals: Sequence[Product],
    tuning: int,
    *,
    masks: MaskLayers | None,
) -> Report:
    """Figures of all methods on the final products.

    Args:
        study: where everything is measured.
        methods: by name, with that of the plain word and all of ours.
        choices: what their tuning chose.
        finals: products that no choice has seen.
        tuning: number of the others.
        masks: what the calibration found; the study used it.
    """
    scored = scorer(study, methods[WORD], finals)
    scores = {name: np.array(scored(methods[name], choice.place, choice.guidance)) for name, choice in choices.items()}
    own = max(_OURS, key=lambda name: choices[name].score)
    lines = []
    for name, choice in choices.items():
        rows = [study.rows(methods[name], choice.place, item, choice.guidance) for item in finals]
        each = rows[0][0]
        lines.append(
            Line(
                method=name,
                guidance=choice.guidance,
                settings=methods[name].settings[choice.place].model_dump(mode="json"),
                score=bootstrap(scores[name], resamples=RESAMPLES),
                **{
                    field: bootstrap([_mean(pictures, field) for pictures in rows], resamples=RESAMPLES)
                    for field in ("identity", "nearest", "text")
                },
                numbers=each.numbers,
                size=each.size,
                train_s=float(np.mean([pictures[0].train_s for pictures in rows])),
                draw_s=float(np.mean([pictures[0].draw_s for pictures in rows])),
                against=None if name == own else paired(scores[own], scores[name], resamples=RESAMPLES),
            )
        )
    return Report(
        base=study.base,
        scorers=study.judges.digest,
        tuning_products=tuning,
        products=len(finals),
        pictures=len(finals) * len(study.amounts.prompts) * study.amounts.seeds,
        lines=tuple(sorted(lines, key=lambda line: -line.score.mean)),
        masks=masks,
        recommendation=_recommend(methods, choices, scores, study.studio.base.folder.settings.mask_layers),
    )


def _recommend(
    methods: Mapping[str, Contestant],
    choices: Mapping[str, Choice],
    scores: Mapping[str, Any],
    mask_layers: tuple[str, ...],
) -> Recommendation:
    """The recipe as published, unless another of ours, the best in the tuning, is better on the final products.

    Better is what is not explained by chance.
    """
    other = max((name for name in _OURS if name != _PAPER), key=lambda name: choices[name].score)
    gain = paired(scores[other], scores[_PAPER], resamples=RESAMPLES)
    name = other if gain.low > 0 else _PAPER
    settings = methods[name].settings[choices[name].place]
    assert isinstance(settings, OursSettings)
    plain, training = TrainingConfig().model_dump(), settings.training.model_dump()
    return Recommendation(
        training={field: value for field, value in training.items() if value != plain[field]},
        sampling={
            **settings.sampling.model_dump(mode="json", exclude_defaults=True),
            "guidance": choices[name].guidance,
        },
        mask_layers=mask_layers,
        reason=f"score of {other} minus {_PAPER} on {len(scores[_PAPER])} products: {gain}",
    )


def table(report: Report) -> str:
    """The figures for a person."""
    lines = [
        f"{report.products} products, {report.pictures} pictures a method; settings chosen on {report.tuning_products} "
        "other products; 95 % intervals over products",
        f"{'method':20}{'guid.':>6}{'score':>22}{'identity':>22}{'nearest':>22}{'text':>22}{'numbers':>13}"
        f"{'train s':>9}{'ours minus it':>24}",
    ]
    lines += [
        f"{each.method:20}{each.guidance:>6g}{each.score!s:>22}{each.identity!s:>22}{each.nearest!s:>22}"
        f"{each.text!s:>22}{each.numbers:>13,}{each.train_s:>9.1f}{each.against or ''!s:>24}"
        for each in report.lines
    ]
    found = report.recommendation
    if report.masks:
        lines.append(
            f"masks: area under the ROC curve {report.masks.area:.3f} on {report.masks.scenes} pictures, "
            f"{report.masks.default:.3f} with the default layers"
        )
    return "\n".join([*lines, f"for perfusion.json: {found.model_dump_json(exclude={'reason'})}", found.reason])


def _mean(pictures: Sequence[Picture], field: str) -> float:
    return float(np.mean([getattr(each, field) for each in pictures]))
