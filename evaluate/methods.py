"""The rows of an evaluation to come: models, folders of fused pictures, trivial rules."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np

from duskfuse import __version__
from duskfuse.data.colour import BLUE, GREEN, RED
from duskfuse.data.errors import InputError
from duskfuse.data.fuser import Colour
from duskfuse.data.images import file_sha256, to_u8
from duskfuse.data.pair_files import PairFiles
from duskfuse.evaluate.fused_folder import look_at_folder
from duskfuse.evaluate.fusers import Fuser, OnnxFuser, Plane, open_fuser, size_text
from duskfuse.evaluate.metrics import Grey
from duskfuse.evaluate.score_pairs import Picture, Rule
from duskfuse.evaluate.scores import Finding, Kind, Oddity
from duskfuse.evaluate.source_pictures import SeenSources, SourcePictures
from duskfuse.students.zoo import WEIGHTS, ModelName

_MODEL_SUFFIXES = frozenset({".onnx", ".safetensors"})


@dataclass(frozen=True)
class Method:
    """A row to come."""

    name: str
    kind: Kind
    picture: Callable[[SourcePictures], Picture]
    """Its fused picture of a pair: computed here where it is a model's."""
    key: Callable[[str], str]
    """Hash of what its fused picture of a pair, given by name, depends on beside the sources."""
    origin: str = ""
    sha256: str | None = None
    """Of a model's file."""
    stretched: bool = False
    findings: tuple[Finding, ...] = ()
    fuser: Fuser | None = None
    """Of a model."""

    @property
    def bad_pairs(self) -> set[str]:
        """Names of the pairs that cannot be scored."""
        return {name for finding in self.findings if finding.oddity.is_bad for name in finding.names}

    def hash_over(self, pairs: Sequence[str]) -> str | None:
        """Of a model's file, or of the names and hashes of a folder's pictures."""
        if self.kind is not Kind.FOLDER:
            return self.sha256
        return hashlib.sha256("".join(f"{pair} {self.key(pair)}\n" for pair in pairs).encode()).hexdigest()


def models(given: Sequence[str | Path], seen: Mapping[str, SeenSources]) -> list[Method]:
    """Open models; InputError where one cannot be opened."""
    return [_model(model, name, seen) for model, name in zip(given, _model_names(given), strict=True)]


def folders(
    given: Mapping[str, Path], pairs: Sequence[PairFiles], seen: Mapping[str, SeenSources], executor: Executor
) -> list[Method]:
    """Look at folders of fused pictures, by the name of their row; InputError where a folder is missing."""
    methods = []
    for name, folder in given.items():
        looked = look_at_folder(folder, pairs, seen, executor)
        paths = {pair: picture.path for pair, picture in looked.pictures.items()}
        hashes = {pair: picture.sha256 for pair, picture in looked.pictures.items()}
        methods.append(
            Method(
                name,
                Kind.FOLDER,
                picture=partial(_of_pair, paths),
                key=hashes.__getitem__,
                origin=str(folder),
                stretched=looked.stretched,
                findings=looked.findings,
            )
        )
    return methods


def trivial() -> list[Method]:
    """What copying a source, averaging or taking the maximum gives."""
    return [_trivial(rule) for rule in Rule]


def row_names(models: Sequence[str | Path], folders: Iterable[str]) -> list[str]:
    """What the rows of an evaluation will be called."""
    return [*_model_names(models), *folders, *(rule.value for rule in Rule)]


def check_names(rows: Sequence[Method | str], reference: str | None) -> None:
    """Raise InputError where two rows have one name, or no row is the reference."""
    names = [row if isinstance(row, str) else row.name for row in rows]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(
            f"two rows are called {twice[0]!r}",
            rule="every row of a table has its own name",
            remedy="give each model once, and folders other names than models and trivial rows have",
        )
    if reference is not None and reference not in names:
        raise InputError(
            f"no row is called {reference!r}", rule="--reference names one row", remedy=f"rows are: {', '.join(names)}"
        )


def _trivial(rule: Rule) -> Method:
    return Method(rule.value, Kind.TRIVIAL, picture=lambda _: rule, key=lambda _: rule.value)


def _of_pair(paths: Mapping[str, Path], sources: SourcePictures) -> Path:
    return paths[sources.files.name]


def _model(model: str | Path, name: str, seen: Mapping[str, SeenSources]) -> Method:
    fuser = open_fuser(model)
    digest = model_sha256(model)
    backend = f"{fuser.backend} {import_module(fuser.backend).__version__}"
    key = hashlib.sha256(f"{digest} by duskfuse {__version__}, {backend}".encode()).hexdigest()
    return Method(
        name,
        Kind.MODEL,
        picture=partial(_fused, fuser),
        key=lambda _: key,
        origin=str(model),
        sha256=digest,
        findings=_of_other_size(fuser, seen),
        fuser=fuser,
    )


def _model_names(models: Sequence[str | Path]) -> list[str]:
    """The shortest of stem, file name, folder/name and the whole path that no other model has."""
    paths = [Path(model) for model in models]
    levels = [
        [path.stem if path.suffix.lower() in _MODEL_SUFFIXES else path.name for path in paths],
        [path.name for path in paths],
        ["/".join(path.parts[-2:]) for path in paths],
        [str(path) for path in paths],
    ]
    counts = [Counter(level) for level in levels]
    return [
        next((level[i] for level, count in zip(levels, counts, strict=True) if count[level[i]] == 1), levels[-1][i])
        for i in range(len(paths))
    ]


def model_sha256(model: str | Path) -> str:
    """Hash of a model's file; of an ONNX file with its weights beside it, of all of them."""
    path = WEIGHTS / f"{model}.safetensors" if model in list(ModelName) else Path(model)
    digests = [file_sha256(part) for part in (path, *_weights_beside(path))]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _weights_beside(path: Path) -> list[Path]:
    if path.suffix.lower() != ".onnx":
        return []
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    outside = [tensor for tensor in graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    places = {entry.value for tensor in outside for entry in tensor.external_data if entry.key == "location"}
    return [path.parent / place for place in sorted(places)]


def _of_other_size(fuser: Fuser, seen: Mapping[str, SeenSources]) -> tuple[Finding, ...]:
    """Pairs that a file exported for one size cannot take."""
    if not isinstance(fuser, OnnxFuser) or fuser.size is None:
        return ()
    others = sorted(name for name, sources in seen.items() if sources.size != fuser.size)
    if not others:
        return ()
    said = f"it takes {size_text(fuser.size)}, {others[0]} is {size_text(seen[others[0]].size)}"
    return (Finding(Oddity.OTHER_SIZE, tuple(others), said),)


def fused_luminance(fuser: Fuser, sources: SourcePictures) -> Plane:
    """A model's luminance of a pair, ``[H, W]`` in [0, 1]."""
    weights = np.array([RED, GREEN, BLUE], np.float32)
    if fuser.colour is Colour.RGB:
        return np.asarray(np.clip(fuser.fuse_colours(sources.ir, sources.vis) @ weights, 0, 1), dtype=np.float32)
    return fuser.fuse(sources.ir, sources.vis @ weights)


def _fused(fuser: Fuser, sources: SourcePictures) -> Grey:
    return to_u8(fused_luminance(fuser, sources))
