"""TensorRT's Python module, and the two callbacks it wants: for what it logs and for how far a build is."""

from __future__ import annotations

import time
from typing import Any, Callable, Dict, List, Optional

from .errors import DeviceError

Progress = Callable[[str], None]


def import_tensorrt() -> Any:
    """TensorRT's Python module; raises DeviceError where it is not installed."""
    try:
        import tensorrt
    except ImportError as error:
        raise DeviceError(
            f"TensorRT cannot be imported ({error})",
            "its Python module comes with JetPack, for the system's Python",
            "sudo apt install python3-libnvinfer, and use python3 or a venv made with --system-site-packages",
        ) from error
    return tensorrt


def log_keeper(trt: Any) -> Any:
    """A logger that keeps errors, in ``errors``, instead of printing them."""

    class LogKeeper(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # bindings want their constructor by name
            self.errors: List[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(msg)

    return LogKeeper()


def progress_monitor(trt: Any, say: Progress) -> Any:
    """A monitor that says which phase a build is in, at most once a second; ``interrupted`` after Ctrl-C."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.interrupted = False
            self._steps: Dict[str, int] = {}
            self._said = 0.0

        def phase_start(self, phase_name: str, parent_phase: Optional[str], num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            if not parent_phase:
                self._guarded(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if time.monotonic() - self._said >= 1.0:
                self._guarded(f"{phase_name}, step {step + 1} of {self._steps.get(phase_name, 0)}")
            return not self.interrupted

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

        def _guarded(self, text: str) -> None:
            """Say a line; an interrupt must not travel through TensorRT, so it is kept for the end of the build."""
            self._said = time.monotonic()
            try:
                say(text)
            except KeyboardInterrupt:
                self.interrupted = True

    return Monitor()
