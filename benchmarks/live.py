"""How fast videos are fused from end to end, beside the network alone, and how much memory ten thousand frames take.

    python benchmarks/live.py --out benchmarks/results/live.json

Two 640×480 H.264 videos of built-in scenes are decoded, paired, fused by `edge` (ONNX Runtime, one thread), coloured
and encoded as H.264. What is measured, in turns, so that a machine that slows down slows all of it:

- **network**: one run of the network, on one thread, nothing beside it;
- **codec**: decoding both videos and encoding the fused pictures, on one thread, nothing beside it;
- **floor**: the two beside each other on two threads that hand nothing over, until both have done as many frames;
- **pipeline**: the whole run, from opening the files to the finished file.

`overhead` is the wall time per frame of the pipeline, less the network's, over the latter; `overhead_floor` is the same
for the floor, which holds nothing but network and codec: no program that decodes and encodes these videos here can be
below it. Medians of all rounds are reported, all times are kept. Beside the clock stands the processor time per frame,
which other programs' load touches less; from it follows `overhead_if_two_cores_were_free`, an estimate: the larger of
half the processor time (two cores, shared perfectly) and of the network's, which no schedule can beat. Every stage's
processor time is in the rounds, and `beyond_the_network_cpu_ms` is what all of it takes apart from the network.

The memory run pushes tiny frames through the same pipeline. A busy machine is no place for these numbers: the load is
recorded before and after.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import av
import cv2
import numpy as np

from duskfuse.data.scenes import render_scene
from duskfuse.export.onnx_graph import DeployedStudent, build_graph, save_graph
from duskfuse.export.runtime import outputs
from duskfuse.export.runtime.live import LiveOptions, run_live
from duskfuse.export.runtime.live_statistics import memory_mb
from duskfuse.export.runtime.network import OnnxNetwork
from duskfuse.export.runtime.pipeline import Pipeline
from duskfuse.export.runtime.planar_video import in_planes
from duskfuse.export.runtime.sources import Frame, VideoFile
from duskfuse.export.runtime.thermal import ThermalInput
from duskfuse.students.zoo import load_student

SIZE = (480, 640)
MARGIN = 64  # pixels that the camera moves over


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=300, help="of each video")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    before = os.getloadavg()
    with tempfile.TemporaryDirectory() as name:
        result = {"machine": machine(), "load_before": before, **measure(Path(name), arguments)}
    result["memory"] = memory()
    result["load_after"] = os.getloadavg()
    text = json.dumps(result, indent=1)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in result.items() if key != "rounds"}, indent=1))


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The network, the codec, both beside each other, and the pipeline, in turns."""
    ir, vis = write_videos(folder, arguments.frames)
    save_graph(build_graph(DeployedStudent(load_student("edge")[0])), folder / "edge.onnx")
    network = OnnxNetwork(folder / "edge.onnx", threads=1)
    fused = folder / "fused.mp4"
    pipeline_once(network, ir, vis, fused)  # warms up, and makes what the codec is measured with
    codec = Codec(ir, vis, fused)
    rounds = []
    for number in range(arguments.rounds + 1):
        entry = {
            "network": timed(lambda: network_alone(network, 100), 100),
            "codec": codec.alone(),
            "floor": timed(lambda: side_by_side(network, codec), codec.frames),
            "pipeline": pipeline_once(network, ir, vis, fused),
        }
        if number:  # the first warms up
            rounds.append(entry)
    parts = ("network", "codec", "floor", "pipeline")
    wall = {part: round(median(entry[part]["wall_ms"] for entry in rounds), 3) for part in parts}
    cpu = {part: round(median(entry[part]["cpu_ms"] for entry in rounds), 3) for part in parts}
    return {
        "frames": arguments.frames,
        "size": "640x480",
        "network_threads": 1,
        "encoder": {"codec": "libx264", "preset": outputs.PRESET, "crf": outputs.QUALITY},
        "wall_ms_per_frame": wall,
        "cpu_ms_per_frame": cpu,
        "overhead": round(wall["pipeline"] / wall["network"] - 1, 4),
        "overhead_floor": round(wall["floor"] / wall["network"] - 1, 4),
        "overhead_if_two_cores_were_free": round(max(cpu["pipeline"] / 2, cpu["network"]) / cpu["network"] - 1, 4),
        "beyond_the_network_cpu_ms": round(cpu["pipeline"] - cpu["network"], 3),
        "file_mb": round(fused.stat().st_size / 1e6, 3),
        "rounds": rounds,
    }


