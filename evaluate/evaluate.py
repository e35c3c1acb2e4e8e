"""The ``evaluate`` verb: score models and folders of fused pictures, always beside the trivial rows.

Every method is scored on its 8-bit luminance: a model's output is rounded to 8 bit, a fused picture is converted to
grey. (Colouring a fused luminance keeps it, so a model and the pictures it wrote get the same scores to within
rounding.) Nothing is stretched.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from math import isnan
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from duskfuse.data.atomic import write_atomically
from duskfuse.data.colour import BLUE, GREEN, RED, recombine
from duskfuse.data.errors import InputError
from duskfuse.data.images import grey_u8, picture_size, read_grey_u8, to_u8
from duskfuse.data.layout import find_pairs, pictures_by_stem
from duskfuse.data.pair_files import PairFiles, check_sizes, read_ir, read_vis
from duskfuse.data.progress import track
from duskfuse.data.reading import Reading
from duskfuse.evaluate.evaluation_report import evaluation_page
from duskfuse.evaluate.fusers import Fuser, open_fuser, size_text
from duskfuse.evaluate.metrics import Grey, SourceStatistics, fusion_metrics
from duskfuse.evaluate.moments import psnr_between
from duskfuse.evaluate.scores import Evaluation, GalleryPair, Kind, Row, reference_metric

GALLERY_PAIRS = 6
_DARK_PAIRS = 3
_GALLERY_SIDE = 640
_WORKERS = 2
_MODEL_SUFFIXES = frozenset({".onnx", ".safetensors"})


class _Sources:
    """The pictures of one pair: 8-bit grey for the metrics, float for the models, read when asked for."""

    def __init__(self, files: PairFiles) -> None:
        self.files = files

    @cached_property
    def ir_u8(self) -> Grey:
        return to_u8(self.ir)

    @cached_property
    def vis_u8(self) -> Grey:
        return grey_u8(to_u8(self.vis))

    @cached_property
    def ir(self) -> NDArray[np.float32]:
        return read_ir(self.files)

    @cached_property
    def vis(self) -> NDArray[np.float32]:
        return read_vis(self.files)

    @cached_property
    def vis_y(self) -> NDArray[np.float32]:
        return self.vis @ np.array([RED, GREEN, BLUE], np.float32)


@dataclass(frozen=True)
class _Method:
    """A row to come."""

    name: str
    kind: Kind
    fuse: Callable[[_Sources], Grey]
    """8-bit fused luminance, ``[H, W]``."""


@dataclass(frozen=True)
class _Scored:
    """What one pair gives."""

    brightness: float
    scores: Mapping[str, Mapping[str, float]]
    """Method name → metric name → value."""


def evaluate(
    data: Path,
    *,
    model: Sequence[str | Path] = (),
    fused: Mapping[str, Path] | None = None,
    reference: str | None = None,
    out: Path,
    reading: Reading | Path | None = None,
    overwrite: bool = False,
) -> Evaluation:
    """Score fusion methods on all pairs of a folder; write ``per_image.csv``, ``metrics.json`` and ``report.html``.

    The rows are the models, the folders of fused pictures, and always four trivial ones: average (rounded down),
    maximum, visible only and infrared only.

    Args:
        data: folder of pairs, see :func:`duskfuse.data.layout.find_pairs`.
        model: zoo names, checkpoints and ONNX files; a row is called by the name or the file's stem.
        fused: row name → folder of fused pictures, matched with the pairs by name or stem.
        reference: name of a row; every other row also gets its PSNR to that row, mean over the pairs in dB.
        out: folder to write to, made where missing.
        reading: how the infrared pictures are read, or a file that says it; by default the dataset's ``duskfuse.yaml``.
        overwrite: replace the three files in a folder that is not empty.

    Raises:
        InputError: ``out`` is not empty, a fused picture is missing or of another size, sources differ in size, two
            rows have one name, the reference names no row, a model or picture cannot be read.
    """
    _check_out(out, overwrite)
    pairs = find_pairs(data, reading=reading)
    for pair in pairs:
        check_sizes(pair)
    methods = [*_models(model), *_folders(fused or {}, pairs), *_trivial()]
    _check_names(methods, reference)
    scored = _score_all(pairs, methods, reference)
    names = _gallery_choice({name: pair.brightness for name, pair in scored.items()})
    by_name = {files.name: files for files in pairs}
    evaluation = Evaluation(
        data=data.resolve().name,
        out=out,
        rows=tuple(
            Row(method.name, method.kind, {name: pair.scores[method.name] for name, pair in scored.items()})
            for method in methods
        ),
        reference=reference,
        gallery=tuple(_gallery_pair(by_name[name], methods, scored[name].brightness) for name in names),
    )
    _write(evaluation)
    return evaluation


def _check_out(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file", rule="results go to a folder", remedy="name another --out")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise InputError(
            f"{out} is not empty",
            rule="results never mix with what is there",
            remedy="say --overwrite to replace an earlier evaluation, or name another --out",
        )


def _models(models: Sequence[str | Path]) -> list[_Method]:
    return [
        _Method(name, Kind.MODEL, partial(_run_model, open_fuser(model)))
        for model, name in zip(models, _model_names(models), strict=True)
    ]


def _model_names(models: Sequence[str | Path]) -> list[str]:
    """The shortest of stem, file name, folder/name and the whole path that no other model has."""
    paths = [Path(model) for model in models]
    levels = [
        [path.stem if path.suffix.lower() in _MODEL_SUFFIXES else path.name for path in paths],
        [path.name for path in paths],
        ["/".join(path.parts[-2:]) for path in paths],
        [str(path) for path in paths],
    ]
    counts = [Counter(level) for level in levels]
    return [
        next((level[i] for level, count in zip(levels, counts, strict=True) if count[level[i]] == 1), levels[-1][i])
        for i in range(len(paths))
    ]


def _run_model(fuser: Fuser, sources: _Sources) -> Grey:
    fused = fuser.fuse(sources.ir, sources.vis_y)
    return np.rint(np.clip(fused, 0, 1) * 255).astype(np.uint8)


def _folders(folders: Mapping[str, Path], pairs: Sequence[PairFiles]) -> list[_Method]:
    return [_Method(name, Kind.FOLDER, partial(_read_fused, _match(folder, pairs))) for name, folder in folders.items()]


def _read_fused(files: Mapping[str, Path], sources: _Sources) -> Grey:
    return read_grey_u8(files[sources.files.name])


def _match(folder: Path, pairs: Sequence[PairFiles]) -> dict[str, Path]:
    """Pair name → fused picture; by the pair's name, else by its infrared or visible stem."""
    by_stem = pictures_by_stem(folder)
    shared = Counter(stem for pair in pairs for stem in {pair.ir.stem, pair.vis.stem})
    matched = {}
    for pair in pairs:
        stems = [pair.name, *(stem for stem in (pair.vis.stem, pair.ir.stem) if shared[stem] == 1)]
        path = next((by_stem[stem] for stem in stems if stem in by_stem), None)
        if path is None:
            raise InputError(
                f"{folder}: no fused picture for {pair.name}",
                rule="every pair needs one, of the same stem",
                remedy=f"add {folder / pair.name}.png, or evaluate the pairs that were fused",
            )
        size, expected = picture_size(path), pair.vis.size()
        if size != expected:
            raise InputError(
                f"{path} is {size_text(size)}, its pair is {size_text(expected)}",
                rule="a fused picture has the size of its sources",
                remedy="fuse at full size: resizing changes every metric",
            )
        matched[pair.name] = path
    return matched


