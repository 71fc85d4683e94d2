"""Tests whether llama.cpp loads a file and computes a few tokens, in a child process."""

from __future__ import annotations

from exporter.core.errors import DecantError, EngineError
from exporter.core.gguf import GGUFFile
from exporter.core.machine import available_nbytes
from exporter.core.paths import size_text
from exporter.verify.logits_engine import LogitsEngine
from exporter.verify.verification import Check

NAME = "loading"
ROOM = 256 << 20  # bytes for a small context, the logits and llama.cpp itself
HINT = (
    "llama.cpp cannot run this model: `--to safetensors` writes it for transformers,"
    " and `--no-verify` keeps the GGUF anyway"
)

TOO_LARGE = (
    "F16 ends at 65,504, which the weights or what is computed of them may pass: `-q BF16` and"
    " `-q Q8_0` have room for more"
)


def shortage(file: GGUFFile) -> str:
    """The reason not to load a file: its weights do not fit in memory. Empty if they do.

    llama.cpp maps the weights: without enough memory it reads them from disk again and again.
    """
    needed, free = file.nbytes + ROOM, available_nbytes()
    if needed <= free:
        return ""
    return f"it needs {size_text(needed)} of memory, and {size_text(free)} are free"


def unloadable(error: DecantError) -> Check:
    """The check of a file that llama.cpp does not load."""
    return Check(NAME, (error.message,), "llama.cpp does not load it", hint=HINT)


def not_loaded(why: str) -> Check:
    return Check(
        NAME, (), "not loaded whole", judged=False,
        notes=(f"whether llama.cpp can run it cannot be judged here: {why}",),
    )  # fmt: skip


def check_loading(engine: LogitsEngine, file: GGUFFile) -> Check:
    """Compute a few tokens with a loaded model."""
    try:
        found = engine.ask("probe", embeds=gives_embeddings(file))
    except EngineError as error:
        return Check(NAME, (error.message,), "llama.cpp cannot compute with it", hint=HINT)
    what = f"llama.cpp loads it and computes {found['tokens']} tokens"
    if not found["finite"]:
        problem = f"{what}, but what comes out is not finite"
        halves = any(info.type.name == "F16" for info in file.tensors)
        return Check(NAME, (problem,), what, hint=TOO_LARGE if halves else HINT)
    return Check(NAME, (), what, numbers={"tokens": found["tokens"]})


def gives_embeddings(file: GGUFFile) -> bool:
    """Whether a model's output is an embedding or a ranking instead of logits."""
    kind = file.architecture
    return (
        f"{kind}.pooling_type" in file.metadata
        or file.metadata.get(f"{kind}.attention.causal") is False
        or kind.endswith("encoder")
    )
