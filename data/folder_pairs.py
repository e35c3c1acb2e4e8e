"""Two folders of pictures of which those of one stem belong together."""

from __future__ import annotations

from pathlib import Path

from duskfuse.data.errors import InputError
from duskfuse.data.images import PICTURE_SUFFIXES


def match_by_stem(ir: Path, vis: Path) -> tuple[dict[str, tuple[Path, Path]], list[str]]:
    """Pair the pictures that lie directly in two folders.

    Returns the infrared and visible picture of each stem, sorted, and a sentence for every picture without a partner
    and every stem that a folder has twice. Raises InputError where no stem is in both folders.
    """
    sides = {"infrared": _by_stem(ir), "visible": _by_stem(vis)}
    both = sides["infrared"].keys() & sides["visible"].keys()
    if not both:
        raise InputError(
            f"no stem is both in {ir} ({len(sides['infrared'])} pictures) and {vis} ({len(sides['visible'])})",
            rule="the two pictures of a pair have the same name before the suffix",
            remedy="rename the pictures, or give the folders that hold them directly",
        )
    faults = [
        f"{files[0]}: no {other} picture of the name {stem!r}"
        for side, other in (("infrared", "visible"), ("visible", "infrared"))
        for stem, files in sides[side].items()
        if stem not in both
    ]
    twice = {stem for stem in both if any(len(files[stem]) > 1 for files in sides.values())}
    faults += [f"{stem!r}: more than one picture of this name in {ir} or {vis}" for stem in sorted(twice)]
    return {stem: (sides["infrared"][stem][0], sides["visible"][stem][0]) for stem in sorted(both - twice)}, faults


def _by_stem(folder: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith("."):
            found.setdefault(path.stem, []).append(path)
    return found
