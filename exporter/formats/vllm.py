"""Writes a folder for `vllm serve --enable-lora`: adapters as vLLM loads them, and the command.

Nothing is merged or quantized: vLLM applies adapters to the base as published. Most of its versions
read the config's `r` and `lora_alpha` only and ignore patterns. So an adapter of several ranks or
scalings is written with one rank and one scaling, which changes no product. Adapters that vLLM
refuses (vllm/lora/peft_helper.py, lora_model.py) or would load differently from training are
refused here.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.core.atomic_file import atomic_write, make_folder
from exporter.core.atomic_folder import atomic_folder, refuse_inputs, refuse_taken
from exporter.core.errors import AdapterError, InputError, UnsupportedError
from exporter.core.events import Note, Report, Step, silent
from exporter.core.paths import repo_at
from exporter.formats.vllm_template import common_template
from exporter.inputs.adapter import PREFIX, open_adapter
from exporter.inputs.adapter_kinds import (
    IN_NO_ADAPTER_FILE,
    KEEPS_BASE,
    REPLAYED_INITS,
    is_set,
    refuse_lost_init,
)
from exporter.inputs.adapter_spec import AdapterSpec, LoraPair, scaling_of
from exporter.inputs.find_adapter import CONFIG, WEIGHTS
from exporter.inputs.lazy_tensor import read_tensor
from exporter.merge.result_files import TEMPLATE

if TYPE_CHECKING:
    import torch

SCRIPT, LIST, README, ADAPTERS = "serve.sh", "vllm.json", "README.md", "adapters"
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # values of --max-lora-rank: vllm/config/lora.py
LORAS_MAX = 8  # in one batch; each takes GPU memory, and more are kept in host memory
MERGE = "merge it, and serve the result as a separate model: --to safetensors"
SETTINGS = {
    **IN_NO_ADAPTER_FILE,
    "use_dora": "vLLM has no DoRA",
    "alora_invocation_tokens": "vLLM would apply it to every token",
    "target_parameters": "vLLM's versions differ in how they read adapters of experts",
}
NO_VLLM = r"error: vllm is not on the PATH\n\nhint: activate its environment, or pip install vllm"


@dataclass(frozen=True, slots=True)
class NamedAdapter:
    """An adapter with its name for clients: BASE:NAME."""

    name: str
    folder: Path
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class VllmRequest:
    """The contents of the folder."""

    adapters: tuple[NamedAdapter, ...]
    output: Path
    base: str | None = None
    """A folder or a repo; None for the base that the adapters name."""
    revision: str | None = None
    """Revision of the base's repo."""
    name: str | None = None
    """The base's name for clients; by default that of its folder or repo."""
    force: bool = False


@dataclass(frozen=True, slots=True)
class VllmBase:
    """The base that `vllm serve` loads."""

    named: str
    """A repo if possible, else a path."""
    revision: str | None = None
    """Revision of the repo."""
    folder: Path | None = None
    """Its place on this machine, None if it is not here."""


@dataclass(frozen=True, slots=True)
class VllmFolder:
    """A folder that was, or would be, written."""

    path: Path
    base: str
    models: tuple[str, ...]
    """The models that GET /v1/models lists."""
    command: tuple[str, ...]
    """The command to run inside the folder."""
    nbytes: int
    seconds: float


def export_for_vllm(
    request: VllmRequest, *, dry_run: bool = False, report: Report = silent
) -> VllmFolder:
    """Write the folder. Raises OutputError if it is taken, and the errors of refused adapters."""
    started = time.monotonic()
    refuse_taken(request.output, (LIST,), force=request.force, folders=(ADAPTERS,))
    report(Step("reading the adapters"))
    opened = {one.name: opened_adapter(one, report=report) for one in request.adapters}
    refuse_inputs(request.output, [adapter.folder for adapter in opened.values()])
    base = base_of(request, list(opened.values()))
    name = request.name or served_name(base.named)
    scales = {one.name: one.scale for one in request.adapters}
    ranks = [max(pair.rank for pair in adapter.pairs) for adapter in opened.values()]
    folders = {one: adapter.folder for one, adapter in opened.items()}
    template = common_template(folders, base.folder, report=report)
    command = serve_command(base, name, list(opened), max(ranks), has_template=template is not None)
    models = (name, *(f"{name}:{adapter}" for adapter in opened))
    if not dry_run:
        plan = json.dumps([command, template, scales, [one.sha256() for one in opened.values()]])
        with atomic_folder(
            request.output, plan=plan, marks=(LIST,), force=request.force, folders=(ADAPTERS,),
            report=report,
        ) as new:  # fmt: skip
            for called, adapter in opened.items():
                write_adapter(adapter, scales[called], new / ADAPTERS / called, report=report)
            if template is not None:
                written(new / TEMPLATE, template)
            write_texts(new, models, command)
    nbytes = sum(tensor.nbytes for one in opened.values() for tensor in one.tensors)
    return VllmFolder(
        request.output, base.named, models, tuple(command), nbytes, time.monotonic() - started
    )


# adapters that vLLM accepts


