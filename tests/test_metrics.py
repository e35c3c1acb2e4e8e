from __future__ import annotations

import json
from math import atan, exp, floor, inf, isfinite, isnan, log, log2, pi, sqrt
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from duskfuse.data.images import read_grey_u8
from duskfuse.evaluate.metrics import ALL, DEFAULT_METRICS, METRICS, Grey, Mode, SourceStatistics, fusion_metrics
from duskfuse.evaluate.moments import psnr_between

NAMES = list(DEFAULT_METRICS)
GOLDEN = "fast_reference(numpy/cv2)"
FMI = ("FMI-pixel", "FMI-gradient", "FMI-dct", "FMI-wavelet")
GOLDEN_KEYS = {
    "NMI": "NMI_Hossny",
    "MS-SSIM": "MS_SSIM",
    "VIFF": "VIFF_Han2013",
    "Qs": "Qs_Piella",
    "Qw": "Qw_Piella",
    "Qe": "Qe_Piella",
    "FMI-pixel": "FMI_none",
    **{name: name.replace("-", "_") for name in FMI[1:]},
}
ELSEWHERE = {
    "CE": ("CE", "VIFB_MATLAB(octave)"),
    "Qy": ("Qy_Yang", "zhengliu_MATLAB(octave)"),
    "NCIE": ("QNCIE", "zhengliu_MATLAB(octave)"),
}
"""Golden values by another program, of the crops only."""
TOOLBOX = {
    "SSIM": ("SSIM", "skimage(gaussian,L=1 on 0..255: MATLAB ssim(double) default)"),
    "MS-SSIM": ("MS_SSIM_MEF", "LinfengTang_MATLAB(octave)"),
    "Nabf": ("Nabf_as_called", "LinfengTang_MATLAB(octave)"),
    **{name: (name, "LinfengTang_MATLAB(octave)") for name in ("EN", "SD", "SF", "AG", "MI", "CC", "SCD", "PSNR")},
    **{name: (name, "LinfengTang_MATLAB(octave)") for name in ("VIF", "Qabf")},
}
"""Golden values of the toolbox as it is since March 2023."""
SUMMED = ("SSIM", "MS-SSIM")
"""Golden values that are sums over the sources; ours are means."""


def scores(ir: Grey, vis: Grey, fused: Grey) -> dict[str, float]:
    return fusion_metrics(SourceStatistics(ir, vis), fused)


@pytest.fixture(scope="module")
def scene() -> tuple[Grey, Grey, Grey]:
    """Two sources and a mixture of them with edges, texture, flat and saturated areas; 52 by 60 pixels."""
    rng = np.random.default_rng(3)
    rows, columns = np.mgrid[0:52, 0:60]
    ir = 40 + 180 * ((rows - 20) ** 2 + (columns - 30) ** 2 < 120) + rng.normal(0, 3, rows.shape)
    vis = 120 + 60 * np.sin(columns / 4) + 30 * (rows > 25) + rng.normal(0, 6, rows.shape)
    vis[:10, :15] = 300
    fused = 0.6 * np.maximum(ir, vis) + 0.4 * (ir + vis) / 2 + rng.normal(0, 4, rows.shape)
    ir[40:, 40:] = fused[40:, 40:] = 17
    first, second, third = (np.clip(np.rint(picture), 0, 255).astype(np.uint8) for picture in (ir, vis, fused))
    return first, second, third


def test_names_and_order(scene: tuple[Grey, Grey, Grey]):
    assert list(scores(*scene)) == NAMES
    assert {metric.name for metric in METRICS} - set(NAMES) == {"NCIE", "LPIPS", *FMI}
    assert [metric.name for metric in METRICS if not metric.higher_is_better] == ["CE", "Nabf", "Qcv", "LPIPS"]
    assert {name for name, value in scores(*scene).items() if not isfinite(value)} == {"MS-SSIM"}  # too small


@pytest.mark.parametrize("level", [0, 1, 90, 255])
def test_constant_picture(level: int):
    flat = np.full((64, 64), level, np.uint8)
    found = scores(flat, flat, flat)
    assert [found[name] for name in ("EN", "SD", "SF", "AG", "EI", "MI", "CE", "Nabf")] == [0] * 8
    assert found["SSIM"] == pytest.approx(1)
    assert found["PSNR"] == inf
    assert all(isnan(found[name]) for name in ("CC", "SCD", "VIF", "NMI", "Qcb", "Qcv"))
    assert isnan(found["Qabf"]) == (level == 0)  # zeros beyond the border make an edge of every other level


