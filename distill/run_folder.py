"""A run folder: the resolved recipe, the environment, metrics, checkpoints and samples of one training run.

A non-empty folder is refused unless the user says ``--resume`` or ``--overwrite``, and overwriting clears only folders
that a run has made. Checkpoints are written under a temporary name, synced and renamed.
"""

from __future__ import annotations

import io
import json
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from duskfuse import __version__
from duskfuse.data.atomic import write_atomically
from duskfuse.data.errors import InputError
from duskfuse.distill.engine import StepResult
from duskfuse.distill.recipe import Recipe

RECIPE_FILE = "recipe.yaml"
CHECKPOINT_FILE = "last.pt"


class RunFolder:
    """Paths and writers of one run."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.samples = out / "samples"
        self.checkpoint = out / "checkpoints" / CHECKPOINT_FILE
        self.metrics = out / "metrics.jsonl"

    def prepare(self, recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
        """Make the folder ready for a new or a resumed run, or say why it cannot be used."""
        used = self.out.is_dir() and any(self.out.iterdir())
        if resume:
            self._check_resumable(recipe)
            return
        if used and not overwrite:
            raise InputError(
                f"{self.out} is not empty",
                rule="a run never mixes with what is there",
                remedy="say --resume to go on with that run, --overwrite to replace it, or name another --out",
            )
        if used:
            if not (self.out / RECIPE_FILE).is_file():
                raise InputError(
                    f"{self.out} holds no {RECIPE_FILE}",
                    rule="--overwrite clears run folders only",
                    remedy="name another --out, or remove the folder yourself",
                )
            shutil.rmtree(self.out)
        for folder in (self.samples, self.checkpoint.parent):
            folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.out / RECIPE_FILE, _recipe_text(recipe))
        write_atomically(self.out / "environment.json", json.dumps(environment(), indent=2) + "\n")

    def _check_resumable(self, recipe: Recipe) -> None:
        if not self.checkpoint.is_file():
            raise InputError(
                f"{self.out} holds no {self.checkpoint.relative_to(self.out)}",
                rule="--resume goes on from a checkpoint",
                remedy="start the run without --resume",
            )
        if (self.out / RECIPE_FILE).read_text(encoding="utf-8") != _recipe_text(recipe):
            raise InputError(
                f"the recipe differs from {self.out / RECIPE_FILE}",
                rule="a resumed run keeps its recipe",
                remedy="use the same --recipe and --set, or start a new run with --init",
            )

    def save(self, state: dict[str, Any]) -> None:
        """Write the checkpoint atomically."""
        stream = io.BytesIO()
        torch.save(state, stream)
        write_atomically(self.checkpoint, stream.getvalue())

    def load(self) -> dict[str, Any]:
        """Read the checkpoint; nothing but tensors and plain data is accepted."""
        try:
            state: dict[str, Any] = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        except Exception as error:  # torch reports damaged archives in many ways
            raise InputError(
                f"{self.checkpoint} cannot be read ({str(error).splitlines()[0]})",
                rule="--resume goes on from an undamaged checkpoint",
                remedy="start a new run, with --init and the exported weights if there are any",
            ) from None
        return state

    def trim_metrics(self, next_batch: int) -> None:
        """Drop records of batches that will be computed again."""
        if self.metrics.is_file():
            lines = self.metrics.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if json.loads(line)["batch"] < next_batch]
            write_atomically(self.metrics, "".join(line + "\n" for line in kept))


class MetricsLog:
    """Appends one JSON line per update, and the same numbers to TensorBoard where it is installed."""

    def __init__(self, folder: RunFolder) -> None:
        self._stream = folder.metrics.open("a", encoding="utf-8", buffering=1)
        self._board = _tensorboard(folder.out / "tensorboard")

    def write(self, result: StepResult, seconds: float) -> None:
        """Record one update."""
        record = {
            "batch": result.batch,
            "phase": result.phase,
            "step": result.step,
            "owner": result.owner.value,
            "loss": result.loss,
            "terms": {name.value: value for name, value in result.terms.items()},
            "lr": result.lr,
            "gradient_norm": result.gradient_norm,
            "psnr_to_reference": result.psnr_to_reference,
            "seconds": round(seconds, 4),
        }
        self._stream.write(json.dumps(record) + "\n")
        if self._board is not None:
            self._board.add_scalar(f"{result.step}/loss", result.loss, result.batch)
            self._board.add_scalar(f"{result.step}/lr", result.lr, result.batch)
            for name, value in result.terms.items():
                self._board.add_scalar(f"{result.step}/{name.value}", value, result.batch)

    def picture(self, name: str, rgb: Any, batch: int) -> None:
        """Show a sample grid, uint8 ``[H, W, 3]``, in TensorBoard too."""
        if self._board is not None:
            self._board.add_image(name, rgb, batch, dataformats="HWC")

    def close(self) -> None:
        """Flush and close both."""
        self._stream.close()
        if self._board is not None:
            self._board.close()


def _tensorboard(folder: Path) -> Any | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # the extra `tensorboard` is not installed: metrics.jsonl holds the same numbers
        return None
    return SummaryWriter(str(folder))


def _recipe_text(recipe: Recipe) -> str:
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def environment() -> dict[str, Any]:
    """Versions, machine and git state: what is needed to repeat a run."""
    return {
        "duskfuse": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "packages": {
            name: version(name) for name in ("numpy", "opencv-python", "torchvision", "kornia", "onnxruntime")
        },
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "git": _git_state(),
    }


def _git_state() -> dict[str, Any] | None:
    folder = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
