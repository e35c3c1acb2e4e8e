from __future__ import annotations

import copy

import torch
from torch import nn

from duskfuse.students.fold import fold_batchnorm
from duskfuse.students.unet import UNetStudent


def shake(module: nn.Module) -> None:
    """Give BatchNorm statistics and affine parameters that matter."""
    torch.manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2)


def test_folded_student_equals_the_student() -> None:
    student = UNetStudent()
    shake(student)
    before = copy.deepcopy(student.state_dict())
    folded = fold_batchnorm(student)
    assert student.training
    assert all(torch.equal(tensor, before[key]) for key, tensor in student.state_dict().items())
    assert not folded.training
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert sum(isinstance(module, nn.BatchNorm2d) for module in student.modules()) == 17
    vis_y, ir = torch.rand(2, 1, 37, 42), torch.rand(2, 1, 37, 42)
    with torch.no_grad():
        want, got = student.eval()(vis_y, ir), folded(vis_y, ir)
    assert (got.y - want.y).abs().max() <= 1e-5
    torch.testing.assert_close(got.taps, want.taps, atol=1e-4, rtol=1e-4)


def test_only_a_norm_right_after_a_convolution_is_folded() -> None:
    network = nn.Sequential(
        nn.BatchNorm2d(3),
        nn.Conv2d(3, 4, 1, bias=False),
        nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.BatchNorm2d(4, affine=False)),
        nn.ReLU(),
        nn.BatchNorm2d(4),
    )
    shake(network[4])
    nn.init.normal_(network[2][1].running_mean)
    folded = fold_batchnorm(network)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules()) == 2
    x = torch.rand(1, 3, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), network.eval()(x), atol=1e-5, rtol=1e-5)
