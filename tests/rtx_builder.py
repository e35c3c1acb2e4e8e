"""Build files with NVIDIA's own parser and builder (TensorRT for RTX), which need no GPU; our builder drives them.

A program of its own, for a library that crashes ends only its process: paths of .onnx files come in line by line, for
each a line of JSON goes out.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

CRASHED = "crashed"


def build_all(paths: Iterable[Path]) -> dict[Path, dict[str, Any]]:
    """What the builder makes of each file: ``built`` with ``bytes``, or ``error``."""
    left, verdicts = list(paths), {}
    while left:
        done = list(_run(left))
        verdicts.update(zip(left, done, strict=False))
        left = left[len(done) :]
        if left:  # the process ended at this file
            verdicts[left.pop(0)] = {"built": False, "error": CRASHED}
    return verdicts


def _run(paths: list[Path]) -> Iterator[dict[str, Any]]:
    lines = "".join(f"{path}\n" for path in paths)
    done = subprocess.run([sys.executable, __file__], input=lines, capture_output=True, text=True, check=False)
    if "ModuleNotFoundError" in done.stderr:
        raise RuntimeError(done.stderr)
    for line in done.stdout.splitlines():
        yield json.loads(line)


def main() -> None:
    """Answer line by line."""
    import tensorrt_rtx

    from duskfuse.export.runtime.cuda_memory import Device
    from duskfuse.export.runtime.errors import DeviceError, DeviceInputError
    from duskfuse.export.runtime.tensorrt_build import build_engine

    sys.modules["tensorrt"] = tensorrt_rtx  # its module has the names of TensorRT's
    device = Device("no GPU", "0.0", 0, False, 4096)
    for line in sys.stdin:
        path, said = Path(line.strip()), []
        try:
            record = build_engine(path, device=device, progress=said.append)
            answer = {"built": True, "bytes": path.with_suffix(".engine").stat().st_size, "record": record._asdict()}
        except (DeviceError, DeviceInputError) as error:
            answer = {"built": False, "error": str(error), "parsed": isinstance(error, DeviceError)}
        print(json.dumps({**answer, "said": said}), flush=True)


if __name__ == "__main__":
    main()
