"""The ``fuse`` verb on what moves: videos, picture sequences, cameras and streams, by the code that the device runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from duskfuse.data.errors import DuskfuseError, InputError
from duskfuse.data.fuser import Colour
from duskfuse.data.reading import AS_STORED, Reading
from duskfuse.evaluate.fusers import Fuser
from duskfuse.export.runtime.alignment import Alignment
from duskfuse.export.runtime.errors import DeviceError, DeviceInputError
from duskfuse.export.runtime.live import LiveOptions, check, network_threads, run_live
from duskfuse.export.runtime.outputs import is_video_name
from duskfuse.export.runtime.pairing import MAX_SKEW
from duskfuse.export.runtime.pipeline import Settings
from duskfuse.export.runtime.sources import is_moving
from duskfuse.export.runtime.thermal import ThermalInput
from duskfuse.export.steered import SteeringWanted, open_model
from duskfuse.students.zoo import DEFAULT


def wants_live(ir: str, vis: str, out: Sequence[str] = (), *, views: bool = False) -> bool:
    """Whether these are videos, sequences or cameras, or two folders that become a video or are only looked at."""
    if is_moving(ir) or is_moving(vis):
        return True
    return Path(ir).is_dir() and Path(vis).is_dir() and (views or any(map(is_video_name, out)))


def fuse_live(
    ir: str,
    vis: str,
    out: Sequence[str] = (),
    *,
    model: str | Path = DEFAULT,
    steering: Path | None = None,
    task: str | None = None,
    critic: Path | None = None,
    backbone: Path | None = None,
    reading: Reading = AS_STORED,
    max_skew: float = MAX_SKEW,
    offset: float = 0.0,
    show: bool = False,
    web: str | None = None,
    stats: Path | None = None,
    compare: bool = False,
    overlay: bool = False,
    fallback: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Fuse two moving sources until they end or the user ends it, and return the statistics.

    Args:
        ir: infrared source: a video, a folder or pattern of pictures, a camera, a pipeline or a URL
            (`duskfuse.export.runtime.sources`).
        vis: visible source.
        out: ``.mp4`` or ``.mkv`` files, folders for PNG files, RTSP URLs to push to.
        model: zoo name, student checkpoint or ONNX file.
        steering: of the model, with ``task`` or ``critic``; see `duskfuse.export.fuse.fuse`.
        task: what the pictures are made for.
        critic: task network that looks at every picture.
        backbone: of an SLGNet detector as ``critic``.
        reading: how the infrared frames are scaled and brought to the visible grid; percentiles of deep ones move
            slowly, so that the video does not flicker.
        max_skew: seconds between the two frames of a pair at most.
        offset: seconds added to infrared times.
        show: show a window.
        web: ``[HOST:]PORT`` of a web page with the picture and the statistics.
        stats: JSON file for the statistics.
        compare: infrared, visible and fused side by side.
        overlay: write rate and skew on the picture.
        fallback: a capped or dead camera counts as missing.
        overwrite: replace what is there already.
        quiet: no lines on stderr.

    Raises:
        InputError: unusable options, sources or model.
        DuskfuseError: what failed on the way; video files were completed with what had come before.
    """
    settings = Settings(max_skew, offset, compare=compare, overlay=overlay, fallback=fallback)
    options = LiveOptions(ir, vis, tuple(out), show, web, stats, overwrite, quiet, settings)
    try:
        check(options)
        wanted = SteeringWanted(steering, task, critic, backbone)
        network = _Planes(open_model(model, wanted, network_threads()))
        return {"model": network.name, **run_live(options, network, thermal_input(reading))}
    except DeviceInputError as error:
        raise InputError(error.seen, rule=error.rule, remedy=error.remedy) from error
    except DeviceError as error:
        raise DuskfuseError(error.seen, rule=error.rule, remedy=error.remedy) from error


def thermal_input(reading: Reading) -> ThermalInput:
    """What the device does for a reading, for frames that follow each other."""
    alignment = None
    if reading.homography is not None:
        rig = reading.homography
        alignment = Alignment(np.array(rig.matrix), rig.ir_size, rig.vis_size)
    span = reading.thermal_range
    return ThermalInput(
        None if span is None else (span.low, span.high),
        reading.percentiles,
        reading.black_hot,
        alignment,
        reading.resize_ir,
        video=True,
    )


class _Planes:
    """A fuser of the workstation as the pipeline wants a network."""

    def __init__(self, fuser: Fuser) -> None:
        self._fuser = fuser
        self.name = fuser.name
        self.rgb = fuser.colour is Colour.RGB

    def run(self, ir: NDArray[np.float32], vis: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `pipeline.PlaneNetwork`."""
        if self.rgb:
            return self._fuser.fuse_colours(ir, vis.transpose(1, 2, 0)).transpose(2, 0, 1)
        return self._fuser.fuse(ir, vis)
