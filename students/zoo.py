"""The student zoo: trained students by name, and any student checkpoint by path."""

from __future__ import annotations

from collections.abc import Mapping
from enum import EnumType, StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from pydantic import JsonValue, TypeAdapter
from torch import nn

from duskfuse.data.errors import InputError
from duskfuse.data.weights import ModelCard, load_weights, read_card
from duskfuse.students import edge, mobile, unet, vfn
from duskfuse.students.fold import fold_batchnorm

if TYPE_CHECKING:
    from rich.table import Table

WEIGHTS = Path(__file__).parent / "weights"
"""Folder of the packaged weights, ``<name>.safetensors``."""
ARCHITECTURES: dict[str, type[nn.Module]] = {
    unet.ARCHITECTURE: unet.UNetStudent,
    mobile.ARCHITECTURE: mobile.MobileStudent,
    edge.EDGE: edge.EdgeStudent,
    edge.NANO: edge.NanoStudent,
    vfn.ARCHITECTURE: vfn.VisionFeatureNetwork,
}
"""Every student; a new one is a file and a line here. Its constructor's annotations are the rule of its settings."""

_TEACHERS = ("sage-main",)


class ModelName(StrEnum):
    """Students whose trained weights come with the package."""

    EDGE = "edge"
    NANO = "nano"
    UNET = "unet"
    MOBILE = "mobile"


DEFAULT = ModelName.EDGE
"""The model of those who name none."""


def build_student(architecture: str, settings: Mapping[str, JsonValue]) -> nn.Module:
    """Make an untrained student from its architecture and constructor arguments (missing ones take their default).

    Raises InputError for an unknown architecture, a teacher's, or wrong settings.
    """
    if architecture in _TEACHERS:
        raise InputError(
            f"{architecture!r} is a teacher, not a student",
            rule="a teacher needs the regions of each picture and never ships",
            remedy=f"give the checkpoint of a student, or one of the names {', '.join(ModelName)}",
        )
    if architecture not in ARCHITECTURES:
        raise InputError(
            f"unknown student architecture {architecture!r}",
            rule=f"this version knows {', '.join(ARCHITECTURES)}",
            remedy="update duskfuse or give another checkpoint",
        )
    student, kinds = ARCHITECTURES[architecture], _settings_of(ARCHITECTURES[architecture])
    try:
        if unknown := settings.keys() - kinds.keys():
            raise ValueError(f"unknown: {', '.join(unknown)}")
        return student(**{name: TypeAdapter(kinds[name]).validate_python(value) for name, value in settings.items()})
    except ValueError:
        known = " and ".join(f"{name} ({_values(kind)})" for name, kind in kinds.items())
        raise InputError(
            f"{architecture!r} with settings {dict(settings)}", rule=f"it has {known}", remedy="correct the settings"
        ) from None


def _settings_of(student: type[nn.Module]) -> dict[str, Any]:
    """Types of its constructor arguments by name."""
    return {name: kind for name, kind in get_type_hints(student.__init__).items() if name != "return"}


def _values(kind: Any) -> str:
    return " or ".join(kind) if isinstance(kind, EnumType) else getattr(kind, "__name__", str(kind))


def load_student(model: str | Path) -> tuple[nn.Module, ModelCard]:
    """Load a student, in eval mode, by the name of a packaged model or from a checkpoint of any student architecture.

    Raises InputError for an unknown name, a missing file, a teacher's checkpoint, and whatever is wrong with the file
    (see `duskfuse.data.weights.load_weights`).
    """
    path = weights_path(model)
    card = read_card(path)
    try:
        student = build_student(card.architecture, card.settings)
    except InputError as error:
        raise InputError(f"{path}: {error.seen}", rule=error.rule, remedy=error.remedy) from None
    if card.int8_scales:
        student = fold_batchnorm(student)
    load_weights(path, student, card.architecture)
    return student.eval(), card


def list_models() -> dict[str, dict[str, JsonValue]]:
    """Describe every model of the zoo from the card of its packaged weights."""
    return {name.value: _described(WEIGHTS / f"{name}.safetensors") for name in ModelName}


_COLUMNS = {
    "MMACs_640x480": ("MMACs", "{:,.0f}"),
    "times_faster_than_unet_640x480": ("speed", "{:.3g}×"),
    "VIF": ("VIF", "{:.3f}"),
    "Qabf": ("Qabf", "{:.3f}"),
    "SSIM": ("SSIM", "{:.3f}"),
    "Nabf": ("Nabf↓", "{:.3f}"),
    "night_contrast": ("night", "{:.1f}"),
}
"""Metrics of the card that help to choose: their heading and how they are written."""


def models_table(models: Mapping[str, Mapping[str, JsonValue]]) -> Table:
    """Show what each model of `list_models` costs and how good its pictures are, for a terminal."""
    from rich.table import Table

    table = Table("model", "size", *(heading for heading, _ in _COLUMNS.values()), title="Packaged students")
    for name, model in models.items():
        if not model["installed"]:
            table.add_row(name, "not in this installation")
            continue
        metrics = TypeAdapter(dict[str, float]).validate_python(model["metrics"])
        cells = [form.format(metrics[key]) if key in metrics else "–" for key, (_, form) in _COLUMNS.items()]
        table.add_row(name, f"{TypeAdapter(int).validate_python(model['parameters']) / 1000:.0f} k", *cells)
    table.caption = (
        f"{DEFAULT} is the default. Size: parameters. MMACs and speed (against unet, ONNX Runtime, one CPU thread) at "
        "640×480. Scores: means over held-out pairs. Night: grey levels of people above their surroundings. The cards "
        "beside the weights say more."
    )
    return table


def _described(packaged: Path) -> dict[str, JsonValue]:
    if not packaged.is_file():
        return {"installed": False}
    student, card = load_student(packaged)
    return {
        "installed": True,
        "architecture": card.architecture,
        "parameters": sum(parameter.numel() for parameter in student.parameters()),
        "colour": card.colour,
        "version": card.version,
        "metrics": dict(card.metrics),
        "training_data": card.training_data,
        "licence": card.licence,
    }


def weights_path(model: str | Path) -> Path:
    """The file of a packaged model's weights by its name, or a checkpoint's path as it is; InputError without one."""
    if isinstance(model, str) and model in list(ModelName):
        packaged = WEIGHTS / f"{model}.safetensors"
        if not packaged.is_file():
            raise InputError(
                f"the weights of {model!r} are not in this installation ({packaged.name} is missing)",
                rule="a model given by name needs its packaged weights",
                remedy="install duskfuse again, or train a student and give the path of its checkpoint",
            )
        return packaged
    path = Path(model)
    if not path.exists():
        raise InputError(
            f"{str(model)!r} is neither a model nor a file",
            rule=f"models are {', '.join(ModelName)}; the path of a checkpoint is accepted too",
            remedy="correct the name or the path",
        )
    return path