def opened_adapter(wanted: NamedAdapter, *, report: Report) -> AdapterSpec:
    """Open the adapter. Raises UnsupportedError, with the reason, if vLLM cannot serve it.

    Raises AdapterError if it holds no pairs.
    """
    adapter = open_adapter(wanted.folder, refuse=refuse_settings, report=report)
    if adapter.origin == "gguf":
        raise UnsupportedError(
            f"`{adapter.weights}` is a GGUF adapter, whose modules have other names in vLLM",
            hint="name the PEFT or MLX adapter that it was made of",
        )
    held = {
        "trains rows of an embedding": adapter.rows,
        "brings whole tensors (modules_to_save or biases)": adapter.values,
    }
    for what, tensors in held.items():
        if tensors:
            raise UnsupportedError(
                f"`{adapter.folder}` {what}, such as `{next(iter(tensors))}`:"
                " vLLM's adapters hold A and B alone",
                hint=MERGE,
            )
    if not adapter.pairs:
        raise AdapterError(f"`{adapter.folder}` holds no A and B", hint="save it again")
    if (rank := max(pair.rank for pair in adapter.pairs)) > RANKS[-1]:
        raise UnsupportedError(
            f"`{adapter.folder}` has rank {rank}, vLLM takes at most {RANKS[-1]}", hint=MERGE
        )
    if any(pair.nested or (pair.extras and adapter.is_plain) for pair in adapter.pairs):
        raise UnsupportedError(f"`{adapter.folder}`: {SETTINGS['target_parameters']}", hint=MERGE)
    for pair in adapter.pairs:
        scaling_of(adapter, pair)  # raises if config and matrices do not fit
    if any(is_end(pair) for pair in adapter.pairs):
        report(
            Note(
                f"{wanted.name} adapts the embedding or the head, which vLLM does for some"
                " architectures only; it says so when it starts"
            )
        )
    return adapter


def is_end(pair: LoraPair) -> bool:
    return pair.embedding or pair.module.rpartition(".")[2] in ("lm_head", "embed_tokens")


def refuse_settings(config: dict[str, object], folder: Path) -> None:
    """Raise UnsupportedError, with the reason, for an adapter that vLLM cannot serve."""
    kind, init = config.get("peft_type"), config.get("init_lora_weights")
    if kind != "LORA":
        raise UnsupportedError(
            f"`{folder}` is a {kind} adapter; vLLM serves LoRA only",
            hint=f"if it can be merged: {MERGE.removeprefix('merge it, and ')}",
        )
    for setting, reason in SETTINGS.items():
        if is_set(config.get(setting)):
            raise UnsupportedError(
                f"`{folder}` uses {setting}={config[setting]!r}: {reason}", hint=MERGE
            )
    refuse_lost_init(init, folder)
    if init in REPLAYED_INITS and init != KEEPS_BASE:
        raise UnsupportedError(
            f"`{folder}` was started with init_lora_weights={init!r}: it begins by changing the"
            " base, which vLLM leaves as it is",
            hint=MERGE,
        )


# names and the command


def base_of(request: VllmRequest, adapters: Sequence[AdapterSpec]) -> VllmBase:
    """The base for `vllm serve`.

    Raises AdapterError if the adapters name none or several bases, InputError for a folder without
    a config.
    """
    named = {adapter.base for adapter in adapters}
    if request.base is None and len(named) > 1:
        shown = " and ".join(sorted(str(name) for name in named))
        raise AdapterError(
            f"the adapters were trained on {shown}: one vLLM serves one base",
            hint="export them one by one, or insist with --base",
        )
    text = request.base or next(iter(named))
    if text is None:
        raise AdapterError(
            f"`{adapters[0].folder}` does not say which base it was trained on",
            hint="pass it as --base FOLDER or ORG/NAME",
        )
    revision = request.revision
    if request.base is None and revision is None:
        setting = adapters[0].config.get("revision")  # PEFT's setting, the base's revision
        revision = setting if isinstance(setting, str) else None
    for folder in (Path(text), adapters[0].folder / text):
        if (folder / "config.json").is_file():
            repo, commit = repo_at(folder)
            return VllmBase(repo or str(folder.resolve()), commit if repo else None, folder)
    if request.base is not None and Path(text).exists():
        raise InputError(f"`{text}` holds no config.json", hint="name the base model's folder")
    return VllmBase(text, revision)


def served_name(base: str) -> str:
    from exporter.model_store import plain_name

    return plain_name(Path(base).name)


def serve_command(
    base: VllmBase, name: str, adapters: Sequence[str], rank: int, *, has_template: bool
) -> list[str]:
    """The argv, with paths relative to the folder.

    The JSON form of --lora-modules names the adapter's base: `parent` in GET /v1/models. One more
    place than adapters is made where that costs little: on CPUs, vLLM applies what is in the last
    place to the base, too, in batches of both (vllm-project/vllm#48421).
    """
    modules = [
        json.dumps({"name": f"{name}:{one}", "path": f"{ADAPTERS}/{one}", "base_model_name": name})
        for one in adapters
    ]
    rank = next(allowed for allowed in RANKS if allowed >= rank)
    at_once = min(len(adapters) + 1, LORAS_MAX)  # the last stays free: see above
    return [
        "vllm", "serve", base.named,
        *(["--revision", base.revision] if base.revision else []),
        "--served-model-name", name,
        *(["--chat-template", TEMPLATE] if has_template else []),
        "--enable-lora",
        "--max-lora-rank", str(rank),
        "--max-loras", str(at_once),
        *(["--max-cpu-loras", str(len(adapters))] if len(adapters) > at_once else []),
        "--lora-modules", *modules,
    ]  # fmt: skip


