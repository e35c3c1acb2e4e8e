"""Automatic masks against segment-anything's own generator, which does the same with everything in memory at once."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.utils.amg import remove_small_regions
from tiny_sam import Spots, discs, spotting_sam

from duskfuse.data.errors import DuskfuseError
from duskfuse.data.priors import automatic_masks as module
from duskfuse.data.priors.automatic_masks import AutomaticMasks, SamSettings, without_small_regions
from duskfuse.data.priors.masks import MaskSet
from duskfuse.data.priors.sam_network import SamNetwork, SamPicture

SPOTS = SamSettings(points_per_side=16, crop_n_layers=1, pred_iou_thresh=0.75, stability_score_thresh=0.5)
ALL = 10_000


class SpotsNetwork(SamNetwork):
    """The network around a stand-in for the decoder; ``memory`` is the number of points that fit into it."""

    def __init__(self, sam: Any, memory: int = ALL, encoder_dtype: torch.dtype = torch.float32) -> None:
        super().__init__(sam, torch.device("cpu"), encoder_dtype)
        self.memory, self.asked = memory, list[int]()
        self.decode = self._spots  # type: ignore[assignment]

    def _spots(self, embedding: torch.Tensor, position: torch.Tensor, prompts: torch.Tensor) -> Any:
        self.asked.append(len(prompts))
        if len(prompts) > self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return Spots()(embedding, position, prompts, None, True)


def reference(picture: NDArray[np.uint8], settings: SamSettings) -> list[dict[str, Any]]:
    """Largest first."""
    records = SamAutomaticMaskGenerator(spotting_sam(), **asdict(settings)).generate(picture)
    return sorted(records, key=lambda record: -record["area"])


def assert_same(masks: MaskSet, records: list[dict[str, Any]]) -> None:
    assert masks.area.tolist() == [record["area"] for record in records]
    assert np.array_equal(masks.decode(), np.array([record["segmentation"] for record in records]))
    np.testing.assert_allclose(masks.predicted_iou, [record["predicted_iou"] for record in records], rtol=1e-5)
    np.testing.assert_allclose(masks.stability, [record["stability_score"] for record in records], rtol=1e-5)


@pytest.mark.parametrize("size", [(96, 128), (201, 90), (150, 200)])
@pytest.mark.parametrize(
    "settings",
    [
        SPOTS,
        replace(SPOTS, crop_n_layers=0, min_mask_region_area=0),
        replace(SPOTS, crop_n_layers=2, points_per_side=8, crop_n_points_downscale_factor=1, min_mask_region_area=30),
        replace(SPOTS, pred_iou_thresh=0.0, stability_score_thresh=0.4),
    ],
    ids=["crops", "one look", "crops of crops", "any score"],
)
def test_the_outcome_is_that_of_segment_anything(size: tuple[int, int], settings: SamSettings):
    """Equal masks, areas and scores; the logits differ by their rounding (5e-7), which moves no pixel here."""
    picture = discs(*size)
    records = reference(picture, settings)
    assert len(records) > 40
    assert_same(AutomaticMasks(SpotsNetwork(spotting_sam()), settings, keep=ALL)(picture), records)


def test_the_largest_are_kept():
    records = reference(discs(), SPOTS)
    assert_same(AutomaticMasks(SpotsNetwork(spotting_sam()), SPOTS, keep=7)(discs()), records[:7])


def test_full_size_logits_exist_for_a_few_masks_at_a_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_LOGIT_BYTES_CPU", 3 * 4 * 240 * 320)
    sizes = []
    full_size = SamPicture.full_size

    def recorded(picture: SamPicture, logits: torch.Tensor) -> torch.Tensor:
        sizes.append(len(logits))
        return full_size(picture, logits)

    monkeypatch.setattr(SamPicture, "full_size", recorded)
    once = replace(SPOTS, crop_n_layers=0)
    masks = AutomaticMasks(SpotsNetwork(spotting_sam()), once, keep=ALL)(discs(240, 320))
    assert max(sizes) == 3
    assert sum(sizes) < 3 * 16**2, "answers with a low score are brought to full size all the same"
    assert_same(masks, reference(discs(240, 320), once))


def test_masks_by_an_encoder_in_bfloat16_are_nearly_the_same():
    """As on a GPU. The embedding, which is up to 2 % off, shapes the outlines."""
    exact = AutomaticMasks(SpotsNetwork(spotting_sam()), SPOTS)(discs()).decode().reshape(20, -1).astype(int)
    rough = AutomaticMasks(SpotsNetwork(spotting_sam(), encoder_dtype=torch.bfloat16), SPOTS, keep=ALL)(discs())
    found = rough.decode().reshape(len(rough), -1).astype(int)
    both = exact @ found.T
    iou = both / (exact.sum(1)[:, None] + found.sum(1)[None] - both)
    assert iou.max(axis=1).min() > 0.98


def test_no_answer_is_good_enough():
    strict = replace(SPOTS, pred_iou_thresh=2.0)
    masks = AutomaticMasks(SpotsNetwork(spotting_sam()), strict)(discs())
    assert (len(masks), masks.height, masks.width) == (0, 96, 128)


def test_memory_that_runs_out_makes_batches_smaller_for_good():
    network = SpotsNetwork(spotting_sam(), memory=3)
    find = AutomaticMasks(network, SPOTS, keep=ALL)
    assert_same(find(discs()), reference(discs(), SPOTS))
    assert network.asked[:4] == [8, 4, 2, 2]
    network.asked.clear()
    find(discs())
    assert max(network.asked) == 2


def test_memory_too_small_for_one_point_is_a_clear_error():
    with pytest.raises(DuskfuseError, match="picture of 128×96") as caught:
        AutomaticMasks(SpotsNetwork(spotting_sam(), memory=0), SPOTS)(discs())
    assert "CUDA_VISIBLE_DEVICES=" in caught.value.remedy

    class Full(SpotsNetwork):
        def see(self, image_rgb: NDArray[np.uint8], /) -> SamPicture:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(DuskfuseError, match="picture of 128×96"):
        AutomaticMasks(Full(spotting_sam()), SPOTS)(discs())


@st.composite
def ragged_masks(draw: st.DrawFn) -> NDArray[np.bool_]:
    """Masks with holes and islands of all sizes, some at the rim of the picture."""
    height, width = draw(st.integers(3, 40)), draw(st.integers(3, 40))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    coarse = generator.random((-(-height // 3), -(-width // 3))) < draw(st.sampled_from([0.1, 0.5, 0.9]))
    mask = np.kron(coarse, np.ones((3, 3), bool))[:height, :width] ^ (generator.random((height, width)) < 0.05)
    top, left = draw(st.integers(0, height // 2)), draw(st.integers(0, width // 2))
    mask[:top] = mask[:, :left] = False
    mask[0, 0] |= not mask.any()
    return np.ascontiguousarray(mask)


def tidied_by_reference(mask: NDArray[np.bool_], min_area: int) -> NDArray[np.bool_]:
    filled, _ = remove_small_regions(mask, min_area, mode="holes")
    cleared: NDArray[np.bool_] = remove_small_regions(filled, min_area, mode="islands")[0]
    return cleared


@settings(max_examples=300, deadline=None)
@given(ragged_masks(), st.sampled_from([2, 10, 60, 400]))
def test_small_regions_go_as_in_segment_anything(mask: NDArray[np.bool_], min_area: int):
    wanted = tidied_by_reference(mask, min_area)
    assert np.array_equal(without_small_regions(mask, min_area), wanted)


@settings(max_examples=300, deadline=None)
@given(ragged_masks(), st.sampled_from([2, 10, 60, 400]))
def test_looking_only_around_the_box_is_enough(mask: NDArray[np.bool_], min_area: int):
    found = module._Found.of(mask[None], np.zeros(1, np.float32), np.zeros(1, np.float32))
    (tidy,) = found.tidied(*mask.shape, min_area).largest(1, *mask.shape).decode()
    assert np.array_equal(tidy, tidied_by_reference(mask, min_area))
