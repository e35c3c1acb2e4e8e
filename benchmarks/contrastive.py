"""The contrastive term with its backward pass: the published loop over masks, masked pictures, and masked maps.

    python benchmarks/contrastive.py --rounds 7 --out benchmarks/results/contrastive.json

Crops of 256x192, four masks per modality, one thread, float32. ``literal`` follows the paper's equation one modality
and one mask at a time: three encodings of the batch each, with gradients for the weights of plain layers, references
included. ``literal_frozen`` is the same without gradients for the weights. Forms take turns within a round; processor
seconds, and for memory a process of its own for each form. SqueezeNet has random weights unless ``--squeezenet`` gives
them, the image encoder of SAM is a small random one; neither changes the work.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from duskfuse.data.fuser import FusionOutput
from duskfuse.data.scenes import render_scene
from duskfuse.distill.context import Batch, BatchContext
from duskfuse.distill.recipe import ContrastiveConfig
from duskfuse.distill.terms.contrastive import Masking, contrastive
from duskfuse.tasks.encoders import FeatureEncoder, FilterBank, SamEncoder, SqueezeNetEncoder, filter_encoder

HEIGHT, WIDTH, MASKS = 192, 256, 4
ENCODERS = ("filters", "squeezenet", "sam")
FORMS = ("literal", "literal_frozen", "image", "feature")


def main() -> None:
    """Measure every form with every encoder and print the numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--squeezenet", type=Path, help="safetensors of the trunk")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = {"machine": machine(), "crop": f"{WIDTH}x{HEIGHT}", "batch": arguments.batch, "masks": MASKS, "threads": 1}
    # Memory first: a process that has computed keeps what it freed, and its children would grow by less.
    grown = {name: {form: memory(name, form, arguments) for form in FORMS} for name in ENCODERS}
    result["encoders"] = {name: measure(name, grown[name], arguments) for name in ENCODERS}
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n")


def measure(name: str, grown: dict[str, int], arguments: argparse.Namespace) -> dict[str, Any]:
    """Times and memory of all forms with one encoder, and how many times the literal loop's speed they have."""
    steps = {form: Step(name, form, arguments.batch, arguments.squeezenet) for form in FORMS}
    seconds: dict[str, list[float]] = {form: [] for form in FORMS}
    for number in range(arguments.rounds + 1):
        for form, step in steps.items():
            started = time.process_time()
            step()
            if number:  # the first round warms up
                seconds[form].append(round(time.process_time() - started, 4))
    medians = {form: median(values) for form, values in seconds.items()}
    report: dict[str, Any] = {}
    for form in FORMS:
        report[form] = {"cpu_s": medians[form], "peak_mb": grown[form], "all_cpu_s": seconds[form]}
    for form in ("image", "feature"):
        for base in ("literal", "literal_frozen"):
            report[form][f"times_as_fast_as_{base}"] = round(medians[base] / medians[form], 2)
    return report


def memory(name: str, form: str, arguments: argparse.Namespace) -> int:
    """By how many MB one evaluation lifts the resident memory of a process, at its peak (Linux)."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(_grown_mb, (name, form, arguments.batch, arguments.squeezenet))


def _grown_mb(name: str, form: str, samples: int, squeezenet: Path | None) -> int:
    step = Step(name, form, samples, squeezenet)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status_kb("VmRSS")
    step()
    return (status_kb("VmHWM") - before) // 1024


def status_kb(field: str) -> int:
    """A number of ``/proc/self/status``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


class Step:
    """One evaluation with its gradient for the output, on scenes, between sources and reference."""

    def __init__(self, name: str, form: str, samples: int, squeezenet: Path | None) -> None:
        self.form, self.encoder = form, build(name, squeezenet)
        if form.startswith("literal"):
            self.plain = Plain(self.encoder).requires_grad_(form == "literal")
        self.batch = scenes_with_rectangles(samples)
        self.reference = torch.maximum(self.batch.ir, self.batch.vis_y)
        self.fused = (self.batch.ir + self.batch.vis_y) / 2

    def __call__(self) -> None:
        """Loss and backward pass."""
        batch = replace(self.batch)  # in which nothing is kept from the last time
        fused = self.fused.clone().requires_grad_()
        if self.form.startswith("literal"):
            value = literal(fused, self.reference, batch, self.plain)
        else:
            form = ContrastiveConfig(masking=Masking(self.form))
            context = BatchContext(batch, {}, self.encoder, contrastive=form)
            value = contrastive(FusionOutput(fused), FusionOutput(self.reference), context)
        value.backward()  # type: ignore[no-untyped-call]


