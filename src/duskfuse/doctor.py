"""The verb ``doctor``: what this machine has, what is missing, and where duskfuse keeps things."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys

PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "opencv-python",
    "kornia",
    "segment-anything",
    "onnx",
    "onnxruntime",
    "pyarrow",
)
EXTRAS = {"tensorboard": "training curves in TensorBoard: pip install 'duskfuse[tensorboard]'"}


def doctor() -> dict[str, object]:
    """Plain facts as a mapping; ``problems`` lists what a user should mend."""
    import torch

    from duskfuse import __version__
    from duskfuse.data.priors.cache import home

    versions = {name: _version(name) for name in PACKAGES}
    return {
        "duskfuse": __version__,
        "python": sys.version.split()[0],
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none: networks run on the CPU",
        "home": str(home()),
        "packages": {name: version or "missing" for name, version in versions.items()},
        "optional": {name: _version(name) or f"not installed ({why})" for name, why in EXTRAS.items()},
        "problems": _problems(versions),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _problems(versions: dict[str, str | None]) -> list[str]:
    found = [f"{name} is missing: pip install duskfuse again" for name, version in versions.items() if version is None]
    if versions["opencv-python"] and _version("opencv-python-headless"):
        found.append("opencv-python and opencv-python-headless overwrite each other's files: uninstall one")
    return found
