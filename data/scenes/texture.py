"""Tileable noise and foliage sprites: drawn once per process from fixed seeds, sampled wherever grain is needed."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]

TILE = 256
"""Side of a noise tile in texels."""

SPRITE = 384
"""Side of a foliage sprite in texels."""

SPRITE_KINDS = 5
"""How many different crowns there are."""


@lru_cache(maxsize=64)
def noise_tile(cells: int, kind: int = 0) -> Plane:
    """Draw tileable fractal noise ``[TILE, TILE]`` of mean 0 and standard deviation 1.

    ``cells`` is the number of periods of the coarsest octave over the tile; every octave doubles it at half the
    amplitude.
    """
    rng = np.random.default_rng([cells, kind])
    total = np.zeros((TILE, TILE), np.float32)
    amplitude = 1.0
    while cells <= TILE:
        grid = np.pad(rng.standard_normal((cells, cells)).astype(np.float32), 2, mode="wrap")
        scale = TILE // cells
        smooth = cv2.resize(grid, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        total += amplitude * smooth[2 * scale : 2 * scale + TILE, 2 * scale : 2 * scale + TILE]
        cells, amplitude = 2 * cells, amplitude / 2
    standard: Plane = ((total - total.mean()) / total.std()).astype(np.float32)
    return standard


@lru_cache(maxsize=8)
def hash_table(kind: int) -> Plane:
    """A fixed table ``[64, 64]`` of uniform random numbers, indexed modulo 64 by cells of a pattern."""
    return np.random.default_rng([64, kind]).random((64, 64)).astype(np.float32)


def cell_value(i: NDArray[Any], j: NDArray[Any], kind: int) -> Plane:
    """A random number in [0, 1) for every cell (i, j) of a pattern, the same wherever the cell is seen."""
    return hash_table(kind)[i.astype(np.int32) % 64, j.astype(np.int32) % 64]


def sample(tile: Plane, u: NDArray[Any], v: NDArray[Any]) -> Plane:
    """Read a tile at coordinates in units of tiles, wrapped and interpolated; ``u`` and ``v`` broadcast."""
    u, v = np.broadcast_arrays(u, v)
    side = tile.shape[0]
    x = ((u - np.floor(u)) * side).astype(np.float32)
    y = ((v - np.floor(v)) * side).astype(np.float32)
    sampled: Plane = cv2.remap(tile, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    return sampled


@lru_cache(maxsize=SPRITE_KINDS)
def crown_sprite(kind: int) -> tuple[Plane, Plane]:
    """Draw the crown of a tree or bush from thousands of leaves.

    Returns the cover and the brightness of the leaves, both ``[SPRITE, SPRITE]``; brightness is about 1, lower deep
    inside. The crown fills the sprite.
    """
    rng = np.random.default_rng([SPRITE, kind])
    half = SPRITE / 2
    cover, shade = np.zeros((SPRITE, SPRITE), np.float32), np.full((SPRITE, SPRITE), 0.4, np.float32)
    clumps = _clumps(rng, 34 + 6 * kind)
    for x, y, radius, lift in clumps:
        leaves = int(900 * radius)
        angle, distance = rng.uniform(0, 2 * np.pi, leaves), radius * np.sqrt(rng.random(leaves))
        lx, ly = x + distance * np.cos(angle), y + distance * np.sin(angle)
        light = 0.45 + 0.35 * lift + 0.5 * (y - ly) / radius * 0.5 + rng.normal(0, 0.16, leaves)
        sizes, turns = rng.uniform(0.012, 0.026, leaves) * half, rng.uniform(0, 180, leaves)
        for i in np.argsort(light + rng.normal(0, 0.2, leaves)):
            centre = (round((1 + lx[i]) * half * 8), round((1 + ly[i]) * half * 8))
            axes = (round(sizes[i] * 8), round(sizes[i] * 4))
            cv2.ellipse(shade, centre, axes, turns[i], 0, 360, float(light[i]), -1, cv2.LINE_8, 3)
            cv2.ellipse(cover, centre, axes, turns[i], 0, 360, 1.0, -1, cv2.LINE_8, 3)
    return cover, np.clip(shade, 0.12, 1.6)


def _clumps(rng: np.random.Generator, count: int) -> list[tuple[float, float, float, float]]:
    """Centre, radius and nearness of the twigs of a crown in [-1, 1]², far ones first."""
    clumps = []
    for _ in range(count):
        angle, distance = rng.uniform(0, 2 * np.pi), 0.74 * np.sqrt(rng.random())
        x, y = distance * np.cos(angle), distance * np.sin(angle) * 0.95
        clumps.append((x, y, rng.uniform(0.16, 0.27), rng.random() * 0.8 - 0.35 * y))
    return sorted(clumps, key=lambda clump: clump[3])
