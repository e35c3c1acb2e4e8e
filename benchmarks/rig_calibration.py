"""Error of `duskfuse calibrate` on real pairs whose homography is known, by group and by number of frames.

    python benchmarks/rig_calibration.py ../shared/data --frames 1 4 --out benchmarks/results/rig_calibration.json

Both pictures of a registered pair are looked at by a camera of its own, drawn at random: infrared 320×256, visible
640×480, width of the infrared view 0.5 to 1.6 times that of the visible one, turned by up to 10°, each corner moved by
up to 2 % of the width. The error is the mean distance, in visible pixels, between where the true and the found
homography put an even grid of the visible points that infrared sees. Registered pairs of public sets are themselves a
few pixels off, so a second error is measured against what calibration finds in the pairs as they are.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from duskfuse.data.errors import InputError
from duskfuse.data.images import read_infrared, read_visible
from duskfuse.data.progress import set_quiet
from duskfuse.data.rig_calibration.frames import Frame, Frames
from duskfuse.data.rig_calibration.matching import Matched, match_rig

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from calibration_rigs import Rig, rig

IR, VIS = (256, 320), (480, 640)
Registered = tuple[str, NDArray[np.float32], NDArray[np.float32]]


def main() -> None:
    """Calibrate every group with every number of frames and write one row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--frames", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--groups", nargs="*", default=[], help="only groups whose name holds one of these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    set_quiet(True)
    rows = json.loads(arguments.out.read_text())["rows"] if arguments.out and arguments.out.exists() else []
    done = {(row["group"], row["frames"], row["seed"]) for row in rows}
    for name, paths in groups(arguments.data).items():
        if arguments.groups and not any(part in name for part in arguments.groups):
            continue
        for count in arguments.frames:
            if (name, count, arguments.seed) in done:
                continue
            frames = chosen(paths, count)
            if len(frames) < count:
                continue
            rows.append({"group": name, "seed": arguments.seed, **row(frames, arguments.seed)})
            print(json.dumps(rows[-1]), flush=True)
            if arguments.out:
                text = json.dumps({"summary": summary(rows), "rows": rows}, indent=1)
                arguments.out.write_text(text + "\n", encoding="utf-8")


def groups(data: Path) -> dict[str, list[Path]]:
    """Infrared files by where they come from; pairs of MSRS apart by day and night."""
    found: dict[str, list[Path]] = {}
    for path in sorted((data / "train" / "ir").iterdir()):
        found.setdefault(path.stem.split("__")[0], []).append(path)
    for path in sorted((data / "detect" / "val" / "ir").iterdir()):
        found.setdefault("MSRS night" if path.stem.endswith("N") else "MSRS day", []).append(path)
    for clip in sorted((data / "video").iterdir()):
        found[f"video {clip.name}"] = sorted((clip / "ir").iterdir())
    return found


def chosen(paths: Sequence[Path], count: int) -> list[Registered]:
    """Evenly spaced pairs of one size: the size that most of them have."""
    sizes = [cv2.imread(str(path)).shape[:2] for path in paths]
    most = max(set(sizes), key=sizes.count)
    alike = [path for path, size in zip(paths, sizes, strict=True) if size == most]
    places = np.unique(np.linspace(0, len(alike) - 1, count + 2).round().astype(int)[1:-1])
    return list(pairs([alike[place] for place in places]))


def pairs(paths: Sequence[Path]) -> Iterator[Registered]:
    """Read the pairs of some infrared files."""
    for path in paths:
        (visible,) = (path.parents[1] / "vis").glob(f"{path.stem}.*")
        yield path.stem, read_infrared(path), read_visible(visible)


def row(frames: Sequence[Registered], seed: int) -> dict[str, Any]:
    """Calibrate the pairs as they are, and as a drawn rig sees them."""
    rng = np.random.default_rng(seed)
    size = frames[0][1].shape[0], frames[0][1].shape[1]
    scale = float(np.exp(rng.uniform(np.log(0.5), np.log(1.6))))
    cameras = rig(rng, size, IR, VIS, scale=scale)
    started = time.process_time()
    found = calibrated(frames, cameras)
    seconds = time.process_time() - started
    result: dict[str, Any] = {"frames": len(frames), "scale": round(scale, 3), "cpu_s": round(seconds, 1)}
    if isinstance(found, str):
        return {**result, "refused": found}
    own = calibrated(frames, None)
    evidence = found.evidence
    return {
        **result,
        "error_px": round(cameras.error(found.matrix), 2),
        "error_to_own_px": None if isinstance(own, str) else round(cameras.error(found.matrix, own.matrix), 2),
        "median_residual_px": evidence.to_json()["residuals"]["median_px"],
        "doubt_px": round(evidence.doubt_px, 2),
        "used": sum(frame.used for frame in evidence.frames),
    }


def calibrated(frames: Sequence[Registered], cameras: Rig | None) -> Matched | str:
    """The homography of what the cameras see (None: of the pairs as they are), or why it was refused."""
    seen = [(name, *((ir, vis) if cameras is None else cameras.shoot(ir, vis))) for name, ir, vis in frames]
    sizes = [(plane.shape[0], plane.shape[1]) for plane in seen[0][1:]]
    grey = [Frame(name, ir, cv2.cvtColor(vis, cv2.COLOR_RGB2GRAY)) for name, ir, vis in seen]
    try:
        return match_rig(Frames(tuple(grey), sizes[0], sizes[1], len(grey), 0))
    except InputError as error:
        return error.seen


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Errors by group and number of frames."""
    out: dict[str, Any] = {}
    for group, count in sorted({(row["group"], row["frames"]) for row in rows}):
        of = [row for row in rows if (row["group"], row["frames"]) == (group, count)]
        errors = [row["error_px"] for row in of if "error_px" in row]
        to_own = [row["error_to_own_px"] for row in of if row.get("error_to_own_px") is not None]
        out.setdefault(group, {})[f"{count} frames"] = {
            "calibrated": len(errors),
            "refused": len(of) - len(errors),
            "error_px": quantiles(errors),
            "error_to_own_px": quantiles(to_own),
        }
    return out


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Median, 0.9-quantile and largest."""
    if not values:
        return {}
    return {
        "median": round(float(np.median(values)), 2),
        "p90": round(float(np.quantile(values, 0.9)), 2),
        "largest": max(values),
    }


if __name__ == "__main__":
    main()
