"""Whole training updates: the published loop, taken literally, against the engine.

    python benchmarks/steps.py --encoder-weights WEIGHTS --out benchmarks/results/steps.json

The literal step is written from SAGE's equations and from what is known of the published loop, nothing else: attention
matrices in full, every tensor in torch's own memory format, one encoder call per mask and picture (25: three pictures,
four masks, two modalities, and one whose result nobody takes), weights of the encoder with gradients, no reference
outside the graph of the contrastive term, norms over the whole batch, Sobel magnitudes computed anew in every term. The
other network's picture is made without a graph, and the segmentation term is left out on both sides. The engine does
the same updates by the recipe ``paper_sage``: networks, weights of the terms, batch and encoder are the same. It also
clips gradients, refuses what is not finite, and seeds every update. In between stands the literal step with our fused
attention, then with our memory format as well.

Processor seconds of one thread, medians; the forms take turns within a round, and the first round warms up. Memory is
by how much one update, optimiser states included, lifts the resident memory of a fresh process.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import torch
import torch.nn.functional as F
from contrastive import Plain, build, literal, machine, status_kb
from torch import Tensor, nn

from duskfuse.data.scenes import render_scene
from duskfuse.distill.context import Batch, source_patches
from duskfuse.distill.engine import Engine
from duskfuse.distill.recipe import Owner
from duskfuse.distill.recipe_files import load_recipe
from duskfuse.students.unet import UNetStudent
from duskfuse.tasks.encoders import FeatureEncoder
from duskfuse.teachers.attention import Attention, Repository, SpatialTransformer
from duskfuse.teachers.main_network import MainNetwork

MASKS = 4
ENCODERS = ("squeezenet", "filters")
STEPS = ("student", "teacher")
FORMS = {
    "image float32": ("image", "float32"),
    "image bfloat16": ("image", "bfloat16"),
    "feature float32": ("feature", "float32"),
    "feature bfloat16": ("feature", "bfloat16"),
}
"""Ours: ``contrastive.masking`` and ``precision``."""
LITERAL = "literal"
LITERALS = {LITERAL: (True, False), "fused attention": (False, False), "and channels_last": (False, True)}
"""The literal step, then with its parts replaced by ours: whether attention is in full, and the memory format ours."""
SOBEL_X = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
Update = Callable[[], None]


def main() -> None:
    """Measure every form of both steps with every encoder, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crop", type=int, nargs=2, default=(96, 96), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=ENCODERS)
    parser.add_argument("--encoder-weights", type=Path, help="safetensors of SqueezeNet's trunk; random without")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    batch = scenes(arguments.crop, arguments.batch)
    check_attention(batch)
    result: dict[str, Any] = {
        "machine": machine(),
        "crop": arguments.crop,
        "batch": arguments.batch,
        "masks": MASKS,
        "threads": 1,
        "rounds": arguments.rounds,
        "encoders": {name: measure(name, batch, arguments) for name in arguments.encoders},
    }
    result["machine"]["load_afterwards"] = machine()["load"]
    show(result)
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


def scenes(crop: tuple[int, int], samples: int) -> Batch:
    """Built-in scenes, rectangles of a quarter to half of a side for masks."""
    generator = torch.Generator().manual_seed(0)
    rendered = [render_scene(seed, size=(crop[0], crop[1])) for seed in range(samples)]
    ir = torch.stack([torch.tensor(scene.ir)[None] / 255 for scene in rendered])
    vis = torch.stack([torch.tensor(scene.vis).permute(2, 0, 1) / 255 for scene in rendered])
    masks = torch.zeros(2, samples, MASKS, *crop, dtype=torch.bool)
    for plane in masks.flatten(0, 2):
        (y, height), (x, width) = (
            (torch.rand(2, generator=generator) * side / 4 + torch.tensor([0, side / 4])).int().tolist()
            for side in crop
        )
        plane[y : y + height, x : x + width] = True
    return Batch(ir, vis, masks[0], masks[1], tuple(map(str, range(samples))))


