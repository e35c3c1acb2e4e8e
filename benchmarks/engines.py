"""What NVIDIA's builder makes of every student: seconds to build and size, by precision and size of the picture.

    python benchmarks/engines.py --out benchmarks/results/engines.json

TensorRT for RTX builds without a GPU (``pip install 'duskfuse[tensorrt-rtx]'``); our own builder drives it. It compiles
for PC graphics cards and measures no kernels, so the seconds say how the networks compare, not how long a Jetson takes.
Processor seconds of the whole process stand beside the clock, since they do not count waiting while other programs have
the cores. Rows that the output holds already are kept, so that a long run can be done in pieces.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import torch

from duskfuse.data.atomic import write_atomically
from duskfuse.data.progress import set_quiet
from duskfuse.export.onnx_graph import DeployedStudent, Precision, build_graph, save_graph, set_properties
from duskfuse.export.quantise import with_qdq
from duskfuse.export.runtime.cuda_memory import Device
from duskfuse.export.runtime.tensorrt_build import build_engine
from duskfuse.students.fake_quantise import QuantisedStudent
from duskfuse.students.zoo import ModelName, load_student

SIZES = ("640x480", "1280x1024")
NO_GPU = Device("no GPU", "0.0", 0, False, 4096)


def main() -> None:
    """Build what is missing in the output, and write it after every student and size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", action="append", choices=list(ModelName), help="by default all with weights")
    parser.add_argument("--size", action="append", help=f"WIDTHxHEIGHT, by default {' and '.join(SIZES)}")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    import tensorrt_rtx

    sys.modules["tensorrt"] = tensorrt_rtx  # its module has the names of TensorRT's
    torch.set_num_threads(1)
    set_quiet(True)
    result = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {"rows": []}
    result |= {"builder": f"TensorRT for RTX {tensorrt_rtx.__version__}", "machine": _machine(), "runs": arguments.runs}
    for student in arguments.student or list(ModelName):
        for size in arguments.size or SIZES:
            if any(row["student"] == student and row["size"] == size for row in result["rows"]):
                continue
            result["rows"] += _rows(student, size, arguments.runs)
            write_atomically(arguments.out, json.dumps(result, indent=1) + "\n")
    _show(result["rows"])


def _rows(student: str, size: str, runs: int) -> list[dict[str, Any]]:
    """One row per precision; the builds take turns, so that a busy machine slows all alike."""
    width, height = map(int, size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        files = _files(student, (height, width), Path(folder))
        measured: dict[Precision, list[tuple[float, float]]] = {precision: [] for precision in files}
        for _ in range(runs):
            for precision, path in files.items():
                measured[precision].append(_seconds(path))
        return [
            {
                "student": str(student),
                "size": size,
                "precision": precision.value,
                "seconds": round(median(clock for clock, _ in measured[precision]), 2),
                "processor_seconds": round(median(processor for _, processor in measured[precision]), 2),
                "all": [[round(value, 3) for value in one] for one in measured[precision]],
                "onnx_bytes": path.stat().st_size,
                "engine_bytes": path.with_suffix(".engine").stat().st_size,
                "load": round(os.getloadavg()[0], 1),
            }
            for precision, path in files.items()
        ]


def _files(name: str, size: tuple[int, int], folder: Path) -> dict[Precision, Path]:
    """The files of a student; INT8 with every convolution quantised, in steps by rule: ranges change nothing here."""
    student, _ = load_student(name)
    quantised = QuantisedStudent(student).eval()
    int8 = build_graph(DeployedStudent(quantised.deployed()), size=size)
    graphs = {
        Precision.FP32: build_graph(DeployedStudent(student), size=size),
        Precision.FP16: build_graph(DeployedStudent(student, half=True), size=size),
        Precision.INT8: with_qdq(int8, dict.fromkeys(quantised.layers, 1 / 127)),
    }
    for precision, graph in graphs.items():
        set_properties(graph, {"precision": precision})
        save_graph(graph, folder / f"{precision}.onnx")
    return {precision: folder / f"{precision}.onnx" for precision in graphs}


def _seconds(path: Path) -> tuple[float, float]:
    """Clock and processor seconds of one build without what an earlier one has learnt."""
    with tempfile.TemporaryDirectory() as timings:
        clock, processor = time.perf_counter(), time.process_time()
        build_engine(path, device=NO_GPU, timing_cache=Path(timings), progress=lambda _: None)
        return time.perf_counter() - clock, time.process_time() - processor


def _machine() -> dict[str, Any]:
    return {
        "cpu": platform.machine(),
        "cores": os.cpu_count(),
        **{name: metadata.version(name) for name in ("onnx", "onnxruntime", "torch")},
    }


def _show(rows: list[dict[str, Any]]) -> None:
    print("| student | size | precision | processor seconds | ONNX, kB | engine, kB |\n|---|---|---|---|---|---|")
    for row in rows:
        sizes = f"{row['onnx_bytes'] / 1000:.0f} | {row['engine_bytes'] / 1000:.0f}"
        print(f"| {row['student']} | {row['size']} | {row['precision']} | {row['processor_seconds']:.2f} | {sizes} |")


if __name__ == "__main__":
    main()
