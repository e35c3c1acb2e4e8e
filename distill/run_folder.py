"""A run folder: the resolved recipe, the environment, metrics, checkpoints and samples of one training run.

A non-empty folder is refused unless the user says ``--resume`` or ``--overwrite``, and overwriting clears only folders
that a run has made. Checkpoints are written under a temporary name, synced and renamed, and the newest two are kept: a
run that is killed or a disk that damages the newest loses at most the updates since the one before.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import BaseModel, ValidationError

from duskfuse import __version__
from duskfuse.data.atomic import abandoned, write_atomically
from duskfuse.data.errors import InputError
from duskfuse.data.progress import say
from duskfuse.distill.engine import StepResult

RECIPE_FILE = "recipe.yaml"
CHECKPOINTS_KEPT = 2
HARMLESS = frozenset({"data.workers", "save_every", "sample_every", "gradient_norms_every"})
"""Keys of a recipe that change no weight, so that a resumed run may have others."""


class RunFolder:
    """Paths and writers of one run."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.samples = out / "samples"
        self.checkpoints = out / "checkpoints"
        self.metrics = out / "metrics.jsonl"

    def prepare(self, recipe: BaseModel, *, resume: bool, overwrite: bool) -> None:
        """Make the folder ready for a new or a resumed run, or say why it cannot be used."""
        if self.out.is_dir():
            for path in abandoned(self.out):
                path.unlink()
        if resume:
            self._check_resumable(recipe)
        else:
            if self.out.is_dir() and any(self.out.iterdir()):
                self._clear(overwrite)
            write_atomically(self.out / RECIPE_FILE, _recipe_text(recipe))
            write_atomically(self.out / "environment.json", json.dumps(environment(), indent=2) + "\n")
        for folder in (self.samples, self.checkpoints):
            folder.mkdir(exist_ok=True)
            for path in abandoned(folder):
                path.unlink()

    def _clear(self, overwrite: bool) -> None:
        """Remove an earlier run, its recipe last: a folder that is half removed is still known as a run's."""
        if not overwrite:
            raise InputError(
                f"{self.out} is not empty",
                rule="a run never mixes with what is there",
                remedy="say --resume to go on with that run, --overwrite to replace it, or name another --out",
            )
        if not (self.out / RECIPE_FILE).is_file():
            raise InputError(
                f"{self.out} holds no {RECIPE_FILE}",
                rule="--overwrite clears run folders only",
                remedy="name another --out, or remove the folder yourself",
            )
        for path in self.out.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != RECIPE_FILE:
                path.unlink()

    def _check_resumable(self, recipe: BaseModel) -> None:
        file = self.out / RECIPE_FILE
        if not file.is_file():
            raise InputError(
                f"{self.out} holds no {RECIPE_FILE} and no checkpoint",
                rule="--resume goes on with a run",
                remedy="start the run without --resume",
            )
        try:
            before = type(recipe).model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
        except (ValidationError, yaml.YAMLError) as error:
            raise InputError(
                f"{file} is not a recipe of this version ({str(error).splitlines()[0]})",
                rule="a resumed run keeps its recipe",
                remedy="go on with the version that began the run, or start a new run with --init",
            ) from None
        old, new = (_flat(one.model_dump(mode="json")) for one in (before, recipe))
        changes = {
            key: f"{key} was {old.get(key)}, is {new.get(key)}" for key in old | new if old.get(key) != new.get(key)
        }
        if refused := [text for key, text in changes.items() if key not in HARMLESS]:
            raise InputError(
                f"the recipe differs from {file}: {'; '.join(refused)}",
                rule=f"a resumed run keeps its recipe; only {', '.join(sorted(HARMLESS))} may change",
                remedy="use the same --recipe and --set, or start a new run with --init",
            )
        if changes:
            say(f"resuming with other settings: {'; '.join(changes.values())}")
            write_atomically(file, _recipe_text(recipe))

    def save(self, batch: int, state: dict[str, Any]) -> None:
        """Write the checkpoint that batch number ``batch`` goes on from; the one before it is kept, older ones go.

        A checkpoint carries a digest of its bytes in its name.
        """
        stream = io.BytesIO()
        torch.save(state, stream)
        content = stream.getvalue()
        write_atomically(self.checkpoints / f"{batch:07d}-{_digest(content)}.pt", content)
        for path in self._newest_first()[CHECKPOINTS_KEPT:]:
            path.unlink()

    def load(self) -> dict[str, Any] | None:
        """Read the newest checkpoint that is whole, None where none was ever written.

        Damaged ones are set aside. Nothing but tensors and plain data is accepted.
        """
        found = self._newest_first()
        for path in found:
            content = path.read_bytes()
            if path.stem.rpartition("-")[2] == _digest(content):
                state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
                return state
            path.rename(path.with_suffix(".damaged"))
            say(f"{path} is damaged and set aside")
        if found or any(self.checkpoints.glob("*.damaged")):
            raise InputError(
                f"every checkpoint in {self.checkpoints} is damaged",
                rule="--resume goes on from an undamaged checkpoint",
                remedy="start a new run, with --init and the exported weights if there are any",
            )
        return None

    def continued(self, inputs: str, *, seen: str, given: str) -> tuple[dict[str, Any] | None, int]:
        """The newest checkpoint of a run of one process and the batch to go on with; later records are dropped.

        Args:
            inputs: digest of what is trained on, under ``inputs`` in the checkpoint.
            seen: names what it is made of.
            given: names the options that decide it.

        Raises:
            InputError: the checkpoint was trained on something else.
        """
        state = self.load()
        if state is not None and state["inputs"] != inputs:
            raise InputError(
                f"{seen} differ from those of {self.out}",
                rule="a resumed run sees what it would have seen",
                remedy=f"give the same {given}, or start a new run",
            )
        first = 0 if state is None else int(state["next_batch"])
        self.trim_metrics(first)
        say(f"resuming {self.out} at batch {first}")
        return state, first

    def _newest_first(self) -> list[Path]:
        return sorted(self.checkpoints.glob("*-*.pt"), reverse=True)

    def trim_metrics(self, next_batch: int) -> None:
        """Drop records of batches that will be computed again, and what a killed run left of a line."""
        if self.metrics.is_file():
            lines = self.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]
            write_atomically(self.metrics, "".join(line for line in whole if json.loads(line)["batch"] < next_batch))


