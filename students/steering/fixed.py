"""A student steered for one task without that task's network: the needs of the task are constants.

With a constant descriptor the chosen kernels are constants, too, so that a compensation is a few plain convolutions:
batch normalisation goes into them, the mean over branches into the 1×1 convolution behind. This is the form that is
exported: no task network, no description, no bank.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from duskfuse.data.fuser import FusionOutput
from duskfuse.students.steering.base_vectors import BaseVectorBank, Configuration
from duskfuse.students.steering.compensation import SLOPE, Compensation
from duskfuse.students.steering.description import WIDTH, Descriptor
from duskfuse.students.steering.dynamic_convolution import from_grid
from duskfuse.students.steering.steered import SteeredStudent


class FixedCompensation(nn.Module):
    """One compensation after one descriptor: what it computes in evaluation mode, with as few operations as it takes.

    Args:
        compensation: the trained module.
        descriptor: of one sample.
        bank: base vectors.
    """

    @torch.no_grad()
    def __init__(self, compensation: Compensation, descriptor: Descriptor, bank: BaseVectorBank) -> None:
        super().__init__()
        compensation = copy.deepcopy(compensation).eval()
        kernels, (choices,) = compensation.kernels(descriptor, bank)[0], compensation.choices(descriptor)
        self.enter = compensation.enter
        self.branches = nn.ModuleList()
        for configuration in dict.fromkeys(choices):
            alike = [kernels[m] for m, choice in enumerate(choices) if choice is configuration]
            self.branches.append(_convolution(torch.stack(alike), configuration, compensation.norm))
        leave = compensation.leave
        self.leave = nn.Conv2d(len(choices) * WIDTH, leave.out_channels, 1)
        self.leave.weight.copy_(leave.weight.repeat(1, len(choices), 1, 1) / len(choices))
        assert self.leave.bias is not None
        assert leave.bias is not None
        self.leave.bias.copy_(leave.bias)

    def forward(self, maps: Tensor) -> Tensor:
        """Compensate ``[B, channels, H, W]``."""
        entered = self.enter(maps)
        activated = F.leaky_relu(torch.cat([branch(entered) for branch in self.branches], dim=1), SLOPE)
        compensated: Tensor = maps + self.leave(activated)
        return compensated


class FixedSteering(nn.Module):
    """A copy of a student whose tapped modules are followed by fixed compensations; it fuses and is exported like one.

    Args:
        steered: student and steering.
        task: a task that the steering was trained for.
    """

    def __init__(self, steered: SteeredStudent, task: str) -> None:
        super().__init__()
        self.task, self.colour = task, steered.colour
        self.settings = steered.student.settings
        self.student = copy.deepcopy(steered.student)
        needs, steering = steered.steering.needs(task), steered.steering
        for tap in steering.taps:
            fixed = FixedCompensation(steering.compensation(tap.module), needs[tap.module], steering.bank)
            tapped = self.student.get_submodule(tap.module)
            self.student.set_submodule(tap.module, nn.Sequential(tapped, fixed))
        self.eval().requires_grad_(True)  # as an unsteered student: convolutions that never learn stay out of INT8

    def forward(self, vis: Tensor, ir: Tensor) -> FusionOutput:
        """Fuse as the student does; sizes and ranges are the student's."""
        output: FusionOutput = self.student(vis, ir)
        return output


def _convolution(kernels: Tensor, configuration: Configuration, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """Branches of one configuration as one convolution, normalised: ``[n, 8, 8, 7, 7]`` kernels."""
    size, distance = configuration.kernel, configuration.dilation
    count = len(kernels) * WIDTH
    conv = nn.Conv2d(WIDTH, count, size, padding=distance * (size // 2), dilation=distance)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain = norm.weight / (norm.running_var + norm.eps).sqrt()
    shift = norm.bias - norm.running_mean * gain
    conv.weight.copy_((from_grid(kernels, configuration) * gain[:, None, None, None]).flatten(0, 1))
    assert conv.bias is not None
    conv.bias.copy_(shift.repeat(len(kernels)))
    return conv
