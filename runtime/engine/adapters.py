"""Adapters named on the command line: finds them, and converts folders to GGUF."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from exporter.convert.output_scales import SCALED, WEIGHT, is_on_output
from exporter.convert.output_scales import SUFFIX as SCALE
from exporter.core.errors import (
    AdapterError,
    DecantError,
    EngineError,
    InputError,
    ModelError,
    SpaceError,
    ToolchainError,
    UnsupportedError,
)
from exporter.core.events import Report, Step, silent
from exporter.core.gguf import SUFFIX, GGUFFile, TensorInfo, read_gguf
from exporter.model_store import adapter_file_name
from runtime.process.kept_processes import start_kept

NAME = re.compile(r"[\w.+-]+")
BASE = "base"
SCALE_MAX = 100.0  # a larger number is taken for a mistake
LAST_LINES = 10  # of the converter's output, shown in an error
A, B = ".lora_a", ".lora_b"
EMBEDDING = "token_embd.weight"
NORM = "_norm.weight"
"""The end of the names of tensors that llama.cpp skips in an adapter."""
MATRIX = 2  # dimensions
CONVERTING = threading.Lock()
"""Held while a child process converts an adapter."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The parts of `--adapter NAME=PATH[:SCALE]`."""

    name: str
    place: str
    """A GGUF, a folder in PEFT's form, its repo, or a name in the store."""
    scale: float


@dataclass(frozen=True, slots=True)
class Adapter:
    """A GGUF adapter that an engine can load."""

    name: str
    path: Path
    scale: float
    """The scale that is applied by default."""
    version: int = 0
    """A number that no earlier adapter of this name had."""


def parse_adapter(text: str) -> Wanted:
    """Parse NAME=PATH[:SCALE]. Raises InputError."""
    name, equals, place = text.partition("=")
    if not equals:
        name, place = Path(text).name.partition(".")[0].partition(":")[0], text
    stem, colon, number = place.rpartition(":")
    scale = 1.0
    if colon and not Path(place).exists():
        try:
            place, scale = stem, parse_scale(number)
        except InputError:
            if "/" not in number:  # a link has a colon, too
                raise
    if not NAME.fullmatch(name) or name == BASE or not place:
        raise InputError(
            f"--adapter {text!r} is not NAME=PATH" if name != BASE else f"{BASE!r} names the base",
            hint="--adapter NAME=PATH, or NAME=PATH:SCALE; such as --adapter pirate=./my-lora:0.8",
        )
    return Wanted(name, place, scale)


def parse_scale(text: str) -> float:
    """Parse a scale. Raises InputError unless it is a number from -SCALE_MAX to SCALE_MAX."""
    try:
        scale = float(text)
    except ValueError:
        scale = float("nan")
    if not -SCALE_MAX <= scale <= SCALE_MAX:  # nan compares false
        raise InputError(f"{text!r} is not a scale", hint="a number such as 0.5; 0 is the base")
    return scale


def bring_adapters(
    texts: tuple[str, ...], base: str | None, store: Path, *, report: Report = silent
) -> tuple[Adapter, ...]:
    """The named adapters as GGUFs; folders in PEFT's form are converted once and cached.

    Raises InputError for a name used twice, and the errors of opening, pulling and converting.
    """
    wanted = [parse_adapter(text) for text in texts]
    names = [one.name for one in wanted]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(
            f"two adapters are called {twice[0]!r}", hint="name them: --adapter NAME=PATH"
        )
    return tuple(
        Adapter(one.name, gguf_of(one, base, store, report=report), one.scale) for one in wanted
    )


def gguf_of(wanted: Wanted, base: str | None, store: Path, *, report: Report) -> Path:
    path = Path(wanted.place)
    stored = store / adapter_file_name(wanted.place.removesuffix(".lora"))
    if path.suffix == SUFFIX or ":" in wanted.place:
        found = linked(wanted.place, report=report)
        if found or path.suffix == SUFFIX:
            return found or path
    if "/" not in wanted.place and not path.exists() and stored.exists():
        return stored
    from exporter.formats.gguf_lora_cache import kept_adapter
    from exporter.hub.resolve import folder_of
    from exporter.inputs.adapter import open_adapter
    from exporter.inputs.adapter_kinds import refuse_for_adapter_file
    from exporter.inputs.locate import find_base
    from exporter.llamacpp.toolchain import cache_folder

    adapter = open_adapter(
        folder_of(wanted.place, report=report), refuse=refuse_for_adapter_file, report=report
    )
    over = folder_of(base, report=report) if base is not None else find_base(adapter, report=report)
    kept = kept_adapter(adapter.place, over, cache_folder() / "adapters", report=report)
    if not kept.is_whole:
        report(Step(f"converting the adapter {wanted.name}"))
        convert(kept.adapter, kept.base, kept.path.parent)
    return kept.path


def linked(place: str, *, report: Report) -> Path | None:
    """The GGUF that a link or ORG/NAME:QUANT names, downloaded if absent; None for a path."""
    from exporter.hub.resolve import names_gguf, pull_gguf

    return pull_gguf(place, report=report) if names_gguf(place) else None


