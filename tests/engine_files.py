"""Small exported files of every precision, and a stand-in device to build their engines on."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from cudart_standin import CudartStandIn
from tensorrt_standin import TensorRT

from duskfuse.export.calibration import Planes
from duskfuse.export.onnx_graph import DeployedStudent, Precision, build_graph, save_graph, set_properties
from duskfuse.export.quantise import quantise
from duskfuse.export.runtime.cuda_memory import Cuda
from duskfuse.students.edge import NanoStudent

SIZE = (48, 64)
"""(height, width) of the files for one size."""


def planes(size: tuple[int, int] = SIZE, seed: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Infrared and luminance, smooth enough to be pictures."""
    rng = np.random.default_rng(seed)
    grid = np.add.outer(np.linspace(0, 3, size[0]), np.linspace(0, 5, size[1]))
    wave, noise = np.sin(grid * rng.uniform(1, 2)), rng.random((2, *size)) * 0.1
    ir, vis_y = (0.5 + 0.35 * wave + noise[0] - 0.05), (0.5 - 0.3 * wave + noise[1] - 0.05)
    return ir.astype(np.float32), vis_y.astype(np.float32)


def write_files(folder: Path) -> dict[str, Path]:
    """fp32, fp16 and int8 for one size, and ``any``: fp32 for any size."""
    torch.manual_seed(0)
    student = NanoStudent().eval()
    size_text = f"{SIZE[1]}x{SIZE[0]}"
    fp32 = build_graph(DeployedStudent(student), size=SIZE)
    models = {
        "fp32": fp32,
        "fp16": build_graph(DeployedStudent(student, half=True), size=SIZE),
        "int8": quantise(student, [Planes(str(seed), *planes(seed=seed)) for seed in range(2)], SIZE)[0],
        "any": build_graph(DeployedStudent(student)),
    }
    for name, model in models.items():
        precision = Precision.FP32 if name == "any" else Precision(name)
        set_properties(model, {"precision": precision, "size": "dynamic" if name == "any" else size_text})
        save_graph(model, folder / f"{name}.onnx")
    return {name: folder / f"{name}.onnx" for name in models}


def forge(path: Path, **properties: str) -> Path:
    """Write other metadata into a copy of a file."""
    model = onnx.load(path)
    set_properties(model, properties)
    changed = path.with_name("forged.onnx")
    save_graph(model, changed)
    return changed


@dataclass
class StandInDevice:
    """One TensorRT release on one stand-in GPU, as the runtime would find them."""

    library: CudartStandIn
    trt: TensorRT
    cuda: Cuda

    @classmethod
    def with_release(
        cls, release: str, patch: pytest.MonkeyPatch, library: CudartStandIn | None = None
    ) -> StandInDevice:
        """Make ``import tensorrt`` give this release."""
        library = library or CudartStandIn()
        trt = TensorRT(release, library)
        patch.setitem(sys.modules, "tensorrt", trt)
        return cls(library, trt, Cuda(library))
