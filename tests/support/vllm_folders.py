"""Folders for vLLM, as `--to vllm` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exporter.formats.vllm import NamedAdapter, VllmRequest, export_for_vllm


def request(output: Path, *folders: Path, **more: Any) -> VllmRequest:
    adapters = tuple(NamedAdapter(folder.name, folder) for folder in folders)
    return VllmRequest(adapters, output, **more)


def exported(output: Path, *folders: Path, **more: Any) -> Path:
    return export_for_vllm(request(output, *folders, **more)).path
