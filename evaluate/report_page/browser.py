"""The browser of single pairs, and the pairs on which a method is worst and best.

Pictures stand in the page as text that the script turns into pictures when their pair is shown, so that a page with
thousands of them opens at once.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from math import isinf, isnan
from typing import Any

from duskfuse.evaluate.metrics import MetricInfo
from duskfuse.evaluate.report import Html, note, paragraph
from duskfuse.evaluate.report_page.embedding import FULL_SIDE, SMALL_SIDE, extremes
from duskfuse.evaluate.report_page.shown_pairs import Detail, ShownPairs
from duskfuse.evaluate.report_page.wording import arrow, counted, number
from duskfuse.evaluate.scores import Evaluation, Kind, Row

_DETAILS = {
    Detail.FULL: "",
    Detail.SMALL: f"Small pictures, {SMALL_SIDE} pixels at most: full detail is kept for the pairs that tell most.",
    Detail.NONE: "This file holds no picture of this pair; its scores are below.",
}


def browser(evaluation: Evaluation, shown: ShownPairs) -> list[Html]:
    """The content of the section."""
    skeleton = files("duskfuse.evaluate.report_page").joinpath("browser.html").read_text(encoding="utf-8")
    pictures = [
        _data(f"pictures-{place}", [base64.b64encode(picture).decode("ascii") for picture in pair.pictures])
        for place, pair in enumerate(shown.pairs)
        if pair.pictures
    ]
    return [
        paragraph(
            "Every fused luminance is shown in the visible picture's colours; the metrics look at the luminance only."
        ),
        Html(skeleton),
        note(_what_is_held(shown)),
        _data("browser-data", _content(evaluation, shown)),
        *pictures,
    ]


def worst_and_best(evaluation: Evaluation, shown: ShownPairs | None) -> list[Html]:
    """For every method and metric the pair with the worst and the one with the best score, as links to its pictures."""
    rows = evaluation.methods or evaluation.trivial[:2]
    places = {name: place for place, name in enumerate(evaluation.rows[0].scores)}
    heads = "".join(f'<th scope="col">{escape(row.name)}</th>' for row in rows)
    lines = []
    for metric in evaluation.metrics:
        cells = "".join(f"<td>{_ends(evaluation, row, metric, places, shown is not None)}</td>" for row in rows)
        lines.append(f'<tr><th scope="row">{escape(metric.name)} {arrow(metric)}</th>{cells}</tr>')
    table = (
        '<div class="scroll" tabindex="0" role="region" aria-label="Worst and best pairs"><table class="extremes">'
        f'<thead><tr><th scope="col">metric</th>{heads}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    )
    link = " A click shows the pair with the method on the right." if shown is not None else ""
    return [Html(table), note(f"Every score is in per_image.csv.{link}")]


def _ends(evaluation: Evaluation, row: Row, metric: MetricInfo, places: dict[str, int], linked: bool) -> str:
    from_worst, from_best = extremes(evaluation, row, metric)
    if not from_worst:
        return "–"
    found = []
    for word, name in (("worst", from_worst[0]), ("best", from_best[0])):
        value = number(row.scores[name][metric.name], metric)
        text = escape(name)
        target = f'href="#browser" data-pair="{places[name]}" data-method="{escape(row.name)}" title="{text}"'
        pair = f"<a {target}>{text}</a>" if linked else f"<span>{text}</span>"
        found.append(f"<div><small>{word}</small>{pair}<span>{value}</span></div>")
    return "".join(found)


def _what_is_held(shown: ShownPairs) -> str:
    full, small, none = (shown.count(detail) for detail in Detail)
    if not small and not none:
        return f"Pictures are scaled down to {FULL_SIDE} pixels on the longer side where they are larger."
    left = f", {counted(none)} without pictures" if none else ""
    return (
        f"To keep the file small, {counted(full)} of {len(shown.pairs)} are held with {FULL_SIDE} pixels on the longer "
        f"side, {small} with {SMALL_SIDE}{left}. At full detail: the darkest, then those on which a method has its "
        "worst or best scores, then others over the range of brightness."
    )


def _content(evaluation: Evaluation, shown: ShownPairs) -> dict[str, Any]:
    """What the script needs: names, metrics, and scores by row, metric and pair."""
    details = list(Detail)
    seen = [place for place, pair in enumerate(shown.pairs) if pair.detail is Detail.FULL]
    return {
        "captions": shown.captions,
        "first": min(seen, key=lambda place: shown.pairs[place].brightness, default=0),
        "details": [_DETAILS[detail] for detail in details],
        "metrics": [
            {"name": m.name, "higher": m.higher_is_better, "meaning": m.meaning, "decimals": m.decimals}
            for m in evaluation.metrics
        ],
        "rows": [{"name": row.name, "trivial": row.kind is Kind.TRIVIAL} for row in evaluation.rows],
        "pairs": [
            {"name": pair.name, "brightness": round(pair.brightness, 1), "detail": details.index(pair.detail)}
            for pair in shown.pairs
        ],
        "scores": [
            [[_score(value) for value in row.values(metric.name)] for metric in evaluation.metrics]
            for row in evaluation.rows
        ],
    }


def _score(value: float) -> float | str | None:
    """Six digits; null where undefined, "inf" where the pictures are identical."""
    if isnan(value):
        return None
    return "inf" if isinf(value) else float(f"{value:.6g}")


def _data(name: str, content: dict[str, Any] | Sequence[str]) -> Html:
    """Data for the script; no text of it can end the element or begin a comment."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Html(f'<script type="application/json" id="{name}">{text}</script>')
