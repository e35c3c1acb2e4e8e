"""A device for bundles: this machine with few packages, pictures for it, and TensorRT's stand-in where asked for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np

SIZE = (48, 64)
"""(height, width) of the pictures."""

_PACKAGES = ("numpy", "cv2", "onnxruntime")
_OF_THE_STANDIN = ("onnx", "google.protobuf", "ml_dtypes", "typing_extensions")
_RNG = np.random.default_rng(8)


def packages_of_a_device(folder: Path, *, tensorrt: bool = False) -> Path:
    """Fill a folder with the only packages of a device: NumPy, OpenCV and ONNX Runtime, by links to those here.

    With ``tensorrt`` it also has TensorRT, which is the stand-in of a release, see ``device_tensorrt.py``; what the
    stand-in itself needs lies in a folder of its own, which only importing TensorRT opens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in _PACKAGES:
        _link(name, folder)
    if tensorrt:
        tests, inside = Path(__file__).parent, folder / "inside_tensorrt"
        inside.mkdir()
        for name in _OF_THE_STANDIN:
            _link(name, inside)
        for path in (*tests.glob("*_standin.py"), tests / "tensorrt_api.py", tests / "data"):
            (inside / path.name).symlink_to(path)
        shutil.copy(tests / "device_tensorrt.py", folder / "tensorrt.py")
    return folder


def _link(name: str, folder: Path) -> None:
    """Link a package or module, and the libraries that its wheel brings beside it."""
    spec = find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    origin = Path(spec.origin)
    place = origin.parent if origin.name == "__init__.py" else origin
    target = folder.joinpath(*name.split(".")[:-1], place.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    libraries = [path for path in place.parent.glob("*.libs") if name in path.name or name == "cv2"]
    for path in (place, *libraries):
        link = target.with_name(path.name)
        if not link.exists():
            link.symlink_to(path)


def run_on_device(
    device: Path, bundle: Path, *arguments: str | Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Start Python in the folder of a bundle with these arguments, its own library and the packages of a device."""
    return subprocess.run(
        [sys.executable, "-S", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=bundle,
        env={"PYTHONPATH": str(device), "OMP_NUM_THREADS": "1", **environment},
    )


def write_pair(folder: Path, ir: np.ndarray, vis: np.ndarray, name: str = "a") -> tuple[Path, Path]:
    """Write ``ir/NAME.png`` and ``vis/NAME.png`` and return their paths."""
    paths = folder / "ir" / f"{name}.png", folder / "vis" / f"{name}.png"
    for path, picture in zip(paths, (ir, vis), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), picture)
    return paths


def smooth(kind: type, most: int, shape: tuple[int, ...] = SIZE) -> np.ndarray:
    """A smooth picture of a number type from 0 to ``most``."""
    small = _RNG.random((5, 6, *shape[2:]))
    return np.clip(cv2.resize(small, shape[1::-1], interpolation=cv2.INTER_CUBIC) * most, 0, most).astype(kind)
