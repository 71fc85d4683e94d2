"""A base with two adapters, in all their forms."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from exporter.export import export
from exporter.formats.export_request import ExportRequest
from exporter.formats.gguf_lora import LoraRequest, export_lora
from tests.support.tiny import make_adapter, make_base
from tests.support.unmerged import Unmerged

VOCABULARY = 320
CONTEXT = 1024


@dataclass(frozen=True)
class Scored:
    """A base, its adapters, and what transformers and peft say of texts."""

    base: Path
    gguf: Path
    quantized: Path
    adapters: tuple[Path, ...]
    """As GGUFs."""
    merged: Path
    """The base with the first adapter in it, as a GGUF."""
    reference: Unmerged


@pytest.fixture(scope="session")
def scored(toolchain, tmp_path_factory) -> Scored:
    """Treat as read-only."""
    root: Path = tmp_path_factory.mktemp("scored")
    base = make_base(root / "base", max_position_embeddings=CONTEXT)
    folders = tuple(make_adapter(root / name, base, seed=seed) for name, seed in NAMES.items())
    adapters = tuple(
        export_lora(LoraRequest(one, base, root / f"{one.name}.lora.gguf"), toolchain).path
        for one in folders
    )
    gguf, quantized, merged = (root / f"{name}.gguf" for name in ("plain", "small", "merged"))
    export(ExportRequest((), base, ("F32", "Q4_K_M"), (gguf, quantized)), toolchain)
    export(ExportRequest(((folders[0], 1.0),), base, ("F32",), (merged,)), toolchain)
    return Scored(base, gguf, quantized, adapters, merged, Unmerged(base, folders))


NAMES = {"first": 1, "second": 2}
"""The adapters' names, and what their numbers are drawn with."""


def drawn(seed: int, *lengths: int) -> list[list[int]]:
    """Texts of ordinary tokens."""
    source = random.Random(seed)
    return [[source.randrange(10, VOCABULARY) for _ in range(length)] for length in lengths]


def families(seed: int) -> list[list[int]]:
    """Texts that share beginnings, some within each other, some equal, some with nothing."""
    trunk, branch, *ends = drawn(seed, 150, 40, 1, 2, 7, 30)
    texts = [trunk + end for end in ends] + [trunk + branch + end for end in ends]
    texts += [trunk, trunk[:90], trunk + branch, texts[2], *drawn(seed + 1, 1, 2, 5, 200)]
    random.Random(seed).shuffle(texts)
    return texts
