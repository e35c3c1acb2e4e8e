"""The ``tensorrt`` of a device without a GPU: importing it gives the stand-in of one release on one stand-in GPU.

``STANDIN_RELEASE`` is the release, ``STANDIN_MULTIPROCESSORS`` tells modules apart, and every engine that TensorRT is
asked to load adds its SHA-256 to the file ``STANDIN_LOADED``. CUDA's library is found where the runtime looks for it.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent / "inside_tensorrt"))

from cudart_standin import CudartStandIn
from tensorrt_standin import TensorRT

_library = CudartStandIn(multiprocessors=int(os.environ.get("STANDIN_MULTIPROCESSORS", "8")))
_open_library: Any = ctypes.CDLL


def _cdll(name: Any, *arguments: Any, **named: Any) -> Any:
    return _library if str(name).startswith("libcudart") else _open_library(name, *arguments, **named)


ctypes.CDLL = _cdll  # type: ignore[assignment, misc]
_tensorrt: Any = TensorRT(os.environ["STANDIN_RELEASE"], _library)
_load = _tensorrt.Runtime.deserialize_cuda_engine


def _noted_load(self: Any, serialized_engine: Any) -> Any:
    with Path(os.environ["STANDIN_LOADED"]).open("a") as stream:
        stream.write(hashlib.sha256(bytes(serialized_engine)).hexdigest() + "\n")
    return _load(self, serialized_engine)


_tensorrt.Runtime.deserialize_cuda_engine = _noted_load
sys.modules["tensorrt"] = _tensorrt
