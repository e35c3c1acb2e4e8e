"""What every task network is, in both of its roles.

Trained, it learns to do a task on pictures. Frozen, it is a critic: the loss of its prediction on a fused picture is a
scalar whose gradient goes through the network to the picture, and never to the network.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import StrEnum
from typing import ClassVar, Generic, Self, TypeVar

from torch import Tensor, nn

RGB, RGB_AND_IR = 3, 4
"""Channels of what a task network sees: a picture in colour; or one, and the infrared picture."""

Prediction = TypeVar("Prediction")
Truth = TypeVar("Truth")
Found = TypeVar("Found")


class Task(StrEnum):
    """What is predicted from fused pictures."""

    SEGMENTATION = "segmentation"
    DETECTION = "detection"
    SALIENCY = "saliency"


class TaskNetwork(nn.Module, ABC, Generic[Prediction, Truth, Found]):
    """A network that does a task on pictures ``[B, C, H, W]`` in [0, 1]; it normalises them itself.

    C is `channels`: RGB, or RGB and infrared.
    """

    task: ClassVar[Task]
    network: nn.Module
    """What has the weights that its file holds."""
    channels: int = RGB
    _frozen = False

    @abstractmethod
    def forward(self, pictures: Tensor) -> Prediction:
        """What the network sees in the pictures, with a graph back to them."""

    @abstractmethod
    def loss(self, prediction: Prediction, truth: Truth) -> Tensor:
        """One scalar for the batch; exactly 0, with zero gradient, where no sample has ground truth."""

    @abstractmethod
    def predict(self, pictures: Tensor) -> Found:
        """What there is in the pictures, as it is scored; without a graph."""

    def freeze(self) -> Self:
        """Make it a critic for good: evaluation mode, and no gradient for any weight."""
        self._frozen = True
        self.eval()
        return self.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """As in torch, except that a frozen network stays in evaluation mode: its batch statistics never move."""
        return super().train(mode and not self._frozen)
