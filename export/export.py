"""The ``export`` verb: a trained student becomes a bundle, the folder of files that goes to the device.

Every file is written under a temporary name, compared with the model it came from, and only then moved to its name:
a file that is there has been verified.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from torch import nn

from duskfuse import __version__
from duskfuse.data.errors import InputError, VerificationError
from duskfuse.data.fuser import Colour
from duskfuse.data.images import file_sha256
from duskfuse.data.progress import say
from duskfuse.data.reading import Reading
from duskfuse.data.weights import ModelCard
from duskfuse.distill.closed_loop.live import LiveSteering
from duskfuse.evaluate.fusers import size_text
from duskfuse.export.bundle import check_model_name, forget_earlier_bundle, write_archive, write_bundle
from duskfuse.export.calibration import MOST_PAIRS, Planes, calibration_pairs
from duskfuse.export.int8_drift import DRIFT_FILE, DRIFT_PAGE, summary, write_drift
from duskfuse.export.lint_finding import Finding
from duskfuse.export.onnx_graph import (
    DeployedStudent,
    Precision,
    build_graph,
    check_contract,
    save_graph,
    set_properties,
)
from duskfuse.export.quantise import quantise
from duskfuse.export.sizes import DEFAULT_SIZE, Size, SizeRange, parse_size
from duskfuse.export.steered import SteeringWanted
from duskfuse.export.tensorrt_lint import LintReport, findings_tables, lint
from duskfuse.export.verify import PICTURES, Reference, Verification
from duskfuse.students.edge import EdgeStudent, without_depth_to_space
from duskfuse.students.int8_drift import Drift
from duskfuse.students.zoo import WEIGHTS, ModelName, load_student
from duskfuse.tasks.slgnet.detector import SlgDetector

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class ExportedFile:
    """One file of a bundle."""

    file: str
    """Name inside the bundle."""
    precision: str
    size: str
    """``WIDTHxHEIGHT``, or ``dynamic``."""
    bytes: int
    sha256: str
    verification: Verification
    float_convolutions: tuple[str, ...] = ()
    """INT8 only: the convolutions that stay float."""
    convolutions: int = 0
    """INT8 only: all convolutions but those with fixed weights."""
    tensorrt: dict[str, str] = field(default_factory=dict)
    """The lint's verdict for each TensorRT release."""
    findings: tuple[Finding, ...] = ()
    """What the lint found; warnings only, since errors end the export."""
    dla: tuple[Finding, ...] = ()
    """An experiment, with ``dla``: what a DLA would leave to the GPU."""


@dataclass(frozen=True)
class ExportReport:
    """What ``export`` wrote."""

    out: str
    model: str
    source_sha256: str
    calibration: str
    """Where the calibration and check pictures came from."""
    card: dict[str, Any]
    files: list[ExportedFile] = field(default_factory=list)
    pictures: dict[str, list[str]] = field(default_factory=dict)
    """Names of the calibration and check pictures, by size of the file."""
    profile: dict[str, str] = field(default_factory=dict)
    """Of files for any size: the sizes ``min``, ``opt`` and ``max`` that an engine is built for."""
    created: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%S%z"))
    versions: dict[str, str] = field(default_factory=lambda: _versions())
    duskfuse: str = __version__
    archive: str | None = None
    """The archive, where one was asked for."""

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return asdict(self)

    def table(self) -> Table:
        """Return the files and how close they come to the model, for a terminal."""
        from rich.table import Table

        table = Table(title=f"Bundle in {self.out}")
        for column in ("file", "kB", "largest error", "worst picture, dB", "float layers", "TensorRT"):
            table.add_column(column, overflow="fold")
        for entry in self.files:
            check = entry.verification
            float_layers = (
                f"{len(entry.float_convolutions)} of {entry.convolutions}" if entry.float_convolutions else ""
            )
            figures = f"{entry.bytes / 1000:.0f}", f"{check.largest_error:.2g}", f"{check.worst_psnr_db:.1f}"
            table.add_row(entry.file, *figures, float_layers, LintReport(entry.file, entry.findings).summary())
        return table

    def findings_tables(self) -> list[Table]:
        """Return what the lint found in the files, for a terminal; nothing where they are clean."""
        return [table for entry in self.files for table in findings_tables(entry.file, entry.findings, entry.dla)]


