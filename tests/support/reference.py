"""The usual way to export, as reference: PEFT's merge, llama.cpp's converter, llama-quantize."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

from exporter.llamacpp.toolchain import Toolchain
from tests.support.oracle_cache import recall
from tests.support.warm import run_warm

# Names, dates and provenance: the only keys that may differ.
MAY_DIFFER = ("general.name", "general.basename", "general.finetune", "general.version",
              # llama.cpp puts a space after every special token of a chat, transformers does not
              "tokenizer.ggml.add_space_prefix")  # fmt: skip


def merge_with_peft(base: Path, adapter: Path, folder: Path) -> Path:
    """Merge with merge_and_unload and save_pretrained; the base's tokenizer is copied."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    merged.save_pretrained(folder)
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json"):
        if (base / name).exists():
            (folder / name).write_bytes((base / name).read_bytes())
    return folder


def convert_with_llamacpp(
    toolchain: Toolchain, model: Path, output: Path, *options: str, outtype: str = "auto"
) -> Path:
    """Run llama.cpp's converter; its output for the same folder is kept from run to run."""
    script = toolchain.source / "convert_hf_to_gguf.py"
    argv = [script, model, "--outfile", output, "--outtype", outtype, *options]
    if "--split-max-size" in options:  # writes several files
        run_warm(argv).check_returncode()
        return output

    def make() -> None:
        run_warm(argv).check_returncode()

    return recall(output, make, toolchain, model, "convert", outtype, *options)


def quantize_with_llamacpp(
    toolchain: Toolchain, source: Path, output: Path, quant: str, *options: str
) -> Path:
    """Run llama-quantize; its output for the same file is kept from run to run.

    Making the tables of an IQ type takes up to ten seconds. So for these types it runs in a fork of
    this process, which has the tables if it has quantized to the type before.
    """
    argv = [str(toolchain.tool("llama-quantize")), *options, str(source), str(output), quant]
    is_slow = quant.startswith("IQ") and sys.platform == "linux"

    def make() -> None:
        if not is_slow or forked(toolchain, argv) != 0:  # a fork may lack threads that it needs
            subprocess.run(argv, check=True, capture_output=True)

    if any(Path(option).exists() for option in options):  # its path becomes metadata
        make()
        return output
    return recall(output, make, toolchain, source, "quantize", quant, *options)


def forked(toolchain: Toolchain, argv: list[str]) -> int:
    """Call the tool's main function in a fork of this process; returns the exit code."""
    given = (ctypes.c_char_p * (len(argv) + 1))(*map(os.fsencode, argv), None)
    run = ctypes.CDLL(str(toolchain.library("llama-quantize-impl")))._Z14llama_quantizeiPPc
    with tempfile.TemporaryFile() as said, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads: the child needs none of them
        if not (pid := os.fork()):
            for number in (1, 2):
                os.dup2(said.fileno(), number)
            os._exit(run(len(argv), given))
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def export_the_usual_way(
    toolchain: Toolchain, base: Path, adapter: Path, quant: str, folder: Path
) -> Path:
    """Export with the three tools, one after the other; returns the GGUF."""
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


@cache
def plain_reader() -> Any:
    """llama.cpp's reader over a plain array; of a memory map, slices take three times as long."""
    import gguf
    import numpy as np

    class Reader(gguf.GGUFReader):  # type: ignore[misc]  # gguf ships no types
        @property
        def data(self) -> Any:
            return self.plain

        @data.setter
        def data(self, mapped: Any) -> None:
            self.plain = mapped.view(np.ndarray)

    return Reader


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, tuple[str, tuple[int, ...], bytes]]]:
    """Metadata and tensors (type, shape, bytes), by llama.cpp's own Python reader."""
    reader = plain_reader()(path)
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
