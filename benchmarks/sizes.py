"""The size of a GGUF by quantization, for the shapes of Llama 3: what `--dry-run` says.

    .venv/bin/python benchmarks/sizes.py [--write]

The models are headers alone, over files without content; no weight is read.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

from benchmarks.marked_part import write_part  # noqa: E402
from tests.support.tiny import make_tokenizer  # noqa: E402

PAGE = CHECKOUT / "docs" / "which-quant.md"
MARKS = ("<!-- sizes: written by benchmarks/sizes.py --write -->\n", "<!-- end of sizes -->\n")
QUANTS = ("BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "Q2_K")
VOCABULARY = 128_256  # tokens of Llama 3
KEYS = 8  # attention heads that hold keys
ABOUT = """\
Files of models with the shapes of Llama 3.2 1B and 3B and Llama 3.1 8B, as `--dry-run` gives them.
For another model, multiply its billions of parameters by the bits, and divide by 8."""
SHAPES = {
    "1 B": {"hidden": 2048, "inner": 8192, "layers": 16, "heads": 32, "head": 64, "tied": True},
    "3 B": {"hidden": 3072, "inner": 8192, "layers": 28, "heads": 24, "head": 128, "tied": True},
    "8 B": {"hidden": 4096, "inner": 14336, "layers": 32, "heads": 32, "head": 128, "tied": False},
}
"""Llama 3.2 1B and 3B, Llama 3.1 8B."""


def tensors(shape: dict[str, int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner = shape["hidden"], shape["inner"]
    queries, keys = shape["heads"] * shape["head"], KEYS * shape["head"]
    yield "model.embed_tokens.weight", (VOCABULARY, hidden)
    for number in range(shape["layers"]):
        layer = f"model.layers.{number}"
        yield f"{layer}.input_layernorm.weight", (hidden,)
        yield f"{layer}.post_attention_layernorm.weight", (hidden,)
        yield f"{layer}.self_attn.q_proj.weight", (queries, hidden)
        yield f"{layer}.self_attn.k_proj.weight", (keys, hidden)
        yield f"{layer}.self_attn.v_proj.weight", (keys, hidden)
        yield f"{layer}.self_attn.o_proj.weight", (hidden, queries)
        yield f"{layer}.mlp.gate_proj.weight", (inner, hidden)
        yield f"{layer}.mlp.up_proj.weight", (inner, hidden)
        yield f"{layer}.mlp.down_proj.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)
    if not shape["tied"]:
        yield "lm_head.weight", (VOCABULARY, hidden)


def make_headers(folder: Path, shape: dict[str, int]) -> Path:
    """A checkpoint in bf16 whose weights are a hole in the file."""
    folder.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16",
        "hidden_size": shape["hidden"], "intermediate_size": shape["inner"],
        "num_hidden_layers": shape["layers"], "num_attention_heads": shape["heads"],
        "num_key_value_heads": KEYS, "head_dim": shape["head"], "vocab_size": VOCABULARY,
        "tie_word_embeddings": bool(shape["tied"]), "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    header, at = {}, 0
    for name, size in tensors(shape):
        end = at + 2 * math.prod(size)
        header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    make_tokenizer(folder)
    return folder


def sizes(folder: Path) -> dict[str, int]:
    """The bytes of the file of each quantization."""
    words = [word for quant in QUANTS for word in ("-q", quant)]
    argv = [sys.executable, "-m", "exporter", "export", "-", "--base", str(folder), "--dry-run"]
    done = subprocess.run(
        [*argv, "--json", *words, "-o", str(folder / "out")],
        cwd=CHECKOUT, env=os.environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr)
    return {file["quant"]: file["nbytes"] for file in json.loads(done.stdout)["files"]}


def table(found: dict[str, dict[str, int]]) -> str:
    weights = {name: sum(math.prod(s) for _, s in tensors(SHAPES[name])) for name in found}
    lines = [
        f"| type | bits per weight, 8 B | {' | '.join(found)} |",
        "|---" * (len(found) + 2) + "|",
    ]
    for quant in QUANTS:
        bits = 8 * found["8 B"][quant] / weights["8 B"]
        cells = " | ".join(f"{found[name][quant] / 1e9:.1f} GB" for name in found)
        lines.append(f"| `{quant}` | {bits:.1f} | {cells} |")
    return "\n".join((*lines, "", ABOUT, ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--write", action="store_true", help="put the table into docs/which-quant.md"
    )
    write = parser.parse_args().write
    with tempfile.TemporaryDirectory() as place:
        folders = {
            name: make_headers(Path(place) / name.replace(" ", ""), SHAPES[name]) for name in SHAPES
        }
        shown = table({name: sizes(folder) for name, folder in folders.items()})
    print(shown)
    if write:
        write_part(PAGE, MARKS, shown)


if __name__ == "__main__":
    main()
