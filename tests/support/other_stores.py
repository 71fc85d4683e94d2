"""Stores as Ollama, LM Studio and huggingface_hub lay them out, filled with tiny models."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from exporter.stores.ollama_manifest import CONFIG, KIND, MANIFEST
from tests.support.raw import write_tiny_gguf

COMMIT = "1" * 40


class OllamaStore:
    """Ollama's folder of models."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.blobs = home / "blobs"
        self.blobs.mkdir(parents=True, exist_ok=True)

    def blob(self, content: bytes) -> str:
        """Store a blob; gives its digest."""
        sha256 = hashlib.sha256(content).hexdigest()
        (self.blobs / f"sha256-{sha256}").write_bytes(content)
        return f"sha256:{sha256}"

    def layer(self, kind: str, content: bytes) -> dict[str, Any]:
        media = kind if "/" in kind else KIND + kind
        return {"mediaType": media, "digest": self.blob(content), "size": len(content)}

    def manifest(self, layers: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
        config = self.layer(CONFIG, b'{"model_format":"gguf"}')
        whole = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}
        return whole | changes

    def name(self, place: str, manifest: dict[str, Any], root: str = "manifests") -> Path:
        """Give a manifest a name: HOST/USER/MODEL/TAG."""
        path = self.home / root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(manifest))
        return path

    def add(self, model: str, tag: str = "latest", **others: bytes) -> Path:
        """A tiny model of the library; others: its further layers by kind. Gives the GGUF's blob.

        """
        layers = [self.layer("model", tiny_model(self.home.parent))]
        layers += [self.layer(kind, content) for kind, content in others.items()]
        self.name(f"registry.ollama.ai/library/{model}/{tag}", self.manifest(layers))
        return self.blobs / layers[0]["digest"].replace(":", "-")


def tiny_model(folder: Path) -> bytes:
    folder.mkdir(parents=True, exist_ok=True)
    path = write_tiny_gguf(folder / "tiny-made.gguf")
    content = path.read_bytes()
    path.unlink()
    return content


def add_to_hub(cache: Path, repo: str, files: dict[str, bytes]) -> Path:
    """A repo in the hub's cache: blobs, and a snapshot of links. Gives the snapshot."""
    root = cache / f"models--{repo.replace('/', '--')}"
    snapshot = root / "snapshots" / COMMIT
    (root / "blobs").mkdir(parents=True, exist_ok=True)
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / "main").write_text(COMMIT)
    for name, content in files.items():
        blob = root / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        path = snapshot / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(blob)
    return snapshot


def add_to_lmstudio(folder: Path, *names: str) -> list[Path]:
    """GGUFs in LM Studio's folder of models, PUBLISHER/MODEL/FILE."""
    content = tiny_model(folder.parent)
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return paths
