"""The mask codec against plain numpy and pycocotools."""

from __future__ import annotations

import pickle
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco

from duskfuse.data.priors.masks import MAX_PIXELS, MaskSet

Planes = NDArray[np.bool_]


@st.composite
def planes(draw: st.DrawFn) -> Planes:
    """Up to five masks of up to 23×23, from empty to full, in patches and in specks."""
    count, height, width = draw(st.integers(0, 5)), draw(st.integers(1, 23)), draw(st.integers(1, 23))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    masks = generator.random((count, height, width)) < draw(st.sampled_from([0.0, 0.02, 0.5, 1.0]))
    for mask in masks:
        y, x = generator.integers(height), generator.integers(width)
        mask[:y, : x * int(generator.integers(2))] = False
    return masks


def expected(masks: Planes) -> Planes:
    """Non-empty masks, largest first, ties in the order given."""
    return np.array(sorted((m for m in masks if m.any()), key=lambda m: -m.sum()), bool).reshape(-1, *masks.shape[1:])


@given(planes())
@settings(max_examples=80, deadline=None)
def test_round_trip(masks: Planes):
    encoded = MaskSet.from_masks(masks)
    wanted = expected(masks)
    assert np.array_equal(encoded.decode(), wanted)
    assert len(encoded) == len(wanted)
    assert encoded.area.tolist() == [m.sum() for m in wanted]
    for (x, y, w, h), mask in zip(encoded.boxes, wanted, strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert (x, y, x + w - 1, y + h - 1) == (columns[0], rows[0], columns[-1], rows[-1])


@given(planes(), st.data())
@settings(max_examples=80, deadline=None)
def test_a_window_is_a_slice_of_the_full_decode(masks: Planes, data: st.DataObject):
    encoded = MaskSet.from_masks(masks)
    y = data.draw(st.integers(0, encoded.height))
    x = data.draw(st.integers(0, encoded.width))
    h = data.draw(st.integers(0, encoded.height - y))
    w = data.draw(st.integers(0, encoded.width - x))
    indices = data.draw(st.lists(st.integers(0, len(encoded) - 1), max_size=6)) if len(encoded) else []
    seen = encoded.decode(indices, (y, x, h, w))
    assert seen.shape == (len(indices), h, w)
    assert np.array_equal(seen, encoded.decode()[np.array(indices, int), y : y + h, x : x + w])


@given(planes())
@settings(max_examples=60, deadline=None)
def test_coco_run_lengths(masks: Planes):
    encoded = MaskSet.from_masks(masks)
    codes = encoded.to_coco_rle()
    assert [int(coco.area(code)) for code in codes] == encoded.area.tolist()
    for code, mask in zip(codes, encoded.decode(), strict=True):
        assert np.array_equal(coco.decode(code).astype(bool), mask)
        assert coco.toBbox(code).astype(int).tolist() in encoded.boxes.tolist()


def test_scores_follow_their_masks():
    masks = np.zeros((3, 4, 5), bool)
    masks[0, 0, 0] = masks[2, 1:3, 1:4] = True
    encoded = MaskSet.from_masks(masks, predicted_iou=[0.1, 0.2, 0.3])
    assert encoded.predicted_iou.tolist() == pytest.approx([0.3, 0.1])
    assert np.isnan(encoded.stability).all()


def test_survives_the_way_to_another_process():
    encoded = MaskSet.from_masks(np.eye(9, dtype=bool)[None])
    assert np.array_equal(pickle.loads(pickle.dumps(encoded)).decode(), encoded.decode())


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="want"):
        MaskSet.from_masks(np.ones((4, 4), bool))
    with pytest.raises(ValueError, match="2 masks"):
        MaskSet.from_masks(np.ones((2, 4, 4), bool), predicted_iou=[1.0])
    one = MaskSet.from_masks(np.ones((1, 4, 4), bool))
    with pytest.raises(ValueError, match="leaves the picture"):
        one.decode(window=(0, 1, 4, 4))
    fields = {name: getattr(one, name) for name in one.__dataclass_fields__}
    with pytest.raises(ValueError, match="bits"):
        MaskSet(**{**fields, "bits": (b"\xff",)})
    with pytest.raises(ValueError, match="box"):
        MaskSet(**{**fields, "width": 3})
    for height, width in ((0, 4), (4, -1), (2**31, 2**31), (MAX_PIXELS, 2)):
        with pytest.raises(ValueError, match="a picture of"):
            MaskSet(**{**fields, "height": height, "width": width})
    largest = 2**31 - 1
    for box in ((largest, 0, largest, 4), (0, 0, largest, largest), (-1, 0, 4, 4), (0, 0, 0, 4), (0, 1, 4, 4)):
        with pytest.raises(ValueError, match="leaves the picture"):
            MaskSet(**{**fields, "boxes": np.array([box], np.int32)})
    for area in (0, 17, -1):
        with pytest.raises(ValueError, match="areas"):
            MaskSet(**{**fields, "area": np.array([area], np.int32)})


def test_the_code_is_smaller_than_packed_bits_once_compressed():
    """What the code is for: an outline drawn twice, a disc and one around it, costs little."""
    y, x = np.ogrid[:480, :640]
    discs = np.array([(y - 240) ** 2 + (x - 320) ** 2 < r**2 for r in (100, 104, 180, 184)])
    code = zlib.compress(b"".join(MaskSet.from_masks(discs).bits), 9)
    packed = zlib.compress(np.packbits(discs).tobytes(), 9)
    assert len(code) < 0.7 * len(packed)