def test_two_levels():
    chequers = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    found = scores(chequers, chequers, chequers)
    assert found["EN"] == 1
    assert found["MI"] == 2
    assert found["SD"] == 127.5
    assert found["SF"] == pytest.approx(255 * sqrt(2))
    assert found["CC"] == 1
    assert found["VIF"] == pytest.approx(2)


def test_copies_of_a_source(scene: tuple[Grey, Grey, Grey]):
    ir, vis, _ = scene
    found = scores(ir, vis, vis)
    assert isnan(found["SCD"])  # F - B is zero everywhere: 0/0
    assert found["Nabf"] == 0
    assert all(isfinite(found[name]) for name in NAMES if name not in ("SCD", "MS-SSIM"))
    both = scores(vis, vis, vis)
    assert both["VIF"] == pytest.approx(2)
    assert both["CC"] == 1


def test_small_pictures_are_nan_and_never_crash():
    rng = np.random.default_rng(0)
    windowed, scaled = {"SSIM", "Qs", "Qw", "Qe"}, {"MS-SSIM", "VIF", "VIFF"}
    for side, undefined in (
        (4, windowed | scaled | {"Qy"}),
        (10, windowed | scaled),
        (40, scaled),
        (41, {"MS-SSIM"}),
        (160, {"MS-SSIM"}),
        (161, set()),
    ):
        found = scores(*rng.integers(0, 256, (3, side, side), dtype=np.uint8))
        assert {name for name in NAMES if isnan(found[name])} == undefined, side


def test_wrong_pictures_are_refused():
    picture = np.zeros((8, 9), np.uint8)
    with pytest.raises(ValueError, match=r"\(8, 9\).*\(9, 8\)"):
        SourceStatistics(picture, picture.T)
    with pytest.raises(ValueError, match="float64"):
        fusion_metrics(SourceStatistics(picture, picture), picture.astype(np.float64))  # type: ignore[arg-type]


def test_sources_exchanged_change_nothing(scene: tuple[Grey, Grey, Grey]):
    ir, vis, fused = scene
    assert scores(ir, vis, fused) == pytest.approx(scores(vis, ir, fused), rel=1e-12, nan_ok=True)


def test_psnr_between():
    first = np.full((4, 5), 100, np.uint8)
    second = first.copy()
    second[0, 0] = 120
    assert psnr_between(first, second) == pytest.approx(10 * np.log10(255**2 / 20))
    assert psnr_between(second, first) == psnr_between(first, second)
    assert psnr_between(first, first) == inf


