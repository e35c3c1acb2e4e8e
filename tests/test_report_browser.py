"""The report in a real browser: what a reader does with it, and that a large one opens at once.

Needs playwright and an installed Chromium; the tests are skipped with a reason where either is missing.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from duskfuse.evaluate.evaluation_report import evaluation_page
from duskfuse.evaluate.metrics import DEFAULT
from duskfuse.evaluate.report_page.embedding import FULL_BYTES, _webp
from duskfuse.evaluate.report_page.shown_pairs import Detail, ShownPair, ShownPairs
from duskfuse.evaluate.scores import Evaluation, Kind, Row

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

EVIL = "<script>window.harmed = 1</script><img src=x onerror='window.harmed = 1'>"
METHODS = ("unet", EVIL, "noisy", "plain", "other")
TRIVIAL = ("average", "maximum", "visible only", "infrared only")
SLOWEST_OPENING = 8.0
"""Seconds; it takes under two on a free core, but tests share theirs."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of twelve pairs, some at small detail and one without pictures."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    details = [Detail.FULL] * 8 + [Detail.SMALL] * 3 + [Detail.NONE]
    evaluation_page(evaluation_of(details, METHODS[:3], path.parent)).write(path)
    return path


@pytest.fixture
def page(browser: Browser, report: Path) -> Iterator[Page]:
    """The report in a window, with no complaint of the browser's."""
    yield from opened(browser, report, 1400)


def opened(browser: Browser, report: Path, width: int, touch: bool = False) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": width, "height": 900}, has_touch=touch)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.extend([request.url] if "://" in request.url[5:] else []))
    page.goto(report.as_uri())
    page.wait_for_selector(".stage .handle")
    yield page
    assert complaints == []
    assert page.evaluate("window.harmed") is None
    context.close()


def evaluation_of(details: list[Detail], methods: tuple[str, ...], out: Path) -> Evaluation:
    """Made-up scores, and pictures whose brightness says of what they are: 40 times their place, plus the pair's."""
    rng = np.random.default_rng(0)
    names = [f"pair {place:03}" for place in range(len(details))]
    rows = []
    for kind, group in ((Kind.FOLDER, methods), (Kind.TRIVIAL, TRIVIAL)):
        for place, name in enumerate(group):
            level = 1 + place / 10 - 0.05 * (kind is Kind.TRIVIAL)
            draws = rng.normal(level, 0.05, (len(names), len(DEFAULT)))
            scores = {
                pair: {metric.name: float(draw) for metric, draw in zip(DEFAULT, line, strict=True)}
                for pair, line in zip(names, draws, strict=True)
            }
            rows.append(Row(name, kind, scores, origin=f"/home/somebody/{place}"))
    captions = ("infrared", "visible", *methods)
    pairs = tuple(
        ShownPair(name, float(10 * place % 97), detail, pictures(detail, len(captions)))
        for place, (name, detail) in enumerate(zip(names, details, strict=True))
    )
    shown = ShownPairs(captions, pairs, milliseconds={methods[0]: (3.0, 4.0, 5.0)})
    return Evaluation(f"data {EVIL}", out, tuple(rows), shown=shown, sha256="0" * 64)


@cache
def pictures(detail: Detail, count: int) -> tuple[bytes, ...]:
    if detail is Detail.NONE:
        return ()
    size = (480, 640) if detail is Detail.FULL else (132, 176)
    noise = np.random.default_rng(1).normal(0, 8, size)
    return tuple(_webp(np.clip(noise + 30 * place + 20, 0, 255).astype(np.uint8), 82) for place in range(count))


def names(page: Page, body: int = 0) -> list[str]:
    return page.locator("table[data-sortable] tbody").nth(body).locator("tr:not(.heading) th").all_inner_texts()


def pair_name(page: Page) -> str:
    return page.locator(".viewer .name").inner_text()


def cut(page: Page) -> int:
    return int(page.locator(".handle").get_attribute("aria-valuenow") or -1)


def middle(place: Locator) -> tuple[float, float]:
    box = place.bounding_box()
    assert box is not None
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def transforms(page: Page) -> set[str]:
    found = page.locator(".stage img").evaluate_all("images => images.map(i => getComputedStyle(i).transform)")
    return {",".join(f"{float(v):.1f}" for v in text[7:-1].split(",")) for text in found}


def test_names_are_text(page: Page):
    assert EVIL in page.locator("h1").inner_text()
    assert EVIL in names(page)[1]
    assert EVIL in page.locator("select.right").inner_text()
    assert "/home" not in page.content()


def test_columns_sort_by_click_and_by_key(page: Page):
    before, trivial = names(page), names(page, 1)
    head = page.locator("table[data-sortable] thead th", has_text="Nabf")
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"  # lower is better, so the best comes first
    column = page.evaluate("all('table[data-sortable] thead th').findIndex(th => th.textContent.startsWith('Nabf'))")
    values = page.evaluate(
        f"all('table[data-sortable] tbody:first-of-type tr').map(r => +r.cells[{column}].dataset.sort)"
    )
    assert values == sorted(values)
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert names(page)[::-1] == [name for _, name in sorted(zip(values, before, strict=True))]
    assert set(names(page, 1)) == set(trivial)  # trivial rows stay apart
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "none"
    assert (names(page), names(page, 1)) == (before, trivial)


