"""Several training processes: the real torchrun with gloo on the CPU against one process with the joined batch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from duskfuse.data.errors import InputError
from duskfuse.data.layout import find_pairs
from duskfuse.data.priors.cache_masks import cache_masks
from duskfuse.data.priors.sources import MaskSourceName
from duskfuse.data.scenes.write import write_scenes
from duskfuse.distill.dataset import TrainingPairs, load_batches
from duskfuse.distill.processes import Processes
from duskfuse.distill.recipe import DataConfig
from duskfuse.distill.run_folder import RunFolder

RECIPE = """
name: shared
data: {crop: [16, 16], batch: 4, accumulate: 2, workers: 0}
optimisers: {teacher: {lr: 1.0e-3, ema: 0.9}}
steps: {fuse: {owner: teacher, terms: {source_mse: 1, gradient_max: 2, intensity_max: 1}}}
phases: [{name: only, batches: 2, cycle: [fuse]}]
gradient_norms_every: 1
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    write_scenes(folder / "data", count=5, size=(32, 40), seed=0)
    cache_masks(folder / "data", source=MaskSourceName.REGIONS, cache=folder / "cache", workers=1)
    return folder


def test_shares_together_are_the_batch(data: Path) -> None:
    config = DataConfig(crop=(16, 16), batch=4, accumulate=2, workers=0)
    samples = TrainingPairs(find_pairs(data / "data"), config, 5, masks=None)
    whole = list(load_batches(samples, config, 1, 3))
    shares = [list(load_batches(samples, config, 1, 3, Processes(rank, 2))) for rank in range(2)]
    for number, batch in enumerate(whole):
        parts = [share[number] for share in shares]
        assert [len(part.names) for part in parts] == [4, 4]
        assert Counter(parts[0].names + parts[1].names) == Counter(batch.names)
        woven = torch.stack([part.ir for part in parts], dim=1).flatten(0, 1)
        assert torch.equal(woven, batch.ir)
    micro = [part.split(2) for part in (shares[0][0], shares[1][0])]
    for ours, theirs, joined in zip(*micro, whole[0].split(2), strict=True):
        assert Counter(ours.names + theirs.names) == Counter(joined.names)


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(InputError, match="multiple of 3"):
        Processes(0, 3).check(DataConfig(batch=4))


def test_batch_norm_is_synchronised_on_cuda_only() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    assert Processes(0, 2).synchronised(network, torch.device("cpu")) is network
    assert Processes().synchronised(network, torch.device("cuda")) is network
    names = list(network.state_dict())
    converted = Processes(0, 2).synchronised(network, torch.device("cuda"))
    assert any(isinstance(module, nn.SyncBatchNorm) for module in converted.modules())
    assert list(converted.state_dict()) == names


def train(data: Path, out: Path, *command: str) -> subprocess.CompletedProcess[str]:
    (data / "recipe.yaml").write_text(RECIPE)
    arguments = ["distill", str(data / "data"), "--out", str(out), "--recipe", str(data / "recipe.yaml")]
    arguments += ["--cache", str(data / "cache"), "--json"]
    return subprocess.run([sys.executable, *command, *arguments], capture_output=True, text=True, check=True)


def state(out: Path) -> dict[str, Tensor]:
    loaded = RunFolder(out).load()
    assert loaded is not None
    optimiser = loaded["engine"]["optimisers"]["teacher"]["state"]
    moments = {f"{index}.{key}": value for index, entry in optimiser.items() for key, value in entry.items()}
    return {**moments, **loaded["engine"]["networks"]["teacher"]}


@pytest.mark.slow
def test_two_processes_make_the_updates_of_one(data: Path, tmp_path: Path) -> None:
    """The main network has no BatchNorm. Adam's moments are the gradients: equal within 1e-6.

    Weights are equal within 1e-6 but where a gradient is rounding noise, which Adam divides by itself: less than one in
    a thousand.
    """
    one = train(data, tmp_path / "one", "-m", "duskfuse")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "duskfuse")
    two = train(data, tmp_path / "two", *torchrun)
    assert json.loads(one.stdout)["batches"] == json.loads(two.stdout)["batches"] == 2  # printed once
    lines = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert len(lines[1]) == 2
    for ours, theirs in zip(*lines, strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], abs=1e-5)
        assert theirs["terms"] == pytest.approx(ours["terms"], abs=1e-5)
        assert theirs["term_gradient_norms"] == pytest.approx(ours["term_gradient_norms"], rel=1e-3)
    expected, got = state(tmp_path / "one"), state(tmp_path / "two")
    assert expected.keys() == got.keys()
    far = total = 0
    for name, value in expected.items():
        if name.endswith(("exp_avg", "exp_avg_sq")):
            assert torch.allclose(got[name], value, rtol=0, atol=1e-6), name
        elif value.is_floating_point() and value.ndim:
            far += int((got[name] - value).abs().gt(1e-6).sum())
            total += value.numel()
    assert far / total < 1e-3
