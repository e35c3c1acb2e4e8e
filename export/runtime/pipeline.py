"""Two sources become a stream of fused pictures: each stage on its own thread, at the rate of the slowest.

    read ir  ┐
             ├ pair → prepare → fuse → finish → write
    read vis ┘

Between two stages lies a queue of a few frames, so memory is bounded. Of files every frame is processed and the
readers wait; of live sources a frame that comes while the next stage is busy takes the place of the one before it.
The work itself (decoding, the network, colours, encoding) runs outside Python's interpreter lock.

A visible frame that comes as a video's own planes leaves as planes, where nothing is drawn on it or mixed with it.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Callable, Dict, List, NamedTuple, Optional, Protocol, Sequence, Tuple

import numpy as np

from .capture import FILE_FRAMES, Handover, Reader, Stopped
from .errors import DeviceError, DeviceInputError
from .frame_forms import as_colour, colour_picture, colour_planes, grey_picture, one_channel
from .fuser import luminance, recombine
from .live_statistics import LiveStatistics
from .liveness import liveness, mixed
from .overlay import label, notice, side_by_side
from .pairing import IR, MAX_SKEW, SIDES, STALL, VIS, Pair, Pairing
from .planes import Picture, Planes, bgr_of, luminance_of, recombine_planes
from .sources import Frame, Source
from .thermal import ThermalInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PAIRING_TICK_S = 0.01
_JOIN_S = 8.0


class PlaneNetwork(Protocol):
    """What the pipeline needs of a network; `network.Network` and the workstation's fusers have it."""

    rgb: bool

    def run(self, ir: NDArray[np.float32], vis: NDArray[np.float32]) -> NDArray[np.float32]:
        """Planes in [0, 1]: ``ir`` and luminance ``[H, W]`` into ``[H, W]``; with ``rgb`` ``[3, H, W]`` both ways."""


class Output(Protocol):
    """Where finished pictures go."""

    def write(self, picture: Picture, stamp: float) -> None:
        """Take the next picture, BGR ``[H, W, 3]`` or planes, and its time in seconds."""

    def close(self, complete: bool) -> None:
        """Finish: ``complete`` is false where this output itself has failed."""


class Settings(NamedTuple):
    """What the user chose."""

    max_skew: float = MAX_SKEW
    offset: float = 0.0
    stall: float = STALL
    compare: bool = False
    """Infrared, visible and fused side by side instead of the fused picture."""
    overlay: bool = False
    """Rate and skew on the picture."""
    natural_speed: bool = False
    """Files are shown at the speed at which they were taken."""
    fallback: bool = False
    """A camera whose pictures say nothing (a lens cap, a dead sensor) counts as missing."""


DEFAULTS = Settings()


def keeps_planes(network: PlaneNetwork, settings: Settings) -> bool:
    """Whether planes can pass: a network of luminance, and nothing that needs the colours of whole pictures."""
    return not (network.rgb or settings.compare or settings.overlay or settings.fallback)


