"""Compare a written file, run by ONNX Runtime, with the PyTorch model it was made from.

The reference is always the float32 model. Limits:

- fp32: no pixel differs by more than 1e-4; files that take any size are run at two sizes, one of them odd.
- fp16: at least 55 dB between the float pictures.
- int8: at least 40 dB between the pictures rounded to 8 bit, which is what the user sees.

PSNR is ``10·log10(1 / MSE)`` per picture; the worst picture decides. Equal pictures count as 99 dB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from duskfuse.data.errors import VerificationError
from duskfuse.evaluate.fusers import OnnxFuser, TorchFuser, size_text
from duskfuse.export.calibration import Planes, cropped, evenly
from duskfuse.export.onnx_graph import Precision

MOST_ERROR_FP32 = 1e-4
LEAST_PSNR_DB = {Precision.FP16: 55.0, Precision.INT8: 40.0}
PSNR_OF_EQUAL_DB = 99.0
PICTURES = 6
ODD_CROP = (189, 251)
"""(height, width) of the second size at which files that take any size are run."""


@dataclass(frozen=True)
class Verification:
    """How close a file comes to its model."""

    pictures: int
    sizes: tuple[str, ...]
    """Widths and heights that were run."""
    largest_error: float
    """Largest difference of a pixel, in [0, 1]."""
    worst_psnr_db: float
    mean_psnr_db: float
    rule: str
    """The limit that was held."""


class Reference:
    """The pictures a model makes of the check pairs, computed once and compared with every file."""

    def __init__(self, student: nn.Module, pairs: Sequence[Planes], *, any_size: bool) -> None:
        chosen = evenly(pairs, PICTURES)
        odd = [cropped(pair, ODD_CROP) for pair in evenly(pairs, 2)] if any_size else []
        self.pairs = [*chosen, *odd]
        fuser = TorchFuser(student, "reference")
        self.pictures = [pair.fused_by(fuser) for pair in self.pairs]

    def verify(self, path: Path, precision: Precision) -> Verification:
        """Run the file at ``path``; raise VerificationError where it breaks the limit of its precision."""
        result = self.compare(path, precision)
        if not _holds(result, precision):
            raise VerificationError(
                f"{path.name} differs from its model: largest error {result.largest_error:.2g}, "
                f"worst picture {result.worst_psnr_db:.1f} dB",
                rule=result.rule,
                remedy=_REMEDY[precision],
            )
        return result

    def compare(self, path: Path, precision: Precision) -> Verification:
        """Run the file at ``path`` and measure how far it is from the model."""
        fuser = OnnxFuser(path)
        fused = [pair.fused_by(fuser) for pair in self.pairs]
        errors = [float(np.abs(one - other).max()) for one, other in zip(fused, self.pictures, strict=True)]
        psnr = [_seen_psnr(one, other, precision) for one, other in zip(fused, self.pictures, strict=True)]
        return Verification(
            pictures=len(fused),
            sizes=tuple(dict.fromkeys(size_text(picture.shape) for picture in fused)),
            largest_error=float(np.max(errors)),  # unlike max(), NaN wins, and no limit holds for NaN
            worst_psnr_db=float(np.min(psnr)),
            mean_psnr_db=float(np.mean(psnr)),
            rule=_rule(precision),
        )


_REMEDY = {
    Precision.FP32: "this is a fault of the exporter: please report it with the versions from `duskfuse doctor`",
    Precision.FP16: "the weights may overflow in half precision: export fp32, or train with weight decay",
    Precision.INT8: "calibrate with pictures of your own cameras (--calibration FOLDER), or export fp16",
}


def _rule(precision: Precision) -> str:
    if precision is Precision.FP32:
        return f"largest error at most {MOST_ERROR_FP32:g}"
    kind = "8-bit" if precision is Precision.INT8 else "float"
    return f"every {kind} picture at least {LEAST_PSNR_DB[precision]:g} dB"


def _holds(result: Verification, precision: Precision) -> bool:
    if precision is Precision.FP32:
        return result.largest_error <= MOST_ERROR_FP32
    return result.worst_psnr_db >= LEAST_PSNR_DB[precision]


def _seen_psnr(one: NDArray[np.float32], other: NDArray[np.float32], precision: Precision) -> float:
    if precision is Precision.INT8:
        return psnr_db(np.rint(one * 255) / 255, np.rint(other * 255) / 255)
    return psnr_db(one, other)


def psnr_db(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """Peak signal-to-noise ratio of two pictures in [0, 1], in dB, at most 99 (equal pictures)."""
    error = float(np.mean(np.square(one.astype(np.float64) - other.astype(np.float64))))
    return PSNR_OF_EQUAL_DB if error == 0 else float(np.minimum(PSNR_OF_EQUAL_DB, -10 * np.log10(error)))
