"""Attachments of a message: images and text files."""

from __future__ import annotations

import base64
from pathlib import Path

from exporter.core.errors import InputError
from exporter.core.near_names import near_files
from exporter.core.paths import size_text
from runtime.chat.session import Image
from runtime.engine.media import image_kind

IMAGE_MAX = 20 << 20  # bytes
TEXT_MAX = 1 << 20  # bytes; no model's context holds more


def read_image(path: Path) -> Image:
    """Read an image file. Raises InputError for any other file."""
    data = read_file(path, IMAGE_MAX)
    if (kind := image_kind(data)) is None:
        raise InputError(
            f"`{path}` is not a PNG, JPEG, GIF, BMP or WebP", hint="/read FILE attaches a text"
        )
    return Image(path.name, f"data:{kind};base64,{base64.b64encode(data).decode()}")


def read_text(path: Path, hint: str = "/attach FILE adds an image") -> str:
    """Read a text file; returns it fenced, under its name. Raises InputError for other files."""
    text = decoded(path, hint)
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{path.name}:\n{fence}\n{text.rstrip()}\n{fence}"


def decoded(path: Path, hint: str) -> str:
    """A text file's content. Raises InputError for other files, with `hint` if it is not UTF-8."""
    try:
        return read_file(path, TEXT_MAX).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"`{path}` is not text in UTF-8: byte {error.start}", hint=hint) from error


def is_image(path: Path) -> bool:
    """Whether a file begins as an image does."""
    try:
        with path.open("rb") as file:
            return image_kind(file.read(64)) is not None
    except OSError:
        return False


def user_path(text: str) -> Path:
    """The path that was typed, with `~` expanded. Raises InputError for a text that is no path."""
    if not text or "\0" in text:
        raise InputError("which file?", hint="/help shows what each command takes")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise InputError(f"{text!r}: {error}", hint="is the user's name right?") from error


def read_file(path: Path, most: int) -> bytes:
    """A file's bytes. Raises InputError for more than `most` bytes, or for no regular file."""
    try:
        if not path.is_file():
            path.stat()  # raises the reason if nothing is there
            raise InputError(f"`{path}` is not a file", hint="name a regular file")
        size = path.stat().st_size
        if size > most:
            raise InputError(
                f"`{path}` has {size_text(size)}, more than {size_text(most)}",
                hint="attach a part of it",
            )
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"cannot read `{path}`: {error.strerror}", hint=near_files(path, "is the path right?")
        ) from error
