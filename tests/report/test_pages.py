"""The report as a real browser shows it, in the light, in the dark and on a phone. ``make test-report``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bllpipe.tools.analysis.report import write_report
from tests.report.browser import CONTRAST, CUT_OFF, SMALLEST, TOO_WIDE, Shown, chromium, needs_browser, shown
from tests.support import jobs

pytestmark = [pytest.mark.browser, needs_browser]

LOOKS = {"light": (1280, "light"), "dark": (1280, "dark"), "phone": (390, "light"), "phone-dark": (390, "dark")}
SHORT = (*jobs.RESNET, "steps=40", "log.every_steps=5", "trace.num_steps=6", "trace.first_step=20")
RUNS = {"bll": ("engine=threads",), "bp": ("method=bp", "engine=single"), "bll-seed-1": ("engine=threads", "seed=1")}
LEAST_CONTRAST = 4.5  # WCAG 2.1, level AA
LEAST_PIXELS = 10


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of three short runs: two of one kind, and one of another."""
    folder = tmp_path_factory.mktemp("runs")
    for name, settings in RUNS.items():
        done = jobs.alone(jobs.words(folder / name, *SHORT, *settings))
        assert done.returncode == 0, done.stderr
    write_report([folder / name for name in RUNS], folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module", params=LOOKS)
def look(request: pytest.FixtureRequest, browser: Any, report: Path) -> Iterator[Shown]:
    width, scheme = LOOKS[request.param]
    with shown(browser, report, width, scheme) as page:
        picture = page.picture(report.parent / f"{request.param}.png")
        print(f"\n{picture.name}: {width} pixels wide, {picture.stat().st_size // 1024} kB")
        yield page


def test_the_browser_has_nothing_to_complain_of_and_asks_for_nothing(look: Shown, report: Path) -> None:
    assert look.complaints == []
    assert look.asked == [report.as_uri()]


def test_nothing_is_wider_than_the_page(look: Shown) -> None:
    assert look.ask("() => document.documentElement.scrollWidth - innerWidth") <= 0
    assert look.ask(TOO_WIDE) == []


def test_no_words_of_a_chart_are_cut_off(look: Shown) -> None:
    assert look.ask(CUT_OFF) == []


def test_all_words_can_be_read(look: Shown) -> None:
    contrast, words = look.ask(CONTRAST)
    smallest = look.ask(SMALLEST)
    assert contrast >= LEAST_CONTRAST, words
    assert smallest >= LEAST_PIXELS
    print(f"\nleast contrast {contrast:.1f}, smallest letters of a chart {smallest:.1f} pixels")


@pytest.mark.parametrize(
    ("selector", "least"),
    [
        ("#runs tbody tr", 3),
        ("#machines tbody tr", 1),
        ("#accuracy tbody tr", 2),
        ("#learning .key", 4),
        ("#learning svg .line", 2),
        ("#learning svg .band", 1),
        ("#blocks svg .mark", 5),
        ("#alignment svg .line", 4),
        ("#time svg .piece", 5),
        ("#time tbody tr", 2),
        ("#timeline svg .box", 40),
        ("#config tbody tr", 2),
    ],
)
def test_what_a_reader_looks_for_is_seen(look: Shown, selector: str, least: int) -> None:
    assert look.seen(selector) >= least


def test_a_wide_table_keeps_the_names_of_its_rows_in_sight(look: Shown) -> None:
    look.ask("() => document.querySelectorAll('.wide').forEach(e => { e.scrollLeft = 200; })")
    assert look.ask("() => document.querySelector('#runs tbody th').getBoundingClientRect().left") >= 0


def test_a_fault_would_be_found(browser: Any, tmp_path: Path) -> None:
    """The questions of these tests, asked of a page that deserves it."""
    page = tmp_path / "page.html"
    page.write_text(
        "<body style='background: #fff'><div style='width: 900px; color: #ddd'>pale</div>"
        "<svg class='chart' width='40' height='40'><text x='30' y='20' font-size='6'>cut off</text></svg>"
        "<img src='none.png'><script>undefined.x</script>"
    )
    with shown(browser, page, 390, "light") as found:
        assert any("DIV" in words for words in found.ask(TOO_WIDE))
        assert found.ask(CUT_OFF) == ["cut off"]
        assert found.ask(CONTRAST)[0] < 1.5 and found.ask(SMALLEST) < 7
        assert len(found.complaints) >= 2 and len(found.asked) == 2
        assert found.seen("script") == 0
