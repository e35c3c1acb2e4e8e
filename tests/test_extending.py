"""The page docs/extending.md holds: its edits are made in a copy of the tree, its commands run there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest

from duskfuse.data.images import read_grey_u8
from duskfuse.data.scenes.write import write_scenes

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r"^(?:(?P<before>[^\n]+)\n\n)?```(?P<language>\w+)\n(?P<text>.*?)^```\n", re.DOTALL | re.MULTILINE)
PLACE = re.compile(r"`(?P<path>[\w/.]+)`(?:, (?P<side>above|below) `(?P<anchor>[^\n]+)`)?:$")


@dataclass(frozen=True)
class Block:
    """One fenced example, with what the line above it says."""

    chapter: str
    language: str
    text: str
    path: str = ""
    anchor: str = ""
    below: bool = False


def blocks() -> list[Block]:
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    found = []
    for chapter in re.split(r"^## ", page, flags=re.MULTILINE)[1:]:
        for fence in FENCE.finditer(chapter):
            said = PLACE.search(fence["before"] or "")
            place = ("", "", False) if said is None else (said["path"], said["anchor"] or "", said["side"] == "below")
            found.append(Block(chapter.splitlines()[0], fence["language"], fence["text"], *place))
    return found


def insert(path: Path, block: Block) -> None:
    """Put the lines beside the one that begins with the anchor, indented as it is."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    places = [number for number, line in enumerate(lines) if line.strip().startswith(block.anchor)]
    assert len(places) == 1, f"{block.path} has {len(places)} lines that begin with {block.anchor}"
    margin = re.match(r" *", lines[places[0]])
    assert margin is not None
    lines[places[0] + block.below : places[0] + block.below] = [
        margin[0] + line.removeprefix("+") for line in block.text.splitlines(keepends=True)
    ]
    path.write_text("".join(lines), encoding="utf-8")


class Copy:
    """The package with all edits of the page, a folder of scenes, and a shell in which the package is that copy."""

    def __init__(self, folder: Path) -> None:
        self.tree, self.work = folder / "tree", folder / "work"
        for name in ("data", "teachers", "students", "tasks", "distill", "evaluate", "export", "src"):
            leave = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, self.tree / name, symlinks=True, ignore=leave)
        for file in ("pyproject.toml", "LICENSE"):
            shutil.copy(ROOT / file, self.tree)
        write_scenes(self.work / "pairs", count=4, size=(48, 64), seed=0)
        self.edited: set[str] = set()
        for block in blocks():
            if block.path.endswith(".yaml"):
                (self.work / block.path).write_text(block.text, encoding="utf-8")
            elif block.path:
                self.edited.add(block.path)
                if block.anchor:
                    insert(self.tree / block.path, block)
                else:
                    assert not (self.tree / block.path).exists(), f"{block.path} exists"
                    (self.tree / block.path).write_text(block.text, encoding="utf-8")

    def run(self, *words: str) -> str:
        """Run Python with these arguments; returns what it wrote to stdout."""
        home = str(self.work / "home")
        surroundings = {**os.environ, "PYTHONPATH": str(self.tree / "src"), "DUSKFUSE_HOME": home}
        command = [sys.executable, *words]
        done = subprocess.run(command, cwd=self.work, env=surroundings, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}{done.stderr}"
        return done.stdout

    def follow(self, chapter: str) -> list[dict[str, Any]]:
        """Run a chapter's commands; returns what each prints with ``--json``."""
        commands = [
            line for b in blocks() if (b.chapter, b.language) == (chapter, "bash") for line in b.text.splitlines()
        ]
        assert commands
        assert all(command.startswith("duskfuse ") for command in commands)
        return [json.loads(self.run("-m", *command.split(), "--json")) for command in commands]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    return Copy(tmp_path_factory.mktemp("extended"))


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_every_example_says_where_it_belongs() -> None:
    found = blocks()
    assert {block.chapter for block in found} == {"A term", "A student", "A mask source", "A metric"}
    assert {(block.language, bool(block.path), bool(block.anchor)) for block in found} == {
        ("python", True, False),
        ("diff", True, True),
        ("yaml", True, False),
        ("bash", False, False),
    }
    assert all(line[0] == "+" for block in found if block.anchor for line in block.text.splitlines())
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    assert len(found) == page.count("\n```") / 2


