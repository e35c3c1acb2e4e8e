"""Reading a source on a thread of its own, and handing things from one thread to the next.

A file's reader waits until its frames are taken, so that none is lost; a live source's reader keeps only the newest
frame, so that none is late. A live source that is lost is opened again, with growing pauses, until it is back.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any, Callable, Deque, Optional

from .live_statistics import StageTimes
from .sources import Frame, Source

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 8.0
FILE_FRAMES = 4
"""Frames of a file that are read ahead."""


class Stopped(Exception):
    """Raised where a thread waits for something that will not come, because everything is being stopped."""


class Handover:
    """A queue of at most ``size`` items between two threads.

    Where ``newest`` is true, putting never waits: the oldest item is thrown away, and counted in ``dropped``.
    ``signal`` is a condition that several queues may share, so that one thread can wait for any of them.
    """

    def __init__(self, size: int = 2, *, newest: bool = False, signal: Optional[threading.Condition] = None) -> None:
        self.size, self.newest, self.dropped = size, newest, 0
        self.signal = signal or threading.Condition()
        self._items: Deque[Any] = deque()
        self._closed = self._stopped = False

    def put(self, item: Any) -> None:
        """Append an item; waits for room unless ``newest``. Raises Stopped."""
        with self.signal:
            while len(self._items) >= self.size and not self.newest and not self._stopped:
                self.signal.wait()
            if self._stopped:
                raise Stopped
            if len(self._items) >= self.size:
                self._items.popleft()
                self.dropped += 1
            self._items.append(item)
            self.signal.notify_all()

    def take(self, timeout: Optional[float] = None) -> Any:
        """The oldest item; None after the last one of a closed queue, or after ``timeout`` seconds. Raises Stopped."""
        with self.signal:
            self.signal.wait_for(lambda: self._items or self._closed or self._stopped, timeout)
            if self._stopped:
                raise Stopped
            if not self._items:
                return None
            self.signal.notify_all()
            return self._items.popleft()

    @property
    def over(self) -> bool:
        """Whether nothing is left and nothing will come."""
        with self.signal:
            return self._closed and not self._items

    def close(self) -> None:
        """Say that nothing more is put in; what is in it can still be taken."""
        with self.signal:
            self._closed = True
            self.signal.notify_all()

    def stop(self) -> None:
        """Throw away what is in it and wake everyone who waits with Stopped."""
        with self.signal:
            self._stopped = True
            self._items.clear()
            self.signal.notify_all()


class Reader:
    """Reads ``source`` on a thread into ``frames``; ``times`` gets what a frame took, of a live source with the wait.

    ``changed`` is called with what the user should know: a stream that was lost, and one that is back.
    """

    def __init__(
        self, source: Source, frames: Handover, times: StageTimes, changed: Callable[[str], None] = lambda _: None
    ) -> None:
        self.source, self.frames = source, frames
        self.read = self.lost = 0
        self._times = times
        self.ended = False
        """Whether the source itself has come to its end; a reading that failed or was stopped has not."""
        self._changed = changed
        self._finish = threading.Event()

    def run(self) -> None:
        """Read until the end or until `finish`; raises what the source raises if it cannot be opened at first."""
        try:
            self.source.open()
            try:
                self._read_on()
                if self.source.note is not None:
                    self._changed(self.source.note)
                while self.source.live and self._come_back():
                    self._read_on()
            finally:
                self.source.close()
        except Stopped:
            pass
        finally:
            self.frames.close()

    def finish(self) -> None:
        """Stop after the frame that is being read."""
        self._finish.set()

    def _read_on(self) -> None:
        while not self._finish.is_set():
            self._times.begin()
            frame: Optional[Frame] = self.source.read()
            if frame is None:
                self.ended = True
                return
            self._times.end()
            self.read += 1
            self.frames.put(frame)

    def _come_back(self) -> bool:
        """Open a lost source anew; False when reading was finished meanwhile."""
        if self._finish.is_set():
            return False
        self.lost += 1
        self._changed(f"{self.source.name} is lost; trying to reach it again")
        pause = FIRST_PAUSE_S
        self.source.close()
        while not self._finish.wait(pause):
            try:
                self.source.open()
            except (OSError, RuntimeError, ValueError):
                pause = min(2 * pause, LONGEST_PAUSE_S)
            else:
                self._changed(f"{self.source.name} is back")
                return True
        return False
