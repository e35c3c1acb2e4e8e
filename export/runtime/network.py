"""The network on the device: one interface, whatever runs underneath.

Two kinds of exported files exist. Luminance files take ``ir`` and ``vis_y`` ``[1, 1, H, W]`` and give ``fused_y``;
colour files take ``ir`` and ``vis`` ``[1, 3, H, W]`` RGB and give ``fused_rgb``. All values are float32 in [0, 1].

An engine that TensorRT built on this device from ``NAME.onnx`` lies beside it as ``NAME.engine``, with its record
``NAME.engine.json`` that says what it was built from and where.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Protocol, Tuple, Union

import numpy as np

from .bundle import open_bundle
from .errors import DeviceError, DeviceInputError
from .onnx_file import read_onnx

if TYPE_CHECKING:
    import argparse

    from numpy.typing import NDArray

ONNXRUNTIME = "onnxruntime"
TENSORRT = "tensorrt"
BACKENDS = (TENSORRT, ONNXRUNTIME)
LUMINANCE_NAMES = ("ir", "vis_y", "fused_y")
COLOUR_NAMES = ("ir", "vis", "fused_rgb")


class Network(Protocol):
    """A fusion network ready to run."""

    size: Optional[Tuple[int, int]]
    """(height, width) it takes, None for any."""
    metadata: Dict[str, str]
    """What the file says about itself."""
    rgb: bool
    """Whether it takes and gives colours."""
    backend: str
    """``onnxruntime`` or ``tensorrt``."""

    def run(self, ir: NDArray[np.float32], vis: NDArray[np.float32]) -> NDArray[np.float32]:
        """Fuse float32 planes in [0, 1]: ``ir`` and ``vis`` (the BT.601 luminance) ``[H, W]`` into ``[H, W]``.

        Where ``rgb`` is true, ``vis`` and the result are ``[3, H, W]`` RGB. The result may be a buffer of the network,
        which its next run overwrites. Raises DeviceInputError for another size.
        """


class OnnxNetwork:
    """An exported file run by ONNX Runtime on the CPU; a :class:`Network`.

    ``source`` is the file, or its verified bytes with the ``name`` for messages; ``threads`` bounds the CPU threads.
    Raises DeviceInputError where it is no fusion network, DeviceError where ONNX Runtime is missing.
    """

    backend = ONNXRUNTIME

    def __init__(
        self, source: Union[str, Path, bytes], threads: Optional[int] = None, name: Optional[str] = None
    ) -> None:
        self.name = name or ("the network" if isinstance(source, bytes) else str(source))
        self._session = _session(source, self.name, threads)
        inputs = {value.name: value for value in self._session.get_inputs()}
        outputs = [value.name for value in self._session.get_outputs()]
        self._vis, self._fused = _contract(sorted(inputs), outputs, self.name)
        self.rgb = self._fused == COLOUR_NAMES[2]
        height, width = inputs["ir"].shape[2:]
        fixed = isinstance(height, int) and isinstance(width, int)
        self.size: Optional[Tuple[int, int]] = (height, width) if fixed else None
        self.metadata: Dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)

    def run(self, ir: NDArray[np.float32], vis: NDArray[np.float32]) -> NDArray[np.float32]:
        """See :meth:`Network.run`."""
        check_planes(self, ir, vis)
        feeds = {"ir": np.ascontiguousarray(ir)[None, None]}
        feeds[self._vis] = np.ascontiguousarray(vis if self.rgb else vis[None])[None]
        fused: NDArray[np.float32] = self._session.run([self._fused], feeds)[0][0]
        return fused if self.rgb else fused[0]


def open_network(
    model: Union[str, Path],
    backend: Optional[str] = None,
    threads: Optional[int] = None,
    *,
    precision: Optional[str] = None,
    size: Optional[Tuple[int, int]] = None,
) -> Network:
    """Open an exported ``.onnx`` file, or a bundle, which is verified first.

    ``backend`` is ``tensorrt`` or ``onnxruntime``; where not given, TensorRT where it is installed and an engine was
    built here for the file, else ONNX Runtime. ``precision`` and ``size`` (height, width) choose among the files of a
    bundle. Raises DeviceInputError or DeviceError where that is not possible.
    """
    path = Path(model)
    if backend is not None and backend not in BACKENDS:
        raise DeviceInputError(f"backend {backend!r}", "one of " + ", ".join(BACKENDS))
    if path.is_dir():
        return _open_bundled(path, backend, threads, precision, size)
    if not path.is_file():
        raise DeviceInputError(
            f"{path} is not there", "a model is an exported .onnx file, or a bundle", "check the path"
        )
    engine = path.with_suffix(".engine")
    if backend == TENSORRT or (backend is None and engine.is_file() and has_tensorrt()):
        return _open_engine(path, engine)
    return OnnxNetwork(path, threads)


def _open_bundled(
    folder: Path,
    backend: Optional[str],
    threads: Optional[int],
    precision: Optional[str],
    size: Optional[Tuple[int, int]],
) -> Network:
    bundle = open_bundle(folder)
    built = any(bundle.engine(network) for network in bundle.networks)
    engines = backend == TENSORRT or (backend is None and built and has_tensorrt())
    network = bundle.choose(precision, size, engines)
    engine = bundle.engine(network)
    if backend == TENSORRT or (engines and engine):
        return _open_engine(folder / network.file, engine or (folder / network.file).with_suffix(".engine"))
    return OnnxNetwork(bundle.read_network(network), threads, network.file)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which network a verb runs, and on what."""
    own = own_bundle()
    where = "" if own is None else "; by default this bundle"
    parser.add_argument(
        "--model", type=Path, default=own, required=own is None, help="exported .onnx file, or a bundle" + where
    )
    parser.add_argument("--precision", choices=("fp32", "fp16", "int8"), help="which file of a bundle")
    parser.add_argument("--size", type=_size, metavar="WIDTHxHEIGHT", help="which file of a bundle: of the pictures")
    parser.add_argument("--backend", choices=BACKENDS, help="by default TensorRT where an engine was built here")
    parser.add_argument("--threads", type=int, help="bound on the CPU threads of ONNX Runtime")