def measure(name: str, batch: Batch, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds and memory of all forms of both steps with one encoder, and how many times as fast ours are."""
    # Memory first: a process that has computed keeps what it freed, and its children would grow by less.
    grown = {key: memory(*key, name, batch, arguments) for key in product(STEPS, (*LITERALS, *FORMS))}
    updates: dict[tuple[str, str], Update] = {}
    for form in (*LITERALS, *FORMS):
        made = updates_of(form, name, batch, arguments)
        updates |= {(step, form): made[step] for step in STEPS}
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in updates}
    for number in range(arguments.rounds + 1):
        for key, update in updates.items():
            started = process_time()
            update()
            if number:
                seconds[key].append(round(process_time() - started, 4))
    report: dict[str, Any] = {}
    for step in STEPS:
        base = median(seconds[step, LITERAL])
        report[step] = {
            form: {
                "cpu_s": median(values := seconds[step, form]),
                "times_as_fast_as_literal": round(base / median(values), 2),
                "peak_mb": grown[step, form],
                "all_cpu_s": values,
            }
            for form in (*LITERALS, *FORMS)
        }
    return report


def updates_of(form: str, name: str, batch: Batch, arguments: argparse.Namespace) -> dict[str, Update]:
    """Both steps of one form, with networks of their own."""
    encoder = build(name, arguments.encoder_weights)
    if form in LITERALS:
        loop = LiteralLoop(encoder, *LITERALS[form])
        return {"student": partial(loop.student_step, batch), "teacher": partial(loop.teacher_step, batch)}
    engine = our_engine(*FORMS[form], encoder)
    return {step: partial(our_update, engine, step, batch) for step in STEPS}


def memory(step: str, form: str, name: str, batch: Batch, arguments: argparse.Namespace) -> int:
    """By how many MB one update lifts the resident memory of a process, at its peak (Linux)."""
    with get_context("fork").Pool(1) as pool:
        return pool.apply(_grown_mb, (step, form, name, batch, arguments))


def _grown_mb(step: str, form: str, name: str, batch: Batch, arguments: argparse.Namespace) -> int:
    update = updates_of(form, name, batch, arguments)[step]
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status_kb("VmRSS")
    update()
    return (status_kb("VmHWM") - before) // 1024


def our_engine(masking: str, precision: str, encoder: FeatureEncoder) -> Engine:
    """The engine of ``paper_sage`` with fresh networks."""
    changes = [f"contrastive.masking={masking}", f"precision={precision}", "steps.teacher.terms.segmentation.weight=0"]
    recipe = load_recipe("paper_sage", changes)
    torch.manual_seed(0)
    networks: dict[Owner, nn.Module] = {Owner.STUDENT: UNetStudent(), Owner.TEACHER: MainNetwork(MASKS)}
    return Engine(recipe, networks, encoder, torch.device("cpu"))


def our_update(engine: Engine, step: str, batch: Batch) -> None:
    """One update on a batch that nobody has looked at."""
    engine.update(step, 0, replace(batch), phase="benchmark")


class LiteralLoop:
    """Both networks, their optimisers and the published updates."""

    def __init__(self, encoder: FeatureEncoder, attention_in_full: bool, channels_last: bool) -> None:
        torch.manual_seed(0)
        self.student, self.teacher = UNetStudent(), MainNetwork(MASKS)
        if attention_in_full:
            in_full(self.teacher)
        if channels_last:
            for network in (self.student, self.teacher):
                network.to(memory_format=torch.channels_last)
        self.encoder = Plain(encoder).requires_grad_(True)
        self.optimisers = {
            "student": torch.optim.Adam(self.student.parameters(), lr=2e-3),
            "teacher": torch.optim.Adam(self.teacher.parameters(), lr=5e-4),
        }

    def student_step(self, batch: Batch) -> None:
        """ω_s ← ω_s − η_s ∇L_s, L_s = 3 L_pix + 3 L_grad + L_cs / 3000 + 0.3 L_fea."""
        seen = replace(batch)
        self.teacher.eval()
        with torch.no_grad():
            reference = self.teacher(*teacher_inputs(seen))
        self.student.train()
        fused = self.student(seen.vis_y, seen.ir)
        loss = 3 * pixels(fused.y, reference.y, seen) + 3 * gradients(fused.y, reference.y, seen)
        loss = loss + self.contrast(fused.y, reference.y, seen) / 3000
        self.move("student", loss + 0.3 * feature_distance(fused.taps, reference.taps))

    def teacher_step(self, batch: Batch) -> None:
        """ω_m ← ω_m − η_m ∇L_m: MSE + 2 L_grad_max + 0.1 (3 L_pix + 3 L_grad + L_cs / 3000) + 0.01 L_fea."""
        seen = replace(batch)
        self.student.eval()
        with torch.no_grad():
            reference = self.student(seen.vis_y, seen.ir)
        self.teacher.train()
        fused = self.teacher(*teacher_inputs(seen))
        loss = F.mse_loss(fused.y, seen.vis_y) + F.mse_loss(fused.y, seen.ir)
        wanted = torch.maximum(sobel(seen.vis_y), sobel(seen.ir))
        loss = loss + 2 * F.l1_loss(sobel(fused.y), wanted)
        triplets = 3 * pixels(fused.y, reference.y, seen) + 3 * gradients(fused.y, reference.y, seen)
        loss = loss + 0.1 * (triplets + self.contrast(fused.y, reference.y, seen) / 3000)
        self.move("teacher", loss + 0.01 * feature_distance(fused.taps, reference.taps))

    def contrast(self, fused: Tensor, reference: Tensor, batch: Batch) -> Tensor:
        """L_cs: 24 encodings for its ratios, and one that is thrown away."""
        self.encoder(fused.repeat(1, 3, 1, 1))
        return literal(fused, reference, batch, self.encoder)

    def move(self, owner: str, loss: Tensor) -> None:
        """Adam's update by the gradient of the loss."""
        self.optimisers[owner].zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimisers[owner].step()


def teacher_inputs(batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the main network takes."""
    patches = source_patches(batch.vis_y, batch.masks_vis), source_patches(batch.ir, batch.masks_ir)
    return batch.vis_y, batch.ir, *patches


def pixels(fused: Tensor, reference: Tensor, batch: Batch) -> Tensor:
    """L_pix."""
    mse = F.mse_loss
    return 3 * mse(fused, batch.vis_y) + 2 * mse(fused, batch.ir) + 4 * mse(fused, reference)


def gradients(fused: Tensor, reference: Tensor, batch: Batch) -> Tensor:
    """L_grad."""
    wanted = torch.maximum(sobel(batch.vis_y), sobel(batch.ir))
    return 9 * F.l1_loss(sobel(fused), wanted) + 3 * F.l1_loss(sobel(fused), sobel(reference))


def sobel(picture: Tensor) -> Tensor:
    """|Kx∗x| + |Ky∗x|, zeros beyond the border."""
    kernels = torch.stack([SOBEL_X, SOBEL_X.T])[:, None]
    return F.conv2d(picture, kernels, padding=1).abs().sum(dim=1, keepdim=True)


def feature_distance(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> Tensor:
    """L_fea."""
    pairs = zip(ours, theirs, strict=True)
    return torch.stack([1 - F.cosine_similarity(a.flatten(1), b.flatten(1)).mean() for a, b in pairs]).sum()


class FullAttention(Attention):
    """The same attention by its definition: softmax(QKᵀ/√d) V, with the whole matrix in memory."""

    def forward(self, tokens: Tensor, repository: Repository | None = None) -> tuple[Tensor, Repository]:
        """As ``Attention``."""
        source = Repository(tokens, tokens) if repository is None else repository
        keys, values = self.to_k(source.keys), self.to_v(source.values)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (self.to_q(tokens), keys, values))
        weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
        return self.to_out((weights @ v).transpose(1, 2).flatten(2)), Repository(keys, values)


def in_full(network: MainNetwork) -> MainNetwork:
    """The network with its attention replaced by ``FullAttention`` of the same weights."""
    for block in network.modules():
        if isinstance(block, SpatialTransformer):
            for name in ("attention1", "attention2"):
                ours: Attention = getattr(block, name)
                full = FullAttention(ours.to_q.in_features, ours.heads)
                full.load_state_dict(ours.state_dict())
                setattr(block, name, full)
    return network


def check_attention(batch: Batch) -> None:
    """Both main networks compute the same picture, also where the transformers do something."""
    torch.manual_seed(0)
    ours = MainNetwork(MASKS).eval()
    for block in ours.modules():
        if isinstance(block, SpatialTransformer):
            nn.init.normal_(block.proj_out.weight, std=0.1)
    theirs = MainNetwork(MASKS).eval()
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(in_full(theirs)(*teacher_inputs(batch)).y, ours(*teacher_inputs(batch)).y)


def show(result: dict[str, Any]) -> None:
    """Print a table."""
    print(f"crop {result['crop'][0]}×{result['crop'][1]}, batch {result['batch']}, processor seconds of one thread")
    for name, steps in result["encoders"].items():
        for step, forms in steps.items():
            for form, row in forms.items():
                print(
                    f"{name:11} {step:8} {form:17} {row['cpu_s']:8.3f} {row['times_as_fast_as_literal']:6.2f}x"
                    f" {row['peak_mb']:6} MB"
                )


if __name__ == "__main__":
    main()
