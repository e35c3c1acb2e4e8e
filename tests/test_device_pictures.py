"""Infrared pictures on the device: whatever numbers a file stores reach the network as they are, or are refused."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from tiff_files import tiff

from duskfuse.data import images
from duskfuse.data.errors import InputError
from duskfuse.export.fuse import fuse
from duskfuse.export.onnx_graph import DeployedStudent, build_graph, save_graph
from duskfuse.export.runtime.__main__ import main
from duskfuse.export.runtime.errors import DeviceInputError
from duskfuse.export.runtime.live import LiveOptions, run_live
from duskfuse.export.runtime.pictures import read_infrared, read_picture
from duskfuse.export.runtime.thermal import ThermalInput
from duskfuse.export.runtime.tiff import values_of
from duskfuse.students.zoo import load_student

SIZE = (48, 63)
"""(height, width): the rows of packed values end inside a byte."""
RNG = np.random.default_rng(6)
COUNTS = np.rint(cv2.resize(RNG.random((5, 6)), SIZE[::-1], interpolation=cv2.INTER_CUBIC).clip(0, 1) * 1000)
RANGE = (150.0, 900.0)

TYPES = {
    "packed 10": (10, "u2", 1),
    "packed 12": (12, "u2", 1),
    "packed 14": (14, "u2", 1),
    "unsigned 16": (16, "u2", 1),
    "signed 16": (16, "i2", 2),
    "unsigned 32": (32, "u4", 1),
    "signed 32": (32, "i4", 2),
    "float 16": (16, "f2", 3),
    "float 32": (32, "f4", 3),
    "float 64": (64, "f8", 3),
    "unsigned 64": (64, "u8", 1),
    "packed 11": (11, "u2", 1),
}
ALWAYS_READ = {"packed 10", "packed 12", "packed 14", "unsigned 16", "signed 16", "signed 32", "float 32", "float 64"}
"""From OpenCV 4.6 on."""


def stored(name: str, order: str = "<") -> tuple[bytes, NDArray[np.float64]]:
    """A file of a number type, and the values in it; negative ones where the type has them."""
    bits, kind, sample_format = TYPES[name]
    values = COUNTS - 300 if sample_format > 1 else COUNTS
    return tiff(values.astype(kind), bits, order=order, sample_format=sample_format), values


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "nano.onnx"
    save_graph(build_graph(DeployedStudent(load_student("nano")[0])), path)
    return path


def written(folder: Path, data: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "a.tif").write_bytes(data)
    return folder / "a.tif"


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("name", TYPES)
def test_every_number_type_is_read_as_stored_or_refused(tmp_path: Path, name: str, order: str) -> None:
    data, values = stored(name, order)
    path = written(tmp_path, data)
    if name not in ALWAYS_READ and cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) is None:
        with pytest.raises(DeviceInputError, match=f"{TYPES[name][0]}-bit values, by OpenCV.*TIFF of 16 bits"):
            read_infrared(path)
        return
    read = read_infrared(path)
    np.testing.assert_array_equal(read, values)
    assert read.dtype == (np.uint16 if TYPES[name][1] == "u2" else np.float32)


OTHER_NAMES = {"signed 16": "u2", "float 16": "u2", "signed 32": "f4", "unsigned 32": "f4", "unsigned 64": "f8"}
"""What OpenCV 4.2 to 4.5.5 call the bytes of a file."""


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_the_type_is_that_of_the_file_where_an_old_opencv_gives_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    data, values = stored(name)
    decoded = values.astype(TYPES[name][1]).view(OTHER_NAMES[name])
    monkeypatch.setattr(cv2, "imdecode", lambda *_: decoded)
    np.testing.assert_array_equal(read_infrared(written(tmp_path, data)), values)


def test_packed_values_that_an_old_opencv_does_not_read_are_refused_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, stored("packed 14")[0])
    cv2.imwrite(str(tmp_path / "vis.png"), np.zeros((*SIZE, 3), np.uint8))
    decode = cv2.imdecode
    monkeypatch.setattr(cv2, "__version__", "4.5.4")
    monkeypatch.setattr(cv2, "imdecode", lambda data, flags: None if bytes(data[:2]) == b"II" else decode(data, flags))
    options = ["--ir", str(path), "--vis", str(tmp_path / "vis.png"), "--out", str(tmp_path / "o.png")]
    assert main(["fuse", "--model", str(model), *options]) == 2
    said = capsys.readouterr().err
    assert "a TIFF of 14-bit values, by OpenCV 4.5.4" in said
    assert "from 4.6 on also packed 10, 12 and 14" in said
    assert "install a newer OpenCV" in said
    assert not (tmp_path / "o.png").exists()


def test_what_opencv_itself_writes_is_read_as_stored(tmp_path: Path) -> None:
    deep = COUNTS.astype(np.uint16) * 60
    cv2.imwrite(str(tmp_path / "16.tif"), deep)
    np.testing.assert_array_equal(read_infrared(tmp_path / "16.tif"), deep)
    cv2.imwrite(str(tmp_path / "three.tif"), np.repeat(deep[..., None], 3, axis=2))
    np.testing.assert_array_equal(read_infrared(tmp_path / "three.tif"), deep)
    colours = RNG.integers(0, 65536, (*SIZE, 3), np.uint16)
    cv2.imwrite(str(tmp_path / "rgb.tif"), colours)
    np.testing.assert_array_equal(read_picture(tmp_path / "rgb.tif"), colours[..., ::-1])


@pytest.mark.parametrize("name", ["packed 10", "packed 12", "packed 14", "unsigned 16", "signed 16", "float 64"])
@pytest.mark.parametrize("ranged", [True, False])
def test_device_and_workstation_fuse_every_number_type_alike(
    tmp_path: Path, model: Path, name: str, ranged: bool
) -> None:
    """The range is in the units of the camera on both sides, and the picture that of the same counts in a PNG."""
    data, values = stored(name)
    ir = written(tmp_path, data)
    cv2.imwrite(str(tmp_path / "same.png"), (values + 300).astype(np.uint16))
    vis = tmp_path / "vis.png"
    cv2.imwrite(str(vis), RNG.integers(0, 256, (*SIZE, 3), np.uint8))
    low, high = (end - (300 if TYPES[name][2] > 1 else 0) for end in RANGE)
    ends = {ir: (low, high), tmp_path / "same.png": (low + 300, high + 300)}
    (tmp_path / "reading.yaml").write_text(f"thermal_range: [{low}, {high}]" if ranged else "")
    for source, (cold, hot) in ends.items():
        out = tmp_path / f"{source.stem}.out.png"
        options = [f"--thermal-range={cold}:{hot}"] if ranged else []
        paths = ["--ir", str(source), "--vis", str(vis), "--out", str(out)]
        assert main(["fuse", "--model", str(model), *paths, *options]) == 0
    fuse(ir, vis, tmp_path / "w.png", model=model, reading=tmp_path / "reading.yaml")
    mine, same, theirs = (images.read_picture(tmp_path / f"{stem}.png") for stem in ("a.out", "same.out", "w"))
    np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(mine, same)
    assert mine.std() > 10


class Both:
    """A network that gives infrared and keeps what it was given."""

    rgb = False

    def __init__(self) -> None:
        self.ir: list[NDArray[np.float32]] = []
        self.vis: list[NDArray[np.float32]] = []

    def run(self, ir: NDArray[np.float32], vis: NDArray[np.float32]) -> NDArray[np.float32]:
        self.ir.append(ir.copy())
        self.vis.append(vis.copy())
        return ir


@pytest.mark.parametrize("name", ["packed 12", "packed 14", "signed 16"])
def test_a_sequence_of_pictures_is_read_live_as_stored(tmp_path: Path, name: str) -> None:
    """Infrared in the units of the camera; packed and float visible pictures as bright as they are."""
    data, values = stored(name)
    bright = tiff(np.full(SIZE, 4095, np.uint16), 12), tiff(np.full(SIZE, 0.5, np.float32), 32, sample_format=3)
    for side, files in (("ir", (data, data)), ("vis", bright)):
        (tmp_path / side).mkdir()
        for index, content in enumerate(files):
            (tmp_path / side / f"{index}.tif").write_bytes(content)
    network = Both()
    options = LiveOptions(f"{tmp_path}/ir", f"{tmp_path}/vis", [f"{tmp_path}/out"], quiet=True)
    low, high = values.min(), values.max()
    run_live(options, network, ThermalInput((float(low), float(high)), video=True))
    assert len(network.ir) == 2
    for ir, vis, grey in zip(network.ir, network.vis, (1.0, 128 / 255), strict=True):
        np.testing.assert_allclose(ir, (values - low) / (high - low), atol=1e-6)
        np.testing.assert_allclose(vis, grey, atol=1e-6)


def test_deep_colours_in_planes_are_refused_everywhere(tmp_path: Path) -> None:
    """All releases of OpenCV up to 5.0 give noise for two of the three colours."""
    planes = np.stack([COUNTS, COUNTS + 1, COUNTS + 2]).astype(np.uint16)
    path = written(tmp_path, tiff(planes, 16))
    with pytest.raises(DeviceInputError, match=r"16-bit values in planes, one per colour.*pixel by pixel"):
        read_picture(path)
    with pytest.raises(InputError, match=r"lie in planes.*save it as PNG"):
        images.read_picture(path)
    path = written(tmp_path, tiff((planes // 4).astype(np.uint8), 8))
    np.testing.assert_array_equal(read_picture(path), (planes // 4).transpose(1, 2, 0))
    np.testing.assert_array_equal(images.read_picture(path), read_picture(path))


def test_any_bytes_behind_a_signature_are_judged_without_a_crash() -> None:
    whole = tiff(COUNTS.astype(np.uint16), 14)
    assert values_of(whole) == (14, "u", False)
    assert values_of(b"\x89PNG") is None
    for end in range(4, len(whole), 97):
        assert values_of(whole[:end]) is None
    for index in RNG.integers(4, len(whole), 200):
        damaged = bytearray(whole)
        damaged[index] ^= 255
        values_of(bytes(damaged))


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    whole = stored("unsigned 16")[0]
    for kept in (len(whole) // 2, len(whole) - 20, 3):
        with pytest.raises(DeviceInputError, match="copy the file again"):
            read_infrared(written(tmp_path, whole[:kept]))
