"""Writes a folder for `ollama create`: the GGUF and a Modelfile made from its metadata."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from exporter.core.atomic_file import read_json_object
from exporter.core.errors import CheckpointError
from exporter.core.events import Note, Report, silent
from exporter.core.gguf import Array, GGUFFile
from exporter.formats.ollama_template import go_template
from exporter.inputs.chat_template import IrregularError
from exporter.inputs.template_process import refuse_runaway
from exporter.inputs.template_turns import DAY, Turns, find_turns
from exporter.llamacpp.header_tokens import adds_bos, token_texts

MODELFILE = "Modelfile"
PARAMETERS = {
    "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p",
    "repetition_penalty": "repeat_penalty", "max_length": "num_ctx",
    "max_new_tokens": "num_predict",
}  # fmt: skip
"""Entries of generation_config.json -> Ollama's names."""
SAMPLING = "general.sampling."
OF_GGUF = {
    "temp": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p",
    "penalty_repeat": "repeat_penalty",
}  # fmt: skip
"""Keys of a GGUF, after SAMPLING -> Ollama's names."""
UNSET_LENGTH = "20"  # transformers' default, which some configs spell out
TAKEN = {"tools": "with tools", "think": "with and without thinking"}
END_TOKENS = ("eos", "eot", "eom")
SAYING_ENDS = ("config.json", "generation_config.json")
MAX_TOKENS = 1 << 21  # tokens; the whole vocabulary is read


@dataclass(frozen=True, slots=True)
class OllamaSettings:
    """How Ollama has to use a model."""

    template: str | None
    """The Go template; None if the chat template cannot be written as one."""
    system: str
    """The default system message, or nothing."""
    stops: tuple[str, ...]
    parameters: dict[str, str]
    """Other parameters by Ollama's names, as JSON."""


def modelfile(
    gguf: GGUFFile, base: Path, projectors: Sequence[str] = (), *, report: Report = silent
) -> str:
    """The Modelfile for a GGUF, whose arrays must be read whole.

    base: the folder with generation_config.json; projectors: files for vision and audio.
    """
    settings = ollama_settings(gguf, base, report=report)
    lines = [f"FROM ./{name}" for name in (gguf.path.name, *projectors)]
    if settings.template is not None:
        lines.append(f"TEMPLATE {quoted(settings.template)}")
    if settings.system:
        lines.append(f"SYSTEM {quoted(settings.system)}")
    lines += [f"PARAMETER stop {quoted(text)}" for text in settings.stops]
    lines += [f"PARAMETER {name} {value}" for name, value in settings.parameters.items()]
    return "\n".join(lines) + "\n"


def ollama_settings(
    gguf: GGUFFile, base: Path | None, *, report: Report = silent
) -> OllamaSettings:
    """The settings for a GGUF, whose arrays must be read whole.

    base: the folder with generation_config.json; without one the parameters in the GGUF count.
    """
    turns = turns_of(gguf, report=report)
    return OllamaSettings(
        go_template(turns) if turns else None,
        (turns.default_system or "") if turns else "",
        tuple(stops(gguf, turns, base)),
        parameters(base) if base else own_parameters(gguf),
    )


def own_parameters(gguf: GGUFFile) -> dict[str, str]:
    """The parameters that the converter has put into a GGUF, by Ollama's names."""
    found = {name: gguf.metadata.get(f"{SAMPLING}{key}") for key, name in OF_GGUF.items()}
    return {
        name: f"{value:.6g}" for name, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }  # fmt: skip


def turns_of(gguf: GGUFFile, *, report: Report) -> Turns | None:
    """The chat template's parts; None, with a note, if Ollama cannot express them."""
    template = gguf.text("tokenizer.chat_template")
    if not template:
        report(Note("the model has no chat template: the Modelfile has no TEMPLATE"))
        return None
    tokens = {
        f"{name}_token": token(gguf, f"tokenizer.ggml.{key}_token_id")
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"))
    }
    refuse_runaway(template, gguf.path)
    try:
        turns = find_turns(
            template, {key: text for key, text in tokens.items() if text}, adds_bos=adds_bos(gguf)
        )
        turns = writable(turns)
    except IrregularError as error:
        report(
            Note(
                f"the chat template cannot be written as Ollama's TEMPLATE ({error}): the Modelfile"
                " has none, and Ollama uses a built-in one if it recognizes the GGUF's"
            )
        )
        return None
    if turns.has_date:
        report(Note(f"the chat template tells the day: TEMPLATE says it is {DAY:%d %b %Y}"))
    say_beyond(template, turns, report=report)
    if turns.system is None:
        report(Note("the chat template has no place for a system message: TEMPLATE has none"))
    return turns


