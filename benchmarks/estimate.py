"""How wrong the latency estimates are on published measurements, and the constants fitted on these.

    python benchmarks/estimate.py --out benchmarks/results/estimate.json
    python benchmarks/estimate.py --export     # writes estimate_anchors.json again: the layers of the networks

Nothing is measured here: every latency is quoted with its source. A network counts as an anchor where its layers are
known, so that they can be estimated one by one; each is also estimated with constants fitted on the others alone
(leave one out), and on the networks of other families alone: ResNets say much of one another. YOLO11 is published
with its operations only: it gives the INT8 share of `PUBLISHED` and a check of the efficiency, and is no anchor.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from duskfuse.export.estimate.fit import Latency, fit_published
from duskfuse.export.estimate.kernels import Kernel, KernelKind, read_kernels
from duskfuse.export.estimate.modules import module_named
from duskfuse.export.estimate.roofline import BAND, PUBLISHED, Constants, kernel_times
from duskfuse.export.onnx_graph import Precision

ANCHORS = Path(__file__).parent / "estimate_anchors.json"
TORCH2TRT = "torch2trt, benchmarks/JETSON_XAVIER.md"
NANOSAM = "nanosam, README.md; AGX Orin without its size: taken as 64GB; without the layers behind the ResNet"
ULTRALYTICS = "Ultralytics, docs/en/guides/nvidia-jetson.md (v8.3.51); times end to end through their predictor"


@dataclass(frozen=True)
class Published:
    """A published latency, batch 1, FP16."""

    network: str
    side: int
    module: str
    ms: float
    source: str


PUBLISHED_LATENCIES = (
    Published("resnet18", 224, "agx-xavier", 1.64, TORCH2TRT),
    Published("resnet34", 224, "agx-xavier", 2.79, TORCH2TRT),
    Published("resnet50", 224, "agx-xavier", 3.37, TORCH2TRT),
    Published("vgg16", 224, "agx-xavier", 7.46, TORCH2TRT),
    Published("mobilenet_v2", 224, "agx-xavier", 1.67, TORCH2TRT),
    Published("densenet121", 224, "agx-xavier", 13.0, TORCH2TRT),
    Published("resnet18", 1024, "agx-orin-64gb", 4.2, NANOSAM),
)
YOLO11_GFLOPS = {"n": 6.5, "s": 21.5, "m": 68.0, "x": 195.0}
YOLO11_MS = {
    ("orin-nano-8gb-super", "fp16"): {"n": 4.91, "s": 7.30, "m": 13.99, "x": 32.94},
    ("orin-nano-8gb-super", "int8"): {"n": 3.91, "s": 5.25, "m": 9.58, "x": 20.72},
    ("orin-nx-16gb", "fp16"): {"n": 4.85, "s": 7.55, "m": 14.45, "x": 35.99},
    ("orin-nx-16gb", "int8"): {"n": 4.37, "s": 5.63, "m": 10.19, "x": 22.32},
}


def main() -> None:
    """Fit, estimate and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--export", action="store_true", help="read the layers from torchvision's networks again")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.export:
        rows = [{**asdict(anchor), "kernels": _packed(exported_kernels(anchor))} for anchor in PUBLISHED_LATENCIES]
        lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
        ANCHORS.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    text = json.dumps(result(), indent=1)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    print(text)


def result() -> dict[str, Any]:
    """All estimates beside what was published."""
    anchors = load_anchors()
    fitted = fit_published([latency for _, latency in anchors])
    rows = [_row(index, anchors, fitted) for index in range(len(anchors))]
    return {
        "label": "estimates beside published latencies; nothing was measured here",
        "constants": asdict(PUBLISHED),
        "constants_fitted_now": asdict(fitted),
        "anchors": rows,
        "within_band": {
            "band": BAND,
            "anchors": len(rows),
            **{
                key: sum(1 / BAND <= row[key]["of_published"] <= BAND for row in rows)
                for key in ("fit", "leave_one_out", "leave_family_out")
            },
        },
        "yolo11": yolo11(),
    }


def load_anchors() -> list[tuple[Published, Latency]]:
    """The published latencies with the kernels of their networks."""
    rows = json.loads(ANCHORS.read_text(encoding="utf-8"))
    anchors = []
    for row in rows:
        kernels = tuple(_unpacked(row.pop("kernels")))
        anchor = Published(**row)
        anchors.append((anchor, Latency(kernels, module_named(anchor.module), anchor.ms, 0.2)))
    return anchors


def exported_kernels(anchor: Published) -> tuple[Kernel, ...]:
    """Kernels of torchvision's network, with random weights: these do not change the layers."""
    import onnx
    import torch
    import torchvision

    network = getattr(torchvision.models, anchor.network)(weights=None).eval()
    if anchor.source == NANOSAM:
        network = torch.nn.Sequential(*list(network.children())[:-2])  # an encoder has no classifier
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file, picture = Path(folder) / "network.onnx", torch.zeros(1, 3, anchor.side, anchor.side)
        torch.onnx.export(network, (picture,), file, opset_version=17, dynamo=False)
        return read_kernels(onnx.load(file), Precision.FP16).kernels


def yolo11() -> list[dict[str, Any]]:
    """Time per operation between YOLO11's smallest and largest size, where the fixed time of the predictor cancels."""
    rows = []
    for (name, precision), ms in YOLO11_MS.items():
        module = module_named(name)
        per_gflop = (ms["x"] - ms["n"]) / (YOLO11_GFLOPS["x"] - YOLO11_GFLOPS["n"])
        peak = module.int8_tops if precision == "int8" else module.fp16_tflops
        share = PUBLISHED.dense_efficiency * (PUBLISHED.int8_of_fp16 if precision == "int8" else 1)
        rows.append(
            {
                "module": name,
                "precision": precision,
                "published_ms": ms,
                "ms_per_gflop": per_gflop,
                "share_of_peak": 1 / (per_gflop * peak),
                "estimated_ms_per_gflop_if_all_compute": 1 / (share * peak),
                "source": ULTRALYTICS,
            }
        )
    return rows


def _row(index: int, anchors: Sequence[tuple[Published, Latency]], fitted: Constants) -> dict[str, Any]:
    anchor, latency = anchors[index]
    others = [other for position, (_, other) in enumerate(anchors) if position != index]
    strangers = [other for each, other in anchors if _family(each) != _family(anchor)]
    times = kernel_times(latency.kernels, latency.module, PUBLISHED)
    return {
        **asdict(anchor),
        "kernels": len(latency.kernels),
        "gmacs": sum(kernel.macs for kernel in latency.kernels) / 1e9,
        "shares": times.shares(),
        "fit": _beside(latency, fitted),
        "leave_one_out": _beside(latency, fit_published(others)),
        "leave_family_out": _beside(latency, fit_published(strangers)),
    }


def _family(anchor: Published) -> str:
    return anchor.network.rstrip("0123456789")


def _beside(latency: Latency, constants: Constants) -> dict[str, float]:
    ms = kernel_times(latency.kernels, latency.module, constants).total
    return {"estimate_ms": ms, "of_published": ms / latency.ms, "log2_error": math.log2(ms / latency.ms)}


def _packed(kernels: Iterable[Kernel]) -> list[list[Any]]:
    return [[kernel.kind, kernel.macs, kernel.padded_macs, kernel.bytes] for kernel in kernels]


def _unpacked(rows: Iterable[Sequence[Any]]) -> Iterable[Kernel]:
    for index, (kind, macs, padded, size) in enumerate(rows):
        yield Kernel(str(index), KernelKind(kind), False, macs, padded, size)


if __name__ == "__main__":
    main()
