"""The closed loop: reward and punishment, what carries a gradient, and that steering serves tasks of opposite needs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from duskfuse.data.class_conventions import convention_named
from duskfuse.data.colour import luminance
from duskfuse.data.errors import InputError
from duskfuse.distill.closed_loop.cagrad import Combination
from duskfuse.distill.closed_loop.loop import ClosedLoop, TaskScales, objective, put_gradient, update_of
from duskfuse.distill.closed_loop.loop_task import LoopTask, deepest_layer
from duskfuse.distill.closed_loop.steer_config import SteerTraining
from duskfuse.distill.context import Batch
from duskfuse.distill.optimisers import build_optimiser
from duskfuse.distill.recipe import OptimiserKind
from duskfuse.students.steering.steered import SteeredStudent, Steering, weights_digest
from duskfuse.students.steering.taps import taps_of
from duskfuse.students.zoo import build_student, load_student
from duskfuse.tasks.open_segmenter import new_segmenter
from duskfuse.tasks.task_network import Task, TaskNetwork

HOT, TEXTURE = "segmentation", "saliency"
LAYER = "network.0"


class Toy(TaskNetwork[Tensor, Tensor, Tensor]):
    """A random convolution as features, and the luminance as prediction."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Conv2d(3, 12, 3, stride=2), nn.ReLU())

    def forward(self, pictures: Tensor) -> Tensor:
        self.network(pictures)
        return luminance(pictures)

    def predict(self, pictures: Tensor) -> Tensor:
        return luminance(pictures)


class HotTarget(Toy):
    """Wants the target bright."""

    task = Task.SEGMENTATION

    def loss(self, prediction: Tensor, truth: Tensor) -> Tensor:
        target = (truth == 1).float()[:, None]
        return ((1 - prediction).square() * target).sum() / target.sum().clamp_min(1)


class Texture(Toy):
    """Wants the edges of the visible picture everywhere."""

    task = Task.SALIENCY

    def loss(self, prediction: Tensor, truth: Tensor) -> Tensor:
        across, down = ((prediction - truth).diff(dim=axis).abs() for axis in (-1, -2))
        return across.mean() + down.mean()


def batch_of(seed: int, count: int = 4) -> Batch:
    """A warm, not very hot target before a striped wall that only the visible picture shows."""
    generator = torch.Generator().manual_seed(seed)
    vis = 0.3 + 0.3 * torch.rand(count, 1, 1, 48, generator=generator).expand(-1, -1, 32, -1)
    ir = 0.1 + 0.05 * torch.rand(count, 1, 32, 48, generator=generator)
    label = torch.zeros(count, 32, 48, dtype=torch.uint8)
    for sample in range(count):
        top, left = (int(torch.randint(0, most, (), generator=generator)) for most in (16, 28))
        label[sample, top : top + 14, left : left + 12] = 1
        ir[sample, 0, top : top + 14, left : left + 12] += 0.55
    masks = torch.zeros(count, 1, 32, 48, dtype=torch.bool)
    names = tuple(map(str, range(count)))
    return Batch(ir, vis.expand(-1, 3, -1, -1).contiguous(), masks, masks, names, label=label, salient=vis.contiguous())


def loop_around(name: str = "nano", *, trained: bool = True) -> ClosedLoop:
    torch.manual_seed(0)
    student = load_student(name)[0] if trained else build_student(name, {})
    network = SteeredStudent(student, Steering(taps_of(student), (HOT, TEXTURE)))
    return ClosedLoop(network, [LoopTask(judge().freeze(), LAYER) for judge in (HotTarget, Texture)])


def trained_loop(batches: int, punishment: float = 5.0, rule: Combination = Combination.CAGRAD) -> ClosedLoop:
    loop, scales = loop_around(), TaskScales()
    loop.network.train()
    parameters = list(loop.network.steering.parameters())
    optimiser = torch.optim.Adam(parameters, lr=3e-3)
    for number in range(batches):
        generator = torch.Generator().manual_seed(number)
        update = update_of(
            loop,
            batch_of(number),
            scales,
            punishment=punishment,
            fidelity=0,
            combination=rule,
            radius=0.5,
            generator=generator,
        )
        put_gradient(update.direction, parameters)
        nn.utils.clip_grad_norm_(parameters, 1)
        optimiser.step()
    loop.network.eval()
    return loop


@pytest.fixture(scope="module")
def trained() -> ClosedLoop:
    return trained_loop(30)


