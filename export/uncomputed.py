"""Trace a network without computing its convolutions.

A trace needs the shapes of maps, not their values, yet PyTorch computes what it traces. On a CPU it convolves in half
precision some forty times as slowly as in float32, which made minutes of an export of full-resolution networks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def uncomputed_convolutions(network: nn.Module) -> Iterator[None]:
    """Let the convolutions of ``network`` give zeros of the right shape; in an export they are written as they are."""
    changed = [module for module in network.modules() if type(module) is nn.Conv2d and _is_plain(module)]
    for module in changed:
        module.forward = MethodType(_forward, module)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def _is_plain(convolution: nn.Conv2d) -> bool:
    return convolution.padding_mode == "zeros" and not isinstance(convolution.padding, str)


def _forward(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    settings = convolution.stride, convolution.padding, convolution.dilation, convolution.groups
    zeros: Tensor = _Uncomputed.apply(x, convolution.weight, convolution.bias, *settings)
    return zeros


class _Uncomputed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> Tensor:
        sides = (
            (int(x.shape[2 + axis]) + 2 * padding[axis] - dilation[axis] * (int(weight.shape[2 + axis]) - 1) - 1)
            // stride[axis]
            + 1
            for axis in (0, 1)
        )
        return torch.zeros(int(x.shape[0]), int(weight.shape[0]), *sides, dtype=x.dtype)

    @staticmethod
    def symbolic(
        g: Any,
        x: Any,
        weight: Any,
        bias: Any,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> Any:
        """The node that PyTorch's exporter writes for a convolution, with its attributes in the same order."""
        inputs = (x, weight) if bias is None or bias.node().mustBeNone() else (x, weight, bias)
        return g.op(
            "Conv",
            *inputs,
            dilations_i=list(dilation),
            group_i=groups,
            kernel_shape_i=weight.type().sizes()[2:],
            pads_i=[*padding, *padding],
            strides_i=list(stride),
        )
