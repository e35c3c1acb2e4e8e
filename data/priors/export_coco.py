"""The verb ``cache export``: cached masks as a COCO file, for other programs and for looking at them.

Every picture of a dataset is an image, every mask an annotation of the one class ``region``. Pictures and masks are
written as they are read: memory does not grow with them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from duskfuse.data.atomic import storage_error, writing_atomically
from duskfuse.data.errors import InputError
from duskfuse.data.priors.cache import JsonValue, PriorCache, PriorKind, PriorStore
from duskfuse.data.priors.masks import MaskSet
from duskfuse.data.progress import say, track

if TYPE_CHECKING:
    from duskfuse.data.pair_files import PairFiles, SourcePicture
    from duskfuse.data.priors.sources import MaskSourceName
    from duskfuse.data.reading import Reading

CATEGORY = {"id": 1, "name": "region", "supercategory": "region"}
"""The one class of all masks."""


@dataclass(frozen=True)
class CocoReport:
    """What `export_coco` wrote."""

    coco: str
    """The file."""
    store: str
    """Folder of the masks."""
    images: int
    annotations: int
    missing: list[str]
    """Pictures that have no masks in this store, and are left out."""

    def to_json(self) -> dict[str, JsonValue]:
        """The report as plain data."""
        return asdict(self)


class _Picture(NamedTuple):
    key: str
    file_name: str
    """Below the folder of the dataset."""
    side: str


def export_coco(
    data: Path,
    coco: Path,
    *,
    cache: Path | None = None,
    store: str | None = None,
    source: MaskSourceName | None = None,
    split: str | None = None,
    reading: Reading | Path | None = None,
    overwrite: bool = False,
) -> CocoReport:
    """Write the cached masks of all pictures of a dataset as one COCO file.

    An image has its file name below ``data`` and, beyond COCO, ``modality`` and ``key``; its size is that of its masks,
    for infrared pictures after the reading. An annotation has ``predicted_iou`` and ``stability_score``, null where
    the source gives none, and its mask as compressed run lengths.

    Args:
        data: folder of pairs.
        coco: the JSON file to write.
        cache: root folder of the cache, ``$DUSKFUSE_HOME/cache`` by default.
        store: the store whose folder has this name; pictures without masks there are left out. By default the newest
            that has the masks of all pictures.
        source: with no ``store``, only masks of this source.
        split: one split of the dataset only.
        reading: how the infrared pictures are read, which is a part of their keys.
        overwrite: replace an existing file.

    Raises:
        InputError: no pairs, no such store, no masks at all, or the file exists.
        StorageError: the disk refuses.
    """
    from duskfuse.data.layout import find_pairs
    from duskfuse.data.priors.cache_masks import open_masks

    if coco.exists() and not overwrite:
        raise InputError(f"{coco} exists", rule="nothing is replaced unasked", remedy="say --overwrite")
    pictures = list(_pictures(data, find_pairs(data, split=split, reading=reading)))
    masks = open_masks(cache, {p.key for p in pictures}, source) if store is None else _named(cache, store)
    present = masks.keys()
    missing = [picture.file_name for picture in pictures if picture.key not in present]
    pictures = [picture for picture in pictures if picture.key in present]
    if not pictures:
        raise InputError(
            f"{masks.folder} has masks of none of the {len(missing)} pictures of {data}",
            rule="masks are exported from the cache",
            remedy=f"run duskfuse cache-masks {data}, or choose another store",
        )
    if missing:
        say(f"{len(missing)} pictures have no masks in {masks.folder} and are left out")
    try:
        with writing_atomically(coco) as stream:
            annotations = _write(stream, data, masks, pictures)
    except OSError as error:
        raise storage_error(coco, error) from error
    return CocoReport(str(coco), str(masks.folder), len(pictures), annotations, missing)


def _named(cache: Path | None, name: str) -> PriorStore:
    stores = {store.folder.name: store for store in PriorCache(cache).stores(PriorKind.MASKS)}
    if name not in stores:
        raise InputError(
            f"no mask store {name} in {PriorCache(cache).root}",
            rule="a store is named by its folder",
            remedy=f"choose from {', '.join(stores)}" if stores else "run duskfuse cache-masks DATA",
        )
    return stores[name]


def _pictures(data: Path, pairs: Sequence[PairFiles]) -> Iterator[_Picture]:
    """Every picture once, infrared and visible."""
    seen = set[tuple[str, str]]()
    for files in track(pairs, "hashing"):
        sides: tuple[tuple[SourcePicture, str], ...] = ((files.ir, "infrared"), (files.vis, "visible"))
        for (picture, side), key in zip(sides, files.prior_keys(), strict=True):
            name = picture.path.relative_to(data).as_posix()
            if (name, key) not in seen:
                seen.add((name, key))
                yield _Picture(key, name, side)


def _write(stream: BinaryIO, data: Path, masks: PriorStore, pictures: Sequence[_Picture]) -> int:
    """The file, piece by piece: the records are read twice, for their sizes and for their masks."""
    info = {"description": f"duskfuse masks by {masks.source} of {data.name}", "settings": masks.settings}
    stream.write(b'{"info": %s,\n"licenses": [],\n"categories": %s,\n' % (_json(info), _json([CATEGORY])))
    stream.write(b'"images": [')
    _write_list(stream, _images(masks, track(pictures, "images")))
    stream.write(b'],\n"annotations": [')
    annotations = _write_list(stream, _annotations(masks, track(pictures, "masks")))
    stream.write(b"]}\n")
    return annotations


def _write_list(stream: BinaryIO, items: Iterable[dict[str, Any]]) -> int:
    count = 0
    for count, item in enumerate(items, start=1):
        stream.write((b",\n" if count > 1 else b"\n") + _json(item))
    return count


def _images(masks: PriorStore, pictures: Iterable[_Picture]) -> Iterator[dict[str, Any]]:
    for number, picture in enumerate(pictures, start=1):
        record = _masks(masks, picture)
        yield {
            "id": number,
            "file_name": picture.file_name,
            "width": record.width,
            "height": record.height,
            "modality": picture.side,
            "key": picture.key,
        }


def _annotations(masks: PriorStore, pictures: Iterable[_Picture]) -> Iterator[dict[str, Any]]:
    number = 0
    for image, picture in enumerate(pictures, start=1):
        record = _masks(masks, picture)
        fields = (record.boxes, record.area, record.predicted_iou, record.stability)
        values = zip(*(field.tolist() for field in fields), strict=True)
        for code, (box, area, predicted_iou, stability) in zip(record.to_coco_rle(), values, strict=True):
            number += 1
            yield {
                "id": number,
                "image_id": image,
                "category_id": CATEGORY["id"],
                "iscrowd": 0,
                "segmentation": code,
                "bbox": box,
                "area": area,
                "predicted_iou": predicted_iou if math.isfinite(predicted_iou) else None,
                "stability_score": stability if math.isfinite(stability) else None,
            }


def _masks(store: PriorStore, picture: _Picture) -> MaskSet:
    record = store.get(picture.key)
    assert isinstance(record, MaskSet)
    return record


def _json(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False).encode()