def losses(loop: ClosedLoop, swap: bool = False) -> dict[str, tuple[float, float]]:
    """First and steered loss of both tasks on batches not trained on; ``swap``: each sees the other's features."""
    found: dict[str, tuple[float, float]] = {}
    with torch.no_grad():
        for task, other in zip(loop.tasks, loop.tasks[::-1], strict=True):
            totals = [0.0, 0.0]
            for seed in range(1000, 1004):
                batch = batch_of(seed)
                first = loop.first_pictures(batch)
                features = (other if swap else task).see(first, batch.ir).features
                picture = loop.network(batch.vis_y, batch.ir, features).y.expand(-1, 3, -1, -1)
                totals[0] += float(task.loss(task.see(first, batch.ir).prediction, batch)) / 4
                totals[1] += float(task.loss(task.see(picture, batch.ir).prediction, batch)) / 4
            found[task.name] = totals[0], totals[1]
    return found


def test_the_punishment_is_what_steering_made_worse() -> None:
    first = torch.tensor(0.5)
    for value, punished in ((0.3, 0.0), (0.5, 0.0), (0.8, 0.3)):
        earned = objective(torch.tensor(value), first, 5)
        assert float(earned.punishment) == pytest.approx(punished, abs=1e-7)
        assert float(earned.total) == pytest.approx(value + 5 * punished)


@pytest.mark.parametrize(("value", "ratio"), [(0.3, 1), (0.5, 1), (0.8, 6)])
def test_the_punishment_makes_the_gradient_six_times_as_long_where_worse(value: float, ratio: float) -> None:
    steered = torch.tensor(value, requires_grad=True)
    first = torch.tensor(0.5, requires_grad=True)
    total = objective(steered * 1.0, first, 5).total
    to_steered, to_first = torch.autograd.grad(total, (steered, first), allow_unused=True)
    assert float(to_steered) == ratio
    assert to_first is None


def test_only_the_steered_picture_carries_a_gradient() -> None:
    loop = loop_around(trained=False)
    batch = batch_of(0)
    first = loop.first_pictures(batch)
    turn = loop.turn(batch, loop.tasks[0], first)
    assert not first.requires_grad
    assert not turn.first.requires_grad
    assert turn.steered.requires_grad
    assert torch.equal(turn.picture.detach(), first)  # untrained steering changes nothing


def test_student_and_judges_stay_as_they_are(trained: ClosedLoop) -> None:
    fresh = loop_around()
    assert weights_digest(trained.network.student) == weights_digest(fresh.network.student)
    for one, other in zip(trained.tasks, fresh.tasks, strict=True):
        assert weights_digest(one.network) == weights_digest(other.network)
        assert all(parameter.grad is None for parameter in one.network.parameters())
    assert weights_digest(trained.network.steering) != weights_digest(fresh.network.steering)


def test_both_tasks_gain_and_the_pictures_stay_near(trained: ClosedLoop) -> None:
    found = losses(trained)
    for first, steered in found.values():
        assert steered <= first
    assert min(steered / first for first, steered in found.values()) < 0.9
    batch = batch_of(1000)
    with torch.no_grad():
        own = trained.first_pictures(batch)
        for task in trained.tasks:
            assert float((trained.turn(batch, task, own).picture - own).abs().mean()) < 0.25


def test_steering_uses_what_the_task_sees(trained: ClosedLoop) -> None:
    """With each other's features the tasks fare worse, and pictures for the two tasks differ."""
    right, wrong = losses(trained), losses(trained, swap=True)
    gain = {task: right[task][1] - wrong[task][1] for task in right}
    assert sum(gain.values()) < 0, gain
    batch = batch_of(1001)
    with torch.no_grad():
        first = trained.first_pictures(batch)
        pictures = [trained.turn(batch, task, first).picture for task in trained.tasks]
    assert not torch.allclose(pictures[0], pictures[1], atol=1e-3)


def test_another_judge_works_without_training_anew(trained: ClosedLoop) -> None:
    """Features of other channels and sizes, those of a segmenter."""
    segmenter = new_segmenter(convention_named("targets-2"))
    task = LoopTask(segmenter.freeze(), deepest_layer(segmenter))
    assert task.layer == "network.trunk.2"
    batch = batch_of(3)
    with torch.no_grad():
        turn = trained.turn(batch, task, trained.first_pictures(batch))
    assert bool(torch.isfinite(turn.steered))
    assert bool(torch.isfinite(turn.picture).all())


def test_a_task_without_ground_truth_takes_no_part() -> None:
    loop, batch, scales = loop_around(trained=False), batch_of(0), TaskScales()
    assert batch.label is not None
    for judge in loop.tasks:
        nn.init.zeros_(judge.network.get_parameter("network.0.weight"))
    options: dict[str, Any] = {"punishment": 5, "fidelity": 0, "combination": Combination.CAGRAD, "radius": 0.5}
    batch.label.fill_(255)
    loop.network.train()
    update = update_of(loop, batch, scales, generator=torch.Generator().manual_seed(0), **options)
    assert set(update.losses) == set(scales.means) == {TEXTURE}
    alone = update_of(
        ClosedLoop(loop.network, loop.tasks[1:]),
        batch,
        TaskScales(),
        generator=torch.Generator().manual_seed(1),
        **options,
    )
    assert alone.losses.keys() == update.losses.keys()
    assert float(update.direction.norm()) > 0


