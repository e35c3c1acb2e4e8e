"""Frozen encoders of captions: CLIP from a local folder, and hashed n-grams that need no file."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from duskfuse.data.atomic import write_atomically
from duskfuse.data.errors import InputError
from duskfuse.data.images import file_sha256
from duskfuse.tasks.slgnet.captions import Captions

_BUCKETS, _ROW_STEP = 2048, 1103
_SHORTEST, _LONGEST = 3, 5
"""Characters of the n-grams of each word, its ends included."""


class TextEncoder(Protocol):
    """Turns texts into vectors of unit length, always the same for the same text."""

    @property
    def width(self) -> int:
        """Numbers per text."""
        ...

    @property
    def identity(self) -> str:
        """Tells encoders apart whose vectors differ."""
        ...

    def encode(self, texts: Sequence[str]) -> Tensor:
        """``[N, width]`` float32, unit length, without a graph."""
        ...


def text_features(encoder: TextEncoder, said: Sequence[Captions]) -> Tensor:
    """What the network takes, ``[B, 4, width]``: a vector for each caption, zeros for an empty one."""
    features = torch.zeros(len(said), len(Captions().texts), encoder.width)
    places = [(pair, part) for pair, captions in enumerate(said) for part, text in enumerate(captions.texts) if text]
    if places:
        rows, parts = (torch.tensor(numbers) for numbers in zip(*places, strict=True))
        features[rows, parts] = encoder.encode([said[pair].texts[part] for pair, part in places])
    return features


class HashingEncoder:
    """Words and their n-grams, hashed into signed buckets and projected: equal words are near, meaning is unknown.

    The projection has orthonormal rows of a Hadamard matrix, so that the vectors are the same on every machine.
    """

    width = 512
    identity = "hashing-1"

    def __init__(self) -> None:
        hadamard = torch.ones(1, 1)
        while len(hadamard) < _BUCKETS:
            hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
        rows = torch.arange(self.width) * _ROW_STEP % _BUCKETS  # spread, so that no two columns are equal
        self.projection = hadamard[rows] / _BUCKETS**0.5

    def encode(self, texts: Sequence[str]) -> Tensor:
        """See `TextEncoder.encode`."""
        counts = torch.zeros(len(texts), _BUCKETS)
        for row, text in enumerate(texts):
            for piece, count in Counter(_pieces(text)).items():
                hashed = int.from_bytes(hashlib.blake2b(piece.encode(), digest_size=8).digest(), "little")
                counts[row, hashed % _BUCKETS] += count if hashed >> 63 else -count
        return F.normalize(counts @ self.projection.T, dim=1)


def _pieces(text: str) -> list[str]:
    pieces = []
    for word in re.findall(r"\w+", text.casefold()):
        ended = f"<{word}>"
        pieces.append(ended)
        for length in range(_SHORTEST, min(_LONGEST, len(ended) - 1) + 1):
            pieces += [ended[start : start + length] for start in range(len(ended) - length + 1)]
    return pieces


class ClipEncoder:
    """CLIP's text encoder (Radford et al. 2021) through transformers, from a folder that ``save_pretrained`` wrote.

    Nothing is downloaded. Texts that are longer than the model takes are cut, and counted in `cut`.

    Raises:
        InputError: transformers is not installed, or the folder holds no such model.
    """

    def __init__(self, folder: Path) -> None:
        rule, remedy = "the folder holds a CLIP model and its tokenizer", "save both there with save_pretrained"
        if not (folder / "config.json").is_file():
            raise InputError(f"{folder}: no config.json", rule=rule, remedy=remedy)
        try:
            from transformers import AutoTokenizer, CLIPTextModelWithProjection
        except ImportError:
            raise InputError(
                "transformers is not installed", remedy="pip install 'duskfuse[transformers]', or the hashing encoder"
            ) from None
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            network = CLIPTextModelWithProjection.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{folder}: {str(error).splitlines()[0]}", rule=rule, remedy=remedy) from None
        self._network = network.eval().requires_grad_(False)
        self._longest = int(network.config.max_position_embeddings)
        self.width = int(network.config.projection_dim)
        hashes = sorted(f"{path.name}:{file_sha256(path)}" for path in folder.iterdir() if path.is_file())
        self.identity = f"clip-{hashlib.sha256(' '.join(hashes).encode()).hexdigest()[:16]}"
        self.cut = 0

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """See `TextEncoder.encode`."""
        whole = self._tokenizer(list(texts)).input_ids
        self.cut += sum(len(tokens) > self._longest for tokens in whole)
        tokens = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=self._longest, return_tensors="pt"
        )
        vectors = self._network(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).text_embeds
        return F.normalize(vectors.float(), dim=1)


class CachedEncoder:
    """An encoder that remembers, in memory and in a folder; damaged files are made again.

    Args:
        encoder: what is asked for texts that were never seen.
        folder: one file per text and encoder; None for memory alone.
    """

    def __init__(self, encoder: TextEncoder, folder: Path | None = None) -> None:
        self._encoder, self._folder = encoder, folder
        self._known: dict[str, Tensor] = {}
        self.width, self.identity = encoder.width, encoder.identity

    def encode(self, texts: Sequence[str]) -> Tensor:
        """See `TextEncoder.encode`; only new texts are encoded, each once."""
        for text in dict.fromkeys(texts):
            if text not in self._known and (kept := self._read(text)) is not None:
                self._known[text] = kept
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            for text, vector in zip(new, self._encoder.encode(new), strict=True):
                self._known[text] = vector.clone()
                if self._folder is not None:
                    write_atomically(self._path(self._folder, text), save({"text": self._known[text]}))
        return torch.stack([self._known[text] for text in texts])

    def _path(self, folder: Path, text: str) -> Path:
        return folder / self.identity / f"{hashlib.sha256(text.encode()).hexdigest()}.safetensors"

    def _read(self, text: str) -> Tensor | None:
        if self._folder is None:
            return None
        try:
            vector = load(self._path(self._folder, text).read_bytes())["text"]
        except (OSError, SafetensorError, KeyError):
            return None
        return vector if vector.shape == (self.width,) and bool(vector.isfinite().all()) else None
