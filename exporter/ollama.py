"""A folder for `ollama create`: the GGUF and a Modelfile made of its own metadata."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from exporter.chat_template import IrregularError
from exporter.core.errors import CheckpointError
from exporter.core.events import Note, Report, silent
from exporter.core.files import atomic_write, read_json_object
from exporter.core.gguf import Array, GGUFFile, read_gguf
from exporter.core.new_folder import atomic_folder, refuse_inputs, refuse_taken
from exporter.header_tokens import adds_bos
from exporter.pipeline import ExportRequest, ExportResult, FolderResult, export
from exporter.store import plain_name
from exporter.toolchain import Toolchain
from exporter.turns import Turns, find_turns

MODELFILE = "Modelfile"
MARKS = (MODELFILE,)
PARAMETERS = {
    "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p",
    "repetition_penalty": "repeat_penalty", "max_length": "num_ctx",
    "max_new_tokens": "num_predict",
}  # fmt: skip
"""Of generation_config.json, and what Ollama calls them."""
UNSET_LENGTH = "20"  # transformers' default, which some configs spell out
END_TOKENS = ("eos", "eot", "eom")
MAX_TOKENS = 1 << 21  # a vocabulary is read whole


def export_for_ollama(
    request: ExportRequest,
    folder: Path,
    toolchain: Toolchain,
    *,
    dry_run: bool = False,
    report: Report = silent,
) -> FolderResult:
    """Export into the new folder `folder`, and write the Modelfile beside the GGUF.

    The request's one output gives the GGUF's name. Raises OutputError when `folder` is taken
    and what an export raises.
    """
    started = time.monotonic()
    refuse_taken(folder, MARKS, force=request.force)
    name = request.outputs[0].name
    if dry_run:
        wanted = replace(request, outputs=(folder / name,), force=True)
        return summary(export(wanted, toolchain, dry_run=True, report=report), folder, started)
    with atomic_folder(
        folder, plan=f"ollama {name}", marks=MARKS, force=request.force, report=report
    ) as new:
        wanted = replace(request, outputs=(new / name,), force=True)
        result = export(wanted, toolchain, report=report)
        refuse_inputs(folder, (result.base, *result.adapters))
        gguf = read_gguf(new / name, keep_items=MAX_TOKENS)
        others = [file.path.name for file in result.files if file.path.name != name]
        text = modelfile(gguf, result.base, others, report=report)
        with atomic_write(new / MODELFILE, force=True) as file:
            file.write(text.encode())
    report(Note(f"then: ollama create {plain_name(folder.name)} -f {folder / MODELFILE}"))
    return summary(result, folder, started)


def summary(result: ExportResult, folder: Path, started: float) -> FolderResult:
    return FolderResult(
        folder,
        tuple(file.path.name for file in result.files),
        sum(file.nbytes for file in result.files),
        result.base,
        result.adapters,
        result.tensors,
        result.merged,
        time.monotonic() - started,
    )


def modelfile(
    gguf: GGUFFile, base: Path, projectors: Sequence[str] = (), *, report: Report = silent
) -> str:
    """The Modelfile for a GGUF, read whole.

    base: the folder with generation_config.json; projectors: files that let the model see.
    """
    turns = turns_of(gguf, report=report)
    lines = [f"FROM ./{name}" for name in (gguf.path.name, *projectors)]
    if turns:
        lines.append(f"TEMPLATE {quoted(go_template(turns))}")
        if turns.default_system:
            lines.append(f"SYSTEM {quoted(turns.default_system)}")
    lines += [f"PARAMETER stop {quoted(text)}" for text in stops(gguf, turns)]
    lines += [f"PARAMETER {name} {value}" for name, value in parameters(base).items()]
    return "\n".join(lines) + "\n"


def turns_of(gguf: GGUFFile, *, report: Report) -> Turns | None:
    """The chat template's parts; None, with the reason said, where Ollama cannot have them."""
    template = gguf.text("tokenizer.chat_template")
    if not template:
        report(Note("the model has no chat template: the Modelfile has no TEMPLATE"))
        return None
    tokens = {
        f"{name}_token": token(gguf, f"tokenizer.ggml.{key}_token_id")
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"))
    }
    try:
        turns = find_turns(
            template, {key: text for key, text in tokens.items() if text}, adds_bos=adds_bos(gguf)
        )
        refuse_unwritable(turns)
    except IrregularError as error:
        report(
            Note(
                f"the chat template cannot be written as Ollama's TEMPLATE ({error}): the Modelfile"
                " has none, and Ollama takes one of its own when it knows the GGUF's"
            )
        )
        return None
    beyond = [word for word in ("tools", "think", "strftime_now") if word in template]
    if beyond:
        report(
            Note(
                f"the chat template also speaks of {', '.join(beyond)}:"
                " the Modelfile's TEMPLATE is for plain conversations"
            )
        )
    if turns.system is None:
        report(Note("the chat template has no place for a system message: TEMPLATE has none"))
    return turns