def test_cells_show_intervals_ranks_or_ranges(page: Page):
    cell = page.locator("table[data-sortable] tbody tr").first.locator("td").nth(2)
    mean = cell.inner_text()
    assert "–" in mean  # of the interval
    page.get_by_role("button", name="Rank", exact=True).click()
    assert cell.inner_text().split("\n")[0] in {"1", "2", "3"}
    page.get_by_role("button", name="Median and range").click()
    assert "…" in cell.inner_text()


def test_tooltip_for_pointer_and_keyboard(page: Page):
    button = page.locator("table[data-sortable] thead button", has_text="EN")
    button.first.focus()
    assert "entropy" in page.locator("#tip").inner_text()
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()
    page.locator("table[data-sortable] thead button", has_text="SSIM").first.hover()
    assert "similarity" in page.locator("#tip").inner_text()


def test_slider_drags(page: Page):
    handle = page.locator(".handle")
    handle.scroll_into_view_if_needed()
    assert cut(page) == 50
    stage = page.locator(".stage").bounding_box()
    assert stage is not None
    page.mouse.move(*middle(handle))
    page.mouse.down()
    page.mouse.move(stage["x"] + stage["width"] * 0.8, stage["y"] + 50, steps=4)
    page.mouse.up()
    assert cut(page) == 80
    box = handle.bounding_box()
    assert box is not None
    assert abs(box["x"] + box["width"] / 2 - stage["x"] - 0.8 * stage["width"]) < 2
    clip = page.locator(".layer").nth(1).evaluate("layer => getComputedStyle(layer).clipPath")
    assert float(clip.split()[-1].rstrip("%)")) == pytest.approx(80, abs=0.6)


def test_slider_answers_to_keys_and_leaves_the_pair(page: Page):
    page.locator(".handle").focus()
    name = pair_name(page)
    for key, expected in (("ArrowRight", 52), ("Shift+ArrowLeft", 42), ("Home", 0), ("End", 100)):
        page.keyboard.press(key)
        assert cut(page) == expected
    assert pair_name(page) == name


def test_slider_answers_to_touch(browser: Browser, report: Path):
    for page in opened(browser, report, 390, touch=True):
        handle = page.locator(".handle")
        handle.scroll_into_view_if_needed()
        x, y = middle(handle)
        session = page.context.new_cdp_session(page)
        for kind, points in (
            ("touchStart", [{"x": x, "y": y}]),
            ("touchMove", [{"x": x - 60, "y": y}]),
            ("touchMove", [{"x": x - 100, "y": y}]),
            ("touchEnd", []),
        ):
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        assert cut(page) < 30


def test_pictures_load_for_every_choice(page: Page):
    for select, value, expected in (("left", "0", "infrared"), ("right", "3", EVIL)):
        page.locator(f"select.{select}").select_option(value)
        page.locator(".layer").get_by_alt_text(expected, exact=True).wait_for()
    images = page.locator(".stage img")
    assert images.evaluate_all("all => all.map(i => [i.alt, i.naturalWidth])") == [["infrared", 640], [EVIL, 640]]
    level = """image => { const c = new OffscreenCanvas(1, 1).getContext('2d'); c.drawImage(image, 0, 0, 1, 1);
        return c.getImageData(0, 0, 1, 1).data[0]; }"""
    assert images.nth(0).evaluate(level) == pytest.approx(20, abs=6)
    assert images.nth(1).evaluate(level) == pytest.approx(30 * 3 + 20, abs=6)
    page.locator(".swap").click()
    page.locator(".layer").nth(1).get_by_alt_text("infrared").wait_for()
    page.locator(".all").click()
    page.locator(".layer").nth(4).wait_for()
    assert page.locator(".handle").count() == 0


def test_views_zoom_and_move_in_step(page: Page):
    page.locator(".all").click()
    page.locator(".layer").nth(4).wait_for()
    page.locator(".zoom .in").click()
    page.locator(".stage").focus()
    page.keyboard.press("+")
    zoomed = transforms(page)
    assert len(zoomed) == 1
    assert zoomed.pop().startswith("2.2,")
    before = transforms(page)
    page.locator(".layer").first.scroll_into_view_if_needed()
    x, y = middle(page.locator(".layer").first)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 40, y + 20, steps=3)
    page.mouse.up()
    moved = transforms(page)
    assert len(moved) == 1
    assert moved != before
    page.keyboard.press("0")
    assert transforms(page) == {"1.0,0.0,0.0,1.0,0.0,0.0"}


