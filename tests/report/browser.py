"""A real Chromium without a window and without a network: how it shows a page, and what it finds fault with."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
MISSING = [
    *(["chromium"] if PROGRAM is None else []),
    *(["playwright"] if importlib.util.find_spec("playwright") is None else []),
]
needs_browser = pytest.mark.skipif(
    bool(MISSING), reason=f"{' and '.join(MISSING)} not found; make test-report installs both on Debian as root"
)
# as root it does not start without the first; it opens our file alone, and asks for nothing itself
OPTIONS = ("--no-sandbox", "--font-render-hinting=none", "--disable-quic", "--disable-sync", "--disable-gpu")

# Elements that reach beyond the page to the right, but for those that scroll within a box of their own.
TOO_WIDE = """() => [...document.body.querySelectorAll('*')]
  .filter(e => !e.closest('.wide') && e.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5)
  .map(e => `${e.tagName} ${e.textContent.slice(0, 40)}`)"""
# Words of a chart that are cut off by its edge.
CUT_OFF = """() => [...document.querySelectorAll('svg text')].filter(e => {
    const [a, b] = [e.getBoundingClientRect(), e.ownerSVGElement.getBoundingClientRect()];
    return a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 1 || a.bottom > b.bottom + 1;
  }).map(e => e.textContent)"""
# The words with the least contrast to what is behind them (WCAG 2.1), and how much it is.
CONTRAST = """() => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const linear = value => (value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const found = parse(getComputedStyle(e).backgroundColor);
      if (found.length < 4 || found[3] > 0) return found;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const e of document.body.querySelectorAll('*')) {
    const unseen = ['style', 'title'].includes(e.tagName.toLowerCase());
    if (unseen || ![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    const style = getComputedStyle(e), inside = e.ownerSVGElement;
    const [a, b] = [light(parse(inside ? style.fill : style.color)), light(behind(e))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.textContent.slice(0, 40)]);
  }
  return found.sort((a, b) => a[0] - b[0])[0];
}"""
# The smallest words, in pixels of the screen: those of a chart shrink with it.
SMALLEST = """() => Math.min(...[...document.querySelectorAll('svg.chart text')].map(
  e => parseFloat(getComputedStyle(e).fontSize) * Math.hypot(e.getScreenCTM().a, e.getScreenCTM().b)))"""
SEEN = """selector => [...document.querySelectorAll(selector)].filter(e => {
    const box = e.getBoundingClientRect(), style = getComputedStyle(e);
    return (box.width > 0 || box.height > 0) && style.visibility === 'visible' && style.display !== 'none';
  }).length"""


@dataclass
class Shown:
    """A page as the browser shows it; ``complaints`` are its errors and warnings, ``asked`` the addresses it wanted."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def ask(self, question: str, *given: str) -> Any:
        """What a function in JavaScript answers in the page."""
        return self.page.evaluate(question, *given)

    def seen(self, selector: str) -> int:
        """How many such elements take up room on the page."""
        return int(self.ask(SEEN, selector))

    def picture(self, file: Path) -> Path:
        """A screenshot of the whole page."""
        self.page.screenshot(path=str(file), full_page=True)
        return file


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser without a window, ended behind it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=PROGRAM, args=list(OPTIONS))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def shown(browser: Any, file: Path, width: int, scheme: str) -> Iterator[Shown]:
    """``file`` in a window ``width`` pixels wide, in a ``light`` or ``dark`` scheme, without a network."""
    size = {"width": width, "height": 844}
    context = browser.new_context(viewport=size, color_scheme=scheme, offline=True)
    context.set_default_timeout(20_000)
    try:
        result = Shown(context.new_page())
        result.page.on("console", lambda said: result.complaints.append(f"{said.type}: {said.text}"))
        result.page.on("pageerror", lambda error: result.complaints.append(str(error)))
        result.page.on("requestfailed", lambda request: result.complaints.append(f"not found: {request.url}"))
        result.page.on("request", lambda request: result.asked.append(request.url))
        result.page.goto(file.as_uri())
        yield result
    finally:
        context.close()