def token(gguf: GGUFFile, key: str) -> str:
    """The text of the token whose id stands at `key`, or nothing."""
    tokens, number = gguf.metadata.get("tokenizer.ggml.tokens"), gguf.number(key)
    if number is None or not isinstance(tokens, Array) or number >= len(tokens.items):
        return ""
    return str(tokens.items[number])


def refuse_unwritable(turns: Turns) -> None:
    """Stop at texts that a Go template or a Modelfile would take for its own."""
    texts = (turns.head, *turns.user, *turns.assistant, turns.generation, *(turns.system or ()))
    for text in (*texts, turns.default_system):
        if "{{" in text or '"""' in text or not all(c.isprintable() or c in "\n\t" for c in text):
            raise IrregularError(f"{text!r} cannot stand in a Modelfile")


def go_template(turns: Turns) -> str:
    """The parts as a Go template over Ollama's .Messages.

    No white space is trimmed: what stands between the braces is what the model sees. An answer
    that comes last is left open, to be gone on with.
    """
    asks = turns.user[0]
    system = ""
    if turns.system:
        opened, closed = turns.system
        if turns.system_in_user:
            asks = (
                "{{ if and $.System (eq $i 1) }}"
                f"{opened}{{{{ $.System }}}}{closed}{{{{ else }}}}{asks}{{{{ end }}}}"
            )
        else:
            system = (
                f'{{{{ if eq .Role "system" }}}}{opened}{{{{ .Content }}}}{closed}{{{{ end }}}}'
            )
    return (
        f"{turns.head}{{{{ range $i, $_ := .Messages }}}}"
        "{{ $last := eq (len (slice $.Messages $i)) 1 }}"
        f'{system}{{{{ if eq .Role "user" }}}}{asks}{{{{ .Content }}}}{turns.user[1]}{{{{ end }}}}'
        f'{{{{ if eq .Role "assistant" }}}}{turns.assistant[0]}{{{{ .Content }}}}'
        f"{{{{ if not $last }}}}{turns.assistant[1]}{{{{ end }}}}{{{{ end }}}}"
        f'{{{{ if and $last (ne .Role "assistant") }}}}{turns.generation}{{{{ end }}}}'
        "{{ end }}"
    )


def quoted(text: str) -> str:
    return f'"""{text}"""' if '"' in text or "\n" in text else f'"{text}"'


def stops(gguf: GGUFFile, turns: Turns | None) -> list[str]:
    """Where an answer ends: the tokens that say so, and what the template puts after answers."""
    found = [token(gguf, f"tokenizer.ggml.{name}_token_id") for name in END_TOKENS]
    if turns:
        found.append(turns.assistant[1].strip())
    return [text for text in dict.fromkeys(found) if text and '"""' not in text]


def parameters(base: Path) -> dict[str, str]:
    """What generation_config.json sets, by Ollama's names."""
    path = base / "generation_config.json"
    if not path.is_file():
        return {}
    said = read_json_object(path, error=CheckpointError, hint="copy the base again")
    found = {
        name: json.dumps(said[key])
        for key, name in PARAMETERS.items()
        if isinstance(said.get(key), int | float) and not isinstance(said[key], bool)
    }
    if found.get("num_ctx") == UNSET_LENGTH:
        del found["num_ctx"]
    return found | {"temperature": "0"} if said.get("do_sample") is False else found