def test_zoom_keeps_the_place_under_the_pointer(page: Page):
    page.locator(".stage").scroll_into_view_if_needed()
    box = page.locator(".stage").bounding_box()
    assert box is not None
    page.mouse.dblclick(box["x"] + box["width"] * 0.25, box["y"] + box["height"] * 0.75)
    values = [
        float(page.evaluate(f"all('.stage')[0].style.getPropertyValue('--{name}')")) for name in ("zoom", "x", "y")
    ]
    assert values == pytest.approx([3, -0.5, -1.5], abs=0.02)


def test_pairs_by_keyboard_list_and_search(page: Page):
    assert pair_name(page) == "pair 000"
    page.locator(".list").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert pair_name(page) == "pair 002"
    page.keyboard.press("End")
    assert pair_name(page) == "pair 011"
    assert page.locator(".detail").inner_text() == "This file holds no picture of this pair; its scores are below."
    page.locator(".list [role=option]").nth(9).click()
    assert pair_name(page) == "pair 009"
    page.locator(".stage img").first.wait_for()
    assert "Small pictures" in page.locator(".detail").inner_text()
    page.locator(".find").fill("004")
    assert page.locator(".found").inner_text() == "1 of 12 pairs"
    page.locator(".next").click()
    assert pair_name(page) == "pair 004"
    selected = page.locator(".list [aria-selected=true]")
    assert selected.count() == 1
    assert page.locator(".list").get_attribute("aria-activedescendant") == selected.get_attribute("id")


def test_pairs_in_the_order_of_a_score(page: Page):
    page.locator("select.by").select_option(label="Nabf, worst first")
    shown = [float(text) for text in page.locator(".list [role=option] span:last-child").all_inner_texts()]
    assert len(shown) == 12
    assert shown == sorted(shown, reverse=True)
    page.locator(".turned").check()
    shown = [float(text) for text in page.locator(".list [role=option] span:last-child").all_inner_texts()]
    assert shown == sorted(shown)


def test_a_worst_pair_is_one_click_away(page: Page):
    link = page.locator(".extremes tbody tr").nth(3).locator("td").nth(1).locator("a").first
    name = link.inner_text()
    link.click()
    assert pair_name(page) == name
    assert page.locator("select.right").evaluate("select => select.selectedOptions[0].text") == EVIL
    assert page.locator(".viewer").evaluate("viewer => viewer.getBoundingClientRect().top < innerHeight")


def test_legend_brings_a_method_out(page: Page):
    button = page.locator(".plot + .legend button").nth(1)
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    assert set(page.locator(".plot .line.on").evaluate_all("all => all.map(e => e.dataset.row)")) == {"1"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(browser: Browser, report: Path, scheme: str):
    page = browser.new_page(color_scheme=scheme)
    page.goto(report.as_uri())
    ground = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(ground)
    assert (before == "rgb(253, 253, 252)") is (scheme == "light")
    page.locator(".theme").click()
    assert (page.evaluate(ground) == "rgb(253, 253, 252)") is (scheme == "dark")
    for ink in ("ink", "soft", "accent"):
        for theme in ("light", "dark"):
            page.evaluate("theme => { document.documentElement.dataset.theme = theme }", theme)
            assert contrast(page, ink) >= 4.5, (ink, theme)
    page.close()


def contrast(page: Page, ink: str) -> float:
    """WCAG contrast of a colour of the style with the ground."""
    levels = []
    for name in (ink, "ground"):
        colour = page.evaluate(f"getComputedStyle(document.documentElement).getPropertyValue('--{name}').trim()")
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        levels.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(levels) + 0.05) / (min(levels) + 0.05)


@pytest.mark.parametrize("width", [390, 1400])
def test_nothing_is_wider_than_the_window(browser: Browser, report: Path, width: int):
    for page in opened(browser, report, width):
        assert page.evaluate("document.documentElement.scrollWidth") == width


def test_everything_to_press_has_a_name(page: Page):
    nameless = page.evaluate(
        """() => all('button, select, input, [role=slider], [role=listbox], .scroll').filter(e => !(e.innerText.trim()
            || e.ariaLabel || e.labels?.length)).map(e => e.outerHTML.slice(0, 80))"""
    )
    assert nameless == []


def test_a_large_report_opens_at_once(browser: Browser, tmp_path: Path):
    """361 pairs of five methods, with as many pictures as a report may hold."""
    one = sum(map(len, pictures(Detail.FULL, 7)))
    full = FULL_BYTES // one
    details = [Detail.FULL] * full + [Detail.SMALL] * (361 - full)
    path = tmp_path / "large.html"
    evaluation_page(evaluation_of(details, METHODS, tmp_path)).write(path)
    assert 25e6 < path.stat().st_size < 60e6
    page = browser.new_page()
    started = time.monotonic()
    page.goto(path.as_uri())
    page.wait_for_selector(".stage .handle")
    took = time.monotonic() - started
    print(f"{path.stat().st_size / 1e6:.1f} MB opened in {took:.2f} s, {full} pairs at full detail")
    assert took < SLOWEST_OPENING
    assert page.locator(".list [role=option]").count() == 361
    page.close()
