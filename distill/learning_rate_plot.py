"""The plot of a learning rate range test: losses over the logarithm of the rate."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

HEIGHT, WIDTH = 480, 800
LEFT, RIGHT, TOP, BOTTOM = 80, 24, 44, 56
INK, FAINT, DOT, LINE, MARK = (40, 40, 40), (225, 225, 225), (170, 185, 205), (30, 90, 180), (200, 80, 30)
HEADROOM = 1.5
"""The vertical axis ends at so many times the first smoothed loss: the explosion itself tells nothing."""


def plot_rates(
    rates: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    suggestion: float | None,
    title: str,
) -> NDArray[np.uint8]:
    """Dots for losses, a line for their running mean, a mark at the suggestion; uint8 ``[H, W, 3]`` RGB."""
    picture = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    decades = math.floor(math.log10(rates[0])), math.ceil(math.log10(rates[-1]))
    high = HEADROOM * smoothed[0]
    low = min(0.0, min(smoothed))

    def point(rate: float, loss: float) -> tuple[int, int]:
        across = (math.log10(rate) - decades[0]) / max(decades[1] - decades[0], 1)
        up = (min(loss, high) - low) / max(high - low, 1e-12)
        return round(LEFT + across * (WIDTH - LEFT - RIGHT)), round(HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM))

    for decade in range(decades[0], decades[1] + 1):
        x, bottom = point(10.0**decade, low)
        cv2.line(picture, (x, TOP), (x, bottom), FAINT, 1)
        _text(picture, f"1e{decade}" if decade else "1", (x - 16, bottom + 20))
    for part in range(5):
        loss = low + part / 4 * (high - low)
        x, y = point(10.0 ** decades[0], loss)
        cv2.line(picture, (x, y), (WIDTH - RIGHT, y), FAINT, 1)
        _text(picture, f"{loss:.3g}", (14, y + 4))
    for rate, loss in zip(rates, losses, strict=True):
        cv2.circle(picture, point(rate, loss), 2, DOT, -1, cv2.LINE_AA)
    curve = np.array([point(rate, loss) for rate, loss in zip(rates, smoothed, strict=True)], np.int32)
    cv2.polylines(picture, [curve], False, LINE, 2, cv2.LINE_AA)
    if suggestion is not None:
        x, bottom = point(max(suggestion, 10.0 ** decades[0]), low)
        cv2.line(picture, (x, TOP), (x, bottom), MARK, 1, cv2.LINE_AA)
        _text(picture, f"suggested {suggestion:.2g}", (x + 6, TOP + 16), MARK)
    _text(picture, title, (LEFT, 26))
    _text(picture, "learning rate; dots: loss of an update, line: running mean", (LEFT, HEIGHT - 12))
    return picture


def _text(picture: NDArray[np.uint8], text: str, at: tuple[int, int], colour: tuple[int, int, int] = INK) -> None:
    cv2.putText(picture, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, 1, cv2.LINE_AA)
