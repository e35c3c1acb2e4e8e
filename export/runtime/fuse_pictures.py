"""Fuse a pair of pictures, or two folders of pictures matched by name, into 8-bit colour pictures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import DeviceInputError
from .fuser import EdgeFuser
from .network import add_model_arguments, network_of
from .pictures import matched, read_infrared, read_picture, visible, write_picture
from .thermal import add_thermal_arguments, thermal_input_of

if TYPE_CHECKING:
    import argparse

_NAMED = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``fuse``."""
    parser.add_argument("--ir", type=Path, required=True, help="infrared picture, or a folder of them")
    parser.add_argument("--vis", type=Path, required=True, help="visible picture, or a folder of them")
    parser.add_argument("--out", type=Path, required=True, help="picture, or folder, to write")
    parser.add_argument("--overwrite", action="store_true", help="make pictures anew that are there already")
    parser.add_argument("--fallback", action="store_true", help="where one camera is dead, show the other")
    add_model_arguments(parser)
    add_thermal_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Fuse what the arguments name; raises DeviceInputError for unusable pictures, after all others were written."""
    if args.ir.is_dir() != args.vis.is_dir():
        raise DeviceInputError(
            f"{args.ir} and {args.vis}", "pictures go with pictures and folders with folders", "give two of one kind"
        )
    if args.out.resolve() in (args.ir.resolve(), args.vis.resolve()):
        raise DeviceInputError(f"{args.out} is an input", "inputs are never written to", "give another --out")
    if args.ir.is_dir():
        return _fuse_folders(args)
    if args.out.exists() and not args.overwrite:
        raise DeviceInputError(
            f"{args.out} is there already", "nothing is overwritten unasked", "give another --out, or --overwrite"
        )
    _fuse_pair(_fuser_of(args), args.ir, args.vis, args.out)
    return 0


def _fuse_folders(args: argparse.Namespace) -> int:
    if args.out.exists() and not args.out.is_dir():
        raise DeviceInputError(f"{args.out} is a file", "two folders are fused into a folder", "give another --out")
    pairs, faults = matched(args.ir, args.vis)
    fuser = _fuser_of(args)
    written = kept = 0
    for stem, ir, vis in pairs:
        target = args.out / (stem + ".png")
        if target.exists() and not args.overwrite:
            kept += 1
            continue
        try:
            _fuse_pair(fuser, ir, vis, target)
            written += 1
        except DeviceInputError as error:
            faults.append(str(error))
    sys.stderr.write(f"{written} pictures written, {kept} kept that were there already\n")
    if faults:
        shown = faults[:_NAMED] + [f"and {len(faults) - _NAMED} more"] * (len(faults) > _NAMED)
        raise DeviceInputError(
            f"{len(faults)} could not be fused:\n  " + "\n  ".join(shown) + "\n",
            "the others were written",
            "put these right and run the same command again: finished pictures are kept",
        )
    return 0


def _fuser_of(args: argparse.Namespace) -> EdgeFuser:
    return EdgeFuser(network_of(args), thermal=thermal_input_of(args), fallback=args.fallback)


def _fuse_pair(fuser: EdgeFuser, ir: Path, vis: Path, out: Path) -> None:
    write_picture(out, fuser.fuse(read_infrared(ir), visible(read_picture(vis))))
