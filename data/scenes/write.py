"""Write scenes as a dataset folder that every verb reads."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from duskfuse.data.errors import InputError
from duskfuse.data.images import write_picture
from duskfuse.data.progress import track
from duskfuse.data.scenes.scene import Scene, render_scene


def write_scenes(out: Path, *, count: int, size: tuple[int, int] = (480, 640), seed: int = 0) -> list[str]:
    """Write ``count`` scenes of consecutive seeds, which go round the conditions, and return their names.

    The folder gets ``ir/``, ``vis/`` and ``label/`` (PNG) and ``boxes/`` (YOLO text) and appears whole or not at all.

    Raises:
        InputError: ``out`` is a file or a folder that is not empty, ``count`` is not positive, or a bad seed or size.
    """
    if count < 1:
        raise InputError(f"{count} scenes", rule="at least one scene is written", remedy="give a count from 1")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        seen = "is not empty" if out.is_dir() else "is a file"
        raise InputError(
            f"{out}: {seen}",
            rule="scenes are written to a new or empty folder",
            remedy="choose another folder, remove this one, or overwrite it with --overwrite",
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.", suffix=".part"))
    try:
        names = []
        for index in track(range(seed, seed + count), "Rendering scenes"):
            scene = render_scene(index, size=size)
            _write_scene(unfinished, scene)
            names.append(scene.name)
        unfinished.chmod(0o755)
        if out.is_dir():
            out.rmdir()
        os.replace(unfinished, out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return names


def _write_scene(folder: Path, scene: Scene) -> None:
    for side, picture in (("ir", scene.ir), ("vis", scene.vis), ("label", scene.seg)):
        write_picture(folder / side / f"{scene.name}.png", picture)
    lines = [f"{int(row[0])} " + " ".join(f"{value:.6f}" for value in row[1:]) for row in scene.boxes]
    boxes = folder / "boxes" / f"{scene.name}.txt"
    boxes.parent.mkdir(exist_ok=True)
    boxes.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
