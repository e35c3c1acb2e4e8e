"""Which teacher is meant: weights by their card, a folder of pictures, or a method inside the dataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from safetensors import SafetensorError, safe_open

from duskfuse.data.errors import InputError
from duskfuse.data.pair_files import PairFiles
from duskfuse.data.priors.cache_masks import open_masks
from duskfuse.data.priors.sources import MaskSourceName
from duskfuse.data.weights import CARD_KEY, read_card
from duskfuse.teachers import conditional_diffusion, ddfm, denoiser, main_network
from duskfuse.teachers.conditional_diffusion import ConditionalDiffusionTeacher
from duskfuse.teachers.ddfm import DdfmForm, DdfmTeacher
from duskfuse.teachers.folder_teacher import FolderTeacher, ReadyFolder, find_method, method_names
from duskfuse.teachers.main_network_teacher import MainNetworkTeacher
from duskfuse.teachers.teacher import Teacher, TeacherJob

_FOREIGN_CHECKPOINTS = frozenset({".pt", ".pth", ".bin", ".ckpt"})
_DIFFUSERS_FILES = ("config.json", "diffusion_pytorch_model.safetensors")

TeacherOpening = Callable[[], Teacher]
"""Makes a teacher ready. It can be pickled, so that every process that computes opens its own."""


def open_teacher(
    teacher: str | Path,
    *,
    data: Path,
    pairs: Sequence[PairFiles],
    jobs: Sequence[TeacherJob],
    cache: Path | None = None,
    masks: MaskSourceName | None = None,
    steps: int | None = None,
    ddfm_form: DdfmForm = DdfmForm.MIRRORED,
) -> TeacherOpening:
    """Find out what a teacher is.

    Args:
        teacher: a weights file with a card (main network, conditional diffusion), a guided-diffusion checkpoint or
            diffusers folder (DDFM), a folder of ready pictures, or the name of a method inside the dataset.
        data: the dataset.
        pairs: all of it, as ready pictures are matched against all.
        jobs: the pairs to fuse.
        cache: root folder of the cache, where the main network finds its masks.
        masks: which of several.
        steps: of a diffusion teacher's sampler; by default what its paper has.
        ddfm_form: how much of the published program DDFM repeats.

    Raises:
        InputError: it is nothing of these; or it is, and cannot be used.
    """
    path = Path(teacher)
    named = find_method(data, str(teacher)) if len(path.parts) == 1 else []
    if named:
        return _without_steps(steps, path, partial(FolderTeacher, named, data, pairs))
    if path.is_dir() and not all((path / name).is_file() for name in _DIFFUSERS_FILES):
        return _without_steps(steps, path, partial(FolderTeacher, [ReadyFolder(path)], data, pairs))
    if not path.exists():
        raise _unknown(teacher, data)
    if path.is_dir() or not _has_card(path):
        return partial(DdfmTeacher, path, steps=steps or ddfm.STEPS, form=ddfm_form)
    architecture = read_card(path).architecture
    if architecture == main_network.ARCHITECTURE:
        store = open_masks(cache, {key for job in jobs for key in job.keys}, masks)
        return _without_steps(steps, path, partial(MainNetworkTeacher, path, store))
    if architecture == denoiser.ARCHITECTURE:
        return partial(ConditionalDiffusionTeacher, path, steps=steps or conditional_diffusion.STEPS)
    raise InputError(
        f"{path} holds a {architecture}",
        rule="a teacher is a main network or a diffusion network",
        remedy="students are compared by `duskfuse evaluate`; give a teacher",
    )


def _has_card(path: Path) -> bool:
    """Whether a file is one of ours; true also for what cannot be read, about which `read_card` says more."""
    if path.suffix.lower() in _FOREIGN_CHECKPOINTS:
        return False
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return CARD_KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return True


def _without_steps(steps: int | None, path: Path, opening: TeacherOpening) -> TeacherOpening:
    if steps is not None:
        seen = f"{steps} steps for {path}"
        raise InputError(seen, rule="only diffusion teachers sample", remedy="leave --steps away")
    return opening


def _unknown(teacher: str | Path, data: Path) -> InputError:
    names = method_names(data)
    inside = f"methods in {data}: {', '.join(names)}" if names else f"{data} has no folder teacher/ or TEACHER_FUSED/"
    return InputError(
        f"{teacher}: no such file or folder, and no method of the dataset",
        rule="a teacher is weights, a folder of fused pictures, or the name of a method inside the dataset",
        remedy=inside,
    )