def test_the_edited_files_are_in_the_house_style(copy: Copy) -> None:
    files = sorted(copy.edited)
    for command in (("check",), ("format", "--check")):
        words = [sys.executable, "-m", "ruff", *command, "--no-cache", *files]
        done = subprocess.run(words, cwd=copy.tree, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_term_trains_a_student(copy: Copy) -> None:
    copy.follow("A term")
    terms = [record["terms"] for record in records(copy.work / "exposed")]
    assert len(terms) == 2
    assert all(0 < values["exposure"] < 1 for values in terms)
    assert "exposure" not in (ROOT / "distill" / "terms" / "__init__.py").read_text()


@pytest.mark.slow
def test_the_student_is_trained_exported_and_does_the_same_there(copy: Copy) -> None:
    copy.follow("A student")
    assert (copy.work / "bundle" / "student-fp32.onnx").is_file()
    ir, vis = np.random.default_rng(0).random((2, 1, 1, 31, 45), dtype=np.float32)
    np.savez(copy.work / "pair.npz", ir=ir, vis=vis)
    copy.run(
        "-c",
        "import numpy, torch; from duskfuse.students.zoo import load_student\n"
        "student, card = load_student('blended/student.safetensors')\n"
        "assert (card.architecture, card.settings) == ('blend', {'width': 12})\n"
        "pair = numpy.load('pair.npz')\n"
        "with torch.no_grad(): y = student(torch.from_numpy(pair['vis']), torch.from_numpy(pair['ir'])).y\n"
        "numpy.save('fused.npy', y.numpy())\n",
    )
    fused = np.load(copy.work / "fused.npy")
    for precision, tolerance in (("fp32", 1e-4), ("fp16", 5e-3)):
        session = onnxruntime.InferenceSession(copy.work / "bundle" / f"student-{precision}.onnx")
        (exported,) = session.run(None, {"ir": ir, "vis_y": vis})
        assert np.abs(exported - fused).max() <= tolerance


@pytest.mark.slow
def test_the_mask_source_fills_the_cache(copy: Copy) -> None:
    (report,) = copy.follow("A mask source")
    assert (report["source"], report["done"]) == ("bright", 8)
    assert report["settings"]["method"] == "otsu"


@pytest.mark.slow
def test_the_metric_is_a_column(copy: Copy) -> None:
    """For a fusion that stretches the contrast; counted pixel by pixel."""
    (copy.work / "fused").mkdir()
    shares = []
    for path in sorted((copy.work / "pairs" / "ir").glob("*.png")):
        ir, vis = (read_grey_u8(copy.work / "pairs" / side / path.name) for side in ("ir", "vis"))
        fused = np.clip(3.0 * ((ir.astype(float) + vis) / 2 - 128) + 128, 0, 255).astype(np.uint8)
        cv2.imwrite(str(copy.work / "fused" / path.name), fused)
        pixels = [[int(value) for value in place] for place in zip(ir.flat, vis.flat, fused.flat, strict=True)]
        lost = [f in (0, 255) and a not in (0, 255) and b not in (0, 255) for a, b, f in pixels]
        shares.append(sum(lost) / len(lost))
    assert len(shares) == 4
    assert min(shares) > 0.01
    (report,) = copy.follow("A metric")
    means = {row["name"]: row["mean"]["SAT"] for row in report["rows"]}
    assert means["ours"] == pytest.approx(np.mean(shares))
    assert means["average"] == 0
    assert not report["metrics"]["SAT"]["higher_is_better"]