def test_whole_picture_metrics_against_numpy(scene: tuple[Grey, Grey, Grey]):
    a, b, f = (picture.astype(np.float64) for picture in scene)
    found = scores(*scene)

    def correlation(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
        return float(np.corrcoef(x.ravel(), y.ravel())[0, 1])

    height, width = f.shape
    slopes = [
        sqrt((central(f, y, x, 0) ** 2 + central(f, y, x, 1) ** 2) / 2) for y in range(height) for x in range(width)
    ]
    expected = {
        "SD": f.std(),
        "SF": sqrt(((f[:, 1:] - f[:, :-1]) ** 2).mean() + ((f[1:] - f[:-1]) ** 2).mean()),
        "AG": np.mean(slopes),
        "SCD": correlation(f - b, a) + correlation(f - a, b),
        "CC": (correlation(f, a) + correlation(f, b)) / 2,
        "PSNR": 10 * np.log10(255**2 / ((((f - a) ** 2).mean() + ((f - b) ** 2).mean()) / 2)),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-11)


def central(picture: NDArray[np.float64], y: int, x: int, axis: int) -> float:
    """Central difference along an axis, one-sided at the border, the obvious way."""
    position, size = (y, x)[axis], picture.shape[axis]
    before, after = max(position - 1, 0), min(position + 1, size - 1)
    column = picture[:, x] if axis == 0 else picture[y]
    return float(column[after] - column[before]) / (after - before)


def test_entropy_and_mutual_information_against_counting(scene: tuple[Grey, Grey, Grey]):
    ir, vis, fused = scene
    found = scores(*scene)
    assert found["EN"] == pytest.approx(counted_entropy(fused.ravel().tolist()), rel=1e-12)
    mutual = 0.0
    for source in (ir, vis):
        x, y = source.ravel().tolist(), fused.ravel().tolist()
        mutual += counted_entropy(x) + counted_entropy(y) - counted_entropy(list(zip(x, y, strict=True)))
    assert found["MI"] == pytest.approx(mutual, rel=1e-12)


def counted_entropy(symbols: list[int] | list[tuple[int, int]]) -> float:
    counts: dict[int | tuple[int, int], int] = {}
    for symbol in symbols:
        counts[symbol] = counts.get(symbol, 0) + 1
    return -sum(count / len(symbols) * log2(count / len(symbols)) for count in counts.values())


def gaussian(window: int, sigma: float) -> NDArray[np.float64]:
    distance = np.arange(window) - window // 2
    kernel = np.exp(-(distance[:, None] ** 2 + distance[None, :] ** 2) / (2 * sigma**2))
    return np.asarray(kernel / kernel.sum())


def windows(picture: NDArray[np.float64], side: int) -> list[NDArray[np.float64]]:
    height, width = picture.shape
    return [picture[y : y + side, x : x + side] for y in range(height - side + 1) for x in range(width - side + 1)]


def test_ssim_against_windows(scene: tuple[Grey, Grey, Grey]):
    a, b, f = (picture[5:25, 20:44].astype(np.float64) for picture in scene)
    kernel = gaussian(11, 1.5)

    def slow_ssim(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
        values = []
        for p, q in zip(windows(x, 11), windows(y, 11), strict=True):
            p_mean, q_mean = (kernel * p).sum(), (kernel * q).sum()
            p_var, q_var = (kernel * (p - p_mean) ** 2).sum(), (kernel * (q - q_mean) ** 2).sum()
            both = (kernel * (p - p_mean) * (q - q_mean)).sum()
            mean_term = (2 * p_mean * q_mean + 2.55**2) / (p_mean**2 + q_mean**2 + 2.55**2)
            values.append(mean_term * (2 * both + 7.65**2) / (p_var + q_var + 7.65**2))
        return float(np.mean(values))

    found = scores(*(np.ascontiguousarray(picture[5:25, 20:44]) for picture in scene))
    assert found["SSIM"] == pytest.approx((slow_ssim(a, f) + slow_ssim(b, f)) / 2, rel=1e-10)


def test_vif_against_windows(scene: tuple[Grey, Grey, Grey]):
    a, b, f = (picture.astype(np.float64) for picture in scene)

    def halve(picture: NDArray[np.float64], side: int) -> NDArray[np.float64]:
        kernel = gaussian(side, side / 5)
        height, width = (size - side + 1 for size in picture.shape)
        means = np.array([(kernel * window).sum() for window in windows(picture, side)])
        return means.reshape(height, width)[::2, ::2]

    def slow_vif(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
        kept = total = 0.0
        for side in (17, 9, 5, 3):
            if side < 17:
                x, y = halve(x, side), halve(y, side)
            kernel = gaussian(side, side / 5)
            for p, q in zip(windows(x, side), windows(y, side), strict=True):
                p_mean, q_mean = (kernel * p).sum(), (kernel * q).sum()
                p_var, q_var = (kernel * (p - p_mean) ** 2).sum(), (kernel * (q - q_mean) ** 2).sum()
                if p_var < 1e-10:
                    continue
                total += log(1 + p_var / 2)
                gain = (kernel * (p - p_mean) * (q - q_mean)).sum() / p_var
                if q_var >= 1e-10 and gain > 0:
                    noise = max(q_var - gain**2 * p_var, 0)
                    kept += log(1 + gain**2 * p_var / (noise + 2))
        return kept / total

    assert scores(*scene)["VIF"] == pytest.approx(slow_vif(a, f) + slow_vif(b, f), rel=1e-7)


def sobel(picture: NDArray[np.float64], y: int, x: int) -> tuple[float, float]:
    """Left minus right and below minus above in the 3 by 3 pixels around a pixel."""
    p = picture[y - 1 : y + 2, x - 1 : x + 2]
    right = p[0, 2] + 2 * p[1, 2] + p[2, 2]
    left = p[0, 0] + 2 * p[1, 0] + p[2, 0]
    below = p[2, 0] + 2 * p[2, 1] + p[2, 2]
    above = p[0, 0] + 2 * p[0, 1] + p[0, 2]
    return float(left - right), float(below - above)


def sigmoid(gain: float, slope: float, centre: float, value: float) -> float:
    return gain / (1 + exp(slope * (value - centre)))


def test_qabf_against_pixels(scene: tuple[Grey, Grey, Grey]):
    a, b, f = (np.pad(picture.astype(np.float64), 1) for picture in scene)
    kept = total = 0.0
    for y in range(1, a.shape[0] - 1):
        for x in range(1, a.shape[1] - 1):
            sx, sy = sobel(f, y, x)
            strength, angle = sqrt(sx**2 + sy**2), pi / 2 if sx == 0 else atan(sy / sx)
            for source in (a, b):
                sx, sy = sobel(source, y, x)
                g, alpha = sqrt(sx**2 + sy**2), pi / 2 if sx == 0 else atan(sy / sx)
                ratio = g if g == strength else min(g, strength) / max(g, strength)
                turn = 1 - abs(alpha - angle) / (pi / 2)
                kept += g * sigmoid(0.9994, -15, 0.5, ratio) * sigmoid(0.9879, -22, 0.8, turn)
                total += g
    assert scores(*scene)["Qabf"] == pytest.approx(kept / total, rel=1e-11)


def test_nabf_against_pixels(scene: tuple[Grey, Grey, Grey]):
    a, b, f = (np.pad(picture.astype(np.float64), 1, mode="reflect") for picture in scene)

    def edge(picture: NDArray[np.float64], y: int, x: int) -> tuple[float, float]:
        sx, sy = (value / 8 for value in sobel(picture, y, x))
        angle = atan(-sx / sy) if sy else pi / 2 * np.sign(-sx)
        return sqrt(sx**2 + sy**2), float(angle)

    added = total = 0.0
    for y in range(1, a.shape[0] - 1):
        for x in range(1, a.shape[1] - 1):
            strength, angle = edge(f, y, x)
            edges = [edge(a, y, x), edge(b, y, x)]
            for g, alpha in edges:
                weight = g**1.5 if g >= 2 else 0.001
                total += weight
                if strength > max(edges[0][0], edges[1][0]):
                    turn = abs(abs(alpha - angle) - pi / 2) * 2 / pi
                    kept = sigmoid(0.9999, -19, 0.5, g / strength) * sigmoid(0.9995, -22, 0.5, turn)
                    added += (1 - sqrt(kept)) * weight
    assert scores(*scene)["Nabf"] == pytest.approx(added / total, rel=1e-11)


@pytest.mark.realdata
@pytest.mark.parametrize("section", ["images", "crop256"])
def test_golden_values(shared_data: Path, shared_facts: Path, section: str):
    golden = json.loads((shared_facts / "golden_metrics.json").read_text())[section]
    assert len(golden) == 6
    part = np.s_[256:512, 384:640] if section == "crop256" else np.s_[:, :]
    for name, expected in golden.items():
        ir, vis, fused = (
            np.ascontiguousarray(read_grey_u8(shared_data / "golden" / side / f"{name}.png")[part])
            for side in ("ir", "vis", "fused")
        )
        names = [metric.name for metric in ALL] if section == "crop256" else NAMES
        found = fusion_metrics(SourceStatistics(ir, vis), fused, names)
        for metric in (metric for metric in names if metric not in ELSEWHERE):
            want = expected[GOLDEN_KEYS.get(metric, metric)][GOLDEN] / (2 if metric in SUMMED else 1)
            assert found[metric] == pytest.approx(want, rel=1e-6), f"{name} {metric}"
        for metric, (key, program) in ELSEWHERE.items() if section == "crop256" else ():
            assert found[metric] == pytest.approx(expected[key][program], rel=1e-6), f"{name} {metric}"


@pytest.mark.realdata
def test_golden_values_of_the_toolbox(shared_data: Path, shared_facts: Path):
    golden = json.loads((shared_facts / "golden_metrics.json").read_text())
    compared = 0
    for section, part in (("images", np.s_[:, :]), ("crop256", np.s_[256:512, 384:640])):
        for name, expected in golden[section].items():
            ir, vis, fused = (
                np.ascontiguousarray(read_grey_u8(shared_data / "golden" / side / f"{name}.png")[part])
                for side in ("ir", "vis", "fused")
            )
            found = fusion_metrics(SourceStatistics(ir, vis, Mode.LINFENG_2023), fused, list(TOOLBOX))
            for metric, (key, program) in TOOLBOX.items():
                if program in expected.get(key, ()):
                    assert found[metric] == pytest.approx(expected[key][program], rel=1e-6), f"{name} {metric}"
                    compared += 1
    assert compared > 100


def test_before_2023_the_toolbox_saturated(scene: tuple[Grey, Grey, Grey]):
    ir, vis, fused = scene
    old = fusion_metrics(SourceStatistics(ir, vis, Mode.LINFENG_2022), fused)
    new = fusion_metrics(SourceStatistics(ir, vis, Mode.LINFENG_2023), fused)
    deviations = [min(max(floor(value - fused.mean() + 0.5), 0) ** 2, 255) for value in fused.ravel().tolist()]
    assert old["SD"] == pytest.approx(sqrt(sum(deviations) / len(deviations)), rel=1e-12)
    assert old["SF"] == pytest.approx(new["SF"] / 255, rel=1e-12)
    assert old["VIF"] != pytest.approx(new["VIF"], rel=1e-3)
    same = [name for name in NAMES if name not in ("SD", "SF", "VIF", "VIFF")]
    assert {name: old[name] for name in same} == pytest.approx({name: new[name] for name in same}, nan_ok=True)
