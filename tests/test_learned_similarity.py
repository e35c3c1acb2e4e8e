"""LPIPS against the package it comes from, and what becomes of weights that do not fit."""

from collections.abc import Callable
from math import isnan
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models import alexnet, squeezenet1_1, vgg16

from duskfuse.data.errors import InputError
from duskfuse.data.scenes import write_scenes
from duskfuse.evaluate.evaluate import evaluate, metrics_named
from duskfuse.evaluate.learned_similarity import Backbone, find_weights
from duskfuse.evaluate.metrics import METRICS, SourceStatistics, fusion_metrics

lpips = pytest.importorskip("lpips")
Grey = NDArray[np.uint8]


@pytest.fixture(scope="module")
def squeezenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "squeezenet.safetensors"
    save_file({k: v for k, v in squeezenet1_1().state_dict().items() if k.startswith("features.")}, path)
    return path


def pictures() -> tuple[Grey, Grey, Grey]:
    generator = np.random.default_rng(0)
    ir, vis = (generator.integers(0, 256, (48, 40), dtype=np.uint8) for _ in range(2))
    return ir, vis, np.maximum(ir, vis)


def test_equals_the_package(squeezenet: Path):
    ir, vis, fused = pictures()
    weights = find_weights(squeezenet)
    assert weights.backbone is Backbone.SQUEEZE
    network = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False)
    trunk = squeezenet1_1()
    trunk.load_state_dict(torch.load(as_pth(squeezenet), weights_only=True), strict=False)
    for slice_number in range(1, 8):
        for position, module in getattr(network.net, f"slice{slice_number}").named_children():
            module.load_state_dict(trunk.features[int(position)].state_dict())
    rgb = [torch.from_numpy(p / 255 * 2 - 1).float().expand(1, 3, -1, -1) for p in (ir, vis, fused)]
    with torch.no_grad():
        expected = float(network(rgb[0], rgb[2]) + network(rgb[1], rgb[2])) / 2
    scores = fusion_metrics(SourceStatistics(ir, vis, lpips_weights=weights), fused, ["LPIPS"])
    assert scores["LPIPS"] == pytest.approx(expected, rel=1e-5)
    same = fusion_metrics(SourceStatistics(ir, ir, lpips_weights=weights), ir, ["LPIPS"])
    assert same["LPIPS"] == pytest.approx(0, abs=1e-6)
    small = fusion_metrics(SourceStatistics(ir[:31], vis[:31], lpips_weights=weights), fused[:31], ["LPIPS"])
    assert isnan(small["LPIPS"])


def as_pth(path: Path) -> Path:
    other = path.with_suffix(".pth")
    torch.save(load_file(path), other)
    return other


@pytest.mark.parametrize(("make", "backbone"), [(alexnet, Backbone.ALEX), (vgg16, Backbone.VGG)])
def test_the_network_is_known_by_its_layers(make: Callable[[], nn.Module], backbone: Backbone, tmp_path: Path):
    features = {k: v for k, v in make().state_dict().items() if k.startswith("features.")}
    save_file(features, tmp_path / "w.safetensors")
    assert find_weights(tmp_path / "w.safetensors").backbone is backbone


def test_evaluate_says_which_network(squeezenet: Path, tmp_path: Path):
    write_scenes(tmp_path / "pairs", count=2, size=(48, 64), seed=0)
    found = evaluate(tmp_path / "pairs", metrics=["EN"], lpips_weights=squeezenet, out=tmp_path / "out", workers=1)
    assert [metric.name for metric in found.chosen] == ["EN", "LPIPS"]
    stamped = found.to_json()["arithmetic"]["lpips"]
    assert stamped.startswith("squeeze ")
    visible = next(row for row in found.rows if row.name == "visible only")
    assert 0 < visible.summary("LPIPS").mean < 1.5
    assert "LPIPS" not in metrics_named("all")
    assert "LPIPS" in {metric.name for metric in METRICS}


@pytest.mark.parametrize("spoil", ["missing", "cut", "other", "incomplete"])
def test_unusable_weights_are_refused(spoil: str, squeezenet: Path, tmp_path: Path):
    path = tmp_path / "w.safetensors"
    match spoil:
        case "cut":
            path.write_bytes(squeezenet.read_bytes()[:1000])
        case "other":
            save_file({"conv1.weight": torch.zeros(3)}, path)
        case "incomplete":
            save_file({"features.0.weight": torch.zeros(64, 3, 3, 3)}, path)
    with pytest.raises(InputError) as caught:
        find_weights(path)
    assert str(path) in str(caught.value)