def scenes_with_rectangles(samples: int) -> Batch:
    """Built-in scenes, rectangles of 40x40 to 130x130 pixels for masks."""
    generator = torch.Generator().manual_seed(0)
    scenes = [render_scene(seed, size=(HEIGHT, WIDTH)) for seed in range(samples)]
    ir = torch.stack([torch.tensor(scene.ir)[None] / 255 for scene in scenes])
    vis = torch.stack([torch.tensor(scene.vis).permute(2, 0, 1) / 255 for scene in scenes])
    masks = torch.zeros(2, samples, MASKS, HEIGHT, WIDTH, dtype=torch.bool)
    for plane in masks.flatten(0, 2):
        y, x, height, width = torch.randint(20, 110, (4,), generator=generator).tolist()
        plane[y - 20 : y + height, x - 20 : x + width] = True
    return Batch(ir, vis, masks[0], masks[1], tuple(map(str, range(samples))))


def literal(fused: Tensor, reference: Tensor, batch: Batch, encoder: nn.Module) -> Tensor:
    """The equation, mask by mask: every time three encodings of the whole batch."""
    total = fused.new_zeros(())
    for source, masks in ((batch.vis_y, batch.masks_vis), (batch.ir, batch.masks_ir)):
        for slot in range(masks.shape[1]):
            mask = masks[:, slot : slot + 1].to(fused.dtype)
            o, ref, x = (encoder((y * mask).repeat(1, 3, 1, 1)) for y in (fused, reference, source))
            near = torch.stack([torch.norm(a - b) for a, b in zip(o, ref, strict=True)]).sum()
            far = torch.stack([torch.norm(a - b) for a, b in zip(o, x, strict=True)]).sum()
            total = total + near / (far + 1e-7)
    return total


class Plain(nn.Module):
    """An encoder in torch's own layers and memory format, its filters weights like any others."""

    def __init__(self, encoder: FeatureEncoder) -> None:
        super().__init__()
        self.encoder = encoder.to(memory_format=torch.contiguous_format)
        self.bank = nn.Parameter(encoder.bank.clone()) if isinstance(encoder, FilterBank) else None

    def forward(self, image: Tensor) -> list[Tensor]:
        """Instance-normalised maps."""
        image = (image - self.encoder.mean) / self.encoder.std
        return [F.instance_norm(maps) for maps in self.layers(image)]

    def layers(self, image: Tensor) -> list[Tensor]:
        """As those of the encoder."""
        maps = []
        if self.bank is not None:
            grey = image.mean(dim=1, keepdim=True)
            for scale in range(FilterBank.SCALES):
                grey = F.avg_pool2d(grey, 2) if scale else grey
                maps.append(F.conv2d(F.pad(grey, [4] * 4, mode="replicate"), self.bank))
            return maps
        if isinstance(self.encoder, SqueezeNetEncoder):
            for position, module in enumerate(self.encoder.trunk):
                image = module(image)
                if position in SqueezeNetEncoder.TAPS:
                    maps.append(image)
            return maps
        return self.encoder.layers(image)


def build(name: str, squeezenet: Path | None) -> FeatureEncoder:
    """One of `ENCODERS`, frozen."""
    torch.manual_seed(0)
    if name == "filters":
        return filter_encoder()
    if name == "squeezenet":
        from torchvision.models import squeezenet1_1

        from duskfuse.tasks.encoders import squeezenet_encoder

        return squeezenet_encoder(squeezenet) if squeezenet else SqueezeNetEncoder(squeezenet1_1().features).freeze()
    from segment_anything.modeling import ImageEncoderViT

    vit = ImageEncoderViT(
        img_size=256, embed_dim=192, depth=2, num_heads=3, out_chans=64, use_rel_pos=True, window_size=14,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    return SamEncoder(vit).freeze()


def machine() -> dict[str, Any]:
    """What it was measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpus = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return {
        "cpu": cpus[0] if cpus else platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    main()
