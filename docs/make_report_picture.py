"""Draw docs/evaluation-report.png: the report of the packaged student on built-in scenes, as a browser shows it.

Needs playwright and Chromium. Run from anywhere: ``python docs/make_report_picture.py``.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import sync_playwright

from duskfuse.data.scenes.write import write_scenes
from duskfuse.evaluate.evaluate import evaluate

SCENES, SIZE, SEED = 12, (300, 400), 20
WIDTH, HEIGHT = 1280, 1500


def main() -> None:
    """Draw the picture beside this script."""
    with TemporaryDirectory() as folder:
        data, out = Path(folder) / "scenes", Path(folder) / "report"
        write_scenes(data, count=SCENES, size=SIZE, seed=SEED)
        evaluate(data, model=["unet"], out=out)
        photograph(out / "report.html", Path(__file__).with_name("evaluation-report.png"))


def photograph(report: Path, picture: Path) -> None:
    """Draw the upper part of a report, its third section at the top of the second half."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium") or sys.exit("no chromium"))
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.goto(report.as_uri())
        page.wait_for_selector(".stage .handle")
        page.screenshot(path=picture, clip={"x": 0, "y": 0, "width": WIDTH, "height": HEIGHT}, full_page=True)
        browser.close()


if __name__ == "__main__":
    main()
