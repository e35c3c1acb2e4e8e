"""The ``fuse`` verb: pairs of pictures become fused colour pictures."""

from __future__ import annotations

import time
from collections.abc import Sequence, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from duskfuse.data.errors import InputError
from duskfuse.data.folder_pairs import match_by_stem
from duskfuse.data.fuser import Colour
from duskfuse.data.images import to_u8, write_picture
from duskfuse.data.pair_files import PairFiles, SourcePicture, read_pair
from duskfuse.data.progress import say, track
from duskfuse.data.reading import AS_STORED, Reading, load_reading
from duskfuse.evaluate.fusers import Fuser
from duskfuse.export.runtime.fuser import luminance, recombine
from duskfuse.export.runtime.liveness import liveness, mixed
from duskfuse.export.steered import SteeringWanted, open_model
from duskfuse.students.zoo import DEFAULT

_NAMED = 10


@dataclass(frozen=True)
class FuseReport:
    """What ``fuse`` wrote."""

    model: str
    backend: str
    written: list[str]
    kept: list[str]
    """Pictures that were there before and were left as they are."""
    thermal_range: tuple[float, float] | None
    """Lowest and highest stored infrared value that became 0 or 1 in a written picture; one range for all pictures that
    loses none of them. None where nothing was written, or pictures of one value only."""
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return asdict(self)


def fuse(
    ir: Path,
    vis: Path,
    out: Path,
    *,
    model: str | Path = DEFAULT,
    steering: Path | None = None,
    task: str | None = None,
    critic: Path | None = None,
    backbone: Path | None = None,
    fallback: bool = False,
    overwrite: bool = False,
    reading: Reading | Path = AS_STORED,
) -> FuseReport:
    """Fuse one pair into one file, or two folders, matched by stem, into a folder of ``<stem>.png``.

    The result is 8-bit RGB: the fused luminance with the chroma of the visible picture. In a folder, pictures that are
    already in ``out`` are kept, so that an interrupted run goes on where it stopped, and a pair that cannot be read
    does not stop the others.

    Args:
        ir: infrared picture or folder.
        vis: visible picture or folder.
        out: picture or folder to write.
        model: zoo name, student checkpoint or ONNX file.
        steering: what `duskfuse steer` trained around the student; goes with ``task`` or ``critic``.
        task: what the pictures are made for.
        critic: task network that looks at the student's picture before it fuses again.
        backbone: of an SLGNet detector as ``critic``.
        fallback: where a camera is capped or dead (`duskfuse.export.runtime.liveness`), show the other one.
        overwrite: make existing pictures anew.
        reading: how the infrared pictures are scaled and brought to the visible grid, or a file that says it.

    Raises:
        InputError: unusable model or pictures, existing file without ``overwrite``; for folders after all other pairs
            have been written, with the list of what went wrong.
    """
    if ir.is_dir() != vis.is_dir():
        raise InputError(
            f"{ir} is a {_kind(ir)} and {vis} is a {_kind(vis)}",
            rule="pictures go with pictures and folders with folders",
            remedy="give two pictures or two folders",
        )
    if out.resolve() in (ir.resolve(), vis.resolve()):
        raise InputError(f"{out} is an input", rule="inputs are never written to", remedy="give another --out")
    started = time.monotonic()
    wanted = SteeringWanted(steering, task, critic, backbone)
    reading = load_reading(reading) if isinstance(reading, Path) else reading
    if ir.is_dir():
        fuser = open_model(model, wanted)
        return _fuse_folders(
            ir, vis, out, fuser, fallback=fallback, overwrite=overwrite, reading=reading, started=started
        )
    if out.is_dir():
        raise InputError(f"{out} is a folder", rule="two pictures make one picture", remedy="name the file to write")
    if out.exists() and not overwrite:
        raise InputError(
            f"{out} is there already",
            rule="nothing is overwritten unasked",
            remedy="give another --out, or --overwrite",
        )
    fuser = open_model(model, wanted)
    span = _fuse_pair(fuser, _pair(ir.stem, ir, vis, reading), out, fallback=fallback)
    return FuseReport(fuser.name, fuser.backend, [str(out)], [], span, time.monotonic() - started)


