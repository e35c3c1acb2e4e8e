"""Draw docs/evaluation-report.png: the report of the packaged student on built-in scenes, light and dark.

Needs playwright and Chromium. Run from anywhere: ``python docs/make_report_picture.py``.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from duskfuse.data.scenes.write import write_scenes
from duskfuse.evaluate.evaluate import evaluate

SCENES, SIZE, SEED = 12, (300, 400), 25
WIDTH, HEIGHT = 1000, 1130
SHOWN_WIDTH = 1400
PAGE_COLOURS = ("#b4470b", "#ff9a55", "#fbe9dc", "#3d2817", "#fdfdfc", "#f3f4f5", "#15171a", "#1d2024")
"""Rare on the page, so that they would be lost among the 256 of the picture."""


def main() -> None:
    """Draw the picture beside this script."""
    chromium = shutil.which("chromium") or sys.exit("no chromium (Debian: apt-get install chromium)")
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        data, out = Path(folder) / "scenes", Path(folder) / "report"
        write_scenes(data, count=SCENES, size=SIZE, seed=SEED)
        evaluate(data, model=["edge", "unet"], out=out)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        address = (out / "report.html").as_uri()
        views = [view(browser, address, "light", "header"), view(browser, address, "dark", ".browser")]
        browser.close()
    joined = Image.new("RGB", (2 * WIDTH, HEIGHT))
    for place, picture in enumerate(views):
        joined.paste(picture, (place * WIDTH, 0))
    small = joined.resize((SHOWN_WIDTH, SHOWN_WIDTH * HEIGHT // (2 * WIDTH)), Image.Resampling.LANCZOS)
    few_colours(small).save(Path(__file__).with_name("evaluation-report.png"), optimize=True)


def few_colours(picture: Image.Image) -> Image.Image:
    """The picture in 256 colours, those of the page among them."""
    sample = Image.new("RGB", (picture.width, picture.height + 40 * len(PAGE_COLOURS)))
    sample.paste(picture, (0, 0))
    for place, colour in enumerate(PAGE_COLOURS):
        sample.paste(colour, (0, picture.height + 40 * place, picture.width, picture.height + 40 * place + 40))
    return picture.quantize(palette=sample.quantize(256, Image.Quantize.MEDIANCUT), dither=Image.Dither.NONE)


def view(browser: Browser, address: str, scheme: str, top: str) -> Image.Image:
    """A window of the report, with the section that holds ``top`` at its upper edge."""
    page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=scheme)
    page.goto(address)
    page.wait_for_selector(".stage .handle")
    page.evaluate(f"(document.querySelector('{top}').closest('section') ?? document.body).scrollIntoView()")
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    page.close()
    return picture


if __name__ == "__main__":
    main()
