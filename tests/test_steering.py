"""Compensation of a frozen student's features: counts, exact start, dynamic convolutions, gradients, determinism."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from duskfuse.data.errors import InputError
from duskfuse.students.steering.base_vectors import (
    CONFIGURATIONS,
    LENGTH,
    VECTORS,
    BaseVectorBank,
    Configuration,
)
from duskfuse.students.steering.compensation import SLOPE, Compensation
from duskfuse.students.steering.description import PUBLISHED, Description, Descriptor, Resolution
from duskfuse.students.steering.dynamic_convolution import convolve_each, from_grid, in_grid
from duskfuse.students.steering.steered import SteeredStudent, Steering, weights_digest
from duskfuse.students.steering.taps import Modality, Steerable, taps_of
from duskfuse.students.zoo import build_student

STUDENTS = ("vfn", "unet", "edge", "nano", "mobile")


def trained_a_little(steering: Steering, seed: int = 0) -> Steering:
    """Steering whose 1×1 convolutions are no longer 0 and whose statistics are not those of the start."""
    torch.manual_seed(seed)
    for tap in steering.taps:
        module = steering.compensation(tap.module)
        for parameter in module.leave.parameters():
            nn.init.normal_(parameter, std=0.2)
        assert module.norm.running_mean is not None
        assert module.norm.running_var is not None
        nn.init.uniform_(module.norm.running_mean, -0.1, 0.1)
        nn.init.uniform_(module.norm.running_var, 0.5, 2)
    return steering


def steered(name: str, *, tasks: tuple[str, ...] = (), resolution: Resolution | None = None) -> SteeredStudent:
    torch.manual_seed(0)
    student = build_student(name, {})
    return SteeredStudent(student, Steering(taps_of(student), tasks, resolution=resolution))


def pictures(seed: int = 0, batch: int = 2, size: tuple[int, int] = (32, 48)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 1, *size, generator=generator), torch.rand(batch, 1, *size, generator=generator)


def features(seed: int = 0, batch: int = 2, shape: tuple[int, int, int] = (12, 5, 7)) -> Tensor:
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed))


def test_parameters_are_the_published_ones() -> None:
    """The total counts the fixed prototypes, 64 per module."""
    torch.manual_seed(0)
    steering = Steering(taps_of(build_student("vfn", {})))
    module = steering.compensation("encode_ir.1")

    def count(*parts: nn.Module) -> int:
        return sum(parameter.numel() for part in parts for parameter in part.parameters())

    described = module.describe
    assert count(described.query_task, described.query_image, module.ask) == 136_704
    assert count(described.selection_task, described.selection_image, module.configure) == 3_420
    assert (count(module.predict["3"]), count(module.predict["1"])) == (54_016, 20_736)
    assert count(module.norm, module.leave) == 88
    assert (count(module), module.prototypes.numel(), count(steering.bank)) == (214_964, 64, 32_768)
    assert count(steering) + 2 * 64 == 462_824


@pytest.mark.parametrize("name", STUDENTS)
def test_around_every_student_it_stays_below_half_a_million(name: str) -> None:
    assert sum(parameter.numel() for parameter in steered(name).steering.parameters()) < 500_000


@pytest.mark.parametrize("name", STUDENTS)
def test_taps_are_what_their_modules_give(name: str) -> None:
    student = build_student(name, {}).eval()
    assert isinstance(student, Steerable)
    taps = taps_of(student, [tap.module for tap in student.steering_taps])
    assert {tap.modality for tap in taps} <= set(Modality)
    seen: dict[str, tuple[int, ...]] = {}

    def hook(tap: str) -> object:
        return lambda _, inputs, output: seen.update({tap: tuple(output.shape)})

    for tap in taps:
        student.get_submodule(tap.module).register_forward_hook(hook(tap.module))  # type: ignore[arg-type]
    vis, ir = pictures(size=(64, 96))
    with torch.no_grad():
        student(vis, ir)
    assert seen == {tap.module: (2, tap.channels, 64 // tap.stride, 96 // tap.stride) for tap in taps}


def test_students_without_taps_and_unknown_taps_are_refused() -> None:
    with pytest.raises(InputError, match="names no features"):
        taps_of(nn.Conv2d(1, 1, 1))
    with pytest.raises(InputError, match="names no features"):
        taps_of(build_student("vfn", {"blocks": 1}))
    with pytest.raises(InputError, match="stem_ir, stem_vis, context"):
        taps_of(build_student("edge", {}), ["stem_uv"])
    unfitting = Steering(taps_of(build_student("edge", {})))
    with pytest.raises(ValueError, match="no module stem_ir, stem_vis"):
        SteeredStudent(build_student("unet", {}), unfitting)


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("shape", [(12, 5, 7), (3, 40, 1)])
def test_untrained_steering_changes_nothing(name: str, shape: tuple[int, int, int]) -> None:
    """Exactly, whatever the features are, in training mode too."""
    network = steered(name)
    vis, ir = pictures()
    with torch.no_grad():
        expected = network.student(vis, ir).y
        for mode in (False, True):
            network.train(mode)
            assert torch.equal(network(vis, ir, 100 * features(shape=shape)).y, expected)


def test_steering_that_is_set_to_zero_again_changes_nothing() -> None:
    network = steered("edge").eval()
    vis, ir = pictures()
    trained_a_little(network.steering)
    with torch.no_grad():
        assert not torch.equal(network(vis, ir, features()).y, network.student(vis, ir).y)
        for tap in network.steering.taps:
            for parameter in network.steering.compensation(tap.module).leave.parameters():
                parameter.zero_()
        assert torch.equal(network(vis, ir, features()).y, network.student(vis, ir).y)


def looped(maps: Tensor, kernels: list[list[Tensor]], chosen: list[list[Configuration]]) -> Tensor:
    """One plain convolution per picture and branch."""
    rows = []
    for sample, row, configurations in zip(maps, kernels, chosen, strict=True):
        made = []
        for kernel, c in zip(row, configurations, strict=True):
            padding = c.dilation * (c.kernel - 1) // 2
            made.append(F.conv2d(sample[None], kernel, padding=padding, dilation=c.dilation)[0])
        rows.append(torch.stack(made))
    return torch.stack(rows)


@pytest.mark.parametrize("pattern", [*((c,) * 4 for c in CONFIGURATIONS), CONFIGURATIONS])
def test_one_grouped_convolution_is_the_loop(pattern: tuple[Configuration, ...]) -> None:
    torch.manual_seed(0)
    chosen = [list(pattern), list(reversed(pattern)), [pattern[0], *pattern[:3]]]
    kernels = [[torch.randn(8, 8, c.kernel, c.kernel) / (8 * c.kernel) for c in row] for row in chosen]
    maps = torch.randn(3, 8, 13, 18)
    grid = torch.stack(
        [
            torch.stack([in_grid(kernel, c) for kernel, c in zip(row, names, strict=True)])
            for row, names in zip(kernels, chosen, strict=True)
        ]
    )
    torch.testing.assert_close(convolve_each(maps, grid), looped(maps, kernels, chosen), atol=1e-6, rtol=0)
    for row, names, grids in zip(kernels, chosen, grid, strict=True):
        assert all(torch.equal(from_grid(g, c), kernel) for kernel, c, g in zip(row, names, grids, strict=True))


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_a_configuration_sees_its_own_taps_only(configuration: Configuration) -> None:
    """The answer to an impulse: not 0 at distance 0 and, for 3×3, at distance d; 0 everywhere else."""
    impulse = torch.zeros(1, 8, 15, 15)
    impulse[:, :, 7, 7] = 1
    kernel = torch.rand(1, 1, 8, 8, configuration.kernel, configuration.kernel) + 0.1
    answer = convolve_each(impulse, in_grid(kernel, configuration))[0, 0].abs().sum(dim=0)
    reached = {0} if configuration is Configuration.POINT else {-configuration.dilation, 0, configuration.dilation}
    expected = {(7 + row, 7 + column) for row, column in product(reached, reached)}
    assert {(int(row), int(column)) for row, column in answer.nonzero()} == expected


def test_bank_and_prototypes_are_orthonormal_at_first() -> None:
    torch.manual_seed(4)
    for rows in (BaseVectorBank().vectors.detach().flatten(0, 1), Compensation().prototypes):
        torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)), atol=1e-5, rtol=0)
    assert not any("prototypes" in name for name, _ in Compensation().named_parameters())


def described(maps: Tensor, task: Tensor, module: Description) -> Descriptor:
    """The published form, step by step."""

    def through(network: nn.Module, x: Tensor) -> Tensor:
        for layer in network.children():
            x = layer(x)
        return x

    flat = task.reshape(len(task), 1, -1)
    root = (flat.pow(2).mean(dim=(1, 2), keepdim=True) + 1e-6).sqrt()
    selection = [through(module.selection_task, flat).mean(-1), through(module.selection_image, maps).mean((-1, -2))]
    query = [through(module.query_task, flat / root).mean(-1), through(module.query_image, maps).mean((-1, -2))]
    return Descriptor(torch.cat(selection, dim=1), torch.cat(query, dim=1))


def test_a_compensation_is_its_literal_form() -> None:
    """Sample by sample and branch by branch, at the published resolution, in evaluation mode."""
    torch.manual_seed(5)
    module, bank = Compensation(resolution=PUBLISHED).eval(), BaseVectorBank()
    nn.init.normal_(module.leave.weight, std=0.5)
    maps, task = torch.randn(3, 8, 12, 14), torch.randn(3, 6, 5, 4)
    descriptor = described(maps, task, module.describe)
    wanted = module.configure(descriptor.selection).view(3, 16, 4)
    query = module.ask(descriptor.query)
    expected = []
    for sample in range(3):
        taken, branches = [0, 0, 0, 0], []
        for m in range(4):
            scores = [F.cosine_similarity(p, wanted[sample, :, m], dim=0) for p in module.prototypes]
            k = int(torch.stack(scores).argmax())
            nearness = F.cosine_similarity(bank.vectors[k], query[sample][None], dim=1)
            vector = bank.vectors[k, nearness.argsort(descending=True)[taken[k]]]
            taken[k] += 1
            c = CONFIGURATIONS[k]
            kernel = module.predict[str(c.kernel)](vector).view(8, 8, c.kernel, c.kernel)
            branches.append(
                F.conv2d(maps[sample][None], kernel, padding=c.dilation * (c.kernel // 2), dilation=c.dilation)
            )
        mean = torch.stack([F.leaky_relu(module.norm(branch), SLOPE) for branch in branches]).mean(dim=0)
        expected.append(maps[sample] + module.leave(mean)[0])
    made, used = module(maps, task, bank)
    torch.testing.assert_close(made, torch.stack(expected), atol=1e-5, rtol=0)
    torch.testing.assert_close(used.query, descriptor.query, atol=1e-5, rtol=0)


def test_branches_that_share_a_configuration_get_distinct_vectors() -> None:
    torch.manual_seed(6)
    bank, query = BaseVectorBank(), torch.randn(2, LENGTH)
    ranks = torch.arange(VECTORS).view(1, VECTORS, 1).expand(2, VECTORS, 4)
    vectors = bank(query, ranks)
    assert vectors.shape == (2, VECTORS, 4, LENGTH)
    for sample, k in product(range(2), range(4)):
        assert len(torch.unique(vectors[sample, :, k].detach(), dim=0)) == VECTORS
        cosines = F.cosine_similarity(vectors[sample, :, k], query[sample][None], dim=1)
        assert (cosines.diff() <= 1e-6).all()
    with pytest.raises(ValueError, match="33 branches"):
        Compensation(branches=33)


def moved(network: SteeredStudent, optimiser: torch.optim.Optimizer, seed: int) -> None:
    optimiser.zero_grad()
    vis, ir = pictures(seed, batch=4)
    generator = torch.Generator().manual_seed(seed)
    output = network(vis, ir, features(seed, batch=4), generator)
    (output.y - 0.2).square().mean().backward()
    optimiser.step()


@pytest.mark.parametrize("name", STUDENTS)
def test_every_parameter_learns_and_the_student_stays_as_it_is(name: str) -> None:
    """In the first step the 1×1 convolutions are 0 and hold the gradient back; in the second all have one."""
    network = steered(name)
    before = weights_digest(network.student)
    network.train()
    optimiser = torch.optim.Adam(network.steering.parameters(), lr=1e-2)
    for seed in range(2):
        moved(network, optimiser, seed)
    without = [n for n, p in network.steering.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert not without
    assert all(parameter.grad is None for parameter in network.student.parameters())
    assert weights_digest(network.student) == before
    assert not network.student.training


def test_the_value_is_that_of_the_choice_whatever_the_gradient_is() -> None:
    network = steered("nano").eval()
    trained_a_little(network.steering)
    vis, ir = pictures()
    live = network(vis, ir, features()).y
    with torch.no_grad():
        assert torch.equal(network(vis, ir, features()).y, live)


def test_evaluation_repeats_itself_and_training_follows_its_generator() -> None:
    network = steered("edge")
    trained_a_little(network.steering)
    vis, ir = pictures()
    task = features()

    def fused(seed: int) -> Tensor:
        torch.manual_seed(seed)  # the global numbers have no say
        y: Tensor = network(vis, ir, task, torch.Generator().manual_seed(seed % 10)).y
        return y

    with torch.no_grad():
        network.eval()
        assert torch.equal(fused(1), fused(2))
        network.train()
        assert torch.equal(fused(1), fused(11))
        assert len({fused(seed).sum().item() for seed in range(5)}) > 1


def test_other_features_give_another_picture_and_none_needs_training_anew() -> None:
    """Channels and size of a task's features are free; features that are 0 everywhere, and half precision, are fine."""
    network = steered("edge").eval()
    trained_a_little(network.steering)
    vis, ir = pictures()
    shapes = [(12, 5, 7), (64, 20, 20), (1, 1, 1), (7, 33, 2)]
    with torch.no_grad():
        made = [network(vis, ir, features(shape=shape)).y for shape in shapes]
        made.append(network(vis, ir, torch.zeros(2, 12, 5, 7)).y)
        made.append(network(vis, ir, features(shape=(12, 5, 7)).bfloat16()).y)
    assert all(bool(torch.isfinite(y).all()) for y in made)
    assert len({float(y.sum()) for y in made[:5]}) > 1