def export(
    model: str | Path,
    *,
    out: Path,
    precision: Sequence[str] = tuple(Precision),
    size: Sequence[str] = (),
    dynamic: bool = False,
    dla: bool = False,
    calibration: Path | None = None,
    reading: Reading | Path | None = None,
    overwrite: bool = False,
    archive: bool = False,
    steering: Path | None = None,
    task: str | None = None,
    critic: Path | None = None,
    backbone: Path | None = None,
) -> ExportReport:
    """Write a student as a bundle: verified ONNX files with what runs them on the device and their provenance.

    Args:
        model: name from the zoo or a student checkpoint.
        out: folder to write; a non-empty one is refused unless ``overwrite``.
        precision: any of fp32, fp16, int8.
        size: ``WIDTHxHEIGHT`` of the pictures, one file each; 640x480 where none is given.
        dynamic: one file for any size instead. Engines are then built for sizes from the smallest to the largest
            height and width of ``size``, and are fastest at the first.
        dla: write DepthToSpace as a transposed convolution, and say what a Jetson's DLA would leave to the GPU; an
            experiment.
        calibration: data folder of pairs to calibrate and verify with; synthetic scenes where not given.
        reading: how its infrared pictures are read, or a file that says it; by default its ``duskfuse.yaml``.
        overwrite: replace the files of an earlier export.
        archive: write ``<out>.tar.gz`` too, the same bytes for the same bundle.
        steering: what `duskfuse steer` trained around the student; goes with ``task`` or ``critic``.
        task: what the pictures are made for. What the task needs on average becomes part of the convolutions.
        critic: task network that goes into the file, to look at each of the student's pictures before it fuses again.
        backbone: of an SLGNet detector as ``critic``.

    Raises:
        InputError: wrong precision, size, model or data; ``out`` not empty.
        VerificationError: a file does not do what the model does, or a TensorRT release refuses it; it is not left in
            ``out``.
    """
    precisions = _precisions(precision)
    given = [parse_size(text) for text in dict.fromkeys(size)]
    sizes = [None] if dynamic else given or [parse_size(DEFAULT_SIZE)]
    _refuse_non_empty(out, overwrite=overwrite)
    if reading is not None and calibration is None:
        raise InputError("a reading without --calibration", rule="it says how the calibration pairs are read")
    student, card = load_student(model)
    if dla and isinstance(student, EdgeStudent):
        student = without_depth_to_space(student)
    source = _source_file(model)
    name = source.stem
    if wanted := SteeringWanted(steering, task, critic, backbone):
        student = wanted.around(student)
        _check_live(student, dynamic=dynamic)
        card = wanted.on_card(card, student)
        name += f"-live-{student.task}" if critic else f"-{student.task}"
    check_model_name(name)
    origin = f"pairs of {calibration}" if calibration else "synthetic scenes"
    if calibration is None and Precision.INT8 in precisions:
        say("INT8 is calibrated with synthetic scenes; --calibration FOLDER with pairs of your cameras is better")
    out.mkdir(parents=True, exist_ok=True)
    forget_earlier_bundle(out)
    profile = SizeRange.of(given).texts() if dynamic else {}
    report = ExportReport(str(out), name, file_sha256(source), origin, asdict(card), profile=profile)
    most = MOST_PAIRS if Precision.INT8 in precisions else PICTURES
    drifts: dict[str, Drift] = {}
    for fixed in sizes:
        pairs = calibration_pairs(calibration, fixed, most, reading, Colour(card.colour))
        drifts |= _export_size(student, card, report, precisions, fixed, pairs, dla=dla)
    if drifts:
        write_drift(out, drifts)
    content = {key: value for key, value in report.to_json().items() if key not in ("out", "archive")}
    write_bundle(out, content, (DRIFT_FILE, DRIFT_PAGE) if drifts else ())
    return replace(report, archive=str(write_archive(out))) if archive else report


def _export_size(
    student: nn.Module,
    card: ModelCard,
    report: ExportReport,
    precisions: Sequence[Precision],
    size: Size | None,
    pairs: Sequence[Planes],
    *,
    dla: bool,
) -> dict[str, Drift]:
    """Write, verify and enter into ``report`` the files of one size; the drift of its INT8 file, by name."""
    out = Path(report.out)
    report.pictures[_size_name(size)] = [pair.name for pair in pairs]
    reference = Reference(student, pairs, any_size=size is None)
    drifts: dict[str, Drift] = {}
    for precision in precisions:
        say(f"Writing and verifying {precision}{'' if size is None else ' ' + size_text(size)}")
        middle = "" if size is None else f"-{size_text(size)}"
        final = out / f"{report.model}{middle}-{precision}.onnx"
        with tempfile.TemporaryDirectory(dir=out, prefix=".unverified-") as folder:
            unverified = Path(folder) / final.name
            model, drift = _in_precision(precision, student, card, pairs, size)
            if drift is not None:
                drifts[final.name] = drift
                say(summary(drift))
            linted = _linted(model, final.name, dla=dla)
            set_properties(model, _properties(card, report, precision, size, drift, linted))
            check_contract(model)
            save_graph(model, unverified)
            verification = reference.verify(unverified, precision)
            os.replace(unverified, final)
        report.files.append(
            ExportedFile(
                final.name,
                precision.value,
                _size_name(size),
                final.stat().st_size,
                file_sha256(final),
                verification,
                () if drift is None else drift.float_layers,
                0 if drift is None else len(drift.layers),
                {release: verdict.value for release, verdict in linted.verdicts.items()},
                linted.findings,
                linted.dla,
            )
        )
    return drifts


