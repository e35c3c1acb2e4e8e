"""The first section of the page: means with intervals and ranks, what copying wins, and which differences are shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import combinations
from math import isfinite, isnan

from duskfuse.evaluate.metrics import MetricInfo
from duskfuse.evaluate.report import COLOURS, Html, definitions, folded, join, note, paragraph, subheading
from duskfuse.evaluate.report_page.wording import arrow, counted, number
from duskfuse.evaluate.scores import Evaluation, Row
from duskfuse.evaluate.statistics import FEWEST_PAIRS, LEVEL, PairedTest, Summary

BEATEN = "†"
WHY_TRIVIAL = (
    "The trivial rows are what copying a source, averaging or taking the brighter pixel scores. Many metrics reward "
    "them, so a method's number means something only beside theirs."
)


def summary(evaluation: Evaluation) -> list[Html]:
    """The content of the section."""
    return [
        _table(evaluation),
        note(" ".join(_notes(evaluation))),
        _what_copying_wins(evaluation),
        *_tests(evaluation),
    ]


def colour(row: int) -> str:
    """The colour of a method, by its place among the methods."""
    return f"var(--c{row % COLOURS})"


def _table(evaluation: Evaluation) -> Html:
    heads = ['<th scope="col">method</th>']
    if evaluation.methods:
        tip = f"mean of the ranks in {counted(len(evaluation.chosen), 'metric')}, methods and trivial rows apart"
        heads.append(f'<th scope="col" class="n" data-better="lower" data-tip="{tip}">mean rank&nbsp;↓</th>')
    heads += [_head(metric) for metric in evaluation.metrics]
    methods = "".join(_row(evaluation, row, colour(place)) for place, row in enumerate(evaluation.methods))
    trivial = "".join(_row(evaluation, row) for row in evaluation.trivial)
    title = f'<tr class="heading"><th colspan="{len(heads)}" scope="rowgroup">trivial rows</th></tr>'
    return Html(
        '<div class="scroll" tabindex="0" role="region" aria-label="Mean scores">'
        f'<table class="scores" data-sortable data-view="mean"><thead><tr>{"".join(heads)}</tr></thead>'
        f'{f"<tbody>{methods}</tbody>" if methods else ""}<tbody class="aside">{title}{trivial}</tbody></table></div>'
    )


def _head(metric: MetricInfo) -> str:
    better = "higher" if metric.higher_is_better else "lower"
    return (
        f'<th scope="col" class="n" data-better="{better}" data-tip="{escape(metric.meaning)}">'
        f"{escape(metric.name)}&nbsp;{arrow(metric)}</th>"
    )


def _row(evaluation: Evaluation, row: Row, key: str = "") -> str:
    dot = f'<i class="key" style="background: {key}"></i>' if key else ""
    cells = [f'<th scope="row">{dot}{escape(row.name)}</th>']
    if evaluation.methods:
        rank = evaluation.mean_rank(row.name)
        cells.append(f'<td class="n" data-sort="{_sorted_by(rank)}">{"–" if isnan(rank) else f"{rank:.1f}"}</td>')
    cells += [_cell(evaluation, row, metric) for metric in evaluation.metrics]
    return f"<tr>{''.join(cells)}</tr>"


def _cell(evaluation: Evaluation, row: Row, metric: MetricInfo) -> str:
    found = row.summary(metric.name)
    is_best = row.name in evaluation.best(metric)
    mark = f"<sup>{BEATEN}</sup>" if row.name in evaluation.better_trivial(metric) else ""
    interval = "" if found.interval is None else "–".join(number(bound, metric) for bound in found.interval)
    ends = "" if not isfinite(found.median) else f"{number(found.least, metric)}…{number(found.most, metric)}"
    rank = evaluation.ranks[row.name].get(metric.name, float("nan"))
    tip = f' data-tip="{escape(_left_out(found))}"' if _left_out(found) else ""
    return (
        f'<td class="n{" best" if is_best else ""}" data-sort="{_sorted_by(found.mean)}"{tip}>'
        f'<span class="mean">{number(found.mean, metric)}{mark}{_small(interval)}</span>'
        f'<span class="rank">{"–" if isnan(rank) else f"{rank:g}"}</span>'
        f'<span class="spread">{number(found.median, metric)}{_small(ends)}</span>'
        f"{'<b class=hidden>best</b>' if is_best else ''}</td>"
    )


def _sorted_by(value: float) -> str:
    return "" if isnan(value) else ("Infinity" if value == float("inf") else repr(value))


def _small(text: str) -> str:
    return f"<small>{text}</small>" if text else ""


def _notes(evaluation: Evaluation) -> Iterator[str]:
    yield "↑ higher is better, ↓ lower is better."
    if evaluation.pairs >= FEWEST_PAIRS:
        yield "Small: 95 % bootstrap interval of the mean over the pairs."
    if len(evaluation.methods) > 1:
        yield "Highlighted: the best method."
    if any(evaluation.better_trivial(metric) for metric in evaluation.metrics):
        yield f"{BEATEN} better than every method."
    columns = [(row, metric, row.summary(metric.name)) for row in evaluation.rows for metric in evaluation.metrics]
    if any(isnan(found.mean) for _, _, found in columns):
        yield "– undefined."
    partial = [
        f"{metric.name} of {row.name} {_left_out(found)}"
        for row, metric, found in columns
        if _left_out(found) and isfinite(found.mean)
    ]
    if partial:
        yield f"Means leave out: {'; '.join(partial)}."
    yield from evaluation.notes


def _left_out(found: Summary) -> str:
    parts = []
    if found.undefined:
        parts.append(f"undefined on {counted(found.undefined)}")
    if found.identical:
        parts.append(f"∞ on {counted(found.identical)} (identical pictures)")
    return ", ".join(parts)


def _what_copying_wins(evaluation: Evaluation) -> Html:
    """Which metrics a trivial row wins against every method."""
    won: dict[str, list[str]] = {}
    for metric in evaluation.metrics:
        for name in evaluation.better_trivial(metric):
            won.setdefault(name, []).append(metric.name)
    if not won:
        return paragraph(WHY_TRIVIAL)
    count = len({metric for metrics in won.values() for metric in metrics})
    text = (
        f"In {count} of {counted(len(evaluation.metrics), 'metric')} a trivial row beats every method. "
        "On their own these do not show good fusion:"
    )
    rows = definitions((name, ", ".join(metrics)) for name, metrics in won.items())
    return Html(f'<div class="callout">{paragraph(text)}{rows}{note(WHY_TRIVIAL)}</div>')


def _tests(evaluation: Evaluation) -> list[Html]:
    methods = evaluation.methods
    if len(methods) < 2:
        return []
    title = subheading("Which differences are shown", "Wilcoxon's signed-rank test pair by pair, Holm's correction")
    if all(test.p is None for test in evaluation.tests):
        few = f"With {counted(evaluation.pairs)}, fewer than {FEWEST_PAIRS}, no difference between methods is claimed."
        return [title, paragraph(few)]
    if not any(test.better for test in evaluation.tests):
        none = f"None of {counted(len(evaluation.tests), 'difference')} is shown over {counted(evaluation.pairs)}."
        return [title, paragraph(none), folded("Every difference", _differences(evaluation))]
    told = f"Metrics of {len(evaluation.chosen)} in which the row is better : in which the column is better"
    meaning = (
        f"{told}; the rest is not shown at {LEVEL:.0%}. Pairs are taken as independent: frames of one video are not."
    )
    single = join([_differences(evaluation), note("Mean of first − second. Bold: shown. Rest the pointer for p.")])
    return [title, _wins(evaluation), note(meaning), folded("Every difference", single)]


def _wins(evaluation: Evaluation) -> Html:
    names = [row.name for row in evaluation.methods]
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    rows = []
    for first in names:
        cells = []
        for second in names:
            mine, theirs = (_won(evaluation.tests, *pair) for pair in ((first, second), (second, first)))
            tip = f"{first} better: {_or_none(mine)}. {second} better: {_or_none(theirs)}."
            best = ' class="best"' if len(mine) > len(theirs) else ""
            same = first == second
            cells.append(
                "<td></td>" if same else f'<td{best} data-tip="{escape(tip)}">{len(mine)} : {len(theirs)}</td>'
            )
        rows.append(f'<tr><th scope="row">{escape(first)}</th>{"".join(cells)}</tr>')
    return Html(
        '<div class="scroll" tabindex="0" role="region" aria-label="Differences shown"><table class="wins">'
        f'<thead><tr><th scope="col">better than</th>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _won(tests: Sequence[PairedTest], better: str, other: str) -> list[str]:
    return [test.metric for test in tests if test.better == better and other in (test.first, test.second)]


def _or_none(metrics: list[str]) -> str:
    return ", ".join(metrics) or "none"


def _differences(evaluation: Evaluation) -> Html:
    heads = "".join(f'<th scope="col" class="n">{escape(metric.name)}</th>' for metric in evaluation.chosen)
    decimals = {metric.name: metric.decimals for metric in evaluation.chosen}
    rows = []
    for first, second in combinations([row.name for row in evaluation.methods], 2):
        found = [test for test in evaluation.tests if (test.first, test.second) == (first, second)]
        cells = "".join(_difference(test, decimals[test.metric]) for test in found)
        rows.append(f'<tr><th scope="row">{escape(first)} − {escape(second)}</th>{cells}</tr>')
    return Html(
        '<div class="scroll" tabindex="0" role="region" aria-label="Every difference"><table class="scores">'
        f'<thead><tr><th scope="col">first − second</th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _difference(test: PairedTest, decimals: int) -> str:
    value = "–" if isnan(test.difference) else f"{test.difference:+.{decimals}f}"
    p = "too few pairs" if test.p_corrected is None else f"corrected p {_p(test.p_corrected)}, {counted(test.pairs)}"
    tip = f"{p}; {test.better} is better" if test.better else p
    return f'<td class="n{" shown" if test.better else ""}" data-tip="{escape(tip)}">{value}</td>'


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
