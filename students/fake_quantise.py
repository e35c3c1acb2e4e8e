"""INT8 as PyTorch computes it: what a file's Q/DQ nodes do to a student, in a form that can be measured and trained.

Convolutions are quantised in their deployed form (branches merged, batch normalisation folded in): inputs to 256 steps
of one scale, weights to 255 steps of one scale per output channel, both symmetric about 0; biases, sums and pictures
stay float. So do convolutions with fixed weights, which rearrange the pixels of a picture: in the 128 steps that
symmetric int8 has for it, flat areas would show bands. Rounding has the gradient of the identity inside the range and
none outside (straight-through estimator, Bengio et al. 2013).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from duskfuse.data.fuser import FusionOutput
from duskfuse.students.fold import fold_batchnorm

LOWEST, HIGHEST = -128, 127
"""Codes of int8; weights leave out the lowest, so that their steps are symmetric."""
SMALLEST_SCALE = 1e-7
"""Of channels of weights, and of maps, that are all 0."""


class FakeQuantisedConv(nn.Conv2d):
    """A convolution whose input and weights are rounded as in INT8; it shares the parameters of ``conv``.

    ``scale`` is one step of the input; 0 leaves the convolution in float.
    """

    scale: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        sizes = conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation
        super().__init__(*sizes, conv.groups, conv.bias is not None, conv.padding_mode)  # type: ignore[arg-type]
        self.weight, self.bias = conv.weight, conv.bias
        self.register_buffer("scale", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``[B, C, H, W]``."""
        if not self.scale:
            return super().forward(x)
        return self.rounded(x)

    def rounded(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Convolve in INT8, by default with its own ``scale``."""
        rounded = quantised_map(x, self.scale if scale is None else scale)
        output: Tensor = self._conv_forward(rounded, quantised_weights(self.weight), self.bias)
        return output

    def plain(self) -> nn.Conv2d:
        """The convolution with its weights of now, in float."""
        sizes = self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding, self.dilation
        conv = nn.Conv2d(*sizes, self.groups, self.bias is not None, self.padding_mode)  # type: ignore[arg-type]
        conv.weight = nn.Parameter(self.weight.detach().clone())
        if self.bias is not None:
            conv.bias = nn.Parameter(self.bias.detach().clone())
        return conv


class QuantisedStudent(nn.Module):
    """A student in its deployed form with fake-quantised convolutions, and the float one that it was made from.

    All convolutions start in float. The float student consists of buffers: it is saved with the rest, and nothing
    trains it. ``student`` itself is left as it is.
    """

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.original = _without_parameters(fold_batchnorm(student))
        self.student = _with_fake_quantisation(fold_batchnorm(student))
        self.colour, self.settings = student.colour, student.settings

    def forward(self, vis: Tensor, ir: Tensor) -> FusionOutput:
        """Fuse as the INT8 file does; arguments and result are the student's."""
        fused: FusionOutput = self.student(vis, ir)
        return fused

    @torch.no_grad()
    def in_float(self, vis: Tensor, ir: Tensor) -> FusionOutput:
        """Fuse as the float student did that this one was made from."""
        fused: FusionOutput = self.original(vis, ir)
        return fused

    @property
    def layers(self) -> dict[str, FakeQuantisedConv]:
        """Its convolutions by their names in the deployed form."""
        return {name: module for name, module in self.student.named_modules() if isinstance(module, FakeQuantisedConv)}

    @property
    def scales(self) -> dict[str, float]:
        """Scale of the input of every convolution that is in INT8."""
        return {name: float(layer.scale) for name, layer in self.layers.items() if layer.scale}

    def quantise(self, scales: Mapping[str, float]) -> None:
        """Put the named convolutions into INT8, with these scales of their inputs, and all others into float."""
        for name, layer in self.layers.items():
            layer.scale.fill_(scales.get(name, 0.0))

    def deployed(self) -> nn.Module:
        """The student with its weights of now and plain convolutions, in float."""
        plain = copy.deepcopy(self.student)
        for name, module in list(plain.named_modules()):
            if isinstance(module, FakeQuantisedConv):
                parent, _, own = name.rpartition(".")
                setattr(plain.get_submodule(parent), own, module.plain())
        return plain


def quantised_map(x: Tensor, scale: Tensor) -> Tensor:
    """``x`` at the nearest of −128 to 127 times ``scale``."""
    zero = torch.zeros((), dtype=torch.int32, device=x.device)
    return torch.fake_quantize_per_tensor_affine(x, scale.to(x), zero, LOWEST, HIGHEST)


def quantised_weights(weight: Tensor) -> Tensor:
    """``weight [O, I, h, w]`` at the nearest of −127 to 127 times the scale of its output channel."""
    zeros = torch.zeros(weight.shape[0], dtype=torch.int32, device=weight.device)
    return torch.fake_quantize_per_channel_affine(weight, weight_scales(weight), zeros, 0, -HIGHEST, HIGHEST)


def weight_scales(weight: Tensor) -> Tensor:
    """One step of each output channel, ``[O]``: its largest weight is 127 of them."""
    return (weight.detach().abs().amax(dim=(1, 2, 3)) / HIGHEST).clamp_min(SMALLEST_SCALE)


def _without_parameters(module: nn.Module) -> nn.Module:
    """The same module with its parameters turned into buffers."""
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                del part._parameters[name]
                part.register_buffer(name, parameter.detach())
    return module


def _with_fake_quantisation(module: nn.Module) -> nn.Module:
    for name, child in module.named_children():
        setattr(module, name, _with_fake_quantisation(child))
    if type(module) is not nn.Conv2d:
        return module
    return FakeQuantisedConv(module) if module.weight.requires_grad else _without_parameters(module)
