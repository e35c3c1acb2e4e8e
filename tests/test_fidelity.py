"""The page docs/fidelity.md cannot rot: all numbered rows are there, and every test that it names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from duskfuse.distill.recipe_files import load_recipe
from duskfuse.distill.terms.contrastive import Norm
from duskfuse.students.unet import OutputHead
from duskfuse.students.zoo import build_student

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "fidelity.md"
ROWS = {
    "SAGE: what article and code get wrong": 15,
    "SAGE: acceptance checks": 19,
    "Real-time student: what the README gets wrong": 12,
    "Real-time student: acceptance checks": 17,
    "IRDFusion: what article and code get wrong": 15,
    "IRDFusion: acceptance checks": 17,
    "CLDyN: what article and code get wrong": 15,
    "CLDyN: acceptance checks": 16,
    "SLGNet: what article and code get wrong": 12,
    "SLGNet: acceptance checks": 15,
}
"""Chapters, and how many numbered rows each must have."""
NAMED = re.compile(r"`(tests/test_\w+\.py)::(test_\w+)`")


def rows(chapter: str) -> list[list[str]]:
    """Cells of the numbered rows of a chapter."""
    (text,) = (part for part in PAGE.read_text(encoding="utf-8").split("\n## ") if part.startswith(f"{chapter}\n"))
    lines = [line.strip("|").split("|") for line in text.splitlines() if re.match(r"\| \d+ \|", line)]
    return [[cell.strip() for cell in cells] for cells in lines]


def functions(path: Path) -> set[str]:
    """Names of a file's tests; parametrised ones count once."""
    return {node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("chapter", ROWS)
def test_every_numbered_row_is_there_and_names_a_test(chapter: str) -> None:
    numbered = rows(chapter)
    assert [int(cells[0]) for cells in numbered] == list(range(1, ROWS[chapter] + 1))
    for number, *said, tests in numbered:
        assert all(said), f"row {number} of {chapter} has an empty cell"
        assert NAMED.search(tests), f"row {number} of {chapter} names no test"
    assert len({len(cells) for cells in numbered}) == 1


def test_every_test_that_is_named_exists() -> None:
    named = NAMED.findall(PAGE.read_text(encoding="utf-8"))
    assert len(named) > 100
    assert PAGE.read_text(encoding="utf-8").count("::") == len(named)
    for file in sorted({file for file, _ in named}):
        missing = {test for other, test in named if other == file} - functions(ROOT / file)
        assert not missing, f"{file} has no {', '.join(sorted(missing))}"


def test_recipes_take_the_published_forms() -> None:
    """`key.path: value`, as the page writes it; the options of commands begin with dashes."""
    numbered = [cells for chapter in ROWS for cells in rows(chapter) if len(cells) == 5]
    keys = [key for cells in numbered for key in re.findall(r"`(\w[\w.]+: \w+)`", cells[3])]
    assert len(keys) == 4
    published = load_recipe("paper_sage_unrolled", [key.replace(": ", "=") for key in keys])
    assert published.contrastive.norm is Norm.BATCH
    assert published.main_network.compat
    assert published.steps["student"].unroll is None
    student = build_student(published.student.architecture, published.student.settings)
    assert student.head is OutputHead.TANH


@pytest.mark.parametrize(
    "page",
    sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]),
)
def test_links_of_every_page_lead_to_files(page: str) -> None:
    """No link is empty, and those inside the tree lead somewhere; the README of the real-time method had empty ones."""
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    for words, target in re.findall(r"\[([^\]]*)\]\(([^)]*)\)", text):
        assert target not in ("", "link"), f"{page}: [{words}] leads nowhere"
        if not target.startswith(("https://", "http://", "#")):
            assert (ROOT / page).parent.joinpath(target.partition("#")[0]).exists(), f"{page}: no {target}"