def _trivial() -> list[_Method]:
    rules: dict[str, Callable[[_Sources], Grey]] = {
        "average": _average,
        "maximum": lambda sources: np.maximum(sources.ir_u8, sources.vis_u8),
        "visible only": lambda sources: sources.vis_u8,
        "infrared only": lambda sources: sources.ir_u8,
    }
    return [_Method(name, Kind.TRIVIAL, rule) for name, rule in rules.items()]


def _average(sources: _Sources) -> Grey:
    total = sources.ir_u8.astype(np.uint16) + sources.vis_u8
    return (total // 2).astype(np.uint8)


def _check_names(methods: Sequence[_Method], reference: str | None) -> None:
    names = [method.name for method in methods]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(
            f"two rows are called {twice[0]!r}",
            rule="every row of a table has its own name",
            remedy="give each model once, and folders other names than models and trivial rows have",
        )
    if reference is not None and reference not in names:
        raise InputError(
            f"no row is called {reference!r}", rule="--reference names one row", remedy=f"rows are: {', '.join(names)}"
        )


def _score_all(pairs: Sequence[PairFiles], methods: Sequence[_Method], reference: str | None) -> dict[str, _Scored]:
    """Score every pair; two at a time, since OpenCV, numpy and the networks let go of the interpreter."""
    executor = ThreadPoolExecutor(max_workers=min(_WORKERS, os.cpu_count() or 1))
    try:
        results = executor.map(partial(_score, methods=methods, reference=reference), pairs)
        return {
            pair.name: result
            for pair, result in zip(pairs, track(results, "Scoring pairs", total=len(pairs)), strict=True)
        }
    finally:
        executor.shutdown(cancel_futures=True)


def _score(files: PairFiles, methods: Sequence[_Method], reference: str | None) -> _Scored:
    sources = _Sources(files)
    statistics = SourceStatistics(sources.ir_u8, sources.vis_u8)
    fused = {method.name: method.fuse(sources) for method in methods}
    scores = {name: fusion_metrics(statistics, picture) for name, picture in fused.items()}
    if reference is not None:
        column = reference_metric(reference).name
        for name in fused.keys() - {reference}:
            scores[name][column] = psnr_between(fused[name], fused[reference])
    return _Scored(float(sources.vis_u8.mean()), scores)


def _gallery_choice(brightness: Mapping[str, float]) -> list[str]:
    """Names of up to six pairs by rising visible brightness: the three darkest, three spread over the others."""
    names = sorted(brightness, key=lambda name: (brightness[name], name))
    if len(names) <= GALLERY_PAIRS:
        return names
    places = np.linspace(_DARK_PAIRS, len(names) - 1, GALLERY_PAIRS - _DARK_PAIRS).round().astype(int)
    return names[:_DARK_PAIRS] + [names[place] for place in places]


def _gallery_pair(files: PairFiles, methods: Sequence[_Method], brightness: float) -> GalleryPair:
    """Small pictures of a pair; the trivial rows are shown only where there is nothing else."""
    sources = _Sources(files)
    shown = [method for method in methods if method.kind is not Kind.TRIVIAL] or methods[:2]
    pictures: dict[str, NDArray[np.uint8]] = {"infrared": sources.ir_u8, "visible": _to_u8(sources.vis)}
    for method in shown:
        pictures[method.name] = _coloured(method.fuse(sources), sources.vis)
    return GalleryPair(files.name, brightness, {name: _smaller(picture) for name, picture in pictures.items()})


def _coloured(fused: Grey, vis: NDArray[np.float32]) -> NDArray[np.uint8]:
    y = torch.from_numpy(fused.astype(np.float32) / 255)[None]
    rgb = recombine(y, torch.from_numpy(vis).permute(2, 0, 1))
    return _to_u8(rgb.permute(1, 2, 0).numpy())


def _to_u8(picture: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.rint(picture * 255).astype(np.uint8)


def _smaller(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = picture.shape[:2]
    scale = _GALLERY_SIDE / max(height, width)
    if scale >= 1:
        return picture
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _write(evaluation: Evaluation) -> None:
    out = evaluation.out
    write_atomically(out / "per_image.csv", _csv(evaluation))
    write_atomically(out / "metrics.json", json.dumps(evaluation.to_json(), indent=2, allow_nan=False) + "\n")
    evaluation_page(evaluation).write(out / "report.html")


def _csv(evaluation: Evaluation) -> str:
    """One line per pair and row; undefined values are empty, the PSNR of identical pictures is ``inf``."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [metric.name for metric in evaluation.metrics]
    writer.writerow(["pair", "method", "kind", *columns])
    for name in evaluation.rows[0].scores:
        for row in evaluation.rows:
            values = (row.scores[name].get(column, float("nan")) for column in columns)
            writer.writerow([name, row.name, row.kind, *("" if isnan(value) else repr(value) for value in values)])
    return text.getvalue()
