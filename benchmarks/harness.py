"""Labels by `decant eval` on a Q4_K_M, against lm-evaluation-harness's `hf` model of that shape.

    .venv/bin/python benchmarks/harness.py [--items N] [--threads N]

Both have random weights: what they find differs, and how long it takes does not depend on it. They
read the same tokens. The harness is run with float32 and bfloat16, and the faster of them counts.
Where `lm_eval` is not installed, pip puts it into a folder of the user's cache. benchmarks/evaluate
has these figures, too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

from exporter.core.machine import physical_cores  # noqa: E402
from exporter.llamacpp.toolchain import Toolchain, cache_folder, find_toolchain  # noqa: E402
from tests.support.random_gguf import ENDS, LLAMA_1_5B, Shape, tokens_of, write_random  # noqa: E402

DTYPES = ("float32", "bfloat16")
BATCH = 8  # the labels of an item
PROMPT = "user: {{text}}\nassistant: "  # as random_gguf's template has it
TASK = "labels"
RUN = """
import json, sys, time
import torch
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

folder, dtype, batch, threads, task, tasks = sys.argv[1:]
torch.set_num_threads(int(threads))
model = HFLM(pretrained=folder, dtype=dtype, device="cpu", batch_size=int(batch))
began = time.monotonic()
found = simple_evaluate(
    model, tasks=[task], task_manager=TaskManager(include_path=tasks), bootstrap_iters=0
)
took_s = time.monotonic() - began
print(json.dumps({"seconds": took_s, "items": found["n-samples"][task]["effective"]}))
"""


def main() -> None:
    """Measure and print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--items", type=int, default=8)
    parser.add_argument("--threads", type=int, default=physical_cores(), help="of both")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = against_harness(Path(folder), asked.items, asked.threads, find_toolchain())
        print(json.dumps(found, indent=2))


def against_harness(
    root: Path, count: int, threads: int, toolchain: Toolchain
) -> dict[str, object]:
    """The seconds of both for the same items, without loading the harness's model."""
    from benchmarks.evaluate import evaluated, label_rows

    gguf, folder = root / "whole-Q4_K_M.gguf", root / "whole"
    write_random(gguf, LLAMA_1_5B, toolchain.source / "gguf-py")
    write_hf(folder, LLAMA_1_5B)
    data = root / "few.jsonl"
    rows = label_rows(count)
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    write_task(root / "tasks", data, sorted({row["label"] for row in rows}))
    seconds = {dtype: harness_s(folder, dtype, threads, root / "tasks") for dtype in DTYPES}
    _, _, found = evaluated(root, [gguf, "--data", data, "--threads", threads])
    ours_s = found["models"][0]["seconds"]  # type: ignore[index]
    best = min(seconds, key=lambda dtype: seconds[dtype])
    return {
        "model": "Llama 3.2 1B's shape", "items": len(rows), "decant_eval_s": round(ours_s, 2),
        **{f"hf_{dtype}_s": round(one, 2) for dtype, one in seconds.items()},
        "faster": best, "ratio": round(seconds[best] / ours_s, 2),
    }  # fmt: skip


def write_hf(folder: Path, shape: Shape) -> None:
    """A checkpoint of the shape in bfloat16, its weights random, with the same vocabulary."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    config = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.width, intermediate_size=shape.inner,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads, max_position_embeddings=4096,
        tie_word_embeddings=False, dtype="bfloat16",
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model = model.to_empty(device="cpu")
    drawn = torch.randn(1 << 20, generator=torch.Generator().manual_seed(7)) * 0.02
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(1) if weight.ndim == 1 else fill(weight, drawn)
    model.save_pretrained(folder)
    tokens = tokens_of(shape)
    cut = Tokenizer(models.BPE({one: n for n, one in enumerate(tokens)}, [("Ġ", "t")]))
    cut.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    cut.decoder = decoders.ByteLevel()
    begin, end = ENDS
    PreTrainedTokenizerFast(
        tokenizer_object=cut, bos_token=begin, eos_token=end, pad_token=end
    ).save_pretrained(folder)


def fill(weight: Any, drawn: Any) -> None:
    """Repeat what was drawn, as drawing billions of numbers takes long."""
    flat = weight.view(-1)
    for start in range(0, len(flat), len(drawn)):
        part = flat[start : start + len(drawn)]
        part.copy_(drawn[: len(part)])


def write_task(folder: Path, data: Path, labels: list[str]) -> None:
    """The harness's task: the label that is likeliest after the prompt."""
    folder.mkdir()
    task = {
        "task": TASK, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": PROMPT,
        "doc_to_choice": labels, "doc_to_target": "label", "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    # JSON is YAML, too
    (folder / f"{TASK}.yaml").write_text(json.dumps(task), encoding="utf-8")


def harness_s(folder: Path, dtype: str, threads: int, tasks: Path) -> float:
    """How long the harness takes for the task, its model loaded."""
    argv = [
        sys.executable, "-c", RUN, str(folder), dtype, str(BATCH), str(threads), TASK,
        str(tasks),
    ]  # fmt: skip
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tasks / "cache")}
    done = subprocess.run(argv, env=env | installed(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"lm_eval ended with {done.returncode}: {done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return float(found["seconds"])


def installed() -> dict[str, str]:
    """The environment in which `lm_eval` is found; installs it where it is missing."""
    if find_spec("lm_eval") is not None:
        return {}
    folder = cache_folder() / "lm-eval"
    if not (folder / "lm_eval").is_dir():
        constraints = CHECKOUT / "constraints.txt"
        argv = [sys.executable, "-m", "pip", "install", "-q", "--target", str(folder)]
        subprocess.run([*argv, "-c", str(constraints), "lm_eval[api]>=0.4.9"], check=True)
    return {"PYTHONPATH": str(folder)}


if __name__ == "__main__":
    main()
