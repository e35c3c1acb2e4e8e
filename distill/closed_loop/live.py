"""The closed loop in use: student, task network and steering as one network from two pictures to one.

The student fuses, the task network looks, and the student fuses again with features compensated after what was seen
there. It costs the student twice and the task network once; the form without both is
`duskfuse.students.steering.fixed`. Task networks look at colours, and so this takes and gives colours.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Self

from torch import Tensor, nn

from duskfuse.data.colour import luminance
from duskfuse.data.fuser import Colour, FusionOutput
from duskfuse.distill.closed_loop.loop import shown
from duskfuse.distill.closed_loop.loop_task import LoopTask, deepest_layer
from duskfuse.distill.critics import Critic
from duskfuse.students.steering.live import LiveCompensation
from duskfuse.students.steering.steered import SteeredStudent
from duskfuse.students.steering.steering_file import load_steering
from duskfuse.students.steering.taps import replacing
from duskfuse.tasks.open_task_network import open_task_network


class LiveSteering(nn.Module):
    """Fuses one picture at a time as a task network wants it that looks at each; in evaluation mode.

    Args:
        steered: student and steering; both are copied.
        critic: the task network, of any task, also one that the steering was not trained for; copied.
        layer: the module of it whose output tells what it needs; by default that which the loop looks at.

    Raises:
        InputError: the network has no such layer.
    """

    colour = Colour.RGB

    def __init__(self, steered: SteeredStudent, critic: Critic, layer: str | None = None) -> None:
        super().__init__()
        self.student, self.student_colour = copy.deepcopy(steered.student), steered.colour
        self.settings = self.student.settings
        self.critic, self.layer = copy.deepcopy(critic), deepest_layer(critic) if layer is None else layer
        self.task = LoopTask(critic, self.layer).name
        steering = steered.steering
        self.taps = [tap.module for tap in steering.taps]
        self.compensations = nn.ModuleList(
            LiveCompensation(steering.compensation(tap), steering.bank) for tap in self.taps
        )
        self.eval().requires_grad_(False)
        self.student.requires_grad_(True)  # convolutions that never learn stay out of INT8, as those of the others do

    def train(self, mode: bool = True) -> Self:
        """Nothing here learns: it stays in evaluation mode."""
        return super().train(False)

    def forward(self, vis: Tensor, ir: Tensor) -> FusionOutput:
        """Fuse visible RGB ``[1, 3, H, W]`` and infrared ``[1, 1, H, W]`` in [0, 1] into RGB with its luminance."""
        seen = vis if self.student_colour is Colour.RGB else luminance(vis)
        first = shown(self.student(seen, ir), vis)
        features = LoopTask(self.critic, self.layer).features(first, ir)

        def compensated(number: int, maps: Tensor) -> Tensor:
            made: Tensor = self.compensations[number](maps, features)
            return made

        changes = {tap: lambda maps, number=number: compensated(number, maps) for number, tap in enumerate(self.taps)}
        with replacing(self.student, changes):
            output: FusionOutput = self.student(seen, ir)
        return FusionOutput(output.y, rgb=shown(output, vis))


def steer_live(student: nn.Module, steering: Path, critic: Path, backbone: Path | None = None) -> LiveSteering:
    """A student steered by what a task network sees in every picture.

    Args:
        student: the one that the steering was trained around.
        steering: what `duskfuse steer` trained.
        critic: the task network.
        backbone: of an SLGNet detector.

    Raises:
        InputError: as `load_steering` and `open_task_network`.
    """
    network = open_task_network(critic, backbone=backbone).freeze()
    return LiveSteering(load_steering(steering, student), network)
