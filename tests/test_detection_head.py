"""Detection heads: geometry, assignment, matching and losses against slow, obvious forms; what they decode."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from duskfuse.tasks.assignment import NO_OBJECT, task_aligned
from duskfuse.tasks.box_geometry import centred_of, corners_of, generalised_iou, iou, within
from duskfuse.tasks.detection_head import MOST_BOXES, NMS_IOU, DensePrediction, DetectionHead, suppressed
from duskfuse.tasks.detection_losses import giou_loss, quality_focal_loss
from duskfuse.tasks.detr_decoder import DetrDecoder, QueryPrediction
from duskfuse.tasks.hungarian import match, matching_cost
from duskfuse.tasks.objects import (
    ObjectHead,
    nothing_known,
    objects_in_pixels,
    stacked_objects,
    true_objects,
)

SIZE = (64, 96)
TWO = torch.tensor([[0, 8.0, 10, 40, 50], [2, 50.0, 4, 90, 30]])


def some_boxes(count: int, generator: torch.Generator) -> Tensor:
    """Random boxes in a picture of 96 × 64."""
    corners = torch.rand(count, 2, 2, generator=generator) * torch.tensor([96.0, 64.0])
    return torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)


def counted_iou(first: list[float], second: list[float]) -> tuple[float, float]:
    """IoU and GIoU by areas."""
    width = max(0.0, min(first[2], second[2]) - max(first[0], second[0]))
    height = max(0.0, min(first[3], second[3]) - max(first[1], second[1]))
    union = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (first, second)) - width * height
    hull = (max(first[2], second[2]) - min(first[0], second[0])) * (max(first[3], second[3]) - min(first[1], second[1]))
    return width * height / union, width * height / union - (hull - union) / hull


def pyramid(width: int = 16, batch: int = 2, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, width, 96 // s, 96 // s, generator=generator) for s in (8, 16, 32)]


def dense(seed: int = 0) -> DetectionHead:
    torch.manual_seed(seed)
    return DetectionHead(16, 3)


def detr(seed: int = 0, **settings: int) -> DetrDecoder:
    torch.manual_seed(seed)
    return DetrDecoder(16, 3, **{"queries": 9, "layers": 2, "heads": 2, **settings})  # type: ignore[arg-type]


HEADS = pytest.mark.parametrize("make", [dense, detr])


def test_overlaps_are_those_of_counted_areas() -> None:
    generator = torch.Generator().manual_seed(1)
    first, second = some_boxes(40, generator), some_boxes(40, generator)
    for a, b, overlap, generalised in zip(
        first, second, iou(first, second), generalised_iou(first, second), strict=True
    ):
        expected = counted_iou(a.tolist(), b.tolist())
        assert (float(overlap), float(generalised)) == pytest.approx(expected, abs=1e-5)
    assert iou(first[:, None], second).shape == (40, 40)
    pair = torch.tensor([[0.0, 0, 10, 10], [20.0, 0, 30, 10]])
    assert float(generalised_iou(pair[0], pair[1])) == pytest.approx(-1 / 3)  # disjoint: IoU − gap / hull
    assert float(giou_loss(pair, pair).abs().max()) == 0
    assert float(iou(pair[0], torch.zeros(4))) == 0  # without area, and not nan
    torch.testing.assert_close(corners_of(centred_of(first)), first)


def test_the_gradient_of_giou_is_right() -> None:
    """Also for disjoint boxes, where that of IoU is 0."""
    ours = torch.tensor([[1.0, 2, 9, 8], [30, 30, 40, 44]], dtype=torch.float64, requires_grad=True)
    theirs = torch.tensor([[3.0, 1, 12, 7], [50, 10, 60, 20]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda boxes: giou_loss(boxes, theirs), ours)


def test_the_quality_focal_loss_is_its_formula() -> None:
    logits, targets = torch.linspace(-6, 6, 25, dtype=torch.float64), torch.rand(25, dtype=torch.float64)
    for logit, target, loss in zip(logits.tolist(), targets.tolist(), quality_focal_loss(logits, targets), strict=True):
        score = 1 / (1 + math.exp(-logit))
        entropy = -(target * math.log(score) + (1 - target) * math.log(1 - score))
        assert float(loss) == pytest.approx(abs(target - score) ** 2 * entropy, rel=1e-9)
    assert float(quality_focal_loss(logits, logits.sigmoid()).abs().max()) == 0
    above, below = (quality_focal_loss(torch.tensor(0.0), torch.tensor(0.5 + side)) for side in (0.2, -0.2))
    assert float(above) == pytest.approx(float(below))
    assert torch.autograd.gradcheck(lambda x: quality_focal_loss(x, targets), logits.requires_grad_())


def slow_assignment(
    scores: Tensor, boxes: Tensor, points: Tensor, kinds: Tensor, corners: Tensor, top: int
) -> tuple[list[int], list[float]]:
    """Task-aligned assignment, one object and one point at a time."""
    taken: dict[int, list[tuple[float, int]]] = {}
    alignments = {}
    for number, (kind, corner) in enumerate(zip(kinds.tolist(), corners, strict=True)):
        inside = [
            p for p, (x, y) in enumerate(points.tolist()) if corner[0] < x < corner[2] and corner[1] < y < corner[3]
        ]
        if not inside:
            centre = (corner[:2] + corner[2:]) / 2
            inside = [min(range(len(points)), key=lambda p, c=centre: float((points[p] - c).square().sum()))]  # type: ignore[misc]
        good = []
        for place in inside:
            overlap = float(iou(boxes[place], corner))
            alignments[number, place] = float(scores[place, kind]) * overlap**6, overlap
            good.append((alignments[number, place][0], place))
        for _, place in sorted(good, reverse=True)[:top]:
            taken.setdefault(place, []).append((alignments[number, place][1], number))
    owner, quality = [NO_OBJECT] * len(points), [0.0] * len(points)
    for place, claims in taken.items():
        owner[place] = max(claims)[1]
    for number in range(len(kinds)):
        own = [place for place, who in enumerate(owner) if who == number]
        for place in own:
            largest = [max(alignments[number, p][part] for p in own) for part in (0, 1)]
            quality[place] = alignments[number, place][0] / max(largest[0], 1e-30) * largest[1]
    return owner, quality


@pytest.mark.parametrize("seed", range(6))
def test_assignment_is_that_of_one_object_at_a_time(seed: int) -> None:
    """Random pictures with overlapping objects, and one too small for any point."""
    generator = torch.Generator().manual_seed(seed)
    head = dense()
    points = head(pyramid(batch=1), SIZE).points
    corners = torch.cat([some_boxes(5, generator), torch.tensor([[9.0, 9, 11, 11]])])
    kinds = torch.randint(3, (6,), generator=generator)
    boxes = torch.cat([points, points], dim=1) + 14 * torch.tensor([-1.0, -1, 1, 1]) * torch.rand(
        len(points), 4, generator=generator
    )
    scores = torch.rand(len(points), 3, generator=generator)
    found = task_aligned(scores, boxes, points, kinds, corners, top=4)
    owner, quality = slow_assignment(scores, boxes, points, kinds, corners, top=4)
    assert found.owner.tolist() == owner
    torch.testing.assert_close(found.quality, torch.tensor(quality), rtol=1e-4, atol=1e-6)
    assert (found.quality <= 1).all()


def test_every_object_that_stands_alone_has_points() -> None:
    points = dense()(pyramid(batch=1), SIZE).points
    small = torch.tensor([[1.0, 1, 2, 2], [70, 40, 71, 60], [20, 20, 60, 60]])
    boxes = torch.cat([points - 10, points + 10], dim=1)
    found = task_aligned(torch.full((len(points), 3), 0.5), boxes, points, torch.tensor([0, 1, 2]), small)
    assert set(found.owner.tolist()) == {NO_OBJECT, 0, 1, 2}
    assert (found.owner == 2).sum() == 13
    nobody = task_aligned(
        torch.rand(len(points), 3), boxes, points, torch.empty(0, dtype=torch.long), torch.empty(0, 4)
    )
    assert (nobody.owner == NO_OBJECT).all()
    assert not nobody.quality.any()


def test_the_dense_loss_is_its_sum_over_points() -> None:
    head = dense().requires_grad_(False)
    prediction = head(pyramid(), SIZE)
    truth = stacked_objects([TWO, TWO[:1]])
    total, count = {"classes": 0.0, "giou": 0.0}, 0
    for index in range(2):
        objects = true_objects(truth[index], 3)
        found = task_aligned(
            prediction.logits[index].sigmoid(), prediction.boxes[index], prediction.points, *objects[:2]
        )
        for place, owner in enumerate(found.owner.tolist()):
            target = torch.zeros(3)
            if owner != NO_OBJECT:
                target[objects.kinds[owner]] = found.quality[place]
                total["giou"] += (
                    1 - counted_iou(prediction.boxes[index, place].tolist(), objects.corners[owner].tolist())[1]
                )
                count += 1
            total["classes"] += float(quality_focal_loss(prediction.logits[index, place], target).sum())
    losses = head.losses(prediction, truth)
    assert float(losses.classes) == pytest.approx(total["classes"] / count, rel=1e-4)
    assert float(losses.giou) == pytest.approx(total["giou"] / count, rel=1e-4)
    assert float(head.loss(prediction, truth)) == pytest.approx(
        (total["classes"] + 2 * total["giou"]) / count, rel=1e-4
    )


def test_points_lie_at_the_centres_of_cells_inside_the_picture() -> None:
    prediction = dense()(pyramid(), SIZE)
    expected = [(8 * x + 4, 8 * y + 4) for y in range(8) for x in range(12)]
    expected += [(16 * x + 8, 16 * y + 8) for y in range(4) for x in range(6)]
    expected += [(32 * x + 16, 32 * y + 16) for y in range(2) for x in range(3)]
    assert prediction.points.tolist() == [list(map(float, point)) for point in expected]
    assert prediction.logits.shape == (2, len(expected), 3)
    assert (prediction.boxes[..., :2] < prediction.points).all()
    assert (prediction.boxes[..., 2:] > prediction.points).all()
    with pytest.raises(ValueError, match="2 maps for the strides"):
        dense()(pyramid()[:2], SIZE)


def test_the_part_beyond_the_picture_says_nothing() -> None:
    """Maps of 96 × 96 for a picture of 96 × 64: no query sees cells below row 64."""
    decoder = detr()
    maps = pyramid()
    changed = [level.clone() for level in maps]
    for level, stride in zip(changed, (8, 16, 32), strict=True):
        level[..., SIZE[0] // stride :, :] = 7
    torch.testing.assert_close(decoder(maps, SIZE).boxes, decoder(changed, SIZE).boxes)


def slow_match(cost: Tensor) -> float:
    """Least cost of all ways to give every object its own query."""
    queries, objects = cost.shape
    if queries < objects:
        return slow_match(cost.T)
    return min(
        sum(float(cost[q, o]) for o, q in enumerate(chosen))
        for chosen in itertools.permutations(range(queries), objects)
    )


@pytest.mark.parametrize(("queries", "objects"), [(6, 3), (3, 3), (2, 4), (4, 0)])
def test_the_matching_is_the_cheapest(queries: int, objects: int) -> None:
    generator = torch.Generator().manual_seed(queries)
    logits, kinds = torch.randn(queries, 3, generator=generator), torch.randint(3, (objects,), generator=generator)
    boxes, truth = (centred_of(some_boxes(n, generator)) / torch.tensor([96.0, 64, 96, 64]) for n in (queries, objects))
    found = match(logits, boxes, kinds, truth)
    assert len(found.queries) == len(found.objects) == min(queries, objects)
    cost = matching_cost(logits, boxes, kinds, truth)
    if objects:
        assert float(cost[found.queries, found.objects].sum()) == pytest.approx(slow_match(cost), abs=1e-5)


def test_the_cost_of_a_pair_is_its_formula() -> None:
    logits, box = torch.tensor([[0.4, -1.0]]), torch.tensor([[0.5, 0.5, 0.2, 0.4]])
    truth = torch.tensor([[0.6, 0.4, 0.3, 0.3]])
    score = 1 / (1 + math.exp(1.0))
    focal = 0.25 * (1 - score) ** 2 * -math.log(score) - 0.75 * score**2 * -math.log(1 - score)
    overlap = counted_iou(corners_of(box)[0].tolist(), corners_of(truth)[0].tolist())[1]
    expected = 2 * focal + 5 * (0.1 + 0.1 + 0.1 + 0.1) + 2 * (1 - overlap)
    assert float(matching_cost(logits, box, torch.tensor([1]), truth)) == pytest.approx(expected, abs=1e-5)


def queries_of(truth: Tensor, extra: int = 3) -> QueryPrediction:
    """A prediction of one layer that is right about every object, and sure."""
    objects = true_objects(truth, 3)
    scale = torch.tensor([96.0, 64, 96, 64])
    right = centred_of(objects.corners / scale)
    spare = torch.tensor([0.5, 0.5, 0.1, 0.1]).expand(extra, -1)
    logits = torch.full((len(right) + extra, 3), -30.0)
    logits[range(len(right)), objects.kinds] = 30.0
    return QueryPrediction(logits[None, None], torch.cat([right, spare])[None, None], SIZE)


def test_a_perfect_prediction_costs_nothing() -> None:
    losses = detr().losses(queries_of(TWO), TWO[None])
    assert float(losses.classes) == pytest.approx(0, abs=1e-6)
    assert float(losses.giou) == pytest.approx(0, abs=1e-5)
    assert losses.l1 is not None
    assert float(losses.l1) == pytest.approx(0, abs=1e-5)


def test_the_order_of_queries_and_objects_does_not_matter() -> None:
    decoder = detr()
    prediction = decoder(pyramid(), SIZE)
    truth = stacked_objects([TWO, TWO[:1]])
    expected = decoder.loss(prediction, truth)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    shuffled = QueryPrediction(prediction.logits[:, :, order], prediction.boxes[:, :, order], SIZE)
    torch.testing.assert_close(decoder.loss(shuffled, truth), expected)
    torch.testing.assert_close(decoder.loss(prediction, truth.flip(1)), expected)


def test_the_decoder_sums_over_its_layers_and_objects() -> None:
    """Every layer is matched by itself; unmatched queries only lose their scores."""
    decoder = detr()
    prediction = decoder(pyramid(batch=1), SIZE)
    scale = torch.tensor([96.0, 64, 96, 64])
    objects = true_objects(TWO, 3)
    truth = centred_of(objects.corners / scale)
    expected = [0.0, 0.0, 0.0]
    for logits, boxes in zip(prediction.logits[:, 0], prediction.boxes[:, 0], strict=True):
        pairs = dict(zip(*(part.tolist() for part in match(logits, boxes, objects.kinds, truth)), strict=True))
        for query in range(9):
            target = torch.zeros(3)
            if query in pairs:
                box, wanted = boxes[query], truth[pairs[query]]
                overlaps = counted_iou(corners_of(box).tolist(), corners_of(wanted).tolist())
                target[objects.kinds[pairs[query]]] = overlaps[0]
                expected[1] += (1 - overlaps[1]) / 2
                expected[2] += float((box - wanted).abs().sum()) / 2
            expected[0] += float(quality_focal_loss(logits[query], target).sum()) / 2
    losses = decoder.losses(prediction, TWO[None])
    assert losses.l1 is not None
    assert [float(losses.classes), float(losses.giou), float(losses.l1)] == pytest.approx(expected, rel=1e-4)


@HEADS
def test_pictures_without_objects_teach_scores_alone(make: type[ObjectHead[DensePrediction]]) -> None:
    head = make()
    prediction = head(pyramid(), SIZE)
    loss = head.loss(prediction, torch.zeros(2, 0, 5))
    assert float(loss.detach()) > 0
    gradients = torch.autograd.grad(
        loss, [prediction.logits, prediction.boxes], allow_unused=True, materialize_grads=True
    )
    assert gradients[0].abs().sum() > 0
    assert not gradients[1].any()


@HEADS
def test_pictures_of_which_nothing_is_known_move_nothing(make: type[ObjectHead[DensePrediction]]) -> None:
    """Exactly: alone the loss is 0, and beside another picture it adds no gradient of its own."""
    head = make()
    prediction = head(pyramid(), SIZE)
    unknown = nothing_known(SIZE)
    loss = head.loss(prediction, stacked_objects([unknown, unknown]))
    assert float(loss.detach()) == 0
    gradient = torch.autograd.grad(loss, prediction.logits)[0]
    assert not gradient.any()
    mixed = head.loss(head(pyramid(), SIZE), stacked_objects([TWO, unknown]))
    alone = head.loss(head([level[:1] for level in pyramid()], SIZE), TWO[None])
    torch.testing.assert_close(mixed, alone)


@HEADS
def test_an_ignored_region_hides_false_finds(make: type[ObjectHead[DensePrediction]]) -> None:
    head = make()
    prediction = head(pyramid(batch=1), SIZE)
    ignored = torch.cat([TWO[:1], torch.tensor([[255.0, 40, 0, 96, 64]])])
    assert float(head.loss(prediction, ignored[None]).detach()) < float(head.loss(prediction, TWO[None, :1]).detach())


@HEADS
def test_empty_slots_and_boxes_without_area_are_no_objects(make: type[ObjectHead[DensePrediction]]) -> None:
    head = make()
    prediction = head(pyramid(batch=1), SIZE)
    padded = torch.cat([TWO, torch.tensor([[-1.0, 0, 0, 0, 0], [1, 5, 5, 5, 9]])])
    assert torch.equal(head.loss(prediction, padded[None]), head.loss(prediction, TWO[None]))
    with pytest.raises(ValueError, match="a head of 3 classes"):
        head.loss(prediction, torch.tensor([[[3.0, 0, 0, 5, 5]]]))


@HEADS
def test_every_parameter_learns(make: type[ObjectHead[DensePrediction]]) -> None:
    head = make()
    optimiser = torch.optim.SGD(head.parameters(), lr=1e-3)
    for _ in range(2):  # the first step moves the layers that start from zero
        optimiser.zero_grad()
        head.loss(head(pyramid(), SIZE), stacked_objects([TWO, TWO[:1]])).backward()
        optimiser.step()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())


@HEADS
def test_a_head_learns_two_pictures_by_heart(make: type[ObjectHead[DensePrediction]]) -> None:
    """From fixed random maps: every object is found at IoU 0.5 with its class, and nothing else is as sure."""
    head, maps = make(), pyramid()
    truth = stacked_objects([TWO, TWO[1:]])
    optimiser = torch.optim.Adam(head.parameters(), lr=5e-3)
    for _ in range(150):
        optimiser.zero_grad()
        head.loss(head(maps, SIZE), truth).backward()
        optimiser.step()
    for rows, found in zip(truth, head.detections(head(maps, SIZE)), strict=True):
        objects = true_objects(rows, 3)
        count = len(objects.kinds)
        overlap = iou(found.corners[:count, None], objects.corners)
        same = found.kinds[:count, None] == objects.kinds
        assert sorted((overlap * same).argmax(dim=1).tolist()) == list(range(count))
        assert float((overlap * same).amax(dim=1).min()) > 0.5


def test_suppression_is_that_of_one_box_at_a_time() -> None:
    generator = torch.Generator().manual_seed(3)
    corners, scores = some_boxes(120, generator), torch.rand(120, 2, generator=generator)
    found = suppressed(scores, corners)
    kept: list[tuple[float, int, Tensor]] = []
    for place in scores.flatten().argsort(descending=True).tolist():
        box, kind = corners[place // 2], place % 2
        if all(k != kind or float(iou(box, b)) <= NMS_IOU for _, k, b in kept):
            kept.append((float(scores.flatten()[place]), kind, box))
    kept = kept[:MOST_BOXES]
    assert found.kinds.tolist() == [kind for _, kind, _ in kept]
    assert torch.equal(found.corners, torch.stack([box for _, _, box in kept]))
    assert found.confidences.tolist() == [score for score, _, _ in kept]


def test_detections_stay_in_the_picture() -> None:
    for head in (dense(), detr()):
        for found in head.detections(head(pyramid(), SIZE)):
            assert (found.corners >= 0).all()
            assert (found.corners <= torch.tensor([96.0, 64, 96, 64])).all()
            assert (found.confidences.diff() <= 0).all()


def test_truth_in_pixels_is_that_of_the_file() -> None:
    rows = objects_in_pixels(torch.tensor([[2, 0.5, 0.25, 0.5, 0.5]]), (100, 200))
    assert rows.tolist() == [[2, 50, 0, 150, 50]]
    assert within(torch.tensor([[60.0, 20], [0, 0]]), rows[:, 1:]).tolist() == [[True, False]]
