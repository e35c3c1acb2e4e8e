"""Toy detection: squares that one camera alone sees, among squares that both see. Which part of IRDFusion adds what?

    python benchmarks/irdfusion_toy.py [--only ROW ...] [--seeds 2 3 4] [--updates 300] [--table]

An object is a bright square in one of two pictures; a square in both is clutter. The background is common to both, at
another gain. The same small detector is trained on the same batches with different blocks between its encoders and its
pyramid: the plain convolution, IRDFusion as it is and with attention that starts sharp, without the difference and its
feedback (DFFM), without the relations (MFRM: differences of the tokens themselves), and with one to six iterations.
Trainings are appended to the results as they end; the same command goes on where it stopped. Beside AP stands what
differential saliency has inside objects, inside clutter and elsewhere.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from duskfuse.data.class_conventions import objects_named
from duskfuse.tasks.detection_scores import AT_50, AT_75, Boxes, average_precision
from duskfuse.tasks.detector import Detector
from duskfuse.tasks.detector_network import FUSED_CHANNELS, DetectorNetwork
from duskfuse.tasks.feature_fusion import Concatenation, FeatureFusion
from duskfuse.tasks.irdfusion import GuidedLoop, PyramidFusion
from duskfuse.tasks.mutual_relation import RelationReader
from duskfuse.tasks.objects import stacked_objects

RESULTS = Path(__file__).parent / "results" / "irdfusion_toy.jsonl"
HEIGHT, WIDTH = 96, 128
GRID = (6, 8)
"""A token for four cells of the finest map, and for one of the other."""
BATCH, HELD_OUT = 8, 200
CLASSES = objects_named("LLVIP-1")
OWN_SCORE = 12


class TokenLoop(GuidedLoop):
    """The loop on the tokens themselves: D = held − β moving."""

    def __init__(self, loop: GuidedLoop) -> None:
        nn.Module.__init__(self)
        self.gain, self.iterations = loop.gain, loop.iterations

    def forward(self, moving: Tensor, held: Tensor, guidance: nn.Module | None) -> tuple[Tensor, Tensor]:
        """See `GuidedLoop.forward`."""
        difference = held - self.gain(0) * moving
        for iteration in range(1, self.iterations):
            assert guidance is not None
            moving = guidance(moving, difference)
            difference = held - self.gain(iteration) * moving
        return moving + difference, difference


class RelationLoop(GuidedLoop):
    """One reading of the relations, without difference and feedback."""

    def __init__(self, loop: GuidedLoop) -> None:
        nn.Module.__init__(self)
        self.moving, self.held = loop.moving, loop.held

    def forward(self, moving: Tensor, held: Tensor, guidance: nn.Module | None) -> tuple[Tensor, Tensor]:
        """See `GuidedLoop.forward`; the difference is 0."""
        said = self.moving.read(self.moving.relate(moving), self.held.relate(held).values)
        return said, torch.zeros_like(said)


def irdfusion(iterations: int = 4) -> PyramidFusion:
    """The block of every level."""
    return PyramidFusion(FUSED_CHANNELS, [GRID] * len(FUSED_CHANNELS), iterations=iterations)


def started_sharp() -> PyramidFusion:
    """Queries and keys start equal, and so long that the score of a token with itself is 12 on average."""
    fusion = irdfusion()
    for reader in (module for module in fusion.modules() if isinstance(module, RelationReader)):
        width = reader.query.in_features
        length = (OWN_SCORE / (width / reader.heads) ** 0.5 / width) ** 0.5
        nn.init.normal_(reader.query.weight, std=length)
        nn.init.normal_(reader.value.weight, std=width**-0.5)
        reader.key.load_state_dict({"weight": reader.query.weight})
    return fusion


def with_loops(loop: Callable[[GuidedLoop], GuidedLoop]) -> PyramidFusion:
    """Other loops in place of the guided ones."""
    fusion = irdfusion()
    for block in fusion.blocks:
        block.loop_vis, block.loop_ir = loop(block.loop_vis), loop(block.loop_ir)  # type: ignore[arg-type]
    return fusion


ROWS: dict[str, Callable[[], FeatureFusion]] = {
    "concatenation": lambda: Concatenation(FUSED_CHANNELS),
    "IRDFusion": irdfusion,
    "IRDFusion, sharp start": started_sharp,
    "without DFFM": lambda: with_loops(RelationLoop),
    "without MFRM": lambda: with_loops(TokenLoop),
    **{f"IRDFusion, n = {count}": (lambda count=count: irdfusion(count)) for count in (1, 2, 3, 5, 6)},
}


def main() -> None:
    """Train what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[2, 3, 4])
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if not options.table:
        torch.set_num_threads(1)
        for seed in options.seeds:
            for row in options.only:
                if not any((done["row"], done["seed"]) == (row, seed) for done in results(options.results)):
                    measured = {"row": row, "seed": seed, **trained(row, seed, options.updates)}
                    with options.results.open("a", encoding="utf-8") as stream:
                        stream.write(json.dumps(measured) + "\n")
    print(table(results(options.results)))


