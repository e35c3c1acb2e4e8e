"""What INT8 costs a student, layer by layer, beside its files: a JSON file for programs and a table for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from duskfuse.data.atomic import write_atomically
from duskfuse.students.int8_drift import Drift

DRIFT_FILE = "int8-drift.json"
DRIFT_PAGE = "int8-drift.md"

_COLUMNS = (
    "layer",
    "kind",
    "MACs",
    "runs in",
    "largest weight",
    "input range",
    "alone, mean dB",
    "alone, worst dB",
    "SNR of its output, dB",
)
_LEGEND = (
    "*Alone* is the PSNR of the float picture beside the one made with only that convolution in INT8, over {pictures} "
    "trial pictures: low values name the layers to leave in float or to train for. The SNR is that of the layer's "
    "output when all chosen layers are in INT8, so that it falls where errors gather."
)


def write_drift(out: Path, drifts: Mapping[str, Drift]) -> None:
    """Write the drift of every INT8 file of a bundle, by file name."""
    plain = {name: asdict(drift) | {"int8_macs_share": drift.int8_macs_share} for name, drift in drifts.items()}
    write_atomically(out / DRIFT_FILE, json.dumps(plain, indent=2, allow_nan=False))
    write_atomically(out / DRIFT_PAGE, "\n".join(_page(name, drift) for name, drift in drifts.items()))


def summary(drift: Drift) -> str:
    """The choice in a line."""
    count = len(drift.layers)
    return (
        f"INT8: {count - len(drift.float_layers)} of {count} convolutions with {drift.int8_macs_share:.0%} of the "
        f"multiplications; trial pictures {drift.mean_db:.1f} dB, the worst {drift.worst_db:.1f} dB"
    )


def _page(name: str, drift: Drift) -> str:
    rows = [
        (
            entry.layer,
            entry.kind,
            f"{entry.macs_share:.1%}",
            "INT8" if entry.int8 else "float",
            f"{entry.largest_weight:.3g}",
            f"{entry.input_low:.3g} to {entry.input_high:.3g}",
            f"{entry.alone_db:.1f}",
            f"{entry.alone_worst_db:.1f}",
            f"{entry.snr_db:.1f}",
        )
        for entry in drift.layers
    ]
    lines = [_COLUMNS, ("---",) * len(_COLUMNS), *rows]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"# {name}\n\n{summary(drift)}.\n\n{table}\n\n{_LEGEND.format(pictures=drift.pictures)}\n"