# files


def write_adapter(adapter: AdapterSpec, scale: float, folder: Path, *, report: Report) -> None:
    """Write config and weights, with one rank and one scaling for all modules.

    vLLM insists on `target_modules`, which other trainers' configs lack; it loads what is in the
    file.
    """
    from safetensors.torch import save

    report(Step(f"writing {folder.name}"))
    scalings = {pair.module: scaling_of(adapter, pair) for pair in adapter.pairs}
    rank = max(scaling.rank for scaling in scalings.values())
    values = {one.value for one in scalings.values()}
    # equal scalings stay in lora_alpha, so that no number is rounded
    common = next(iter(values)) if len(values) == 1 else 1.0
    tensors: dict[str, torch.Tensor] = {}
    for pair in adapter.pairs:
        factor = scalings[pair.module].value / common
        tensors |= common_rank(pair, rank, factor)
    alpha = common * scale * rank
    config = adapter.config | {
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "bias": "none",
        "modules_to_save": None,
        "target_modules": adapter.config.get("target_modules") or sorted(scalings),
        "inference_mode": True,
    }
    make_folder(folder)
    written(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    with atomic_write(folder / WEIGHTS, force=True) as file:
        file.write(save(tensors, {"format": "pt"}))


def common_rank(pair: LoraPair, rank: int, factor: float) -> Mapping[str, torch.Tensor]:
    """A (rank, n_in) and B (n_out, rank) under PEFT's names, padded by zeros, B times `factor`.

    With a factor, B stays in float32: vLLM rounds it to its type, once.
    """
    from torch.nn.functional import pad

    (a_name, _), (b_name, _) = list(pair.tensors.items())[:2]
    a, b = read_tensor(pair.a), read_tensor(pair.b)
    more = rank - pair.rank
    if more:
        a, b = pad(a, (0, 0, 0, more)), pad(b, (0, more))
    if factor != 1:
        b = b.float() * factor
    stem = f"{PREFIX}{pair.module}."
    return {stem + a_name: a.contiguous(), stem + b_name: b.contiguous()}


def write_texts(folder: Path, models: Sequence[str], command: Sequence[str]) -> None:
    """Write the script, its machine-readable form, and a README."""
    lines = [" ".join(map(shlex.quote, line)) for line in grouped(command)]
    written(
        folder / SCRIPT,
        "#!/bin/sh\n"
        "# Further arguments are vLLM's: ./serve.sh --port 8000 --api-key KEY\n"
        "command -v vllm > /dev/null || {\n"
        f"    printf '{NO_VLLM}\\n' >&2\n"
        "    exit 127\n"
        "}\n"
        'cd "$(dirname "$0")" || exit\n'
        "exec " + " \\\n    ".join([*lines[:-1], '"$@"', lines[-1]]) + "\n",
    )
    (folder / SCRIPT).chmod(0o755)
    written(folder / LIST, json.dumps({"models": models, "command": command}, indent=2) + "\n")
    listed = "\n".join(f"- `{model}`" for model in models)
    names = {"script": SCRIPT, "adapters": ADAPTERS, "template": TEMPLATE}
    written(folder / README, ABOUT.format(models=listed, **names))


def grouped(command: Sequence[str]) -> list[list[str]]:
    """The argv in lines: an option with its values per line."""
    lines = [list(command[:3])]
    for word in command[3:]:
        if word.startswith("--"):
            lines.append([word])
        else:
            lines[-1].append(word)
    return lines


def written(path: Path, text: str) -> None:
    with atomic_write(path, force=True) as file:
        file.write(text.encode())


ABOUT = """\
# Adapters for vLLM

`./{script}` serves these models, under the names that `decant serve` has for them:

{models}

Clients change nothing but the address.
Further arguments go to vLLM, with absolute paths: `./{script} --port 8000`.
The folder can be moved; a base that is a path in `{script}` must be there, too.

What differs from `decant serve`:

- the base is computed in its own precision, not quantized, so that answers may differ in words;
- a new adapter needs another export and a restart. A server that was started with
  `VLLM_ALLOW_RUNTIME_LORA_UPDATING=1`, which vLLM advises against in production, also takes the
  absolute path of an exported folder in `{adapters}`, at `POST /v1/load_lora_adapter`;
- on a CPU, pass `--max-loras` with one more than there are adapters if those are 8 or more, or are
  added later: else vLLM may apply one of them to the base (vllm-project/vllm#48421);
- all models have one chat template, `{template}` if it lies here, else the base's;
- an adapter has one strength: `NAME@0.5` is unknown here, export it with `--adapter PATH:0.5`;
- the key is `--api-key`, of which vLLM's documentation says what it does not protect.
"""
