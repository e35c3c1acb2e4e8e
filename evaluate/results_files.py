"""The files of an evaluation: every value, summaries for spreadsheets, and all of it with its stamp as JSON."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from duskfuse.data.atomic import write_atomically
from duskfuse.evaluate.measurement_files import csv_text
from duskfuse.evaluate.scores import Evaluation

PER_IMAGE_CSV, PER_IMAGE_PARQUET = "per_image.csv", "per_image.parquet"
SUMMARY_CSV, METRICS_JSON = "summary.csv", "metrics.json"
STAMP_KEY = b"duskfuse"
"""Where the stamp of metrics.json stands in the metadata of the Parquet file."""
_SUMMARY_COLUMNS = (
    "method",
    "kind",
    "metric",
    "better",
    "mean",
    "interval_low",
    "interval_high",
    "median",
    "sd",
    "min",
    "max",
    "rank",
    "pairs",
    "undefined",
    "identical",
)


def write_results(evaluation: Evaluation) -> None:
    """Write the four files into the folder of the evaluation, each whole or not at all."""
    out = evaluation.out
    write_atomically(out / PER_IMAGE_CSV, csv_text(_header(evaluation), per_image(evaluation)))
    _write_parquet(evaluation, out / PER_IMAGE_PARQUET, _json(evaluation.stamp()))
    write_atomically(out / SUMMARY_CSV, csv_text(_SUMMARY_COLUMNS, _summaries(evaluation)))
    write_atomically(out / METRICS_JSON, _json(evaluation.to_json()) + "\n")


def per_image(evaluation: Evaluation) -> Iterator[list[str | float]]:
    """One line per pair and row: pair, method, kind, then the metrics, nan where undefined or not there."""
    columns = [metric.name for metric in evaluation.metrics]
    for pair in evaluation.rows[0].scores:
        for row in evaluation.rows:
            scores = row.scores[pair]
            yield [pair, row.name, row.kind.value, *(scores.get(column, float("nan")) for column in columns)]


def _header(evaluation: Evaluation) -> list[str]:
    return ["pair", "method", "kind", *(metric.name for metric in evaluation.metrics)]


def _summaries(evaluation: Evaluation) -> Iterator[list[str | float]]:
    """One line per row and metric."""
    for row in evaluation.rows:
        for metric in evaluation.metrics:
            summary = row.summary(metric.name)
            low, high = summary.interval or (float("nan"), float("nan"))
            yield [
                row.name,
                row.kind.value,
                metric.name,
                "higher" if metric.higher_is_better else "lower",
                summary.mean,
                low,
                high,
                summary.median,
                summary.deviation,
                summary.least,
                summary.most,
                evaluation.ranks[row.name].get(metric.name, float("nan")),
                summary.pairs,
                summary.undefined,
                summary.identical,
            ]


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)


def _write_parquet(evaluation: Evaluation, path: Path, stamp: str) -> None:
    """Undefined values are null, infinite ones stay."""
    import pyarrow
    import pyarrow.parquet

    columns = list(zip(*per_image(evaluation), strict=True))
    texts = [pyarrow.array(column, pyarrow.string()) for column in columns[:3]]
    numbers = [pyarrow.array(column, pyarrow.float64(), from_pandas=True) for column in columns[3:]]
    table = pyarrow.table([*texts, *numbers], names=_header(evaluation))
    stream = io.BytesIO()
    pyarrow.parquet.write_table(table.replace_schema_metadata({STAMP_KEY: stamp.encode()}), stream, compression="zstd")
    write_atomically(path, stream.getvalue())
