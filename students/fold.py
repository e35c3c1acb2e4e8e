"""Folding what only training needs into the convolutions beside it: the same function with fewer operations."""

from __future__ import annotations

import copy
from typing import Protocol, runtime_checkable

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


@runtime_checkable
class Mergeable(Protocol):
    """A module that is trained in another form than it is run, such as parallel branches that are one convolution."""

    def merged(self) -> nn.Module:
        """The layers to run: the same function in evaluation mode."""


def fold_batchnorm(module: nn.Module) -> nn.Module:
    """Return a copy in eval mode whose convolutions have taken up the BatchNorm2d that directly follows them.

    Pairs are found inside ``nn.Sequential``; `Mergeable` modules are replaced by their merged form. Outputs equal those
    of ``module.eval()`` up to rounding; ``module`` is left as it is.
    """
    return _folded(copy.deepcopy(module).eval())


def _folded(module: nn.Module) -> nn.Module:
    if isinstance(module, Mergeable):
        return _folded(module.merged().eval())
    if type(module) is nn.Sequential:
        return _folded_sequence(module)
    for name, child in module.named_children():
        setattr(module, name, _folded(child))
    return module


def _folded_sequence(sequence: nn.Sequential) -> nn.Sequential:
    layers: list[nn.Module] = []
    for layer in sequence:
        if layers and isinstance(layers[-1], nn.Conv2d) and isinstance(layer, nn.BatchNorm2d):
            layers[-1] = fuse_conv_bn_eval(layers[-1], layer)
        else:
            layers.append(_folded(layer))
    return nn.Sequential(*layers).eval()
