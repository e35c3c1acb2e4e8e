"""Open any model as a :class:`Fuser`: two pictures in, one out, whatever runs underneath.

Metrics, the ``fuse`` verb and the benchmarks talk to this one interface, so a checkpoint and the ONNX file made from it
are measured by the same code.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from duskfuse.data.errors import InputError
from duskfuse.data.fuser import Colour
from duskfuse.data.images import SMALLEST_SIDE

if TYPE_CHECKING:
    from torch import nn

Plane = NDArray[np.float32]
"""One channel, ``[H, W]`` float32 in [0, 1]."""


@dataclass(frozen=True)
class FileContract:
    """The names and channels of an exported file; everything is float32 in [0, 1]."""

    inputs: tuple[str, str]
    """Infrared ``[1, 1, H, W]`` and the visible picture ``[1, channels, H, W]``."""
    output: str
    """``[1, channels, H, W]``."""
    channels: int


CONTRACTS = {
    Colour.LUMA: FileContract(("ir", "vis_y"), "fused_y", 1),
    Colour.RGB: FileContract(("ir", "vis"), "fused_rgb", 3),
}
TEACHERS = frozenset({"sage-main"})
"""Architectures that need priors beside the pair, so that they cannot be opened here."""


class Fuser(Protocol):
    """A fusion network ready to run."""

    name: str
    """What the user called it: a zoo name or a file name."""
    backend: str
    """``torch`` or ``onnxruntime``."""
    colour: Colour
    """What it takes of the visible picture, and makes."""

    def fuse(self, ir: Plane, vis_y: Plane) -> Plane:
        """Fuse infrared and visible luminance, both ``[H, W]`` in [0, 1], into luminance ``[H, W]`` in [0, 1].

        Raises InputError where ``colour`` is rgb.
        """

    def fuse_colours(self, ir: Plane, vis: NDArray[np.float32]) -> NDArray[np.float32]:
        """Fuse infrared ``[H, W]`` and visible RGB ``[H, W, 3]``, both in [0, 1], into RGB ``[H, W, 3]``.

        Raises InputError where ``colour`` is luma.
        """


class TorchFuser:
    """A student run by PyTorch on the CPU in evaluation mode."""

    backend = "torch"

    def __init__(self, module: nn.Module, name: str) -> None:
        self.name = name
        self.module = module.eval()
        self.colour = Colour.RGB if getattr(module, "colour", Colour.LUMA) == Colour.RGB else Colour.LUMA

    def fuse(self, ir: Plane, vis_y: Plane) -> Plane:
        """See :class:`Fuser`; raises InputError where the two pictures differ in size."""
        _check_colour(self, Colour.LUMA)
        fused: Plane = self._run(ir, vis_y[..., None])[0, 0]
        return fused

    def fuse_colours(self, ir: Plane, vis: NDArray[np.float32]) -> NDArray[np.float32]:
        """See :class:`Fuser`; raises InputError where the two pictures differ in size."""
        _check_colour(self, Colour.RGB)
        return np.ascontiguousarray(self._run(ir, vis)[0].transpose(1, 2, 0))

    def _run(self, ir: Plane, vis: NDArray[np.float32]) -> NDArray[np.float32]:
        import torch

        check_planes(ir, vis[..., 0])
        try:
            with torch.inference_mode():
                seen = torch.from_numpy(np.ascontiguousarray(vis.transpose(2, 0, 1), dtype=np.float32))[None]
                fused = self.module(seen, torch.from_numpy(_batch(ir)))
        except ValueError as error:
            raise InputError(f"{self.name}: {error}", remedy="give larger pictures") from error
        picture = fused.rgb if self.colour is Colour.RGB else fused.y
        return np.asarray(picture.clamp(0, 1).numpy(), dtype=np.float32)


class OnnxFuser:
    """An exported file run by ONNX Runtime on the CPU.

    ``metadata`` holds the file's own statements (architecture, precision, licence, …); ``size`` is the (height, width)
    the file was exported for, None where it takes any size.
    """

    backend = "onnxruntime"

    def __init__(self, path: Path, threads: int | None = None) -> None:
        self.name = path.name
        self.path = path
        self.session = _open_session(path, threads)
        self.colour = _contract_colour(self.session, path)
        height, width = self.session.get_inputs()[0].shape[2:]
        fixed = isinstance(height, int) and isinstance(width, int)
        self.size: tuple[int, int] | None = (height, width) if fixed else None
        self.metadata: dict[str, str] = dict(self.session.get_modelmeta().custom_metadata_map)

    def fuse(self, ir: Plane, vis_y: Plane) -> Plane:
        """See :class:`Fuser`; raises InputError where a fixed-size file gets pictures of another size."""
        _check_colour(self, Colour.LUMA)
        fused: Plane = self._run(ir, vis_y[..., None])[0, 0]
        return fused

    def fuse_colours(self, ir: Plane, vis: NDArray[np.float32]) -> NDArray[np.float32]:
        """See :class:`Fuser`; raises InputError where a fixed-size file gets pictures of another size."""
        _check_colour(self, Colour.RGB)
        return np.ascontiguousarray(self._run(ir, vis)[0].transpose(1, 2, 0))

    def _run(self, ir: Plane, vis: NDArray[np.float32]) -> NDArray[np.float32]:
        check_planes(ir, vis[..., 0])
        if self.size is not None and ir.shape != self.size:
            raise InputError(
                f"{self.path} takes pictures of {size_text(self.size)}, got {size_text(ir.shape)}",
                rule="a file made for one size runs at that size only",
                remedy="export with the --size of the pictures, or with --dynamic for a file that takes any size",
            )
        if min(ir.shape) < SMALLEST_SIDE:
            raise InputError(
                f"picture of {size_text(ir.shape)} pixels", rule=f"{SMALLEST_SIDE} pixels a side are the least"
            )
        contract = CONTRACTS[self.colour]
        seen = np.ascontiguousarray(vis.transpose(2, 0, 1), dtype=np.float32)[None]
        fused = self.session.run([contract.output], dict(zip(contract.inputs, (_batch(ir), seen), strict=True)))[0]
        return np.asarray(np.clip(fused, 0, 1), dtype=np.float32)


def open_fuser(model: str | Path, threads: int | None = None) -> Fuser:
    """Open a zoo name, a student checkpoint (.safetensors) or an exported file (.onnx).

    A text that is a name is that name, whatever lies in the working folder under it. ``threads`` bounds the CPU
    threads; for PyTorch the bound holds for the whole process. Raises InputError for anything that is not a student:
    missing or damaged files, main-network checkpoints, other ONNX networks.
    """
    path = Path(model)
    if path.suffix.lower() == ".onnx":
        return OnnxFuser(path, threads)
    from duskfuse.students.zoo import ModelName, load_student

    named = isinstance(model, str) and model in list(ModelName)
    if path.is_dir() and not named:
        files = ", ".join(sorted(file.name for file in path.glob("*.onnx"))) or "it has none"
        raise InputError(
            f"{path} is a folder",
            rule="a model is a name, a .safetensors checkpoint or an .onnx file",
            remedy=f"name one of its .onnx files: {files}",
        )
    import torch

    from duskfuse.data.weights import read_card

    if path.is_file() and not named and (architecture := read_card(path).architecture) in TEACHERS:
        raise InputError(
            f"{path} is a checkpoint of the main network {architecture!r}",
            rule="only students fuse without the regions of each picture",
            remedy="fuse with it through `duskfuse cache-teacher`, or give a student",
        )
    if threads is not None:
        torch.set_num_threads(threads)
    module, _ = load_student(model)
    return TorchFuser(module, path.name)


def _check_colour(fuser: Fuser, wanted: Colour) -> None:
    """Raise InputError for a model of colours that is asked for luminance, and the other way round."""
    if fuser.colour is Colour.RGB and wanted is Colour.LUMA:
        raise InputError(
            f"{fuser.name} fuses colours",
            rule="luminance is fused by models of luminance; the picture gets its colours back afterwards",
            remedy="train the student with --set student.settings={colour: luma}",
        )
    if fuser.colour is not wanted:
        raise InputError(f"{fuser.name} fuses luminance", rule="colours are fused by models of colours")


def check_planes(ir: Plane, vis_y: Plane) -> None:
    """Raise InputError unless both pictures are ``[H, W]`` of one size."""
    if ir.ndim != 2 or ir.shape != vis_y.shape:
        raise InputError(
            f"infrared {ir.shape} and visible luminance {vis_y.shape}",
            rule="both must be one channel of the same height and width",
            remedy="resize one to the other",
        )


def size_text(size: tuple[int, ...]) -> str:
    """Write (height, width) the way users do.

    >>> size_text((480, 640))
    '640x480'
    """
    return f"{size[1]}x{size[0]}"


def _batch(plane: Plane) -> NDArray[np.float32]:
    return np.ascontiguousarray(plane, dtype=np.float32)[None, None]


def _open_session(path: Path, threads: int | None) -> Any:
    import onnxruntime

    if not path.is_file():
        raise InputError(f"{path} is not there", rule="the model must be an existing file", remedy="check the path")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has no common base class for its loading errors
        raise InputError(
            f"{path} cannot be opened as an ONNX network ({str(error).splitlines()[0]})",
            rule="an .onnx file must be complete and undamaged",
            remedy="copy it again or write it anew with `duskfuse export`",
        ) from error


def _contract_colour(session: Any, path: Path) -> Colour:
    """Check names, types and ranks; return what of the visible picture the file takes."""
    inputs = {value.name: value for value in session.get_inputs()}
    outputs = {value.name: value for value in session.get_outputs()}
    for colour, contract in CONTRACTS.items():
        if set(inputs) == set(contract.inputs) and contract.output in outputs:
            values = [*inputs.values(), outputs[contract.output]]
            if all(value.type == "tensor(float)" and len(value.shape) == 4 for value in values):
                return colour
    seen = ", ".join(f"{value.name} {value.type} {value.shape}" for value in inputs.values())
    raise InputError(
        f"{path} is not a fusion network: {seen or 'no inputs'} -> {', '.join(outputs)}",
        rule="ir and vis_y give fused_y, or ir and vis give fused_rgb, each [1,C,H,W] float32",
        remedy="write the file with `duskfuse export`",
    )