def network_of(args: argparse.Namespace) -> Network:
    """Open the network that the arguments of :func:`add_model_arguments` name."""
    return open_network(args.model, args.backend, args.threads, precision=args.precision, size=args.size)


def _size(text: str) -> Tuple[int, int]:
    """Read ``WIDTHxHEIGHT`` into (height, width); ValueError, which argparse reports, for anything else."""
    width, _, height = text.partition("x")
    return int(height), int(width)


def own_bundle() -> Optional[Path]:
    """The bundle in which this runtime lies, None where it lies in no bundle."""
    folder = Path(__file__).resolve().parent.parent
    return folder if (folder / "bundle.json").is_file() else None


def has_tensorrt() -> bool:
    """Whether TensorRT's Python module can be imported."""
    try:
        import tensorrt  # noqa: F401
    except ImportError:
        return False
    return True


def check_planes(network: Network, ir: NDArray[Any], vis: NDArray[Any]) -> None:
    """Raise DeviceInputError unless the planes are of one size, and of the size that ``network`` takes."""
    if ir.ndim != 2 or vis.shape != ((3, *ir.shape) if network.rgb else ir.shape):
        raise DeviceInputError(
            f"infrared {ir.shape} and visible {vis.shape}",
            "infrared is [H, W], visible {} of the same size".format("[3, H, W]" if network.rgb else "[H, W]"),
        )
    if network.size is not None and ir.shape != network.size:
        raise DeviceInputError(
            f"pictures of (height, width) {ir.shape}",
            f"this file takes (height, width) {network.size}",
            "export with --size of the camera, or with --dynamic",
        )


def _open_engine(path: Path, engine: Path) -> Network:
    if not has_tensorrt():
        raise DeviceError(
            "TensorRT is not installed", "its Python module comes with JetPack", "use --backend onnxruntime"
        )
    if not engine.is_file():
        raise DeviceInputError(f"{path} has no engine", "engines are built on the device", "run build.sh first")
    from .tensorrt_network import EngineNetwork

    return EngineNetwork(engine, path)


def _session(source: Union[str, Path, bytes], name: str, threads: Optional[int]) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise DeviceError(
            "ONNX Runtime is not installed", remedy="python3 -m pip install onnxruntime, or build an engine"
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    content = source if isinstance(source, bytes) else read_onnx(Path(source))
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has no common base class for its loading errors
        raise DeviceInputError(
            f"{name} cannot be opened as an ONNX network ({(str(error).splitlines() or [type(error).__name__])[0]})",
            f"a file must be whole, and ONNX Runtime 1.12 or newer (this is {onnxruntime.__version__})",
            "copy it again, or write it anew with `duskfuse export`",
        ) from error


def _contract(inputs: List[str], outputs: List[str], name: str) -> Tuple[str, str]:
    """The names of the visible input and of the output."""
    for ir, vis, fused in (LUMINANCE_NAMES, COLOUR_NAMES):
        if inputs == sorted((ir, vis)) and fused in outputs:
            return vis, fused
    raise DeviceInputError(
        f"{name} has the inputs {inputs}",
        "want ir and vis_y, giving fused_y, or ir and vis, giving fused_rgb",
        "write it with `duskfuse export`",
    )
