"""The verb ``cache-teacher``: fused pictures of a slow teacher, made once and kept in the PriorCache.

Two kinds of teacher: a trained main network (a weights file; it takes region patches, so masks must be cached first)
and a folder of ready pictures from anyone's method, matched by stem. Only luminance is kept. A picture whose size
differs from its pair is refused, never resized.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from duskfuse.data.colour import luminance
from duskfuse.data.errors import DuskfuseError, InputError
from duskfuse.data.images import file_sha256, read_grey_u8, write_picture
from duskfuse.data.layout import find_pairs, pictures_by_stem
from duskfuse.data.pair import Pair
from duskfuse.data.pair_files import PairFiles, read_pair
from duskfuse.data.priors.cache import JsonValue, PriorCache, PriorKind, PriorStore, TeacherImage, pair_key
from duskfuse.data.priors.cache_masks import open_masks
from duskfuse.data.priors.masks import MaskSet
from duskfuse.data.priors.sources import MaskSourceName
from duskfuse.data.progress import say, track
from duskfuse.teachers.main_network import ARCHITECTURE, MainNetwork, load_main_network
from duskfuse.teachers.tiled import fuse_tiled

FOLDER_SOURCE = "folder"
SAME_SHADE = 1e-3
"""Standard deviation (of 1) under which a teacher picture counts as constant."""


@dataclass(frozen=True)
class TeacherCacheReport:
    """What ``cache_teacher`` did."""

    teacher: str
    folder: str
    pairs: int
    done: int
    already: int
    failed: list[str]
    seconds: float

    def to_json(self) -> dict[str, object]:
        """Plain data for ``--json``."""
        return asdict(self)


def cache_teacher(
    data: Path,
    *,
    teacher: Path,
    cache: Path | None = None,
    masks: MaskSourceName | None = None,
    split: str | None = None,
    limit: int | None = None,
    pictures: Path | None = None,
    dry_run: bool = False,
) -> TeacherCacheReport:
    """Keep one teacher picture per pair of ``data``; ``limit`` takes that many pairs, spread evenly.

    ``pictures`` is a folder that also gets each picture as a grey PNG, to look at or to score with ``evaluate``.
    A pair that fails does not stop the others; ``InputError`` then names all that failed.
    """
    pairs = _spread(find_pairs(data, split=split), limit)
    keys = [files.prior_keys() for files in pairs]
    fuse_pair, source, settings = _open_teacher(teacher, cache, keys, masks)
    store = PriorCache(cache).store(PriorKind.TEACHER, source, settings)
    todo = [(files, key) for files, key in zip(pairs, keys, strict=True) if pair_key(*key) not in store]
    report = TeacherCacheReport(source, str(store.folder), len(pairs), 0, len(pairs) - len(todo), [], 0.0)
    if dry_run:
        return report
    started, failed = time.monotonic(), []
    for files, key in track(todo, f"teacher {source}"):
        try:
            y = _checked(fuse_pair(files, key), files)
            store.put(pair_key(*key), TeacherImage(y=y, meta={"name": files.name, "ir": key[0], "vis": key[1]}))
        except DuskfuseError as error:
            failed.append(str(error))
    store.compact()
    if pictures is not None:
        _write_pictures(pictures, pairs, keys, store)
    if failed:
        raise InputError(
            f"{len(failed)} of {len(pairs)} pairs have no teacher picture: " + "; ".join(failed[:5]),
            rule="the others are cached",
            remedy="mend these and run the same command again",
        )
    seconds = round(time.monotonic() - started, 1)
    return TeacherCacheReport(source, str(store.folder), len(pairs), len(todo), report.already, [], seconds)


def _write_pictures(
    folder: Path, pairs: Sequence[PairFiles], keys: Sequence[tuple[str, str]], store: PriorStore
) -> None:
    for files, key in zip(pairs, keys, strict=True):
        if pair_key(*key) in store:
            record = store.get(pair_key(*key))
            assert isinstance(record, TeacherImage)
            write_picture(folder / f"{files.name}.png", record.y)


def open_teacher_images(
    cache: Path | None, keys: Sequence[str], teacher: str | None = None
) -> tuple[set[str], PriorStore]:
    """The newest store of teacher pictures (of that source) for these pairs, and which of them it holds."""
    stores = [store for store in PriorCache(cache).stores(PriorKind.TEACHER) if teacher in (None, store.source)]
    for store in reversed(stores):
        present = set(keys) & store.keys()
        if present:
            if len(present) < len(keys):
                say(f"{len(keys) - len(present)} of {len(keys)} pairs have no picture of {store.source}: left out")
            return present, store
    raise InputError(
        f"no cached teacher pictures{f' of {teacher}' if teacher else ''} for these pairs",
        rule="this recipe learns from cached teacher pictures",
        remedy="run: duskfuse cache-teacher DATA --teacher FILE|FOLDER",
    )


PairFusion = Callable[[PairFiles, tuple[str, str]], NDArray[np.uint8]]


def _open_teacher(
    teacher: Path, cache: Path | None, keys: Iterable[tuple[str, str]], masks: MaskSourceName | None
) -> tuple[PairFusion, str, dict[str, JsonValue]]:
    if teacher.is_dir():
        return _folder_teacher(teacher)
    network, card = load_main_network(teacher)
    # channels_last: convolutions on a CPU run several times faster in it, and no slower on a GPU.
    network = network.to("cuda" if torch.cuda.is_available() else "cpu").to(memory_format=torch.channels_last)
    store = open_masks(cache, {key for pair in keys for key in pair}, masks)
    settings: dict[str, JsonValue] = {
        "weights_sha256": file_sha256(teacher),
        "architecture": card.architecture,
        "masks": {"source": store.source, "settings": dict(store.settings)},
    }

    def fuse_pair(files: PairFiles, key: tuple[str, str]) -> NDArray[np.uint8]:
        y = fuse_with_masks(network, read_pair(files), _masks(store, key[0]), _masks(store, key[1]))
        return np.asarray((y * 255).round(), np.uint8)

    return fuse_pair, ARCHITECTURE, settings


def _masks(store: PriorStore, key: str) -> MaskSet:
    record = store.get(key)
    assert isinstance(record, MaskSet)
    return record


def fuse_with_masks(network: MainNetwork, pair: Pair, masks_ir: MaskSet, masks_vis: MaskSet) -> NDArray[np.float32]:
    """Luminance ``[H, W]`` in [0, 1] of one pair; the largest N masks of each modality become the region patches."""
    slots = network.masks
    vis_y = luminance(pair.vis)[None]
    ir = pair.ir[None]
    vis_patches = vis_y * _planes(masks_vis, slots, pair.size)
    ir_patches = ir * _planes(masks_ir, slots, pair.size)
    device = next(network.parameters()).device
    y = fuse_tiled(network, *(tensor.to(device) for tensor in (vis_y, ir, vis_patches, ir_patches)))
    return np.asarray(y[0, 0].float().cpu().numpy(), np.float32)


def _planes(masks: MaskSet, slots: int, size: tuple[int, int]) -> torch.Tensor:
    """``[1, N, H, W]`` float; a slot without a mask sees the whole picture, as in training."""
    if (masks.height, masks.width) != size:
        raise InputError(
            f"cached masks of {masks.width}×{masks.height} for a picture of {size[1]}×{size[0]}",
            remedy="run duskfuse cache-masks DATA again",
        )
    planes = torch.ones(1, slots, *size)
    count = min(slots, len(masks))
    planes[0, :count] = torch.from_numpy(masks.decode(range(count))).float()
    return planes


def _folder_teacher(folder: Path) -> tuple[PairFusion, str, dict[str, JsonValue]]:
    pictures = pictures_by_stem(folder)
    if not pictures:
        raise InputError(f"{folder} holds no pictures", remedy="name the folder that holds the fused pictures")

    def fuse_pair(files: PairFiles, key: tuple[str, str]) -> NDArray[np.uint8]:
        path = pictures.get(files.vis.stem) or pictures.get(files.name)
        if path is None:
            raise InputError(f"{folder} has no picture for {files.name}", rule="pictures match by stem")
        return read_grey_u8(path)

    return fuse_pair, f"{FOLDER_SOURCE}-{folder.name}", {"folder": folder.name, "pictures": _folder_digest(pictures)}


def _folder_digest(pictures: dict[str, Path]) -> JsonValue:
    """Hash of every picture: a changed picture is a changed teacher."""
    return {stem: file_sha256(path) for stem, path in pictures.items()}


def _checked(y: NDArray[np.uint8], files: PairFiles) -> NDArray[np.uint8]:
    height, width = files.vis.size()
    if y.shape != (height, width):
        raise InputError(
            f"teacher picture of {files.name} is {y.shape[1]}×{y.shape[0]}, its pair {width}×{height}",
            rule="teacher pictures are never resized",
            remedy="fuse the pair at its own size",
        )
    if y.std() / 255 < SAME_SHADE:
        raise InputError(f"teacher picture of {files.name} is constant", remedy="look at it, and leave it out")
    return y


def _spread(pairs: list[PairFiles], limit: int | None) -> list[PairFiles]:
    if limit is None or limit >= len(pairs):
        return pairs
    if limit < 1:
        raise InputError(f"--limit {limit}", rule="at least one pair is needed")
    return [pairs[i] for i in np.linspace(0, len(pairs) - 1, limit).round().astype(int)]
