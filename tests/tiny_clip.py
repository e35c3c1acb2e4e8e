"""A tiny text encoder of CLIP for tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch


def tiny_clip(folder: Path) -> Path:
    """A real CLIP text encoder of random weights, whose tokens are letters."""
    transformers = pytest.importorskip("transformers")
    letters = [*"abcdefghijklmnopqrstuvwxyz,", *(f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz,")]
    tokens = {token: number for number, token in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(tokens))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=20,
        projection_dim=24,
        bos_token_id=len(tokens) - 2,
        eos_token_id=len(tokens) - 1,
    )
    transformers.CLIPTextModelWithProjection(config).save_pretrained(folder)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