def test_losses_are_brought_to_one_scale() -> None:
    scales = TaskScales()
    assert scales.updated("a", 4.0) == 4
    assert scales.updated("a", 2.0) == pytest.approx(0.9 * 4 + 0.1 * 2)
    assert scales.updated("b", 0.0) == pytest.approx(1e-6)


def test_layers_that_are_not_there_or_give_no_maps_are_named() -> None:
    with pytest.raises(InputError, match=r"no layer 'network.9'.*network.0"):
        LoopTask(HotTarget().freeze(), "network.9")

    class Flat(HotTarget):
        def forward(self, pictures: Tensor) -> Tensor:
            return F.relu(super().forward(pictures))

    flat = Flat()
    flat.network = nn.Sequential(*flat.network.children(), nn.Flatten())
    batch = batch_of(0)
    with pytest.raises(InputError, match="gives no maps"):
        LoopTask(flat.freeze(), "network.2").see(batch.vis, batch.ir)


def test_the_default_decay_leaves_what_reads_the_task_and_the_published_one_erases_it() -> None:
    """Lengths of the weights that describe the task's features for the choice of vectors, after eight updates."""
    default = SteerTraining(student="nano", critics={}).optimiser
    kept = {}
    for kind in (OptimiserKind.ADAM, default.kind):
        loop, scales = loop_around(), TaskScales()
        loop.network.train()
        steering = loop.network.steering
        optimiser = build_optimiser(default.model_copy(update={"kind": kind}), steering)
        readers = [
            steering.compensation(tap.module).get_parameter("describe.query_task.2.weight") for tap in steering.taps
        ]
        before = [float(weight.detach().norm()) for weight in readers]
        for number in range(8):
            generator = torch.Generator().manual_seed(number)
            update = update_of(
                loop,
                batch_of(number),
                scales,
                punishment=5,
                fidelity=1,
                combination=Combination.CAGRAD,
                radius=0.5,
                generator=generator,
            )
            put_gradient(update.direction, list(steering.parameters()))
            optimiser.step()
        kept[kind] = min(float(w.detach().norm()) / b for w, b in zip(readers, before, strict=True))
    assert kept[OptimiserKind.ADAM] < 0.7
    assert kept[default.kind] > 0.95


def test_departing_from_the_students_own_picture_costs_its_mean_absolute_difference(trained: ClosedLoop) -> None:
    """The direction differs by the weight times the gradient of mean |steered − first|, of one task by itself."""
    loop, batch = ClosedLoop(trained.network, trained.tasks[:1]), batch_of(3)
    options: dict[str, Any] = {"punishment": 5, "combination": Combination.MEAN, "radius": 0.5}
    plain, held = (
        update_of(loop, batch, TaskScales(), fidelity=weight, generator=torch.Generator(), **options)
        for weight in (0.0, 2.0)
    )
    first = loop.first_pictures(batch)
    departure = (loop.turn(batch, loop.tasks[0], first).picture - first).abs().mean()
    parameters = list(loop.network.steering.parameters())
    gradients = torch.autograd.grad(departure, parameters, allow_unused=True)
    pairs = zip(parameters, gradients, strict=True)
    wanted = torch.cat([torch.zeros(p.numel()) if g is None else g.flatten() for p, g in pairs])
    assert float(departure.detach()) > 0
    assert held.losses[loop.tasks[0].name]["departure"] == pytest.approx(float(departure.detach()))
    assert torch.allclose(held.direction - plain.direction, 2 * wanted, atol=1e-6)


def test_without_the_punishment_harm_is_more_frequent() -> None:
    """Direction only: how often a task is worse than on the first picture, along equal runs of a short training."""
    harm = {}
    for punishment in (0.0, 20.0):
        loop, scales, worse = loop_around(), TaskScales(), 0
        loop.network.train()
        parameters = list(loop.network.steering.parameters())
        optimiser = torch.optim.SGD(parameters, lr=0.05)
        for number in range(8):
            update = update_of(
                loop,
                batch_of(number),
                scales,
                punishment=punishment,
                fidelity=0,
                combination=Combination.MEAN,
                radius=0.5,
                generator=torch.Generator().manual_seed(number),
            )
            worse += sum(row["punishment"] > 0 for row in update.losses.values())
            put_gradient(update.direction, parameters)
            optimiser.step()
        harm[punishment] = worse
    assert harm[20.0] <= harm[0.0], harm
