from __future__ import annotations

import base64
import os
import re
from html.parser import HTMLParser
from math import inf, nan
from pathlib import Path

import cv2
import numpy as np
import pytest

from duskfuse.evaluate.report import (
    Body,
    Cell,
    Page,
    definitions,
    figure,
    folded,
    line_chart_svg,
    note,
    paragraph,
    pictures,
    subheading,
    table,
)

EVIL = '<img src=x onerror="alert(1)">&\''
VOID = {"meta", "img", "br", "line", "circle", "polyline"}


class Tree(HTMLParser):
    """Checks that tags nest, and collects tags, attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def full_page() -> Page:
    page = Page(EVIL, lead=EVIL, stamp=EVIL)
    rows = [[EVIL, "1.5", Cell(EVIL, best=True, mark=EVIL, title=EVIL)]]
    picture = np.full((8, 10, 3), 77, np.uint8)
    page.section(
        EVIL,
        paragraph(EVIL),
        note(EVIL),
        subheading(EVIL, EVIL),
        definitions([(EVIL, EVIL)]),
        table([EVIL, "n", Cell(EVIL, title=EVIL)], Body(rows, heading=EVIL), Body(rows, aside=True)),
        pictures([figure(picture, EVIL)]),
        line_chart_svg({EVIL: [(0, 1), (1, 2)]}, EVIL, EVIL),
        folded(EVIL, note(EVIL)),
    )
    return page


def test_everything_is_escaped_and_well_formed():
    tree = Tree(full_page().html())
    assert [attributes["src"][:11] for attributes in tree.named("img") if attributes["src"]] == ["data:image/"]
    assert not any(name.startswith("on") for _, attributes in tree.tags for name in attributes)
    assert tree.text.count(EVIL) >= 15


def test_page_is_self_contained():
    html = full_page().html()
    tree = Tree(html)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in tree.tags}
    assert "://" not in html
    assert "default-src 'none'" in html
    assert "script-src" not in html
    assert "url(" not in html
    assert "@import" not in html
    assert "prefers-color-scheme: dark" in html
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in tree.named("meta")


@pytest.mark.parametrize("channels", [1, 3])
def test_figure_holds_the_picture(channels: int):
    picture = np.zeros((24, 40, 3), np.uint8)
    picture[..., 0] = np.linspace(0, 250, 40)
    picture = picture if channels == 3 else picture[..., 0]
    attributes = Tree(figure(picture, "red ramp")).named("img")[0]
    assert (attributes["width"], attributes["height"], attributes["alt"]) == ("40", "24", "red ramp")
    source = attributes["src"]
    assert source is not None
    data = base64.b64decode(source.removeprefix("data:image/jpeg;base64,"))
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    decoded = decoded[..., ::-1] if channels == 3 else decoded
    assert decoded.shape == picture.shape
    assert np.abs(decoded.astype(int) - picture).max() < 12


def test_table_marks_and_alignment():
    bodies = (
        Body([["a", "1.5", "fast"], ["b", Cell("2.5", best=True), "–"]]),
        Body([["c", "–", "2 slow"]], "others", True),
    )
    tree = Tree(table(["name", "ms", "word"], *bodies))
    classes = [attributes.get("class") for attributes in tree.named("td")]
    assert classes == ["n", None, "n best", None, "n", None]
    assert [attributes.get("class") for attributes in tree.named("th")[:3]] == [None, "n", None]
    assert [attributes.get("class") for attributes in tree.named("tbody")] == [None, "aside"]
    assert "others" in tree.text
    with pytest.raises(ValueError, match=r"rows of \[3\] cells under a header of 2"):
        table(["name", "ms"], Body([["a", "1", "one too many"]]))


def test_chart_puts_points_where_they_belong():
    html = line_chart_svg({"loss": [(0, 0), (50, 1), (100, 4)], "one": [(100, 2)]}, "step", "value")
    tree = Tree(html)
    points = [tuple(map(float, pair.split(","))) for pair in str(tree.named("polyline")[0]["points"]).split()]
    assert len(points) == 3
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == pytest.approx(x2 - x1)
    assert (y0 - y1) * 4 == pytest.approx(y0 - y2)
    assert y0 > y1 > y2
    circle = tree.named("circle")[0]
    assert float(str(circle["cx"])) == pytest.approx(x2)
    assert float(str(circle["cy"])) == pytest.approx((y0 + y2) / 2)
    labels = re.findall(r">([\d.]+)</text>", html)
    assert {"0", "100", "4"} <= set(labels)
    assert "step" in tree.text
    assert "loss" in tree.text


def test_chart_of_unusual_values():
    assert Tree(line_chart_svg({"a": []}, "x", "loss")).text == "loss: there is nothing to draw."
    assert "nothing" in line_chart_svg({"a": [(nan, 1), (1, inf)]}, "x", "loss")
    gap = Tree(line_chart_svg({"a": [(0, 1), (1, nan), (2, 3)], "b": [(0, nan)]}, "x", "y"))
    assert len(str(gap.named("polyline")[0]["points"]).split()) == 2
    assert "b (no finite value)" in gap.text
    for level in (0.0, -3.0, 1e-9, 7e12):
        flat = Tree(line_chart_svg({"a": [(5, level), (5, level)]}, "x", "y"))
        places = [tuple(map(float, place.split(","))) for place in str(flat.named("polyline")[0]["points"]).split()]
        assert all(0 < x < 640 and 0 < y < 300 for x, y in places)


@pytest.mark.parametrize("span", [(0.0, 1.0), (-0.013, 0.4), (99.0, 101.0), (1e-7, 3e-7), (0.0, 200.0), (3.0, 3.0)])
def test_axes_enclose_the_values(span: tuple[float, float]):
    low, high = span
    html = line_chart_svg({"a": [(0, low), (1, high)]}, "x", "y")
    labels = [float(text) for text in re.findall(r'text-anchor="end">([-\d.e+]+)</text>', html)]
    assert 3 <= len(labels) <= 7
    assert labels == sorted(labels)
    assert labels[0] <= low
    assert labels[-1] >= high


def test_write_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "report.html"
    page = Page("Infrared → visible")
    page.write(path)
    assert path.read_text(encoding="utf-8") == page.html()

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        Page("another").write(path)
    assert path.read_text(encoding="utf-8") == page.html()
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
