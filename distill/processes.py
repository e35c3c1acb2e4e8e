"""Training in several processes that torchrun starts, each on its own share of every batch.

Gradients are averaged by hand rather than through ``DistributedDataParallel``: only the owner of a step has gradients,
the owner changes from step to step and everything else is frozen, and a wrapper would add its prefix to every name in
a checkpoint. After each update all processes hold the same weights, buffers and optimiser states, so the first one
alone writes files. NCCL connects processes on CUDA, gloo those on the CPU.

BatchNorm takes the statistics of each process's share on the CPU, and running statistics are averaged afterwards; on
CUDA ``SyncBatchNorm`` takes them over the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import environ

import torch
from torch import Tensor, distributed, nn

from duskfuse.data.errors import InputError
from duskfuse.distill.recipe import DataConfig


@dataclass(frozen=True)
class Processes:
    """Which of how many training processes this is."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace float tensors of one type by their mean over all processes, in one exchange."""
        if self.count == 1 or not tensors:
            return
        joined = torch.cat([tensor.detach().flatten() for tensor in tensors])
        distributed.all_reduce(joined)
        joined /= self.count
        for tensor, mean in zip(tensors, torch.split(joined, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.detach().copy_(mean.view_as(tensor))

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.count > 1:
            distributed.barrier()

    def check(self, config: DataConfig) -> None:
        """Raise ``InputError`` where a batch cannot be shared equally."""
        if config.batch % self.count:
            raise InputError(
                f"data.batch={config.batch} with {self.count} processes",
                rule="every process takes the same share of a batch",
                remedy=f"make data.batch a multiple of {self.count}",
            )

    def synchronised(self, network: nn.Module, device: torch.device) -> nn.Module:
        """The network with BatchNorm over the whole batch, where there are several processes on CUDA."""
        if self.count > 1 and device.type == "cuda":
            converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
            return converted
        return network


ALONE = Processes()


def launched() -> Processes:
    """What torchrun says about this process; alone without it."""
    if not distributed.is_torchelastic_launched():
        return ALONE
    return Processes(int(environ["RANK"]), int(environ["WORLD_SIZE"]))


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """Connect the processes of torchrun for as long as the context lasts."""
    processes = launched()
    if processes.count == 1:
        yield processes
        return
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield processes
    finally:
        distributed.destroy_process_group()


def training_device() -> torch.device:
    """The CUDA device of this process, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(environ.get("LOCAL_RANK", "0")) if distributed.is_torchelastic_launched() else 0)
    torch.cuda.set_device(device)
    return device
