"""`--chat-template`: a template for a model without one, or in place of the file's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from exporter.core.errors import InputError, UnsupportedError
from exporter.core.near_names import did_you_mean
from exporter.llamacpp.toolchain import find_toolchain
from runtime.engine.opened_model import Model
from runtime.engine.own_template import own_templates

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
HELP = "A chat template: chatml, a .jinja file, or the name of one that llama.cpp includes."
NO_TEMPLATE = "has no chat template: it is a base model, which continues a text"
TEMPLATE_MAX = 1 << 20  # bytes
SHOWN = 5  # similar names in an error's hint


def with_template(model: Model, text: str) -> Model:
    """The model with this template in place of the file's. Raises UnsupportedError."""
    if model.is_encoder_decoder:
        raise UnsupportedError(
            f"`{model.header.path}` is an encoder-decoder, which takes no --chat-template",
            hint="leave it out: such a model reads a text as it is",
        )
    own = own_templates(model.adapters, model.header.path, text)
    return replace(model, chat_template=text, own=own)


def read_template(name: str) -> str:
    """The template for a name, a file or a text in jinja. Raises InputError."""
    if "{{" in name or "{%" in name:
        return name
    if name.lower() == "chatml":
        return CHATML
    if name.endswith(".jinja") or "/" in name or Path(name).is_file():
        return read_file(Path(name))
    brought = find_toolchain().source / "models" / "templates"
    known = {path.stem.lower(): path for path in sorted(brought.glob("*.jinja"))}
    if path := known.get(name.lower()):
        return read_file(path)
    names = ["chatml", *(path.stem for path in known.values())]
    hint = did_you_mean(name, names, f"`ls {brought}` shows them", most=SHOWN, alike=0.3)
    raise InputError(f"there is no chat template {name!r}", hint=hint)


def read_file(path: Path) -> str:
    """The template in a file. Raises InputError."""
    try:
        data = path.read_bytes()
        text = data.decode("utf-8")
    except OSError as error:
        raise InputError(
            f"cannot read `{path}`: {error.strerror}", hint="is the path right?"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"`{path}` is not UTF-8: byte {error.start}", hint="save it as UTF-8"
        ) from error
    if not text.strip() or len(data) > TEMPLATE_MAX:
        raise InputError(
            f"`{path}` has {len(data)} bytes: not a chat template", hint="name another file"
        )
    return text
