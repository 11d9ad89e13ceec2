"""The pages of a run and of a sweep in headless Chromium: a reader sees everything, and nothing is fetched.

The run and the sweep are real. A copy of a page with faults of each kind shows that the checks find them.
"""

from pathlib import Path

import pytest

from jobs.output import OK
from jobs.score import score
from jobs.sweep import Scoring, sweep
from perfusion_ops.mini.embedded import embedded_scorers
from pipeline.storage.objects import Storage
from pipeline.sweep.front import Select
from pipeline.sweep.grid import make_grid
from tests.support.browser import Opened, chromium, why_not
from tests.support.runs import Engines, keep_metric, run_settings
from tests.support.shop import CONCEPTS, go, open_shop, stock

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

PAGES = ("report", "sweep")
NARROW = 375  # a phone
SCHEMES = (False, True)
TRAIN = {"recipe": "offset", "steps": 4, "batch": 1, "lr_value": 0.2}
LONG = "mug-of-the-autumn-collection-2026-limited-edition-with-a-name-as-long-as-some-shops-really-have"
PROMPTS = [
    {"prompt": "a photo of a {product} on the beach", "num_images": 3},
    {"prompt": "a {mug-1} next to a {bag-1}", "seed": 3},
    {"prompt": "a product without its place"},
]


_HEIGHTS = """
return [...document.querySelectorAll(arguments[0])].map(each => {
    const texts = document.createRange();
    texts.selectNodeContents(each);
    return texts.getBoundingClientRect().height;
})
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Files of the report of a scored run with bad rows, and of a sweep."""
    folder = tmp_path_factory.mktemp("shop")
    shop, root = open_shop(folder), str(folder / "root")
    keep_metric(Storage(root))
    renamed = {**CONCEPTS[2], "concept_id": LONG}
    lost = {**CONCEPTS[0], "concept_id": "lost-1", "images": ["nowhere.png"]}
    stock(shop, [*CONCEPTS[:2], renamed, lost], PROMPTS)
    result, _ = go(root, shop, Engines(slots=2), train=TRAIN)
    score(Storage(root), result.run_id, embedded_scorers(), device="cpu")
    stock(shop, CONCEPTS[:2], PROMPTS[:1])
    ended = sweep(
        run_settings(root, shop, train=TRAIN),
        grid=make_grid({"guidance": [2, 6], "strength": [0.5, 1]}),
        select=Select("knee"),
        selection=None,
        scoring=Scoring(embedded_scorers(), device="cpu"),
        json=True,
        make_engine=Engines(),
    )
    assert ended == OK
    [swept] = Path(root, "sweeps").rglob("sweep-*/index.html")
    return {"report": Path(root, "runs", result.run_id, "report", "index.html"), "sweep": swept}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_loads_nothing_and_nothing_is_broken(driver, pages, name):
    page = Opened(driver, pages[name])
    seen = page.visit()
    assert (seen.said, seen.loaded, seen.broken, seen.unnamed) == ([], [], [], 0)
    assert len(page.every("img")) >= 8
    assert len(page.every("svg")) >= 2


@pytest.mark.parametrize("dark", SCHEMES)
@pytest.mark.parametrize("width", [NARROW, 820, 1280])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_the_window_and_can_be_read(driver, pages, name, width, dark):
    page = Opened(driver, pages[name], width=width, dark=dark)
    assert page.too_wide() == [0, []]
    assert page.faint() == []
    color = page.script("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (max(color) < 64) == dark


def test_the_section_of_each_link_comes_into_view(driver, pages):
    for width in (NARROW, 1280):
        page = Opened(driver, pages["report"], width=width)
        links = page.every("nav a")
        assert len(links) == 7
        for link in links:
            link.click()
            target = link.get_attribute("href").partition("#")[2]
            assert not page.covered(f"#{target} > h2"), (width, target)


@pytest.mark.parametrize("width", [NARROW, 1280])
def test_details_open(driver, pages, width):
    page = Opened(driver, pages["report"], width=width)
    every = page.every("details")
    assert every
    shown = "return arguments[0].lastElementChild.checkVisibility({contentVisibilityAuto: true})"
    for details in every:
        height = details.rect["height"]
        assert not page.script(shown, details)
        details.find_element("css selector", "summary").click()
        assert page.script(shown, details)
        assert details.rect["height"] > height + 40
    assert page.too_wide() == [0, []]
    assert page.faint() == []


@pytest.mark.parametrize("name", PAGES)
def test_names_in_tables_are_not_cut_into_letters(driver, pages, name):
    page = Opened(driver, pages[name], width=NARROW)
    heights = page.script(_HEIGHTS, "td.mono")
    assert heights
    assert max(heights) < 80, "pixels: four lines"


def test_details_are_open_on_paper(driver, pages):
    page = Opened(driver, pages["report"], media="print")
    [details] = page.every("details")
    assert details.rect["height"] > 100
    assert not page.every("nav")[0].is_displayed()


@pytest.mark.parametrize("width", [NARROW, 1280])
def test_lanes_are_drawn(driver, pages, width):
    page = Opened(driver, pages["report"], width=width)
    [lane] = page.every(".lane:not(.axis)")  # the workers of this run share a process, and so a name
    drawing = lane.find_element("css selector", "svg")
    assert drawing.rect["width"] > 250
    for kind in ("training", "rendering"):
        assert page.script(
            "const box = arguments[0].querySelector('path.' + arguments[1]).getBoundingClientRect();"
            "return box.width > 0 && box.height > 8",
            drawing,
            kind,
        )
    assert lane.find_element("css selector", ".right").text.endswith(" %")


FAULTS = """
<img src="http://127.0.0.1:9/outside.png" alt="outside"><a href="gone.html">gone</a><a href="#nowhere">nowhere</a>
<a href="https://example.com/">away</a><svg role="img"></svg>
<p style="width: 900px; color: #999; background: #fff">wide and faint</p><script>console.error("said")</script>
"""


def test_the_checks_find_faults(driver, pages, tmp_path):
    source = pages["report"].read_text(encoding="utf-8")
    spoilt = tmp_path / "index.html"
    spoilt.write_text(source.replace("Content-Security-Policy", "none").replace("<main>", f"<main>{FAULTS}"))
    page = Opened(driver, spoilt, width=NARROW)
    seen = page.visit()
    assert any("said" in message for message in seen.said)
    assert seen.loaded == ["http://127.0.0.1:9/outside.png"]
    assert set(seen.broken) == {
        "http://127.0.0.1:9/outside.png",
        "outside",
        "gone.html",
        "#nowhere",
        "https://example.com/",
    }
    assert seen.unnamed == 1
    wider, out = page.too_wide()
    assert wider > 0
    assert out == ["P."]
    assert page.faint()[0][0] == "wide and faint"
    assert page.covered("#totals > h2"), "it is below the window"