class MetricsLog:
    """Appends one JSON line per update, and the same numbers to TensorBoard where it is installed."""

    def __init__(self, folder: RunFolder) -> None:
        self._stream = folder.metrics.open("a", encoding="utf-8", buffering=1)
        self._board = _tensorboard(folder.out / "tensorboard")

    def write(self, result: StepResult, seconds: float, waiting: float) -> None:
        """Record one update that took ``seconds``, of which ``waiting`` were spent waiting for its batch."""
        record = {
            "batch": result.batch,
            "phase": result.phase,
            "step": result.step,
            "owner": result.owner.value,
            "loss": result.loss,
            "terms": {name.value: value for name, value in result.terms.items()},
            "lr": result.lr,
            "gradient_norm": result.gradient_norm if math.isfinite(result.gradient_norm) else None,
            "psnr_to_reference": result.psnr_to_reference,
            "correction_ratio": result.correction_ratio,
            "seconds": round(seconds, 4),
            "waiting_seconds": round(waiting, 4),
        }
        norms = result.term_gradient_norms or {}
        if norms:
            record["term_gradient_norms"] = {name.value: norm for name, norm in norms.items()}
        scalars = {
            f"{result.step}/loss": result.loss,
            f"{result.step}/lr": result.lr,
            **{f"{result.step}/{name.value}": value for name, value in result.terms.items()},
            **{f"{result.step}/gradient norm of {name.value}": norm for name, norm in norms.items()},
            "share of time waiting for data": waiting / seconds,
        }
        if result.correction_ratio is not None:
            scalars[f"{result.step}/correction_ratio"] = result.correction_ratio
        self.append(record, scalars)

    def append(self, record: Mapping[str, Any], scalars: Mapping[str, float]) -> None:
        """Write one line, which has the number of its ``batch``, and the ``scalars`` to TensorBoard."""
        self._stream.write(json.dumps(record) + "\n")
        if self._board is not None:
            for name, value in scalars.items():
                self._board.add_scalar(name, value, record["batch"])

    def picture(self, name: str, rgb: Any, batch: int) -> None:
        """Show a sample grid, uint8 ``[H, W, 3]``, in TensorBoard too."""
        if self._board is not None:
            self._board.add_image(name, rgb, batch, dataformats="HWC")

    def flush(self) -> None:
        """Bring every record to disk."""
        self._stream.flush()
        os.fsync(self._stream.fileno())

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


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with keys such as ``data.batch`` and ``phases.0.batches``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            value = {str(index): item for index, item in enumerate(value)}
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _recipe_text(recipe: BaseModel) -> str:
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
