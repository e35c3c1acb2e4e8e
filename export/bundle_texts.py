"""The texts of a bundle: how it is started, built and timed, and what its README says."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from string import Template
from typing import Any

from duskfuse.export.runtime.__main__ import VERBS

RUN = '''#!/usr/bin/env python3
"""Start the runtime of this bundle: python3 run.py VERB, for example python3 run.py fuse --help."""

import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from duskfuse_runtime.__main__ import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
'''

BUILD = """#!/bin/sh
# Build TensorRT engines on this device: once, and again after every update of JetPack. Options go to each
# `python3 run.py build`, see its --help.
set -eu
cd "$$(dirname "$$0")"
python3 run.py verify
$builds
"""

BENCH = """#!/bin/sh
# Time this bundle on this device; options go to `python3 run.py bench`, see its --help.
set -eu
cd "$(dirname "$0")"
exec python3 run.py bench "$@"
"""

README = """# $model for the device

Infrared and visible pictures become one, by the student `$architecture` of duskfuse $version. Everything needed is in
this folder; nothing is downloaded.

## Networks

| file | precision | size | kB | worst check picture, dB | largest error |
|---|---|---|---|---|---|
$rows

Every file was compared with the model it came from before it was put here (`verification.json`), with $calibration
(`calibration.json`). $contract

## What the device needs

Python 3.8 or newer, NumPy and OpenCV, as JetPack brings them, and one of

- TensorRT 8.5 or newer, part of JetPack 5.1 and later: the network runs on the GPU;
- ONNX Runtime 1.12 or newer, `python3 -m pip install onnxruntime`: it runs on the processor.

| JetPack | TensorRT | Python | modules |
|---|---|---|---|
| 5.1 to 5.1.6 | 8.5.2 | 3.8 | Xavier NX, AGX Xavier, Orin |
| 6.0 | 8.6.2 | 3.10 | Orin |
| 6.1, 6.2 | 10.3 | 3.10 | Orin |
| 7.2 | 10.16, on some modules 11 | 3.12 | Orin, Thor |

## Commands

```bash
sha256sum -c SHA256SUMS                          # is everything as it was exported?
python3 run.py fuse --ir IR --vis VIS --out OUT  # two pictures, or two folders of them
$commands
```

`python3 run.py VERB --help` says more. The verbs are:

$verbs

Thermal cameras with more than 8 bits: `--thermal-range LOW:HIGH` in the stored values of the camera, or percentiles of
each picture, which is the default; `--black-hot`; `--homography rig.json` where the two cameras are not aligned.

In a program, with this folder on `sys.path`:

```python
from duskfuse_runtime.fuser import EdgeFuser
from duskfuse_runtime.network import open_network

fuser = EdgeFuser(open_network("."), fallback=True)  # fallback: a dead camera is left out
picture = fuser.fuse(ir, vis, "BGR")  # [H, W] and [H, W, 3] uint8 -> [H, W, 3] uint8
```

## What is here

$contents

Checksums show damage and mix-ups, not who made the bundle: run a bundle only if you trust where it came from.

## Licences

The code is under the Apache License 2.0 (`LICENSE`); the network is under $licence. `TRAINING_DATA.md` says what it was
trained on.
"""

TRAINING_DATA = """# What this network was trained on

$training_data

The weights are under $licence. The pictures they were learned from keep their own licences, which may restrict what may
be done with them, and are not part of this bundle.
$notes"""

CONTENTS = {
    "run.py": "starts the runtime",
    "duskfuse_runtime/": "the runtime: Python, no PyTorch",
    "build.sh": "builds TensorRT engines on this device",
    "bench.sh": "times this bundle on this device",
    "verification.json": "how close each network comes to the model",
    "calibration.json": "which pictures were used for that, and for the ranges of INT8",
    "bundle.json": "what this bundle is: versions, the model's card, checksums",
    "SHA256SUMS": "the checksums again, for `sha256sum -c`",
    "TRAINING_DATA.md": "what the network was trained on",
    "LICENSE": "the licence of the code",
}
"""Part of a bundle → what it is."""


def build_script(content: Mapping[str, Any]) -> str:
    """``build.sh``: engines of the fp16 networks, of all of them where there is none."""
    files = content["files"]
    chosen = [entry for entry in files if entry["precision"] == "fp16"] or files
    builds = "\n".join(f'python3 run.py build {shlex.quote(entry["file"])} "$@"' for entry in chosen)
    return Template(BUILD).substitute(builds=builds)


def readme(content: Mapping[str, Any], names: Iterable[str]) -> str:
    """``README.md`` of a bundle that holds the files of these names; ``content`` is that of ``bundle.json``."""
    card = content["card"]
    inputs, output = ("ir, vis", "fused_rgb") if card["colour"] == "rgb" else ("ir, vis_y", "fused_y")
    further = {
        "build": "./build.sh                                       # TensorRT engines, once per device and JetPack",
        "bench": "./bench.sh                                       # how fast is it here?",
        "live": "python3 run.py live --help                       # two cameras, videos or picture sequences",
    }
    held = {"run.py", "duskfuse_runtime/", *names}
    return Template(README).substitute(
        model=content["model"],
        architecture=card["architecture"],
        version=content["duskfuse"],
        rows=_rows(content["files"]),
        calibration=content["calibration"],
        contract=f"Inputs {inputs}, output {output}: float32 in [0, 1], `[1, C, H, W]`.",
        commands="\n".join(line for verb, line in further.items() if verb in VERBS),
        verbs="\n".join(f"- `{verb}`: {summary}" for verb, (_, summary) in VERBS.items()),
        contents="\n".join(f"- `{name}`: {what}" for name, what in CONTENTS.items() if name in held),
        licence=card["licence"],
    )


def training_data(content: Mapping[str, Any]) -> str:
    """``TRAINING_DATA.md`` of a bundle: what the model's card says."""
    card = content["card"]
    notes = f"\n{card['notes']}\n" if card["notes"] else ""
    return Template(TRAINING_DATA).substitute(training_data=card["training_data"], licence=card["licence"], notes=notes)


def _rows(files: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(
        f"| `{entry['file']}` | {entry['precision']} | {'any' if entry['size'] == 'dynamic' else entry['size']} "
        f"| {entry['bytes'] / 1000:.0f} | {entry['verification']['worst_psnr_db']:.1f} "
        f"| {entry['verification']['largest_error']:.2g} |"
        for entry in files
    )
