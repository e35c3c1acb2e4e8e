"""The Ray engine: the same records as on this machine, whatever dies on the way."""

from __future__ import annotations

import hashlib
import importlib
import os
import signal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from duskfuse.data.errors import InputError
from duskfuse.data.images import write_picture
from duskfuse.data.priors.cache import PriorCache, PriorKind, PriorStore, TeacherImage
from duskfuse.data.priors.cache_masks import cache_masks
from duskfuse.data.priors.masks import MaskSet
from duskfuse.data.priors.pipeline import Engine, Work, run

POISON, LETHAL_ONCE, BAD = 7, 30, 11


class Square(NamedTuple):
    number: int
    marker: Path
    """Made by the first process that took on the job that is lethal once."""
    lethal: bool


class Squares(Work[Square, int]):
    """Pictures of one shade; some jobs fail, one kills every process, one the first that takes it on."""

    title = "squares"
    holds_model = False

    def name(self, job: Square, /) -> str:
        return f"square {job.number}"

    def key(self, job: Square, /) -> str:
        return hashlib.sha256(str(job.number).encode()).hexdigest()

    def load(self, job: Square, /) -> int:
        if job.number == BAD:
            raise InputError("square 11 is round")
        if job.lethal and (job.number == POISON or (job.number == LETHAL_ONCE and not job.marker.exists())):
            job.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return job.number

    def make(self, number: int, /) -> TeacherImage:
        return TeacherImage(np.full((8, 8), number, np.uint8), {"number": number})


def jobs(folder: Path, lethal: bool) -> list[Square]:
    return [Square(number, folder / "marker", lethal) for number in range(60)]


def contents(store: PriorStore) -> dict[str, tuple[bytes, Any]]:
    records = {key: store.get(key) for key in store.keys()}  # noqa: SIM118 - not a mapping
    return {
        key: (record.y.tobytes(), record.meta) for key, record in records.items() if isinstance(record, TeacherImage)
    }


def pictures(folder: Path) -> Path:
    generator = np.random.default_rng(0)
    for number in range(3):
        for side in ("ir", "vis"):
            coarse = generator.integers(0, 255, (5, 7), dtype=np.uint8)
            write_picture(folder / "data" / side / f"{number}.png", np.kron(coarse, np.ones((8, 8), np.uint8)))
    return folder / "data"


def store_in(folder: Path) -> PriorStore:
    return PriorCache(folder).store(PriorKind.TEACHER, "squares", {})


def test_a_missing_ray_is_an_error_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    load = importlib.import_module

    def refuse(name: str, *arguments: Any) -> Any:
        if name == "ray":
            raise ImportError("No module named 'ray'")
        return load(name, *arguments)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(InputError, match=r"duskfuse\[cluster\]"):
        run(Squares(), jobs(tmp_path, False), store_in(tmp_path / "cache"), engine=Engine.RAY)


@pytest.mark.slow
def test_the_same_records_as_the_local_engine_though_workers_die(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    ray = pytest.importorskip("ray", reason="the extra cluster is not installed")
    alone, together = store_in(tmp_path / "alone"), store_in(tmp_path / "together")
    wanted = run(Squares(), jobs(tmp_path, False), alone, workers=1)
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 * 2**20,
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}},
    )
    try:
        seen = run(Squares(), jobs(tmp_path, True), together, engine=Engine.RAY)
        again = run(Squares(), jobs(tmp_path, False), together, engine=Engine.RAY)
        monkeypatch.chdir(tmp_path)
        masks = [cache_masks(pictures(Path()), cache=tmp_path / engine, engine=engine) for engine in Engine]
        printed = capfd.readouterr().out
    finally:
        ray.shutdown()
    assert wanted.done == 59
    assert (seen.done, len(seen.failed)) == (58, 2)
    round_one, killer = sorted(seen.failed)  # told as they end, in any order
    assert round_one == "square 11 is round"
    assert killer.startswith("square 7: every process died on it")
    assert (tmp_path / "marker").exists()
    assert (again.done, again.already, again.failed) == (1, 58, ["square 11 is round"])
    assert contents(alone) == contents(together)
    local, ray_made = (PriorCache(tmp_path / engine).stores(PriorKind.MASKS)[0] for engine in Engine)
    assert [report.done for report in masks] == [6, 6]
    assert local.keys() == ray_made.keys()
    for key in local.keys():  # noqa: SIM118 - not a mapping
        one, other = local.get(key), ray_made.get(key)
        assert isinstance(one, MaskSet)
        assert isinstance(other, MaskSet)
        assert one.bits == other.bits
    assert printed == ""