def say_beyond(template: str, turns: Turns, *, report: Report) -> None:
    """Report the features of the chat template that TEMPLATE lacks."""
    has = {"tools": turns.tools is not None, "think": turns.closing_off is not None}
    if beyond := [word for word in has if word in template and not has[word]]:
        also = [words for key, words in TAKEN.items() if has[key]]
        report(
            Note(
                f"the chat template also speaks of {', '.join(beyond)}: the Modelfile's TEMPLATE is"
                f" for plain conversations{''.join(f', {words}' for words in also)}"
            )
        )
    if turns.tools:
        report(Note("tools are in TEMPLATE; Ollama writes their JSON in its own order and spacing"))


def token(gguf: GGUFFile, key: str) -> str:
    """The text of the token whose id is stored at `key`; empty without one."""
    tokens, number = gguf.metadata.get("tokenizer.ggml.tokens"), gguf.number(key)
    if number is None or not isinstance(tokens, Array) or number >= len(tokens.items):
        return ""
    return str(tokens.items[number])


def writable(turns: Turns) -> Turns:
    """The turns, without tools if only these cannot be written; raises IrregularError otherwise."""
    try:
        refuse_unwritable(turns)
    except IrregularError:
        turns = replace(turns, tools=None)
        refuse_unwritable(turns)
    return turns


def refuse_unwritable(turns: Turns) -> None:
    """Raise IrregularError for texts that a Go template or a Modelfile would interpret."""
    for text in (*turns.texts, turns.default_system):
        if (
            "{{" in text
            or text.endswith("{")
            or '"""' in text
            or not all(c.isprintable() or c in "\n\t" for c in text)
        ):
            raise IrregularError(f"{text!r} cannot stand in a Modelfile")


def quoted(text: str) -> str:
    return f'"""{text}"""' if '"' in text or "\n" in text else f'"{text}"'


def stops(gguf: GGUFFile, turns: Turns | None, base: Path | None) -> list[str]:
    """The texts that end an answer: end tokens, and the template's text after answers."""
    found = [token(gguf, f"tokenizer.ggml.{name}_token_id") for name in END_TOKENS]
    ids = [id_ for name in SAYING_ENDS for id_ in ends(base / name)] if base else []
    texts = token_texts(gguf, ids)
    found += [texts[id_] for id_ in ids if id_ in texts]
    if turns:
        found.append(turns.answer_end.strip())
    return [text for text in dict.fromkeys(found) if text and '"""' not in text]


def ends(path: Path) -> list[int]:
    """The tokens that end an answer, from a config's eos_token_id."""
    if not path.is_file():
        return []
    config = read_json_object(path, error=CheckpointError, hint="copy the base again")
    inner = config.get("text_config")
    found = config.get(
        "eos_token_id", inner.get("eos_token_id") if isinstance(inner, dict) else None
    )
    return [id_ for id_ in (found if isinstance(found, list) else [found]) if type(id_) is int]


def parameters(base: Path) -> dict[str, str]:
    """The settings of generation_config.json, by Ollama's names."""
    path = base / "generation_config.json"
    if not path.is_file():
        return {}
    settings = read_json_object(path, error=CheckpointError, hint="copy the base again")
    found = {
        name: json.dumps(settings[key])
        for key, name in PARAMETERS.items()
        if isinstance(settings.get(key), int | float) and not isinstance(settings[key], bool)
    }
    if found.get("num_ctx") == UNSET_LENGTH:
        del found["num_ctx"]
    return found | {"temperature": "0"} if settings.get("do_sample") is False else found
