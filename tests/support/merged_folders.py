"""Requests of `--to safetensors`, and the content of the folder that it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exporter.core.atomic_file import sha256_file
from exporter.formats.export_request import ExportRequest

SIZE = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96}


def request(base: Path, *adapters: Path, **more: Any) -> ExportRequest:
    return ExportRequest(tuple((path, 1.0) for path in adapters), base, (), (), **more)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def files(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.iterdir()}
