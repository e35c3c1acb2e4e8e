"""Task networks as the loop needs them: what they predict, their loss, and the features that tell what they need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from duskfuse.data.errors import InputError
from duskfuse.distill.context import Batch
from duskfuse.distill.critics import Critic
from duskfuse.tasks.slgnet.adapters import LanguageModulation
from duskfuse.tasks.task_network import RGB, Task

_TRUTH = {Task.SEGMENTATION: "label", Task.DETECTION: "objects", Task.SALIENCY: "salient"}
"""Fields of a batch."""


class _ReachedError(Exception):
    """Ends a forward pass at the layer that is looked at."""


class Seen(NamedTuple):
    """What a task network sees in pictures."""

    prediction: Any
    features: Tensor
    """``[B, C, h, w]``."""


@dataclass(frozen=True)
class LoopTask:
    """One task of the loop: a frozen network, and the module in it whose output tells what the task needs.

    Raises InputError for a module that the network does not have.
    """

    network: Critic
    layer: str

    def __post_init__(self) -> None:
        if self.layer not in dict(self.network.named_modules()):
            raise InputError(
                f"the network of {self.name} has no layer {self.layer!r}",
                rule=f"it has {', '.join(_with_maps(self.network))}",
                remedy=f"name one of these with --set layers.{self.name}=LAYER",
            )

    @property
    def name(self) -> str:
        """Of the task."""
        return self.network.task.value

    def see(self, rgb: Tensor, ir: Tensor) -> Seen:
        """Prediction on fused pictures ``[B, 3, H, W]``, and features; networks of two cameras see infrared, too.

        Raises:
            InputError: the module gives something else than maps.
        """
        found: list[Any] = []
        with self._watched(found.append):
            prediction = self.network(self._shown(rgb, ir))
        return Seen(prediction, self._maps(found))

    def features(self, rgb: Tensor, ir: Tensor) -> Tensor:
        """The features alone, see `see`; what the network has behind them is not computed."""
        found: list[Any] = []

        def stop(output: Any) -> None:
            found.append(output)
            raise _ReachedError

        with self._watched(stop), suppress(_ReachedError):
            self.network(self._shown(rgb, ir))
        return self._maps(found)

    def _shown(self, rgb: Tensor, ir: Tensor) -> Tensor:
        return rgb if self.network.channels == RGB else torch.cat([rgb, ir], dim=1)

    @contextmanager
    def _watched(self, look: Callable[[Any], None]) -> Iterator[None]:
        """Within this context, ``look`` gets what the layer gives."""
        layer = self.network.get_submodule(self.layer)
        handle = layer.register_forward_hook(lambda module, inputs, output: look(output))
        try:
            yield
        finally:
            handle.remove()

    def _maps(self, found: list[Any]) -> Tensor:
        if found and isinstance(found[-1], Tensor) and found[-1].ndim == 4:
            return found[-1]
        raise InputError(
            f"layer {self.layer!r} of the network of {self.name} gives no maps",
            rule="the loop looks at one tensor [B, C, h, w]",
            remedy=f"name another of {', '.join(_with_maps(self.network))}",
        )

    def loss(self, prediction: Any, batch: Batch) -> Tensor:
        """The network's own loss; exactly 0 where no sample has ground truth."""
        loss: Tensor = self.network.loss(prediction, getattr(batch, _TRUTH[self.network.task]))
        return loss


def deepest_layer(network: nn.Module) -> str:
    """The last stage of an in-tree task network's trunk, or SLGNet's features; empty for networks without either."""
    for name, module in network.named_modules():
        if isinstance(module, LanguageModulation):
            return str(name)
        if name.rpartition(".")[2] == "trunk" and isinstance(module, nn.ModuleList):
            return f"{name}.{len(module) - 1}"
    return ""


def _with_maps(network: nn.Module) -> list[str]:
    """Modules that hold convolutions, down to the third level."""
    return [
        name
        for name, module in network.named_modules()
        if name.count(".") < 3
        and name
        and not isinstance(module, nn.ModuleList)
        and any(isinstance(part, nn.Conv2d) for part in module.modules())
    ]
