"""A table of everything that decant changes or relies on in llama.cpp's Python.

After an upgrade of llama.cpp `python -m exporter.convert.upstream_hooks FOLDER` names the rows
whose line is missing in that source tree (docs/upgrading.md).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click


@dataclass(frozen=True, slots=True)
class Upstream:
    """A line of llama.cpp's Python that decant replaces or relies on."""

    file: str
    """Path in llama.cpp's source tree."""
    line: str
    """The line, compared without white space."""
    use: str
    """Decant's use of the line, with the reason."""
    where: str
    """The module of this package that uses the line."""


TABLE = (
    Upstream(
        "conversion/base.py", "def index_tensors(self, remote_hf_model_id: str | None = None)",
        "replaced: the merged tensors, unread, instead of the folder's files", "lazy_source",
    ),
    Upstream(
        "conversion/base.py", "lambda qtype, d=data: gguf.quants.quantize(d, qtype)",
        "replaced for floats: values stay as they are, so that they are rounded once, when written",
        "lazy_source",
    ),
    Upstream(
        "conversion/base.py", "self.gguf_writer.add_tensor(new_name, data, raw_dtype=data_qtype)",
        "replaced on the model's writer: a slot is noted, no value is kept", "to_gguf",
    ),
    Upstream(
        "gguf-py/gguf/gguf_writer.py", "def add_tensor_info(",
        "called: the writer counts names, shapes and types without data", "lazy_source",
    ),
    Upstream(
        "gguf-py/gguf/gguf_writer.py", "def _pack_val(self, val: Any, vtype: GGUFValueType",
        "replaced on a writer: arrays are packed at once, a vocabulary in no time", "gguf_layout",
    ),
    Upstream(
        "gguf-py/gguf/lazy.py", "_t._args = cls._recurse_apply(_t._args, simple_to_eager)",
        "not called: nodes are run without being changed, by _args, _kwargs, _func, _data, _meta",
        "lazy_graph",
    ),
    Upstream(
        "conversion/base.py", "config = AutoConfig.from_pretrained(dir_model, trust_remote_code",
        "replaced: the config is read ahead by a child process while torch is imported",
        "config_prefetch",
    ),
    Upstream(
        "conversion/base.py", "def load_hparams(dir_model: Path, is_mistral_format: bool)",
        "called: its result is patched where transformers 5 saves other names", "config_prefetch",
    ),
    Upstream(
        "conversion/base.py", "tokenizer = AutoTokenizer.from_pretrained(self.dir_model)",
        "replaced: the tokenizer of these files that is loaded already", "converter_tokens",
    ),
    Upstream(
        "conversion/base.py", "def get_vocab_base_pre(self, tokenizer) -> str:",
        "replaced: pre-tokenizers are found without added words, and by their pattern",
        "pretokenizer",
    ),
    Upstream(
        "conversion/base.py", "self.set_vocab()",
        "replaced: a second conversion of the same files gets the token keys of the first",
        "vocabulary_memo",
    ),
    Upstream(
        "conversion/base.py", "def _set_vocab_gpt2(self) -> None:",
        "called where a class looks for tokenizer.model and the tokenizer is byte-level",
        "pretokenizer",
    ),
    Upstream(
        "conversion/base.py", "no_mtp: bool = False",
        "set on a subclass: prediction layers that the weights lack are not counted", "mtp",
    ),
    Upstream(
        "conversion/gemma.py", "def _get_dense_prefix(module_path) -> str:",
        "replaced: dense layers of any folder name; the class's lists begin empty each time",
        "embedder",
    ),
    Upstream(
        "conversion/qwen.py", "def _is_qwen3_reranker(self) -> bool:",
        "replaced: a reranker is known by its adapter or modules, not by the folder's name",
        "embedder",
    ),
    Upstream(
        "conversion/base.py", "def dequant_model(self):",
        "called on an object of ours: quantized bases become plain tensors, unread",
        "inputs/quantized/via_llamacpp",
    ),
    Upstream(
        "conversion/__init__.py", "def get_model_class(name: str, mmproj: bool = False)",
        "called: the class of an architecture, of the text model or the projector", "to_gguf",
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Hook:
    """Replacement attributes for an object of llama.cpp's Python."""

    owner: Any
    changes: Mapping[str, Any]


@contextmanager
def upstream_hooks(*hooks: Hook) -> Iterator[None]:
    """Apply the hooks in order; the block's end restores everything."""
    with ExitStack() as stack:
        for hook in hooks:
            stack.enter_context(applied(hook))
        yield


@contextmanager
def applied(hook: Hook) -> Iterator[None]:
    own = vars(hook.owner)
    before = {name: own[name] for name in hook.changes if name in own}
    for name, value in hook.changes.items():
        setattr(hook.owner, name, value)
    try:
        yield
    finally:
        for name in hook.changes:
            if name in before:
                setattr(hook.owner, name, before[name])
            else:
                delattr(hook.owner, name)


def find_missing(source: Path) -> list[Upstream]:
    """The rows whose line is missing in this tree of llama.cpp's source."""
    texts = {row.file: text_of(source / row.file) for row in TABLE}
    return [row for row in TABLE if plain(row.line) not in texts[row.file]]


def text_of(path: Path) -> str:
    return plain(path.read_text(encoding="utf-8")) if path.is_file() else ""


def plain(text: str) -> str:
    return "".join(text.split())


def show(source: Path) -> None:
    """Print the rows that no longer apply; exits with 1 if there are any."""
    missing = find_missing(source)
    for row in missing:
        click.echo(f"{row.file}: {row.line}\n  {row.where}: {row.use}")
    click.echo(f"{len(TABLE) - len(missing)} of {len(TABLE)} lines are there", err=True)
    sys.exit(1 if missing else 0)


if __name__ == "__main__":
    show(Path(sys.argv[1]))
