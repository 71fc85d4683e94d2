"""Stores as Ollama, LM Studio and huggingface_hub lay them out, filled with small GGUFs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from exporter.stores.ollama_manifest import CONFIG, KIND, MANIFEST
from tests.support.upload_stage import write_gguf

COMMIT = "1" * 40
LIBRARY = "registry.ollama.ai/library"
Q8_0 = 7  # general.file_type, as llama.h numbers it
MODEL = {"general.architecture": "llama", "general.file_type": Q8_0}
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def gguf(folder: Path, name: str = "model", **keys: object) -> bytes:
    """A small GGUF whose values depend on `name`; keys: further metadata, `_` for a dot."""
    more = {key.replace("_", ".", 1): value for key, value in keys.items()}
    path = write_gguf(folder / f"{name}.made", MODEL | more)
    content = path.read_bytes()
    path.unlink()
    return content


class OllamaStore:
    """Ollama's folder of models."""

    def __init__(self, home: Path) -> None:
        self.home, self.blobs = home, home / "blobs"
        self.blobs.mkdir(parents=True, exist_ok=True)

    def blob(self, content: bytes) -> str:
        """Store a blob; gives its digest."""
        sha256 = hashlib.sha256(content).hexdigest()
        self.place(f"sha256:{sha256}").write_bytes(content)
        return f"sha256:{sha256}"

    def place(self, digest: str) -> Path:
        return self.blobs / digest.replace(":", "-")

    def layer(self, kind: str, content: bytes) -> dict[str, Any]:
        media = kind if "/" in kind else KIND + kind
        return {"mediaType": media, "digest": self.blob(content), "size": len(content)}

    def manifest(self, layers: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
        config = self.layer(CONFIG, b'{"model_format":"gguf"}')
        whole = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}
        return whole | changes

    def name(self, place: str, manifest: object, root: str = "manifests") -> Path:
        """Give a manifest a name: HOST/USER/MODEL/TAG."""
        path = self.home / root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(manifest if isinstance(manifest, str) else json.dumps(manifest))
        return path

    def add(self, model: str, tag: str = "latest", **others: bytes) -> Path:
        """A model of the library, with layers of other kinds; gives the GGUF's blob."""
        layers = [self.layer("model", gguf(self.home, f"{model}-{tag}"))]
        layers += [self.layer(kind, content) for kind, content in others.items()]
        self.name(f"{LIBRARY}/{model}/{tag}", self.manifest(layers))
        return self.place(layers[0]["digest"])


def add_to_hub(cache: Path, repo: str, files: dict[str, bytes]) -> Path:
    """A repo in the hub's cache: blobs, and a snapshot of links to them; gives the snapshot."""
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
    paths = [folder / name for name in names]
    for path in paths:
        write_gguf(path, MODEL)
    return paths


def contents(folder: Path) -> dict[str, object]:
    """Every file below a folder with its content, and every link with its target."""
    return {
        path.relative_to(folder).as_posix(): path.readlink()
        if path.is_symlink()
        else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if not path.is_dir()
    }