def _fuse_folders(
    ir: Path,
    vis: Path,
    out: Path,
    fuser: Fuser,
    *,
    fallback: bool,
    overwrite: bool,
    reading: Reading,
    started: float,
) -> FuseReport:
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file", rule="two folders are fused into a folder", remedy="give another --out")
    matched, faults = match_by_stem(ir, vis)
    pairs = [_pair(stem, *pictures, reading) for stem, pictures in matched.items()]
    written, kept = [], []
    spans: set[tuple[float, float]] = set()
    for pair in track(pairs, "Fusing"):
        target = out / f"{pair.name}.png"
        if target.exists() and not overwrite:
            kept.append(str(target))
            continue
        try:
            span = _fuse_pair(fuser, pair, target, fallback=fallback)
            written.append(str(target))
            spans |= {span} if span else set()
        except InputError as error:
            faults.append(str(error))
    widest = _widest(spans)
    if widest is not None and len(spans) > 1:
        say(
            f"each infrared picture was scaled by its own values, so that a sequence may flicker; "
            f"--thermal-range {widest[0]:.6g}:{widest[1]:.6g} scales all of these alike"
        )
    if kept:
        say(f"{len(kept)} pictures were in {out} already and were kept, whichever model made them (--overwrite: anew)")
    if faults:
        raise InputError(
            f"{len(faults)} pictures could not be fused:\n" + _listing(faults),
            rule=f"the {len(written)} others were written to {out}",
            remedy="put these right and run the same command again: finished pictures are kept",
        )
    return FuseReport(fuser.name, fuser.backend, written, kept, widest, time.monotonic() - started)


def _widest(spans: Set[tuple[float, float]]) -> tuple[float, float] | None:
    """The lowest low and the highest high."""
    return (min(low for low, _ in spans), max(high for _, high in spans)) if spans else None


def _fuse_pair(fuser: Fuser, files: PairFiles, out: Path, *, fallback: bool) -> tuple[float, float] | None:
    """Write the fused picture; the thermal range that was used."""
    pair = read_pair(files)
    vis = pair.vis.permute(1, 2, 0).contiguous().numpy()
    ir = pair.ir[0].numpy()
    write_picture(out, _picture_of_the_living(fuser, ir, vis) if fallback else _picture(fuser, ir, vis))
    return pair.meta.thermal_range


def _picture_of_the_living(fuser: Fuser, ir: NDArray[np.float32], vis: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Like the device runtime with its fallback: the picture fades to that of the camera that is alive."""
    weights = liveness(ir), liveness(vis)
    if min(weights) == 1:
        return _picture(fuser, ir, vis)
    living = to_u8(vis) if weights[0] <= weights[1] else to_u8(np.repeat(ir[..., None], 3, axis=2))
    return living if min(weights) == 0 else mixed(_picture(fuser, ir, vis), living, min(weights))


def _picture(fuser: Fuser, ir: NDArray[np.float32], vis: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Fused RGB ``[H, W, 3]`` of infrared ``[H, W]`` and visible RGB in [0, 1]."""
    if fuser.colour is Colour.RGB:
        return to_u8(fuser.fuse_colours(ir, vis))
    return recombine(fuser.fuse(ir, luminance(vis)), vis)


def _pair(name: str, ir: Path, vis: Path, reading: Reading) -> PairFiles:
    return PairFiles(name, SourcePicture(ir), SourcePicture(vis), reading=reading)


def _listing(faults: Sequence[str]) -> str:
    more = [f"  and {len(faults) - _NAMED} more"] if len(faults) > _NAMED else []
    return "\n".join([*(f"  {fault}" for fault in faults[:_NAMED]), *more])


def _kind(path: Path) -> str:
    return "folder" if path.is_dir() else "file"
