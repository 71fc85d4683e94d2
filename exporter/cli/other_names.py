"""Commands under the names that other programs give them, and hints for those without a twin."""

from __future__ import annotations

ALIASES = {
    "run": "chat", "ask": "chat", "generate": "chat",
    "ls": "list", "models": "list",
    "show": "inspect", "info": "inspect",
    "download": "pull", "get": "pull",
    "ln": "link",
    "remove": "rm", "delete": "rm", "del": "rm",
    "server": "serve", "start": "serve",
    "evaluate": "eval",
    "tokenize": "tokens",
    "build": "setup",
    "update": "update-check", "upgrade": "update-check",
    "completions": "completion",
}  # fmt: skip
"""Another name -> the command that it runs; not in the list of commands."""

WITH_ADAPTER = (
    "`decant export ADAPTER` merges, converts and quantizes in one pass; `-q Q8_0` chooses the"
    " quantization, `--to safetensors` keeps the merged checkpoint"
)
WITHOUT_TWIN = {
    "ps": "a running `decant serve` shows its models and engines at GET /stats; `decant list`"
    " shows the exported models",
    "stop": "nothing stays loaded behind decant: Ctrl-C ends `decant chat` and `decant serve`",
    "load": "`decant serve` loads a model when a request names it; `decant chat MODEL` asks it",
    "create": "`decant link MODEL --to ollama` gives an exported model to Ollama; `decant export"
    " ADAPTER --to ollama` writes the GGUF with its Modelfile",
    "cp": "an exported model is a file: `decant list --json` shows its path; `decant link` gives"
    " it to Ollama or LM Studio without a copy",
    "mv": "an exported model is a file: `decant list --json` shows its path",
    "convert": WITH_ADAPTER,
    "merge": WITH_ADAPTER,
    "fuse": WITH_ADAPTER,
    "quantize": "`decant export FOLDER -q Q4_K_M` quantizes while it converts; a finished GGUF is"
    " quantized again with `decant export - --base FILE.gguf -q Q4_K_M`",
    "imatrix": "`decant export ADAPTER --calibrate TEXT` measures the importance of weights first",
    "split": "`decant export ADAPTER --split-max-size 2GB` writes several files",
    "login": "decant uses the hub's own token: the variable HF_TOKEN, or the file that its own"
    " program saves",
    "train": "decant does not train: `decant demo` shows what a trained adapter becomes",
    "perplexity": "`decant eval MODEL --data TEXT` measures it, with an interval",
    "bench": "`decant chat MODEL --stats` shows the speed of each answer; `decant eval` measures"
    " how good the answers are",
    "embed": "`decant serve MODEL` answers at /v1/embeddings",
    "claude": "`decant launch TOOL MODEL` starts a coding tool: `decant launch` lists them",
    "daemon": "`decant serve` serves until Ctrl-C",
    "version": "`decant --version` shows it",
    "help": "`decant --help` lists them, and `--help` after a command explains it",
}
"""Another program's command -> the way to do it with decant."""
SAME = {
    "unload": "stop", "kill": "stop", "copy": "cp",
    "signin": "login", "auth": "login", "whoami": "login", "logout": "login", "lora": "train",
    "codex": "claude", "opencode": "claude", "aider": "claude", "vscode": "claude",
    "code": "claude",
    "finetune": "train", "rename": "mv", "embedding": "embed",
    "benchmark": "bench", "convert_hf_to_gguf": "convert", "convert-lora-to-gguf": "convert",
    "export-lora": "convert",
    "llama-quantize": "quantize", "gguf-split": "split", "quant": "quantize",
}  # fmt: skip
"""More names -> the entry above that answers them."""


def advice_for(name: str) -> str | None:
    """The way to do with decant what another program's command does; None for other names."""
    return WITHOUT_TWIN.get(SAME.get(name, name))


def others_of(command: str) -> list[str]:
    """The other names of a command."""
    return [name for name, target in ALIASES.items() if target == command]