def _in_precision(
    precision: Precision, student: nn.Module, card: ModelCard, pairs: Sequence[Planes], size: Size | None
) -> tuple[onnx.ModelProto, Drift | None]:
    """Return the graph and, of INT8, what it costs layer by layer."""
    if precision is not Precision.INT8:
        return build_graph(DeployedStudent(student, half=precision is Precision.FP16), size=size), None
    model, drift = quantise(student, pairs, size, card.int8_scales)
    if not any(entry.int8 for entry in drift.layers):
        raise VerificationError("nothing was quantised", rule="INT8 is made of convolutions", remedy="export fp16")
    return model, drift


def _linted(model: onnx.ModelProto, name: str, *, dla: bool) -> LintReport:
    """Check a file against every TensorRT release; raise VerificationError where one of them refuses it."""
    report = lint(model, name, dla=dla)
    if report.errors:
        first = report.errors[0]
        raise VerificationError(
            f"{name} is refused by TensorRT {', '.join(first.releases)}: {first}",
            rule="a file is read by every TensorRT release from 8.5 on",
            remedy=first.remedy,
        )
    return report


def _properties(
    card: ModelCard,
    report: ExportReport,
    precision: Precision,
    size: Size | None,
    drift: Drift | None,
    linted: LintReport,
) -> dict[str, str]:
    """What the file says about itself, so that it can be used and judged alone."""
    properties = {
        "duskfuse": report.duskfuse,
        "architecture": card.architecture,
        "settings": json.dumps(dict(card.settings)),
        "precision": precision.value,
        "size": _size_name(size),
        **_INTERFACE[Colour(card.colour)],
        "licence": card.licence,
        "training_data": card.training_data,
        "trained_with": f"duskfuse {card.version}",
        "source": report.model,
        "source_sha256": report.source_sha256,
        "written_with": ", ".join(f"{name} {version}" for name, version in report.versions.items()),
        "tensorrt": linted.summary(),
    }
    if size is None:
        properties |= {f"profile_{name}": text for name, text in report.profile.items()}
    if drift is not None:
        trained = {"int8": "fine-tuned for its scales" if card.int8_scales else "post-training"}
        properties |= {"calibration": report.calibration, "float_convolutions": ", ".join(drift.float_layers)} | trained
    return properties


_INTERFACE = {
    Colour.LUMA: {
        "colour": Colour.LUMA.value,
        "inputs": "ir: infrared; vis_y: BT.601 luminance of the visible picture; [1,1,H,W] float32 in [0, 1]",
        "output": "fused_y: luminance of the fused picture, [1,1,H,W] float32 in [0, 1]",
        "colour_rule": "add R-Y, G-Y, B-Y of the visible picture to fused_y, scaled per pixel by the largest factor "
        "<= 1 that keeps the three channels in [0, 1]",
    },
    Colour.RGB: {
        "colour": Colour.RGB.value,
        "inputs": "ir: infrared, [1,1,H,W]; vis: the visible picture, RGB, [1,3,H,W]; float32 in [0, 1]",
        "output": "fused_rgb: the fused picture, RGB, [1,3,H,W] float32 in [0, 1]",
    },
}


def _versions() -> dict[str, str]:
    import onnxruntime
    import torch

    return {"torch": torch.__version__, "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}


def _size_name(size: Size | None) -> str:
    return "dynamic" if size is None else size_text(size)


def _precisions(texts: Sequence[str]) -> list[Precision]:
    unknown = [text for text in texts if text not in list(Precision)]
    if unknown or not texts:
        raise InputError(
            f"precision {', '.join(unknown) or 'none'}",
            rule=f"any of {', '.join(Precision)}",
            remedy="name one or more",
        )
    return [Precision(text) for text in dict.fromkeys(texts)]


def _check_live(student: nn.Module, *, dynamic: bool) -> None:
    """Raise InputError for what a file cannot hold of a live closed loop."""
    if not isinstance(student, LiveSteering):
        return
    if dynamic:
        raise InputError(
            "--critic with --dynamic",
            rule="what a network sees is described by matrices that are made for one size",
            remedy="export with the --size of the pictures, which may be given several times",
        )
    if isinstance(student.critic, SlgDetector):
        raise InputError(
            "--critic with an SLGNet detector",
            rule="it reads words about every picture, and a file holds none",
            remedy="export with --for detection, or with another detector",
        )


def _refuse_non_empty(out: Path, *, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file", rule="a bundle is a folder", remedy="give another --out")
    if not overwrite and out.is_dir() and any(out.iterdir()):
        raise InputError(
            f"{out} is not empty", rule="nothing is overwritten unasked", remedy="give another --out, or --overwrite"
        )


def _source_file(model: str | Path) -> Path:
    return WEIGHTS / f"{model}.safetensors" if model in list(ModelName) else Path(model)
