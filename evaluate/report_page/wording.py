"""How numbers, counts and directions are written on the page."""

from __future__ import annotations

from math import isinf, isnan

from duskfuse.evaluate.metrics import MetricInfo


def arrow(metric: MetricInfo) -> str:
    """Which way is better."""
    return "↑" if metric.higher_is_better else "↓"


def number(value: float, metric: MetricInfo) -> str:
    """Write a score: – where it is undefined, ∞ where the pictures are identical."""
    if isnan(value):
        return "–"
    return "∞" if isinf(value) else f"{value:.{metric.decimals}f}"


def counted(count: int, what: str = "pair") -> str:
    """Write a count.

    >>> counted(1), counted(3, "method")
    ('1 pair', '3 methods')
    """
    return f"1 {what}" if count == 1 else f"{count} {what}s"


def listed(names: list[str]) -> str:
    """Write names in a row.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