def test_a_description_tells_channels_apart_where_the_published_one_does_not() -> None:
    """Output k has the k-th cosine over the channels, one channel after the other; shuffled channels are told apart."""
    torch.manual_seed(3)
    module, published = Description(), Description(PUBLISHED)
    published.load_state_dict(module.state_dict())
    maps, task = torch.randn(1, 8, 12, 14), torch.rand(1, 40, 4, 4) * torch.rand(1, 40, 1, 1)
    rows = module.query_task((task / task.square().mean().add(1e-6).sqrt()).flatten(1)[:, None])[0]
    expected = torch.zeros(128)
    for k in range(128):
        for channel, values in enumerate(rows[k].view(40, 16)):
            cosine = math.cos(math.pi * k * (channel + 0.5) / 40) * math.sqrt(2 / 40) if k else 1 / 40
            expected[k] += values.mean() * cosine
    assert torch.allclose(module(maps, task).query[0, :128], expected, atol=1e-5)
    other = task[:, torch.randperm(40)]
    with torch.no_grad():
        told, forgotten = (
            float((d(maps, task).query - d(maps, other).query).norm() / d(maps, task).query[:, :128].norm())
            for d in (module, published)
        )
    assert told > 0.5
    assert forgotten < 0.05


def test_averaging_features_first_leaves_small_ones_alone_and_costs_a_fraction() -> None:
    """Costs at 768×1024 with 512×24×32 features, per compensated map: the published 72.9 G against 4.5 G."""
    torch.manual_seed(7)
    cheap, full = Description(Resolution(channels=False)), Description(PUBLISHED)
    full.load_state_dict(cheap.state_dict())
    maps, task = torch.randn(2, 8, 20, 24), torch.randn(2, 9, 16, 11)
    for one, other in zip(cheap(maps, task), full(maps, task), strict=True):
        assert torch.equal(one, other)
    size, shape = (768, 1024), (512, 24, 32)
    assert full.macs(size, shape) / 1e9 == pytest.approx(71.9, abs=0.1)
    assert cheap.macs(size, shape) / 1e9 == pytest.approx(4.5, abs=0.1)
