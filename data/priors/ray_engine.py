"""Offline work on the machines of a Ray cluster.

Ray Data hands packets of jobs to actors that keep the opened work, with a GPU each where the work holds a model and
the cluster has GPUs, and a core each otherwise. It starts dead actors again, repeats what they were at, and holds back
packets while results wait. Only encoded records come back; this process writes them into the same store, as the same
files, as the local engine does.

Every machine has this version of duskfuse installed and sees the pictures, and a model's weights, under the same
paths: the file system is shared. The cluster is the one of ``RAY_ADDRESS``, else one that runs on this
machine, else one of this machine alone, started for the call: the way to compute on several GPUs of one machine.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from typing import Any, Generic

from duskfuse.data.errors import DuskfuseError, InputError
from duskfuse.data.priors.cache import PriorKind
from duskfuse.data.priors.pipeline import RETRIES, Encoded, Failure, Job, Todo, Work, died, encoded, in_this_process
from duskfuse.data.progress import say

_PACKET = 8
"""Jobs of a packet: what the next call repeats, for each actor, after this process was killed."""
_MODEL_PACKET = 4
"""The same where a model computes, and a job takes longer."""


@dataclass(frozen=True)
class _Packet(Generic[Job]):
    """One row of the data set: Ray carries it as it is, where it would take a bare tuple apart."""

    todo: list[Todo[Job]]


class _Ledger:
    """Knows in the whole cluster which packets and jobs were begun and not ended: actors died on those."""

    def __init__(self) -> None:
        self._begun: Counter[str] = Counter()

    def begin(self, name: str) -> int:
        """How often ``name`` was begun before without being ended."""
        self._begun[name] += 1
        return self._begun[name] - 1

    def end(self, name: str) -> None:
        """Forget ``name``."""
        del self._begun[name]


class _Actor:
    """Keeps the opened work from packet to packet.

    Ray repeats a packet for ever when its actor dies. One that comes again is therefore done job by job, each entered
    in the ledger, and what actors have died on too often fails.
    """

    def __init__(self, work: Work[Any, Any], kind: PriorKind, ledger: Any, folder: str) -> None:
        with suppress(OSError):  # relative paths mean here what they mean to the driver
            os.chdir(folder)
        self._work, self._kind, self._ledger = work, kind, ledger
        self._ray = importlib.import_module("ray")

    def __call__(self, batch: dict[str, Sequence[_Packet[Any]]]) -> dict[str, list[Any]]:
        results = [result for packet in batch["item"] for result in self._results(packet.todo)]
        return {
            "key": [key for key, _ in results],
            "record": [b"" if isinstance(result, Failure) else result for _, result in results],
            "failure": [str(result) if isinstance(result, Failure) else "" for _, result in results],
        }

    def _results(self, todo: list[Todo[Any]]) -> Iterator[Encoded]:
        packet = f"packet {todo[0].key}"
        if self._said("begin", packet) == 0:
            yield from self._computed(todo)
        else:
            for item in todo:
                if self._said("begin", item.key) < RETRIES:
                    yield from self._computed([item])
                else:
                    yield Encoded(item.key, died(self._work, item.job))
                self._said("end", item.key)
        self._said("end", packet)

    def _computed(self, todo: list[Todo[Any]]) -> Iterator[Encoded]:
        return (encoded(outcome, self._kind) for outcome in in_this_process(self._work, todo))

    def _said(self, verb: str, name: str) -> Any:
        return self._ray.get(getattr(self._ledger, verb).remote(name))


def in_cluster(
    work: Work[Job, Any], todo: Iterable[Todo[Job]], kind: PriorKind, workers: int | None
) -> Iterator[Encoded]:
    """Compute on a cluster, in ``workers`` actors at most; by default on all its GPUs, or cores.

    The list of jobs is handed over whole; pictures and records are not.

    Raises:
        InputError: Ray is not installed, or its cluster cannot be reached.
        DuskfuseError: the cluster gave up.
    """
    items = list(todo)
    if not items:
        return
    size = _MODEL_PACKET if work.holds_model else _PACKET
    packets = [_Packet(items[i : i + size]) for i in range(0, len(items), size)]
    with _cluster() as ray:
        device, count = _devices(ray, work)
        actors = min(workers or count, len(packets))
        ledger = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Ledger).remote()
        rows = ray.data.from_items(packets, override_num_blocks=len(packets)).map_batches(
            _Actor,
            fn_constructor_args=(work, kind, ledger, os.getcwd()),
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors, initial_size=actors),
            **device,
        )
        try:
            for batch in rows.iter_batches(batch_size=None, batch_format="pyarrow"):
                for row in batch.to_pylist():
                    yield Encoded(row["key"], Failure(row["failure"]) if row["failure"] else row["record"])
        except ray.exceptions.RayError as error:
            raise DuskfuseError(
                f"the Ray cluster gave up: {str(error).strip().splitlines()[-1]}",
                rule="every machine has the same version of duskfuse, and what it needs, installed",
                remedy="run the same command again; finished work is kept",
            ) from error


def _devices(ray: Any, work: Work[Job, Any]) -> tuple[dict[str, int], int]:
    """What an actor takes for itself, and how many of that there are."""
    there = ray.cluster_resources()
    if work.holds_model and there.get("GPU", 0) >= 1:
        return {"num_gpus": 1}, int(there["GPU"])
    return {"num_cpus": 1}, max(1, int(there.get("CPU", 1)))


@contextmanager
def _cluster() -> Iterator[Any]:
    """Ray, connected and quiet; what was connected before stays so."""
    ray = _import_ray()
    connected = ray.is_initialized()
    with redirect_stdout(sys.stderr):  # where Ray prints that a worker died
        if not connected:
            _connect(ray)
        context = ray.data.DataContext.get_current()
        bars, context.enable_progress_bars = context.enable_progress_bars, False
        try:
            yield ray
        finally:
            context.enable_progress_bars = bars
            if not connected:
                ray.shutdown()


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        ray = importlib.import_module("ray")
        importlib.import_module("ray.data")
    except ImportError as error:
        raise InputError(
            f"Ray is not installed ({error})",
            rule="the engine ray needs the extra cluster",
            remedy="pip install 'duskfuse[cluster]', or leave --engine away",
        ) from None
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    return ray


def _connect(ray: Any) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        ray.init(address="auto", **quiet)
        say(f"computing on the Ray cluster at {ray.get_runtime_context().gcs_address}")
    except (ConnectionError, RuntimeError, ValueError) as error:
        if os.environ.get("RAY_ADDRESS"):
            raise InputError(
                f"the Ray cluster at RAY_ADDRESS={os.environ['RAY_ADDRESS']} cannot be used ({error})",
                rule="it must run the same versions of Ray and Python",
                remedy="correct or unset RAY_ADDRESS",
            ) from None
        say("computing on a Ray cluster of this machine alone: RAY_ADDRESS is not set, and none runs here")
        ray.init(address="local", include_dashboard=False, **quiet)
