"""The bars decide by the figures, and the costs are those of the published models."""

import numpy as np

from perfusion_ops.compare.intervals import Interval, hypervolume
from perfusion_ops.mini.methods.bars import Bar, comparison, stable, working
from perfusion_ops.mini.methods.cost import numbers_at_sd15
from perfusion_ops.mini.methods.entrants import contestants
from perfusion_ops.mini.methods.figure import front_figure
from perfusion_ops.mini.methods.sizes import SIZES
from perfusion_ops.mini.methods.summary import FIGURES, FRONTS, Line


def line(method, *, set_="a", photos=4, identity=0.8, obeyed=0.9, numbers=1000, front=None) -> Line:
    front = front or ((3.0, identity, identity, obeyed),)
    return Line(
        method=method,
        set=set_,
        photos=photos,
        guidance=3.0,
        products=24,
        pictures=960,
        figures={
            name: Interval(mean=value, low=value - 0.05, high=value + 0.05)
            for name, value in {**dict.fromkeys(FIGURES, identity), "obeyed": obeyed}.items()
        },
        frechet_distance=30,
        drift=1.0,
        numbers=numbers,
        size=2 * numbers,
        numbers_at_sd15=numbers,
        evaluations=800,
        train_s=1,
        draw_s=1,
        front=front,
        hypervolume={
            name: hypervolume([(each[place], each[3]) for each in front]) for place, name in enumerate(FRONTS, 1)
        },
    )


RIVALS = ("textual-inversion", "custom-diffusion", "lora-r16", "dreambooth", "dreambooth-prior")


def compared(ours: Line, change: float = 0.0, **rivals) -> dict[str, Bar]:
    """All bars by name; every paired difference is that of the means, plus or minus 0.01."""

    def difference(one, other, figure):
        mean = one.figures[figure].mean - other.figures[figure].mean + change
        return Interval(mean=mean, low=mean - 0.01, high=mean + 0.01)

    found = {name: line(name, identity=0.7, obeyed=0.8) for name in RIVALS} | rivals
    return {bar.name.partition(": ")[2]: bar for bar in comparison(ours, found, difference)}


def missed(bars: dict[str, Bar]) -> set[str]:
    return {name for name, bar in bars.items() if not bar.met}


def test_a_method_that_is_better_everywhere_meets_every_bar():
    assert missed(compared(line("ours-token"))) == set()


def test_each_shortfall_misses_its_own_bar():
    strong = line("custom-diffusion", identity=0.81, obeyed=0.5)
    assert missed(compared(line("ours"), **{"custom-diffusion": strong})) == {
        "points of custom-diffusion dominated by overall",
        "points of custom-diffusion dominated by nearest",
    }
    below = line("lora-r16", identity=0.815, obeyed=0.4)
    assert missed(compared(line("ours"), **{"lora-r16": below})) == {
        "overall against lora-r16, upper end",
        "nearest against lora-r16, upper end",
    }
    within = line("lora-r16", identity=0.805, obeyed=0.4)
    assert missed(compared(line("ours"), **{"lora-r16": within})) == set()
    obedient = line("dreambooth", identity=0.5, obeyed=0.95)
    assert missed(compared(line("ours"), dreambooth=obedient)) == {
        "obedience above dreambooth, or as many times smaller"
    }
    larger = line("dreambooth", identity=0.5, obeyed=0.95, numbers=25_000)
    assert missed(compared(line("ours"), dreambooth=larger)) == set()
    near = line("dreambooth", identity=0.78, obeyed=0.88)
    assert missed(compared(line("ours"), dreambooth=near)) == {
        "hypervolume by overall over the best rival's",
        "hypervolume by nearest over the best rival's",
    }
    assert compared(line("ours", photos=1))["hypervolume by overall over the best rival's"].bar == 1.15


def test_every_operating_point_counts():
    ours = line("ours", front=((3.0, 0.8, 0.8, 0.9), (7.0, 0.9, 0.9, 0.5)))
    rival = line("textual-inversion", front=((3.0, 0.7, 0.7, 0.8), (7.0, 0.85, 0.85, 0.6)))
    name = "points of textual-inversion dominated by overall"
    assert compared(ours, **{"textual-inversion": rival})[name].value == 0.5


def test_a_broken_measurement_is_seen():
    lines = {
        name: line(name, numbers=int(name != "word"), identity=0.2 if name == "word" else 0.5) for name in ("word", "x")
    }
    assert all(bar.met for bar in working(lines, line("real", identity=1.0, obeyed=1.0)))
    assert [bar.name for bar in working(lines, line("real", identity=0.89)) if not bar.met] == [
        "set a, 4 photos: real overall", "set a, 4 photos: real nearest", "set a, 4 photos: real context",
    ]  # fmt: skip
    lines["x"] = line("x", identity=0.29)
    assert [bar.name for bar in working(lines, line("real", identity=1.0)) if not bar.met] == [
        "set a, 4 photos: x identity over the word"
    ]


def test_ranks_are_compared_by_pairs():
    first = [line(name, identity=value) for name, value in zip("abcd", (0.9, 0.8, 0.7, 0.6), strict=True)]
    second = [line(name, identity=value) for name, value in zip("abcd", (0.9, 0.7, 0.8, 0.6), strict=True)]
    assert [bar.value for bar in stable(first, first)] == [1, 1]
    assert [bar.value for bar in stable(first, second)] == [5 / 6, 5 / 6]
    assert not any(bar.met for bar in stable(first, second))


def test_every_method_tries_equally_many_settings():
    found = contestants()
    counts = {name: len(set(map(str, each.settings))) for name, each in found.items() if each.trained}
    assert set(counts.values()) == {SIZES["full"].settings}
    assert {name for name, each in found.items() if not each.trained} == {"word"}
    assert len({each.model_dump_json() for each in found["lora-r4"].settings} & {
        each.model_dump_json() for each in found["lora-r16"].settings
    }) == 0  # fmt: skip


def test_numbers_at_the_width_of_stable_diffusion():
    found = contestants()
    numbers = {name: numbers_at_sd15(each, each.settings[0]) for name, each in found.items()}
    assert numbers == {
        "word": 0,
        "ours-paper": 768 + 12_480,
        "ours-offset": 768 + 12_480,
        "ours-references": 768 + 12_480 + 4 * 4 * 64 * 64,  # learned ones, and four photos' latents
        "ours-convolutions": 768 + 12_480 + 2 * (9 + 1) * 3 * (640 + 320),
        "textual-inversion": 768,
        "custom-diffusion": 768 + 24_960 * 768,
        "lora-r4": 797_184,  # the size of every published rank-4 adapter
        "lora-r16": 4 * 797_184,
        "lora-token": 797_184 + 768,
        "dreambooth": 859_520_964,  # the published denoiser
        "dreambooth-prior": 859_520_964,
    }


def test_every_point_of_a_front_lies_inside_the_frame_of_the_figure():
    far = ((3.0, 0.8, 0.8, 0.9), (4.5, 0.3, 0.8, 0.99), (7.0, 0.99, 0.8, 0.5))
    drawn = np.asarray(front_figure([line("word"), line("ours", front=far)], "set a")).astype(int)
    y, x = np.nonzero((drawn == (214, 39, 40)).all(2))  # the colour of the second line
    key = x > 70 + 620  # right of the frame there is the square of the legend
    assert (x[~key].max() - x[~key].min()) > 500
    assert (y[~key].min() >= 40, y[~key].max() <= 40 + 620, x[~key].min() >= 70) == (True, True, True)
    assert np.ptp(x[key]) < 15
