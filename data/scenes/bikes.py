"""Bicycles and motorbikes: two wheels, a frame, and a hot engine where there is one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from duskfuse.data.scenes.climate import Blocker, Canvas, Climate
from duskfuse.data.scenes.kinds import SceneClass
from duskfuse.data.scenes.surfaces import Colour, Material, Stencil
from duskfuse.data.scenes.vehicles import RUBBER, Points


@dataclass(frozen=True)
class Bike:
    """A bicycle or motorbike seen along or across its frame; ``turn`` as for vehicles."""

    x: float
    z: float
    turn: float
    motor: bool
    colour: Colour
    lamps_on: bool
    ridden: bool

    @property
    def seg(self) -> SceneClass:
        """A bicycle."""
        return SceneClass.BICYCLE

    @property
    def depth(self) -> float:
        """Metres along the view; just behind the person who rides it."""
        return self.z + 0.02

    def blockers(self) -> list[Blocker]:
        """A thin slab."""
        ends = self._world([(0.8, 0.05, 0), (0.8, -0.05, 0), (-0.8, -0.05, 0), (-0.8, 0.05, 0)])
        return [Blocker(ends[:, [0, 2]], 0.05, 0.8)]

    def paint(self, canvas: Canvas, instance: int) -> None:
        """Paint wheels, frame, saddle and handlebar."""
        box = self._world([(f, r, y) for f in (-1.0, 1.0) for r in (-0.35, 0.35) for y in (-0.03, 1.2)])
        stencil = Stencil(canvas.camera, canvas.camera.window(box))
        if stencil.is_empty:
            return
        self._draw(stencil, canvas.climate)
        canvas.surfaces.paint(
            stencil.window,
            stencil.numbers > 0,
            depth=self.depth,
            seg=self.seg,
            instance=instance,
            **stencil.planes(),
        )

    def _draw(self, stencil: Stencil, climate: Climate) -> None:
        air = climate.air
        facing = (0.3, 0.3, -0.9)
        rubber = Material(RUBBER, air + (6 if self.ridden else 0.3), facing)
        frame = Material(self.colour, air + 0.5, facing, emissivity=0.88, gloss=0.1)
        metal = Material((0.3, 0.3, 0.32), air, facing, emissivity=0.8, gloss=0.25)
        base, radius = (0.66, 0.31) if self.motor else (0.53, 0.34)
        angle = np.linspace(0, 2 * np.pi, 28)
        for hub in (base, -base):
            rim = [(hub + radius * np.cos(a), 0.0, radius + radius * np.sin(a)) for a in angle]
            stencil.line(self._world(rim), 0.11 if self.motor else 0.05, rubber)
            for a in angle[:14:3] if not self.motor else angle[:0]:
                spoke = [(hub + s * radius * np.cos(a), 0.0, radius + s * radius * np.sin(a)) for s in (-1, 1)]
                stencil.line(self._world(spoke), 0.008, metal)
        if self.motor:
            self._draw_motor(stencil, frame, metal, air, facing)
        else:
            self._draw_tubes(stencil, frame, metal, rubber)
        if self.lamps_on and self.ridden:
            ahead = np.cos(self.turn) < 0
            glow = (9.0, 8.6, 7.8) if ahead else (2.0, 0.06, 0.04)
            lamp = Material((0.5, 0.5, 0.5), air + 6, facing, glow)
            f = 0.55 if ahead else -0.7
            stencil.fill(self._world([(f, -0.06, 0.8), (f, 0.06, 0.8), (f, 0.06, 0.92), (f, -0.06, 0.92)]), lamp)

    def _draw_motor(
        self, stencil: Stencil, frame: Material, metal: Material, air: float, facing: tuple[float, float, float]
    ) -> None:
        hot = Material((0.12, 0.12, 0.12), air + (38 if self.ridden else 3), facing)
        stencil.fill(
            self._world([(0.35, 0, 0.95), (0.5, 0, 0.75), (-0.1, 0, 0.55), (-0.75, 0, 0.78), (-0.7, 0, 0.9)]), frame
        )
        stencil.fill(self._world([(0.3, 0, 0.65), (0.25, 0, 0.25), (-0.25, 0, 0.25), (-0.25, 0, 0.62)]), hot)
        stencil.line(self._world([(0.1, 0.1, 0.25), (-0.75, 0.1, 0.35)]), 0.07, hot)
        stencil.line(self._world([(0.42, 0, 1.0), (0.66, 0.0, 0.31)]), 0.07, metal)
        stencil.line(self._world([(0.4, -0.3, 1.0), (0.4, 0.3, 1.0)]), 0.04, metal)

    def _draw_tubes(self, stencil: Stencil, frame: Material, metal: Material, rubber: Material) -> None:
        base, radius = 0.53, 0.34
        bottom, seat, head = (-0.05, 0.0, 0.30), (-0.2, 0.0, 0.82), (0.36, 0.0, 0.86)
        for tube in (
            [bottom, seat],
            [bottom, head],
            [seat, head],
            [(-base, 0.0, radius), bottom],
            [(-base, 0.0, radius), seat],
        ):
            stencil.line(self._world(tube), 0.045, frame)
        stencil.line(self._world([head, (base, 0.0, radius)]), 0.045, frame)
        stencil.line(self._world([head, (0.34, 0, 1.02)]), 0.035, metal)
        stencil.line(self._world([(-0.34, 0, 0.92), (-0.10, 0, 0.94)]), 0.08, rubber)
        stencil.line(self._world([(0.34, -0.26, 1.02), (0.34, 0.26, 1.02)]), 0.035, metal)

    def _world(self, local: list[tuple[float, float, float]]) -> Points:
        points = np.array(local, np.float64)
        sin, cos = np.sin(self.turn), np.cos(self.turn)
        return np.stack(
            [
                self.x + points[:, 0] * sin + points[:, 1] * cos,
                points[:, 2],
                self.z + points[:, 0] * cos - points[:, 1] * sin,
            ],
            axis=1,
        )
