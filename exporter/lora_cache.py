"""GGUF adapters that are made once and kept, for those who need one to run and not to have."""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path

from exporter.adapter import open_adapter
from exporter.checkpoint import open_checkpoint
from exporter.core.errors import ModelError
from exporter.core.events import Report, silent
from exporter.core.files import atomic_write, sha256_file
from exporter.core.gguf import read_gguf
from exporter.kinds import refuse_for_adapter_file
from exporter.lora import LoraRequest, export_lora
from exporter.toolchain import find_toolchain


def adapter_gguf(folder: Path, base: Path, *, cache: Path, report: Report = silent) -> Path:
    """The adapter as a GGUF, made once and kept in `cache`.

    It is made anew when the adapter, the base's config, decant or llama.cpp differ, and when
    the kept file is not the one that was written. Raises what `export_lora` does.
    """
    toolchain = find_toolchain()
    adapter = open_adapter(folder, refuse=refuse_for_adapter_file, report=report)
    parts = (
        adapter.sha256(),
        sha256_file(open_checkpoint(base).folder / "config.json"),
        metadata.version("decant-llm"),
        str(toolchain.folder.name),
    )
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
    path = cache / f"{key}.gguf"
    digest = path.with_suffix(".sha256")
    if not is_whole(path, digest):
        made = export_lora(
            LoraRequest(adapter.folder, base, path, force=True), toolchain, report=report
        )
        with atomic_write(digest, force=True) as file:
            file.write(sha256_file(made.path).encode())
    return path


def is_whole(path: Path, digest: Path) -> bool:
    """Whether a kept file is byte for byte the one that was written."""
    try:
        read_gguf(path)
        return digest.read_text() == sha256_file(path)
    except (ModelError, OSError, UnicodeDecodeError):
        return False