def drawn(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Visible and infrared pictures ``[count, 1, H, W]``, the boxes of objects and of clutter, ``[N, 4]`` in pixels."""

    def noise(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    common = F.interpolate(noise(count, 1, 6, 8), (HEIGHT, WIDTH), mode="bicubic", align_corners=False)
    gains = 0.3 + 0.5 * noise(2, count, 1, 1, 1)
    cameras = gains * common + 0.04 * torch.randn(2, count, 1, HEIGHT, WIDTH, generator=generator)
    objects, clutter = [], []
    for picture in range(count):
        places = separate_squares(generator)
        parted = int(torch.randint(1, 4, (), generator=generator))
        for number, (left, top, right, bottom) in enumerate(places.int().tolist()):
            seen = [int(noise(1) < 0.5)] if number < parted else [0, 1]
            cameras[seen, picture, :, top:bottom, left:right] += 0.25 + 0.25 * noise(1)
        objects.append(places[:parted])
        clutter.append(places[parted:])
    vis, ir = cameras.clamp(0, 1)
    return vis, ir, objects, clutter


def separate_squares(generator: torch.Generator) -> Tensor:
    """Up to eight squares of 8 to 24 pixels that do not touch, at least four, ``[N, 4]``."""
    kept: list[tuple[int, int, int, int]] = []
    while len(kept) < 4:
        for _ in range(8):
            side = int(torch.randint(8, 25, (), generator=generator))
            left = int(torch.randint(0, WIDTH - side, (), generator=generator))
            top = int(torch.randint(0, HEIGHT - side, (), generator=generator))
            if all(
                left > right + 2 or left + side < other - 2 or top > bottom + 2 or top + side < upper - 2
                for other, upper, right, bottom in kept
            ):
                kept.append((left, top, left + side, top + side))
    return torch.tensor(kept[:8], dtype=torch.float32)


def shown(vis: Tensor, ir: Tensor) -> Tensor:
    """What a detector of two cameras is given, ``[B, 4, H, W]``."""
    return torch.cat([vis.expand(-1, 3, -1, -1), ir], dim=1)


def trained(row: str, seed: int, updates: int) -> dict[str, Any]:
    """Train one detector, and score it on pictures that are the same for all."""
    torch.manual_seed(seed)
    detector = Detector(DetectorNetwork(len(CLASSES), fusion=ROWS[row]()), CLASSES).train()
    optimiser = torch.optim.AdamW(detector.parameters(), lr=1e-3, weight_decay=1e-2)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=updates, pct_start=0.1)
    generator = torch.Generator().manual_seed(seed)
    started = time.process_time()
    for _ in range(updates):
        vis, ir, objects, _ = drawn(BATCH, generator)
        truth = stacked_objects([F.pad(boxes, (1, 0)) for boxes in objects])
        loss = detector.loss(detector(shown(vis, ir)), truth)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(detector.parameters(), 10)
        optimiser.step()
        rate.step()
    seconds = round(time.process_time() - started, 1)
    parameters = sum(parameter.numel() for parameter in detector.parameters())
    return {"updates": updates, **scored(detector.eval()), "seconds": seconds, "parameters": parameters}


@torch.inference_mode()
def scored(detector: Detector) -> dict[str, float]:
    """AP, and mean differential saliency in objects, in clutter and elsewhere where the block has one."""
    vis, ir, objects, clutter = drawn(HELD_OUT, torch.Generator().manual_seed(10_000))
    truth = [Boxes.of([[0, *placed(box), 1] for box in boxes.tolist()]) for boxes in objects]
    found, salient = [], []
    for pair in zip(vis, ir, strict=True):
        pictures = shown(pair[0][None], pair[1][None])
        seen = detector.predict(pictures)[0]
        rows = zip(seen.corners.tolist(), seen.confidences.tolist(), strict=True)
        found.append(Boxes.of([[0, *placed(box), confidence] for box, confidence in rows]))
        if detector.finds_differences:
            salient.append(detector.differences(pictures)[0, 0])
    ap = average_precision(truth, found, [(HEIGHT, WIDTH)] * HELD_OUT, [0])[:, 0]
    scores = {"AP50:95": float(ap.mean()), "AP50": float(ap[AT_50]), "AP75": float(ap[AT_75])}
    return {**scores, **(saliency(torch.stack(salient), objects, clutter) if salient else {})}


def placed(corners: list[float]) -> tuple[float, float, float, float]:
    """Left, top, width, height."""
    left, top, right, bottom = corners
    return left, top, right - left, bottom - top


def saliency(salient: Tensor, objects: list[Tensor], clutter: list[Tensor]) -> dict[str, float]:
    """Means of ``[B, H, W]`` over the pixels of each."""
    masks = {
        "objects": torch.zeros_like(salient, dtype=torch.bool),
        "clutter": torch.zeros_like(salient, dtype=torch.bool),
    }
    for name, places in (("objects", objects), ("clutter", clutter)):
        for mask, boxes in zip(masks[name], places, strict=True):
            for left, top, right, bottom in boxes.int().tolist():
                mask[top:bottom, left:right] = True
    masks["elsewhere"] = ~(masks["objects"] | masks["clutter"])
    return {f"saliency, {name}": float(salient[mask].mean()) for name, mask in masks.items()}


def results(path: Path) -> list[dict[str, Any]]:
    """What has been measured."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: mean and standard deviation over seeds, in hundredths."""
    heads = ["AP50:95", "AP50", "AP75", "saliency, objects", "saliency, clutter", "saliency, elsewhere"]
    lines = [f"| block | seeds | {' | '.join(heads)} | parameters |", "|---" * (len(heads) + 3) + "|"]
    for name in ROWS:
        mine = [row for row in rows if row["row"] == name]
        if mine:
            cells = [_spread([row[head] for row in mine if head in row]) for head in heads]
            lines.append(f"| {name} | {len(mine)} | {' | '.join(cells)} | {mine[0]['parameters']:,} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    deviation = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * fmean(values):.1f}{deviation}"


if __name__ == "__main__":
    main()
