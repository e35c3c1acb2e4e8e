"""``python3 -m duskfuse_runtime VERB``: what the device runtime does, one module per verb.

A verb's module has ``add_arguments(parser)`` and ``run(args)``, which returns the exit code.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import Dict, Optional, Sequence, Tuple

from .errors import DeviceError, DeviceInputError

INTERRUPTED = 130
VERBS: Dict[str, Tuple[str, str]] = {
    "fuse": ("fuse_pictures", "fuse a pair of pictures, or two folders of them"),
    "live": ("live", "fuse two cameras, videos or picture sequences as they come"),
    "build": ("tensorrt_build", "build the TensorRT engine of a file, for this device"),
    "verify": ("verify_bundle", "verify a bundle, or unpack the archive of one"),
    "bench": ("bench", "measure networks: time, power, heat, and what the numbers depend on"),
}
"""Verb → (module, help)."""


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run one verb; return the exit code: 0 done, 1 failed, 2 wrong usage or input, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="duskfuse_runtime", description=__doc__ and __doc__.split(":")[1].strip())
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, (module, summary) in VERBS.items():
        loaded = importlib.import_module("." + module, __package__)
        verb_parser = verbs.add_parser(verb, help=summary, description=loaded.__doc__)
        loaded.add_arguments(verb_parser)
        verb_parser.set_defaults(run=loaded.run)
    args = parser.parse_args(arguments)
    try:
        code: int = args.run(args) or 0
    except (DeviceInputError, DeviceError) as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


if __name__ == "__main__":
    sys.exit(main())
