"""The page of a training run: its curves are those of the run's own records, and absent where nothing was measured."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

from duskfuse.run_page import write_run_page


def record(batch: int, **measured: Any) -> dict[str, Any]:
    """One line of metrics.jsonl; every third batch comes late."""
    return {
        "batch": batch,
        "phase": "only",
        "step": "student" if batch % 2 else "teacher",
        "owner": "student" if batch % 2 else "teacher",
        "loss": 4.0,
        "terms": {"source_mse": 1.0, "gradient_max": 1.5},
        "lr": 1e-3,
        "gradient_norm": 2.0,
        "psnr_to_reference": None,
        "correction_ratio": None,
        "seconds": 1.0,
        "waiting_seconds": 0.75 if batch % 3 == 0 else 0.0,
        **measured,
    }


def charts_of(tmp_path: Path, records: list[dict[str, Any]]) -> tuple[str, list[str]]:
    """The page of a run with these records, and the titles of its charts in order."""
    (tmp_path / "environment.json").write_text(json.dumps({"duskfuse": "0", "torch": "0", "device": "cpu"}))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in records))
    page = write_run_page(tmp_path).read_text()
    return page, [unescape(label) for label in re.findall(r'aria-label="([^"]*) over batch"', page)]


def test_what_was_not_measured_is_not_drawn(tmp_path: Path) -> None:
    page, charts = charts_of(tmp_path, [record(number) for number in range(30)])
    terms = "weighted loss and terms before their weights"
    assert charts == [terms, terms, "share of the time waiting for data, %"]
    assert "30 updates in 30 s, 25 % of the time waiting for data" in page


def test_a_look_ahead_and_term_gradients_are_drawn_where_they_were_measured(tmp_path: Path) -> None:
    records = [record(number) for number in range(30)]
    for number in range(1, 30, 2):
        records[number] |= {"correction_ratio": 0.25}
    for number in range(0, 30, 4):  # of the teacher alone, and one of its terms came in later
        norms = {"source_mse": 3.0} | ({"gradient_max": 0.5} if number > 8 else {})
        records[number] |= {"term_gradient_norms": norms, "gradient_norm": None if number == 4 else 2.0}
    page, charts = charts_of(tmp_path, records)
    terms, gradients = "weighted loss and terms before their weights", "norm of the gradient of the loss and of each"
    assert charts[0] == charts[2] == terms
    assert charts[1].startswith(gradients)
    assert charts[3].startswith("norm of what the look-ahead adds")
    assert len(charts) == 5
    drawn = page[page.index(gradients) : page.index("look-ahead")]
    assert re.findall(r"</i>([^<]*)</span>", drawn)[:3] == ["loss", "source_mse", "gradient_max"]


def test_a_run_whose_gradients_all_overflowed_has_a_page(tmp_path: Path) -> None:
    measured = {"gradient_norm": None, "term_gradient_norms": {"source_mse": 1.0}}
    page, _ = charts_of(tmp_path, [record(number, **measured) for number in range(2)])
    assert "loss (no finite value)" in page
