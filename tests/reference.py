"""The usual road, run for real: PEFT's merge, llama.cpp's converter, llama-quantize."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from exporter.toolchain import Toolchain


def merge_with_peft(base: Path, adapter: Path, folder: Path) -> Path:
    """merge_and_unload + save_pretrained, with the base's tokenizer beside it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    merged.save_pretrained(folder)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (folder / name).write_bytes((base / name).read_bytes())
    return folder


def convert_with_llamacpp(
    toolchain: Toolchain, model: Path, output: Path, *options: str, outtype: str = "auto"
) -> Path:
    script = toolchain.source / "convert_hf_to_gguf.py"
    argv = [sys.executable, str(script), str(model), "--outfile", str(output), "--outtype", outtype]
    argv += options
    subprocess.run(argv, check=True, capture_output=True, env=os.environ)
    return output


def quantize_with_llamacpp(
    toolchain: Toolchain, source: Path, output: Path, quant: str, *options: str
) -> Path:
    argv = [str(toolchain.tool("llama-quantize")), *options, str(source), str(output), quant]
    subprocess.run(argv, check=True, capture_output=True)
    return output


def export_the_usual_way(
    toolchain: Toolchain, base: Path, adapter: Path, quant: str, folder: Path
) -> Path:
    """The GGUF that the three tools make one after the other."""
    merged = folder / "merged"
    if not merged.exists():
        merge_with_peft(base, adapter, merged)
    output = folder / f"{quant}.gguf"
    if quant in ("F16", "BF16", "F32"):
        return convert_with_llamacpp(toolchain, merged, output, outtype=quant.lower())
    whole = folder / "auto.gguf"
    if not whole.exists():
        convert_with_llamacpp(toolchain, merged, whole)
    return quantize_with_llamacpp(toolchain, whole, output, quant)


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, tuple[str, tuple[int, ...], bytes]]]:
    """Metadata and tensors (type, shape, bytes) as llama.cpp's own Python reader sees them."""
    import gguf

    reader = gguf.GGUFReader(path)
    metadata = {
        key: (field.types, field.contents())
        for key, field in reader.fields.items()
        if not key.startswith("GGUF.")
    }
    tensors = {
        tensor.name: (tensor.tensor_type.name, tuple(map(int, tensor.shape)), tensor.data.tobytes())
        for tensor in reader.tensors
    }
    return metadata, tensors
