"""How close INT8 comes to float: every packaged student, prepared without training and fine-tuned, on held-out pairs.

    python benchmarks/int8.py --val VAL --calibration PAIRS --train PAIRS --out benchmarks/results/int8.json

`post_training` is what `duskfuse export` does; `fine_tuned` adds `duskfuse distill --recipe qat`; `plain` is symmetric
MinMax quantisation of every convolution without equalised channels or corrected biases, for comparison. Files run in
ONNX Runtime on whole pictures. PSNR and SSIM are those of 8-bit pictures beside the float student as it was packaged,
`ssim_drop` is what the fusion metric SSIM (mean over both sources) loses. A student that stands in --out already keeps
its row unless it is named by --student.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from duskfuse.data.layout import find_pairs
from duskfuse.data.pair_files import read_pair
from duskfuse.data.progress import set_quiet
from duskfuse.distill.distill import distill
from duskfuse.evaluate.fusers import OnnxFuser
from duskfuse.evaluate.metrics import SourceStatistics, fusion_metrics
from duskfuse.export.calibration import Planes, calibration_pairs
from duskfuse.export.onnx_graph import DeployedStudent, build_graph, save_graph
from duskfuse.export.quantise import quantise, with_qdq
from duskfuse.export.runtime.fuser import luminance
from duskfuse.students.fake_quantise import QuantisedStudent
from duskfuse.students.int8_drift import Drift, input_ranges, scales_of
from duskfuse.students.zoo import ModelName, load_student

Plane = NDArray[np.float32]


def main() -> None:
    """Measure the students named, or all, and write the result after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--val", type=Path, required=True, help="pairs to measure on")
    parser.add_argument("--calibration", type=Path, required=True, help="pairs to calibrate with")
    parser.add_argument("--train", type=Path, required=True, help="pairs to fine-tune with")
    parser.add_argument("--student", action="append", choices=list(ModelName))
    parser.add_argument("--set", action="append", default=[], help="changes of the recipe qat")
    parser.add_argument("--no-fine-tuning", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    set_quiet(True)
    results: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {"students": {}}
    held_out = [_whole(files) for files in find_pairs(arguments.val)]
    calibration = calibration_pairs(arguments.calibration, None)
    for name in arguments.student or [name for name in ModelName if name not in results["students"]]:
        rows = {"plain": _plain(name, calibration, held_out), "post_training": _prepared(name, calibration, held_out)}
        if not arguments.no_fine_tuning:
            rows["fine_tuned"] = _fine_tuned(name, arguments.train, arguments.set, calibration, held_out)
        results["students"][name] = rows
        results |= {"pictures": len(held_out), "calibration_pairs": len(calibration)}
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")
        for way, row in rows.items():
            print(name, way, {key: value for key, value in row.items() if key not in ("psnr_db", "drift")}, flush=True)


def _plain(name: str, calibration: Sequence[Planes], held_out: Sequence[Planes]) -> dict[str, Any]:
    student, _ = load_student(name)
    network = QuantisedStudent(student).eval()
    sources = [tuple(torch.from_numpy(plane) for plane in pair.feeds().values())[::-1] for pair in calibration]
    network.quantise(scales_of(input_ranges(network, sources)))  # type: ignore[arg-type]
    return _measured(student, with_qdq(build_graph(DeployedStudent(network.deployed())), network.scales), held_out)


def _prepared(name: str, calibration: Sequence[Planes], held_out: Sequence[Planes]) -> dict[str, Any]:
    student, _ = load_student(name)
    model, drift = quantise(student, calibration, None)
    return _measured(student, model, held_out) | _chosen(drift)


def _fine_tuned(
    name: str, train: Path, changes: Sequence[str], calibration: Sequence[Planes], held_out: Sequence[Planes]
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        given = [f"student.architecture={name}", *changes]
        report = distill(train, out=out, recipe="qat", changes=given, init=[Path(name)])
        tuned, card = load_student(report.weights["student"])
    model, drift = quantise(tuned, calibration, None, card.int8_scales)
    spent = {"updates": report.batches, "seconds_per_update": report.seconds_per_batch["student"]}
    return _measured(load_student(name)[0], model, held_out) | _chosen(drift) | spent


def _chosen(drift: Drift) -> dict[str, Any]:
    return {"float_layers": drift.float_layers, "layers": len(drift.layers), "int8_macs_share": drift.int8_macs_share}


def _measured(student: nn.Module, model: onnx.ModelProto, held_out: Sequence[Planes]) -> dict[str, Any]:
    """The INT8 file beside the float student on every held-out pair."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        save_graph(model, path)
        size, fuser = path.stat().st_size, OnnxFuser(path, threads=1)
        psnr, alike, drops = [], [], []
        for pair in held_out:
            feeds = {key: torch.from_numpy(value) for key, value in pair.feeds().items()}
            with torch.inference_mode():
                wanted = _seen(student(feeds["vis_y"], feeds["ir"]).y[0, 0].numpy())
            made = _seen(fuser.fuse(pair.ir, pair.vis))
            psnr.append(float(min(99.0, -10 * np.log10(max(np.mean(np.square(made - wanted)), 1e-12)))))
            alike.append(_ssim(made, wanted, wanted))
            drops.append(_ssim(wanted, pair.ir, pair.vis) - _ssim(made, pair.ir, pair.vis))
    return {
        "mean_db": float(np.mean(psnr)),
        "worst_db": min(psnr),
        "ssim_to_float": float(np.mean(alike)),
        "worst_ssim_to_float": min(alike),
        "ssim_drop": float(np.mean(drops)),
        "worst_ssim_drop": max(drops),
        "file_bytes": size,
        "psnr_db": dict(zip([pair.name for pair in held_out], psnr, strict=True)),
    }


def _ssim(fused: Plane, ir: Plane, vis: Plane) -> float:
    codes = [np.rint(plane * 255).astype(np.uint8) for plane in (ir, vis, fused)]
    return fusion_metrics(SourceStatistics(codes[0], codes[1]), codes[2], ["SSIM"])["SSIM"]


def _seen(picture: Plane) -> Plane:
    return np.asarray(np.rint(np.clip(picture, 0, 1) * 255) / 255, np.float32)


def _whole(files: Any) -> Planes:
    pair = read_pair(files)
    return Planes(files.name, pair.ir[0].numpy(), luminance(pair.vis.permute(1, 2, 0).contiguous().numpy()))


if __name__ == "__main__":
    main()
