"""Open any model as a :class:`Fuser`: two luminance pictures in, one out, whatever runs underneath.

Metrics, the ``fuse`` verb and the benchmarks talk to this one interface, so a checkpoint and the ONNX file made from it
are measured by the same code.
"""

from __future__ import annotations

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

INPUTS = ("ir", "vis_y")
OUTPUT = "fused_y"
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
        """Fuse infrared and visible luminance, both ``[H, W]`` in [0, 1], into luminance ``[H, W]`` in [0, 1]."""


class TorchFuser:
    """A student run by PyTorch on the CPU in evaluation mode."""

    backend = "torch"

    def __init__(self, module: nn.Module, name: str) -> None:
        self.name = name
        self.module = module.eval()
        self.colour = Colour.RGB if getattr(module, "colour", Colour.LUMA) == Colour.RGB else Colour.LUMA

    def fuse(self, ir: Plane, vis_y: Plane) -> Plane:
        """See :class:`Fuser`; raises InputError where the two pictures differ in size, and for a model of colours."""
        refuse_colours(self, "fusing luminance")
        fused: Plane = self._run(ir, vis_y[..., None])[0, 0]
        return fused

    def fuse_colours(self, ir: Plane, vis: NDArray[np.float32]) -> NDArray[np.float32]:
        """Fuse infrared ``[H, W]`` and visible RGB ``[H, W, 3]``, both in [0, 1], into RGB, for ``colour`` rgb."""
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
    colour = Colour.LUMA

    def __init__(self, path: Path, threads: int | None = None) -> None:
        self.name = path.name
        self.path = path
        self.session = _open_session(path, threads)
        self.size = _contract_size(self.session, path)
        self.metadata: dict[str, str] = dict(self.session.get_modelmeta().custom_metadata_map)

    def fuse(self, ir: Plane, vis_y: Plane) -> Plane:
        """See :class:`Fuser`; raises InputError where a fixed-size file gets pictures of another size."""
        check_planes(ir, vis_y)
        if self.size is not None and ir.shape != self.size:
            raise InputError(
                f"{self.path} takes pictures of {size_text(self.size)}, got {size_text(ir.shape)}",
                rule="a file exported with --size runs at that size only",
                remedy="export with the size of the pictures, or without --size for a file that takes any size",
            )
        if min(ir.shape) < SMALLEST_SIDE:
            raise InputError(
                f"picture of {size_text(ir.shape)} pixels", rule=f"{SMALLEST_SIDE} pixels a side are the least"
            )
        fused = self.session.run([OUTPUT], {"ir": _batch(ir), "vis_y": _batch(vis_y)})[0]
        return np.asarray(np.clip(fused[0, 0], 0, 1), dtype=np.float32)


def open_fuser(model: str | Path, threads: int | None = None) -> Fuser:
    """Open a zoo name, a student checkpoint (.safetensors) or an exported file (.onnx).

    ``threads`` bounds the CPU threads; for PyTorch the bound holds for the whole process. Raises InputError for
    anything that is not a student: missing or damaged files, main-network checkpoints, other ONNX networks.
    """
    path = Path(model)
    if path.suffix.lower() == ".onnx":
        return OnnxFuser(path, threads)
    if path.is_dir():
        files = ", ".join(sorted(file.name for file in path.glob("*.onnx"))) or "it has none"
        raise InputError(
            f"{path} is a folder",
            rule="a model is a name, a .safetensors checkpoint or an .onnx file",
            remedy=f"name one of its .onnx files: {files}",
        )
    import torch

    from duskfuse.data.weights import read_card
    from duskfuse.students.zoo import load_student

    if path.is_file() and (architecture := read_card(path).architecture) in TEACHERS:
        raise InputError(
            f"{path} is a checkpoint of the main network {architecture!r}",
            rule="only students fuse without the regions of each picture",
            remedy="fuse with it through `duskfuse cache-teacher`, or give a student",
        )
    if threads is not None:
        torch.set_num_threads(threads)
    module, _ = load_student(model)
    return TorchFuser(module, path.name)


def refuse_colours(fuser: Fuser, use: str) -> None:
    """Raise InputError for a model that fuses colours, where only luminance is served."""
    if fuser.colour is Colour.RGB:
        raise InputError(
            f"{fuser.name} fuses colours",
            rule=f"{use} takes models of luminance; the picture gets its colours back afterwards",
            remedy="train the student with --set student.settings={colour: luma}",
        )


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


def _contract_size(session: Any, path: Path) -> tuple[int, int] | None:
    """Check names, types and ranks; return the fixed (height, width), None for a file that takes any size."""
    inputs = {value.name: value for value in session.get_inputs()}
    outputs = {value.name: value for value in session.get_outputs()}
    values = [*inputs.values(), *(value for name, value in outputs.items() if name == OUTPUT)]
    fits = set(inputs) == set(INPUTS) and OUTPUT in outputs
    if not fits or any(value.type != "tensor(float)" or len(value.shape) != 4 for value in values):
        seen = ", ".join(f"{value.name} {value.type} {value.shape}" for value in values)
        raise InputError(
            f"{path} is not a fusion network: {seen or 'no inputs'} -> {', '.join(outputs)}",
            rule=f"inputs must be ir and vis_y and the output {OUTPUT}, each [1,1,H,W] float32",
            remedy="write the file with `duskfuse export`",
        )
    height, width = inputs["ir"].shape[2:]
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None