def convert(adapter: Path, base: Path, cache: Path) -> None:
    """Convert in a child process, which may load torch. Raises its error, or EngineError.

    One at a time: it takes memory and processors, which engines need.
    """
    argv = [
        sys.executable,
        "-m",
        "exporter.formats.gguf_lora_cache",
        str(adapter),
        str(base),
        str(cache),
    ]
    with CONVERTING:
        status, written, errors = output_of(argv)
    try:
        answer = json.loads(written.splitlines()[-1])
    except (ValueError, IndexError):
        tail = "\n".join(errors.splitlines()[-LAST_LINES:])
        raise EngineError(
            f"`{' '.join(argv)}` ended with {status}:\n{tail}",
            hint="try it by hand: decant export ADAPTER --to lora",
        ) from None
    if "error" in answer:
        kinds: dict[str, type[DecantError]] = {
            kind.__name__: kind
            for kind in (UnsupportedError, ToolchainError, SpaceError, EngineError)
        }
        raise kinds.get(answer["kind"], AdapterError)(answer["error"], hint=answer["hint"])


def output_of(argv: Sequence[str]) -> tuple[int, str, str]:
    """The status, output and errors of a command, which ends when this process does."""
    pipe = subprocess.PIPE
    process = start_kept(argv, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
    try:
        written, errors = process.communicate()
    except BaseException:
        process.kill()
        raise
    return process.returncode, written.decode(errors="replace"), errors.decode(errors="replace")


def check_adapter(adapter: Adapter, model: GGUFFile) -> None:
    """Raise ModelError, with the mismatch, for an adapter of another base.

    The conditions are llama.cpp's (llama-adapter.cpp), checked here before anything is loaded.
    """
    header = read_gguf(adapter.path)
    if not header.is_adapter:
        raise ModelError(
            f"`{adapter.path}` is a model, not an adapter",
            hint=f"chat with it by itself: decant chat {adapter.path}",
        )
    if header.architecture != model.architecture:
        raise another_base(
            adapter, header, model, f"it adapts a {header.architecture}, not a {model.architecture}"
        )
    here = {tensor.name: tensor for tensor in model.tensors}
    parts = {tensor.name: tensor for tensor in header.tensors}
    refuse_unpaired(adapter, header, parts)
    for name in (name.removesuffix(A) for name in parts if name.endswith(A)):
        if name not in here:
            raise another_base(adapter, header, model, f"the model has no `{name}`")
        if name + B in parts and not fits(here[name], parts[name + A], parts[name + B]):
            made = (parts[name + B].shape[0], parts[name + A].shape[-1])
            raise another_base(
                adapter,
                header,
                model,
                f"its `{name}` is for {made[0]} × {made[1]}, the model's is"
                f" {' × '.join(map(str, here[name].shape))}",
            )
    refuse_unscaled(adapter, header, here)


def refuse_unpaired(adapter: Adapter, header: GGUFFile, parts: Mapping[str, TensorInfo]) -> None:
    """Raise ModelError for a file that is no LoRA, or whose A and B are not pairs of one rank."""
    kind = header.text("adapter.type")
    wrong = [f"its adapter.type is {kind!r}, not 'lora'"] if kind != "lora" else []
    wrong += [] if parts else ["it holds no tensor"]
    for name, tensor in parts.items():
        if name.endswith(NORM):
            continue
        stem = name.removesuffix(A).removesuffix(B)
        a, b = parts.get(stem + A), parts.get(stem + B)
        if stem == name:
            wrong.append(f"`{name}` is neither an A nor a B")
        elif a is None or b is None:
            wrong.append(f"`{stem}` has only one of A and B")
        elif len(tensor.shape) < MATRIX:
            wrong.append(f"`{name}` is no matrix: its shape is {tensor.shape}")
        elif a.shape[-2:-1] != b.shape[-1:] and not stem.endswith(EMBEDDING):
            wrong.append(f"the ranks of `{stem}` differ: A has {a.shape}, B {b.shape}")
    if wrong:
        raise ModelError(
            f"llama.cpp cannot load the adapter {adapter.name!r}: {wrong[0]}",
            hint="convert it again: decant export ADAPTER --to lora",
        )


def refuse_unscaled(adapter: Adapter, header: GGUFFile, here: Mapping[str, TensorInfo]) -> None:
    """Raise ModelError if llama.cpp would scale the base's part of a sum and not the adapter's.

    It multiplies a weight's output by the `.scale` beside the weight, then adds the adapter's.
    """
    known = set((header.text(SCALED) or "").split(","))
    for name in (tensor.name.removesuffix(A) for tensor in header.tensors):
        scale = here.get(f"{name.removesuffix(WEIGHT)}{SCALE}")
        if name in known or name not in here or scale is None:
            continue
        if is_on_output(here[name].shape, scale.shape):
            raise ModelError(
                f"the adapter {adapter.name!r} changes `{name}`, whose output llama.cpp multiplies"
                f" by `{scale.name}` before it adds the adapter: it was not converted for that",
                hint=f"name the folder that PEFT saved: --adapter {adapter.name}=FOLDER;"
                " and a base whose GGUF was made from the model it was trained on",
            )


def fits(weight: TensorInfo, a: TensorInfo, b: TensorInfo) -> bool:
    if weight.name.endswith(EMBEDDING):  # a lookup: llama.cpp swaps its A and B
        return (b.shape[-2], a.shape[-2]) == (weight.shape[-1], weight.shape[-2])
    return (a.shape[-1], b.shape[-2]) == (weight.shape[-1], weight.shape[-2])


def another_base(adapter: Adapter, header: GGUFFile, model: GGUFFile, why: str) -> ModelError:
    base = header.text("decant.base") or header.text("general.base_model.0.name")
    if base and base in (model.text("decant.base"), model.text("general.name")):
        hint = f"both come from a {base}, but not the same one: export model and adapter again"
    else:
        hint = f"it was trained on {base}" if base else "load the base it was trained on"
    return ModelError(
        f"the adapter {adapter.name!r} is not for `{model.path.name}`: {why}", hint=hint
    )
