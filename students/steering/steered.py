"""A frozen student whose features are compensated on their way: the second pass of the closed loop.

The student is any with named taps and never changes: it is frozen, stays in evaluation mode, and what is trained lies
beside it. A steering file belongs to one student and says so by the digest of that student's weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from duskfuse.data.fuser import Colour, FusionOutput
from duskfuse.students.steering.base_vectors import BaseVectorBank
from duskfuse.students.steering.compensation import BRANCHES, Compensation
from duskfuse.students.steering.description import QUERY, SELECTION, Descriptor, Resolution
from duskfuse.students.steering.taps import Tap, replacing

Needs = Mapping[str, Descriptor]
"""What a task needs in each compensated map, by the name of its tap."""


class Steering(nn.Module):
    """All that is trained around a student: one bank, one compensation per tap; and what each task needs on average.

    Args:
        taps: what is compensated.
        tasks: names of the tasks that it is trained for.
        branches: of every compensation.
        resolution: at which maps and task features are described.
    """

    def __init__(
        self,
        taps: Sequence[Tap],
        tasks: Sequence[str] = (),
        branches: int = BRANCHES,
        resolution: Resolution | None = None,
    ) -> None:
        super().__init__()
        self.taps, self.tasks, self.branches = tuple(taps), tuple(tasks), branches
        self.resolution = resolution or Resolution()
        self.bank = BaseVectorBank()
        self.compensations = nn.ModuleDict(
            {_key(tap.module): Compensation(tap.channels, branches, self.resolution) for tap in self.taps}
        )
        for task in self.tasks:
            self.register_buffer(_buffer(task), torch.zeros(len(self.taps), SELECTION + QUERY))

    def compensation(self, tap: str) -> Compensation:
        """The module that compensates a tap."""
        module = self.compensations[_key(tap)]
        assert isinstance(module, Compensation)
        return module

    def remember(self, task: str, needs: Needs) -> None:
        """Keep the mean of descriptors as what ``task`` needs on average."""
        rows = [torch.cat(needs[tap.module], dim=1).mean(dim=0) for tap in self.taps]
        self.get_buffer(_buffer(task)).copy_(torch.stack(rows))

    def needs(self, task: str) -> Needs:
        """What ``task`` needs on average, as descriptors of one sample."""
        rows = self.get_buffer(_buffer(task))[:, None]
        return {
            tap.module: Descriptor(row[:, :SELECTION], row[:, SELECTION:])
            for tap, row in zip(self.taps, rows, strict=True)
        }


class SteeredStudent(nn.Module):
    """A frozen student and its steering.

    Raises ValueError where the steering compensates modules that the student does not have.
    """

    def __init__(self, student: nn.Module, steering: Steering) -> None:
        super().__init__()
        named = dict(student.named_modules())
        if missing := [tap.module for tap in steering.taps if tap.module not in named]:
            raise ValueError(f"the student has no module {', '.join(missing)}")
        self.student = student.eval().requires_grad_(False)
        self.steering = steering
        self.colour = Colour.RGB if getattr(student, "colour", Colour.LUMA) == Colour.RGB else Colour.LUMA

    def train(self, mode: bool = True) -> Self:
        """As in torch, except that the student stays in evaluation mode."""
        super().train(mode)
        self.student.eval()
        return self

    def forward(
        self, vis: Tensor, ir: Tensor, need: Tensor | Needs, generator: torch.Generator | None = None
    ) -> FusionOutput:
        """Fuse as the student does, with compensated features.

        Args:
            vis: as the student takes it, ``[B, 1 or 3, H, W]`` in [0, 1].
            ir: ``[B, 1, H, W]`` in [0, 1].
            need: the task network's features on the student's own picture, ``[B, C, h, w]`` of any size, or the needs
                of a task.
            generator: what configurations are drawn from while training.
        """
        return self.steer(vis, ir, need, generator)[0]

    def steer(
        self, vis: Tensor, ir: Tensor, need: Tensor | Needs, generator: torch.Generator | None = None
    ) -> tuple[FusionOutput, Needs]:
        """As `forward`, with the descriptors after which each map was compensated."""
        used: dict[str, Descriptor] = {}

        def change(tap: str) -> Callable[[Tensor], Tensor]:
            def compensated(maps: Tensor) -> Tensor:
                wanted = need if isinstance(need, Tensor) else need[tap]
                made: Tensor
                made, used[tap] = self.steering.compensation(tap)(maps, wanted, self.steering.bank, generator)
                return made

            return compensated

        with replacing(self.student, {tap.module: change(tap.module) for tap in self.steering.taps}):
            output: FusionOutput = self.student(vis, ir)
        return output, used


def weights_digest(module: nn.Module) -> str:
    """Names the parameters and buffers of a network by what they hold: 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _key(tap: str) -> str:
    """Names of modules have no dots."""
    return tap.replace(".", ":")


def _buffer(task: str) -> str:
    return f"need_{task}"
