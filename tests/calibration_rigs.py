"""Rigs whose homography is known: two cameras are put before a picture of a scene, each with a view of its own."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.float32]
Size = tuple[int, int]


@dataclass(frozen=True)
class Rig:
    """What each camera does to the scene."""

    to_ir: NDArray[np.float64]
    to_vis: NDArray[np.float64]
    ir_size: Size
    vis_size: Size

    @property
    def homography(self) -> NDArray[np.float64]:
        """Infrared pixels → visible pixels."""
        matrix = self.to_vis @ np.linalg.inv(self.to_ir)
        return np.asarray(matrix / matrix[2, 2])

    def shoot(self, ir: Picture, vis: Picture) -> tuple[Picture, Picture]:
        """What the cameras see of a registered pair."""
        return _shot(ir, self.to_ir, self.ir_size), _shot(vis, self.to_vis, self.vis_size)

    def error(self, found: NDArray[np.float64], registered: NDArray[np.float64] | None = None) -> float:
        """Mean visible pixels between where two homographies put an even grid of visible points that infrared sees.

        ``registered`` brings the infrared of the scene to its visible picture, where that is not the identity.
        """
        truth = self.homography if registered is None else self.to_vis @ registered @ np.linalg.inv(self.to_ir)
        height, width = self.vis_size
        grid = np.stack(np.meshgrid(np.linspace(0, width - 1, 9), np.linspace(0, height - 1, 9)), -1).reshape(-1, 2)
        own = mapped(np.linalg.inv(truth), grid)
        inside = (own >= 0).all(1) & (own <= [self.ir_size[1] - 1, self.ir_size[0] - 1]).all(1)
        return float(np.linalg.norm(mapped(found, own[inside]) - grid[inside], axis=1).mean())


def rig(
    rng: np.random.Generator,
    scene: Size,
    ir_size: Size,
    vis_size: Size,
    *,
    scale: float,
    angle: float = 10.0,
    askew: float = 0.02,
    shift: float = 0.05,
) -> Rig:
    """Two cameras whose views fill most of the scene.

    Args:
        rng: of the infrared camera's turn, tilt and shift.
        scene: (height, width) of the scene's pictures.
        ir_size: (height, width) of the infrared pictures.
        vis_size: (height, width) of the visible pictures.
        scale: width of the infrared view in widths of the visible view.
        angle: degrees of turn, at most.
        askew: by what part of its width each corner of the infrared view is moved, at most.
        shift: of the smaller view's width, at most.
    """
    height, width = scene
    vis_width = width * (0.88 - 2 * shift) * min(1.0, 1 / scale)
    middle = np.array([width / 2, height / 2])
    turn = np.radians(rng.uniform(-angle, angle))
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    ir_width = vis_width * scale
    view = _rectangle(ir_width, ir_size) + rng.uniform(-askew, askew, (4, 2)) * ir_width
    centre = middle + rng.uniform(-shift, shift, 2) * min(vis_width, ir_width)
    return Rig(
        _to_camera(view @ rotation.T + centre, ir_size),
        _to_camera(_rectangle(vis_width, vis_size) + middle, vis_size),
        ir_size,
        vis_size,
    )


def mapped(matrix: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    lifted = np.column_stack([points, np.ones(len(points))]) @ matrix.T
    return np.asarray(lifted[:, :2] / lifted[:, 2:])


def _rectangle(width: float, size: Size) -> NDArray[np.float64]:
    x, y = width / 2, width / 2 * size[0] / size[1]
    return np.array([[-x, -y], [x, -y], [x, y], [-x, y]])


def _to_camera(view: NDArray[np.float64], size: Size) -> NDArray[np.float64]:
    corners = np.array([[0, 0], [size[1] - 1, 0], [size[1] - 1, size[0] - 1], [0, size[0] - 1]], np.float32)
    return np.asarray(cv2.getPerspectiveTransform(view.astype(np.float32), corners), np.float64)


def _shot(picture: Picture, matrix: NDArray[np.float64], size: Size) -> Picture:
    scale = float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))
    if scale < 0.8:
        picture = cv2.GaussianBlur(picture, (0, 0), 0.5 * float(np.sqrt(1 / scale**2 - 1)))
    return np.asarray(np.clip(cv2.warpPerspective(picture, matrix, size[::-1], flags=cv2.INTER_LINEAR), 0, 1))
