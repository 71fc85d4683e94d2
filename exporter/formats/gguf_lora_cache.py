"""GGUF adapters that are made once and cached, for chat and serve.

  python -m exporter.formats.gguf_lora_cache ADAPTER BASE CACHE

converts one in a child process, for a caller that must not load torch, and prints JSON.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from exporter.core.atomic_file import atomic_write, sha256_file
from exporter.core.errors import DecantError, ModelError
from exporter.core.events import Report, Step, silent
from exporter.core.file_lock import one_at_a_time
from exporter.core.gguf import read_gguf
from exporter.core.version import own_version
from exporter.formats.adapter_prompts import prompts_identity
from exporter.inputs.adapter import open_adapter
from exporter.inputs.adapter_kinds import refuse_for_adapter_file
from exporter.inputs.open_checkpoint import open_checkpoint
from exporter.llamacpp.toolchain import find_toolchain

FORMAT = "3"  # version of the written files; older ones are made again


@dataclass(frozen=True, slots=True)
class CachedAdapter:
    """The place of a converted adapter in the cache, whether it exists or not."""

    adapter: Path
    base: Path
    path: Path

    @property
    def digest(self) -> Path:
        return self.path.with_suffix(".sha256")

    @property
    def is_whole(self) -> bool:
        """Whether it exists, byte for byte as it was written."""
        try:
            read_gguf(self.path)
            return self.digest.read_text() == sha256_file(self.path)
        except (ModelError, OSError, UnicodeDecodeError):
            return False


def kept_adapter(
    folder: Path, base: Path, cache: Path, *, report: Report = silent
) -> CachedAdapter:
    """The place in `cache` for an adapter over a base; found without loading torch.

    It changes with the adapter, its tokenizer or template, the base's config, decant and llama.cpp.
    Raises AdapterError and CheckpointError for unusable folders.
    """
    adapter = open_adapter(folder, refuse=refuse_for_adapter_file, report=report)
    parts = (
        FORMAT,
        adapter.sha256(),
        prompts_identity(adapter),
        sha256_file(open_checkpoint(base).folder / "config.json"),
        own_version(),
        str(find_toolchain().folder.name),
    )
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
    return CachedAdapter(adapter.place, base, cache / f"{key}.gguf")


def adapter_gguf(folder: Path, base: Path, *, cache: Path, report: Report = silent) -> Path:
    """The adapter as a GGUF, made once and cached. Raises the errors of `export_lora`."""
    from exporter.formats.gguf_lora import LoraRequest, export_lora

    kept = kept_adapter(folder, base, cache, report=report)
    if kept.is_whole:
        return kept.path
    wait = Step(f"another process converts `{folder}`: waiting")
    with one_at_a_time(kept.path.with_suffix(".lock"), lambda: report(wait)):
        if not kept.is_whole:
            request = LoraRequest(kept.adapter, base, kept.path, force=True)
            made = export_lora(request, find_toolchain(), report=report)
            with atomic_write(kept.digest, force=True) as file:
                file.write(sha256_file(made.path).encode())
    return kept.path


def main(argv: list[str]) -> int:
    """Convert, and print the path, or the error with its hint, as JSON."""
    folder, base, cache = map(Path, argv)
    answer: dict[str, str | None] = {}
    code = 0
    try:
        answer["path"] = str(adapter_gguf(folder, base, cache=cache))
    except DecantError as error:
        answer = {"error": error.message, "hint": error.hint, "kind": type(error).__name__}
        code = error.exit_code
    print(json.dumps(answer))  # noqa: T201 - the caller reads it
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
