"""Verify a bundle, every file against its checksum and nothing else that could be loaded; or unpack an archive."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .bundle import open_bundle
from .bundle_archive import unpack
from .errors import DeviceInputError
from .network import own_bundle

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``verify``."""
    own = own_bundle()
    parser.add_argument("bundle", type=Path, nargs="?" if own else None, default=own, help="folder, or .tar.gz archive")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="new folder to unpack an archive into")


def run(args: argparse.Namespace) -> int:
    """Verify what the arguments name; raises BundleError with the reason where it is not as it was exported."""
    if args.bundle.is_dir():
        if args.out is not None:
            raise DeviceInputError("a folder and --out", "only archives are unpacked", "drop --out")
        bundle = open_bundle(args.bundle)
    elif args.out is None:
        raise DeviceInputError(f"the archive {args.bundle}", "it is verified while unpacking", "give --out FOLDER")
    else:
        bundle = unpack(args.bundle, args.out)
    networks = ", ".join(network.file for network in bundle.networks)
    sys.stdout.write(f"{bundle.folder}: {len(bundle.sums)} files as exported; networks: {networks}\n")
    return 0