class _Work:
    """One pair on its way."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.missing = pair.missing
        self.vis: Any = None  # BGR, or planes
        self.ir: Any = None  # plane in [0, 1]
        self.weight, self.weaker = 1.0, IR  # how alive the weaker camera is
        self.seen: Any = None  # what the network takes of the visible picture
        self.fused: Any = None
        self.picture: Any = None


class Pipeline:
    """Reads, pairs, fuses and writes until both sources end or `finish` is called."""

    def __init__(
        self,
        sources: Dict[str, Source],
        network: PlaneNetwork,
        thermal: ThermalInput,
        outputs: Sequence[Output],
        settings: Settings = DEFAULTS,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        lives = {sources[side].live for side in SIDES}
        if len(lives) == 2:
            raise DeviceInputError(
                f"{sources[IR].name} and {sources[VIS].name}",
                "a live source has the clock's times and a file its own, so they cannot be paired",
                "give two files or two live sources",
            )
        self.live = lives.pop()
        self.statistics = LiveStatistics()
        self.error: Optional[BaseException] = None
        self._network, self._thermal, self._outputs, self._settings = network, thermal, list(outputs), settings
        self._pairing = Pairing(settings.max_skew, settings.offset, settings.stall, live=self.live)
        arrivals = threading.Condition()
        ahead = 1 if self.live else FILE_FRAMES
        self._frames = {side: Handover(ahead, newest=self.live, signal=arrivals) for side in SIDES}
        self._queues = {name: self._queue() for name in ("paired", "prepared", "fused", "finished")}
        times = {side: self.statistics.stage(f"read {side}") for side in SIDES}
        self._readers = {side: Reader(sources[side], self._frames[side], times[side], say) for side in SIDES}
        self._size: Optional[Tuple[int, int]] = None
        self._keeps_planes = keeps_planes(network, settings)
        self._lock = threading.Lock()
        self._first_shown: Optional[Tuple[float, float]] = None
        self._threads = [threading.Thread(target=self._guard, args=stage, daemon=True) for stage in self._stages()]

    def add_output(self, output: Output) -> None:
        """Add an output before the start."""
        self._outputs.append(output)

    def start(self) -> None:
        """Start all threads."""
        for thread in self._threads:
            thread.start()

    def wait(self, timeout: Optional[float] = None) -> bool:
        """Whether everything has come to its end within ``timeout`` seconds."""
        until = None if timeout is None else time.monotonic() + timeout
        for thread in self._threads:
            thread.join(None if until is None else max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def finish(self) -> None:
        """End reading; what was read is still fused and written, as far as its partner was."""
        for reader in self._readers.values():
            reader.finish()

    def close(self) -> None:
        """Stop at once if still running, and complete all outputs; what fails in that becomes `error`."""
        if not self.wait(0):
            self._stop_all()
            self.wait(_JOIN_S)
        self.statistics.end()
        faults = []
        for output in self._outputs:
            try:
                output.close(complete=True)
            except (OSError, RuntimeError, ValueError) as error:
                faults.append(error)
        self.error = self.error or (faults[0] if faults else None)

    def to_json(self) -> Dict[str, Any]:
        """The statistics as plain data."""
        dropped = {f"read {side}": self._frames[side].dropped for side in SIDES}
        dropped.update({name: queue.dropped for name, queue in self._queues.items()})
        result = self.statistics.to_json(self._pairing.unpaired, dropped)
        result["read"] = {side: reader.read for side, reader in self._readers.items()}
        result["lost"] = {side: reader.lost for side, reader in self._readers.items()}
        return result

    def _queue(self) -> Handover:
        return Handover(1 if self.live else 2, newest=self.live)

    def _stages(self) -> List[Tuple[str, Callable[[], None]]]:
        queues = self._queues
        readers = [("read " + side, self._readers[side].run) for side in SIDES]
        chain: List[Tuple[str, Callable[[_Work], None], str, Optional[str]]] = [
            ("prepare", self._prepare, "paired", "prepared"),
            ("fuse", self._fuse, "prepared", "fused"),
            ("finish", self._finish_picture, "fused", "finished"),
            ("write", self._write, "finished", None),
        ]
        return [
            *readers,
            ("pair", self._pair_live if self.live else self._pair_files),
            *[
                (name, lambda n=name, w=work, a=taken, b=put: self._run_stage(n, w, queues[a], b and queues[b]))
                for name, work, taken, put in chain
            ],
        ]

    def _guard(self, name: str, stage: Callable[[], None]) -> None:
        """Run a stage; the first error of any stage ends all of them."""
        try:
            stage()
        except Stopped:
            pass
        except Exception as error:
            with self._lock:
                self.error = self.error or _named(name, error)
            self._end_after(name)

    def _end_after(self, name: str) -> None:
        """Keep what was read where a source failed; stop at once where a later stage failed."""
        if not name.startswith("read"):
            self._stop_all()
        elif self.live:
            self.finish()  # of files the pairing ends the other's reading, once it needs no more of it

    def _stop_all(self) -> None:
        self.finish()
        for queue in (*self._frames.values(), *self._queues.values()):
            queue.stop()

    def _run_stage(self, name: str, work: Callable[[_Work], None], taken: Handover, put: Optional[Handover]) -> None:
        times = self.statistics.stage(name)
        while True:
            item = taken.take()
            if item is None:
                break
            times.begin()
            work(item)
            times.end()
            if put is not None:
                put.put(item)
        if put is not None:
            put.close()

    def _pair_files(self) -> None:
        """Pair until both have ended, or until a frame is needed of a file whose reading failed or was stopped.

        Such a file has not ended: the frame that would come next might be the nearer one, so what is not certain
        without it is left out. The other file is read for as long as that settles what is here.
        """
        side = self._pairing.wants()
        while side is not None:
            frame = self._frames[side].take()
            if frame is None and not self._readers[side].ended:
                break
            self._receive(side, frame)
            self._hand_on(self._pairing.decide())
            side = self._pairing.wants()
        self.finish()
        for frames in self._frames.values():
            frames.stop()
        self._queues["paired"].close()

    def _pair_live(self) -> None:
        arrivals = self._frames[IR].signal
        while not all(self._frames[side].over for side in SIDES):
            with arrivals:
                arrivals.wait(_PAIRING_TICK_S)
            for side in SIDES:
                frame = self._frames[side].take(timeout=0)
                if frame is not None:
                    self._receive(side, frame)
            self._hand_on(self._pairing.decide(time.monotonic()))
        self._queues["paired"].close()

    def _receive(self, side: str, frame: Optional[Frame]) -> None:
        if frame is None:
            self._pairing.end(side)
        else:
            self._pairing.add(side, frame)

    def _hand_on(self, pairs: List[Pair]) -> None:
        for pair in pairs:
            self.statistics.pair(pair)
            self._queues["paired"].put(_Work(pair))

    def _prepare(self, work: _Work) -> None:
        ir, vis = work.pair.ir, work.pair.vis
        if vis is not None:
            kept = self._keeps_planes and isinstance(vis.picture, Planes)
            work.vis = vis.picture if kept else as_colour(vis.picture)
            self._size = (work.vis.shape[0], work.vis.shape[1])
        if ir is not None:
            stored = one_channel(ir)
            work.ir = np.array(self._plane(stored))  # a copy: the next may overwrite it
            if vis is not None and self._settings.fallback:
                self._judge(work, stored)
        if work.missing is None:
            work.seen = self._seen(work.vis)

    def _seen(self, vis: Picture) -> NDArray[np.float32]:
        """What the network takes of the visible picture."""
        if isinstance(vis, Planes):
            return luminance_of(vis)
        return colour_planes(vis) if self._network.rgb else luminance(vis, "BGR")

    def _plane(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """The infrared frame on the visible grid; in its own size while no visible frame has come."""
        alignment = self._thermal.alignment
        return self._thermal.plane(stored, alignment.vis_size if alignment is not None else self._size)

    def _judge(self, work: _Work, stored: NDArray[Any]) -> None:
        weights = {IR: liveness(stored, self._thermal.unit), VIS: liveness(work.vis)}
        weaker = IR if weights[IR] <= weights[VIS] else VIS
        work.weight, work.weaker = weights[weaker], weaker
        if work.weight == 0:
            work.missing = weaker

    def _fuse(self, work: _Work) -> None:
        if work.seen is not None:
            work.fused = np.array(self._network.run(work.ir, work.seen))  # a copy: the next run may overwrite it

    def _finish_picture(self, work: _Work) -> None:
        if work.missing is not None:
            work.picture = bgr_of(work.vis).copy() if work.missing == IR else grey_picture(work.ir)
        else:
            work.picture = self._coloured(work)
        if work.missing is not None:
            notice(work.picture, work.missing)
        if self._settings.compare:
            work.picture = side_by_side(work.ir if work.ir is None else grey_picture(work.ir), work.vis, work.picture)
        if self._settings.overlay:
            label(work.picture, self.statistics.fps, self.statistics.skew_ms)

    def _coloured(self, work: _Work) -> Picture:
        if isinstance(work.vis, Planes):
            return recombine_planes(work.fused, work.vis)
        rgb = self._network.rgb
        picture = colour_picture(work.fused) if rgb else recombine(work.fused, work.vis, "BGR")
        if work.weight == 1:
            return picture
        return mixed(picture, work.vis if work.weaker == IR else grey_picture(work.ir), work.weight)

    def _write(self, work: _Work) -> None:
        stamp = work.pair.stamp
        if self._settings.natural_speed:
            self._wait_for(stamp)
        for output in self._outputs:
            output.write(work.picture, stamp)
        self.statistics.done(time.monotonic() - stamp if self.live else None)

    def _wait_for(self, stamp: float) -> None:
        """Sleep until a file's picture is due."""
        now = time.monotonic()
        if self._first_shown is None:
            self._first_shown = (now, stamp)
        due = self._first_shown[0] + stamp - self._first_shown[1]
        if due > now:
            time.sleep(min(due - now, 60.0))


def _named(stage: str, error: Exception) -> Exception:
    """The runtime's own errors as they are; of others one line that says in which stage they came up."""
    if isinstance(error, (DeviceError, DeviceInputError)):
        return error
    made = DeviceError(f"live run, stage `{stage}`: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
    made.__cause__ = error
    return made
