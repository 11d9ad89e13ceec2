"""Pages in headless Chromium: what a page loads, says, shows and hides, with a color scheme and a width."""

import json
import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

HEIGHT = 900
_NAMES = ("chromium", "chromium-browser", "google-chrome")


def why_not():
    """Why no browser can be started here; empty if one can."""
    if not any(map(shutil.which, _NAMES)):
        return "Chromium is not installed: apt-get install chromium chromium-driver"
    return "" if shutil.which("chromedriver") else "chromedriver is not installed: apt-get install chromium-driver"


@contextmanager
def chromium(folder):
    """A browser that resolves no name of the internet; its profile is in `folder`."""
    options = webdriver.ChromeOptions()
    options.binary_location = next(filter(None, map(shutil.which, _NAMES)))
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for switch in (
        "headless=new",
        "disable-background-networking",
        "disable-component-update",
        "disable-dev-shm-usage",
        "hide-scrollbars",
        "host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
        "no-first-run",
        f"user-data-dir={folder}",
        *(["no-sandbox"] if os.geteuid() == 0 else []),
    ):
        options.add_argument(f"--{switch}")
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        driver.set_page_load_timeout(60)
        driver.set_script_timeout(60)
        yield driver
    finally:
        driver.quit()


@dataclass(frozen=True)
class Visit:
    """What a page did when it was opened.

    `said` are messages of the console. `loaded` are addresses of requests other than the page and data in it. `broken`
    are links that lead nowhere and images without pixels. `unnamed` is the number of drawings without a text.
    """

    said: list
    loaded: list
    broken: list
    unnamed: int


class Opened:
    """A page in a browser."""

    def __init__(self, driver, file, *, width=1280, dark=False, media="screen"):
        self.driver, self.file = driver, Path(file)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": [scheme]})
        size = {"width": width, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.get("about:blank")
        for log in ("browser", "performance"):
            driver.get_log(log)  # what the page before left there
        driver.get(self.file.as_uri())

    def script(self, body, *values):
        return self.driver.execute_script(body, *values)

    def every(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def visit(self):
        sent = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        addresses = [
            event["params"]["request"]["url"] for event in sent if event["method"] == "Network.requestWillBeSent"
        ]
        tree = self.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        images = [node for node in tree if node.get("role", {}).get("value") == "image"]
        return Visit(
            said=[entry["message"] for entry in self.driver.get_log("browser")],
            loaded=[url for url in addresses if url != self.file.as_uri() and not url.startswith("data:")],
            broken=[*self._dead_links(), *self.script(_WITHOUT_PIXELS)],
            unnamed=sum(not node.get("name", {}).get("value") for node in images),
        )

    def _dead_links(self):
        return [link for link in self.script(_LINKS) if not self._leads_somewhere(urlsplit(link))]

    def _leads_somewhere(self, address):
        """Into the page, to a file beside it, or to data in the page itself; nowhere else."""
        if address.scheme or address.netloc:
            return address.scheme == "data"
        if address.path:
            return (self.file.parent / unquote(address.path)).exists()
        return self.script("return !!document.getElementById(arguments[0])", address.fragment)

    def too_wide(self):
        """Pixels by which the page is wider than the window, and the elements that stick out of it."""
        return self.script(_TOO_WIDE)

    def faint(self):
        """Texts whose contrast to what is behind them is below 4.5, or below 3 if they are large: WCAG 2, level AA."""
        return self.script(_FAINT)

    def covered(self, selector):
        """Whether something lies over the middle of an element, or it is out of the window."""
        return self.script(_COVERED, selector)


_LINKS = """
return [...document.querySelectorAll('[href], [src]')].map(
    each => each.getAttribute('href') ?? each.getAttribute('src'))
"""
_WITHOUT_PIXELS = """
return [...document.images].filter(each => !each.complete || each.naturalWidth === 0).map(each => each.alt)
"""
_TOO_WIDE = """
const root = document.documentElement, inside = each => each.closest('.scroll, pre, svg');
const out = [...document.body.querySelectorAll('*')].filter(
    each => !inside(each) && each.getBoundingClientRect().right > innerWidth + 0.5);
return [root.scrollWidth - innerWidth, out.map(each => each.tagName + '.' + each.className)];
"""
_COVERED = """
const box = document.querySelector(arguments[0]).getBoundingClientRect();
const top = document.elementFromPoint(box.left + Math.min(box.width, innerWidth) / 2, box.top + box.height / 2);
return !top || !top.closest(arguments[0]);
"""
_FAINT = """
const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(
    v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4
).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const behind = each => {
    for (; each; each = each.parentElement) {
        const color = parse(getComputedStyle(each).backgroundColor);
        if (color.length === 3 || color[3] > 0.99) return color;
    }
    return [255, 255, 255];
};
const found = [];
for (const each of document.body.querySelectorAll('*')) {
    const text = [...each.childNodes].filter(node => node.nodeType === 3).map(node => node.data.trim()).join('');
    const style = getComputedStyle(each), color = parse(style.color);
    if (!text || each.closest('svg') || !each.checkVisibility() || color[3] === 0) continue;
    const pair = [light(color), light(behind(each))].sort((a, b) => b - a);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    const contrast = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (contrast < (large ? 3 : 4.5)) found.push([text.slice(0, 40), contrast.toFixed(2)]);
}
return found;
"""
