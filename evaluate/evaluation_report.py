"""An evaluation for readers: one page that answers to them and that they can send on.

What the page shows is computed here; its script sorts, compares and zooms what is there already.
"""

from __future__ import annotations

from importlib.resources import files

from duskfuse import __version__
from duskfuse.evaluate.report import Html, Page, definitions, paragraph
from duskfuse.evaluate.report_page.browser import browser, worst_and_best
from duskfuse.evaluate.report_page.panels import drift, provenance, speed
from duskfuse.evaluate.report_page.plot import plot
from duskfuse.evaluate.report_page.summary import summary
from duskfuse.evaluate.report_page.wording import arrow, counted, listed
from duskfuse.evaluate.robustness_report import add_robustness
from duskfuse.evaluate.scores import GREY, Evaluation

_ASSETS = "duskfuse.evaluate.report_page"


def evaluation_page(evaluation: Evaluation) -> Page:
    """The report page of the ``evaluate`` verb."""
    page = Page(f"Fusion metrics on {evaluation.data}", lead=_lead(evaluation), stamp=stamp_line(evaluation))
    add_evaluation(page, evaluation)
    if evaluation.robustness is not None:
        add_robustness(page, evaluation.robustness)
    page.section("What the metrics mean", *_meanings(evaluation))
    page.section("How these numbers were made", *provenance(evaluation))
    return page


def add_evaluation(page: Page, evaluation: Evaluation) -> None:
    """Add what was scored to a page: means, plot, single pairs, worst and best, and what else was measured."""
    shown = evaluation.shown
    assets = files(_ASSETS)
    script, style = (assets.joinpath(name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    page.answer_with(script, style)
    page.section("Mean over the pairs", *summary(evaluation))
    found = {
        "Methods over metrics": plot(evaluation),
        "Pair by pair": browser(evaluation, shown) if shown else [],
        "Worst and best pairs": worst_and_best(evaluation, shown),
        "Distance to the reference": drift(evaluation, shown),
        "Time per picture": speed(shown) if shown else [],
    }
    for title, content in found.items():
        if content:
            page.section(title, *content)


def stamp_line(evaluation: Evaluation) -> str:
    """One line that says what the numbers were made with."""
    return (
        f"duskfuse {__version__} · {counted(evaluation.pairs)} of {evaluation.data} · metrics: "
        f"{evaluation.mode} · grey: {GREY} · outputs not stretched"
    )


def _lead(evaluation: Evaluation) -> str:
    methods = [row.name for row in evaluation.methods]
    if not methods:
        return f"What the trivial rules score on {counted(evaluation.pairs)}. No method was given."
    return f"How well {listed(methods)} {'fuses' if len(methods) == 1 else 'fuse'} {counted(evaluation.pairs)}."


def _meanings(evaluation: Evaluation) -> list[Html]:
    terms = [(f"{metric.name} {arrow(metric)}", metric.meaning) for metric in evaluation.metrics]
    intro = paragraph(
        "A is the infrared, B the visible, F the fused picture, all 8-bit grey. Numbers of other tables compare only "
        "where the same definitions were used: SD and VIF on saturating integers, SSIM with the constants of another "
        "range and PSNR 48 dB higher are all in print."
    )
    return [intro, definitions(terms)]