def timed(work: Callable[[], None], frames: int) -> dict[str, float]:
    """Milliseconds per frame that ``work`` takes, by the clock and of the processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"wall_ms": round(1000 * wall / frames, 3), "cpu_ms": round(1000 * cpu / frames, 3)}


def network_alone(network: OnnxNetwork, runs: int) -> None:
    """So many runs on random planes."""
    ir, vis = np.random.default_rng(0).random((2, *SIZE), np.float32)
    for _ in range(runs):
        network.run(ir, vis)


class Codec:
    """Decoding two videos and encoding pictures, as the pipeline does it."""

    def __init__(self, ir: str, vis: str, fused: Path) -> None:
        self._sources, self._out = (ir, vis), str(fused.with_name("codec.mp4"))
        self._pictures = list(frames_of(str(fused)))
        self.frames = len(self._pictures)

    def alone(self) -> dict[str, Any]:
        """Times per frame of all of it and of its parts, on one thread."""
        parts = {"decode": timed(self.decode, self.frames), "encode": timed(self.encode, self.frames)}
        whole = {key: round(sum(part[key] for part in parts.values()), 3) for key in ("wall_ms", "cpu_ms")}
        return {**whole, "parts": parts}

    def decode(self) -> None:
        """Both videos, frame by frame in turns."""
        for _ in zip(*map(frames_of, self._sources), strict=True):
            pass

    def encode(self) -> None:
        """All pictures into a file."""
        out = outputs.VideoFile(Path(self._out), overwrite=True)
        for picture, stamp in self._pictures:
            out.write(picture, stamp)
        out.close()


def frames_of(path: str) -> Iterator[tuple[Any, float]]:
    """The pictures of a video and their times, read as the pipeline reads them."""
    source = in_planes(VideoFile(path))
    source.open()
    while (frame := source.read()) is not None:
        yield frame.picture, frame.stamp
    source.close()


def side_by_side(network: OnnxNetwork, codec: Codec) -> None:
    """The network on one thread and the codec on another, the same number of frames each, nothing between them."""

    def work() -> None:
        codec.decode()
        codec.encode()

    beside = threading.Thread(target=work)
    beside.start()
    network_alone(network, codec.frames)
    beside.join()


def pipeline_once(network: OnnxNetwork, ir: str, vis: str, out: Path) -> dict[str, Any]:
    """Milliseconds per frame of the whole run, from opening the files to the finished file."""
    options = LiveOptions(ir, vis, [str(out)], overwrite=True, quiet=True)
    wall, cpu = time.perf_counter(), time.process_time()
    state = run_live(options, network, ThermalInput(video=True))
    spent, worked = time.perf_counter() - wall, time.process_time() - cpu
    frames = state["frames"]
    if state["paired"] != frames or sum(state["unpaired"].values()):
        raise RuntimeError(f"not every frame was paired: {state}")
    return {
        "wall_ms": round(1000 * spent / frames, 3),
        "cpu_ms": round(1000 * worked / frames, 3),
        "stages_p50_ms": {name: times["p50"] for name, times in state["stages_ms"].items()},
        "stages_cpu_p50_ms": {name: times["p50"] for name, times in state["stages_cpu_ms"].items()},
    }


def write_videos(folder: Path, frames: int) -> tuple[str, str]:
    """A camera that moves over a built-in scene, infrared and visible, with a little noise as cameras have it."""
    scene = render_scene(0, size=(SIZE[0] + MARGIN, SIZE[1] + MARGIN))
    rng = np.random.default_rng(0)
    names = []
    for side, picture in (("ir", cv2.cvtColor(scene.ir, cv2.COLOR_GRAY2RGB)), ("vis", scene.vis)):
        names.append(str(folder / f"{side}.mp4"))
        with av.open(names[-1], "w") as container:
            stream = container.add_stream("libx264", rate=30, options={"preset": "veryfast", "crf": "20"})
            stream.height, stream.width = SIZE
            stream.pix_fmt = "yuv420p"
            for number in range(frames):
                at = round(MARGIN / 2 * (1 + np.sin(number / 20)))
                cut = picture[at : at + SIZE[0], MARGIN - at : MARGIN - at + SIZE[1]]
                noisy = np.clip(cut + rng.normal(0, 2, SIZE)[..., None], 0, 255).astype(np.uint8)
                frame = av.VideoFrame.from_ndarray(noisy, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 30)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return names[0], names[1]


class _Tiny:
    """A source of 16×16 frames."""

    live, note, name = False, None, "tiny"

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        self._left, self._count, self._shape = count, count, shape

    def open(self) -> None:
        """See `sources.Source`."""

    def read(self) -> Frame | None:
        """See `sources.Source`."""
        if self._left == 0:
            return None
        self._left -= 1
        return Frame((self._count - self._left) / 100, np.full(self._shape, 90, np.uint8))

    def close(self) -> None:
        """See `sources.Source`."""


class _Mean:
    rgb = False

    def run(self, ir: Any, vis: Any) -> Any:
        """See `pipeline.PlaneNetwork`."""
        return (ir + vis) / 2


class _Watched:
    """An output that notes the memory every thousand frames."""

    def __init__(self) -> None:
        self.count = 0
        self.memory_mb: list[float | None] = []

    def write(self, picture: Any, stamp: float) -> None:
        """See `pipeline.Output`."""
        self.count += 1
        if self.count % 1000 == 0:
            self.memory_mb.append(memory_mb())

    def close(self, complete: bool = True) -> None:
        """See `pipeline.Output`."""


def memory(frames: int = 10_000) -> dict[str, Any]:
    """Resident memory along a run of ``frames`` tiny frames."""
    watched = _Watched()
    sources: Any = {"ir": _Tiny(frames, (16, 16)), "vis": _Tiny(frames, (16, 16, 3))}
    pipeline = Pipeline(sources, _Mean(), ThermalInput(video=True), [watched])
    pipeline.start()
    pipeline.wait()
    pipeline.close()
    return {"frames": watched.count, "mb_every_thousand_frames": watched.memory_mb}


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("numpy", "opencv-python", "onnxruntime", "av")},
    }


if __name__ == "__main__":
    main()
