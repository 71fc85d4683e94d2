"""Recognizes a file that is not what its name says: a git-lfs pointer, a web page …"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

HEAD = 512  # bytes, enough to recognize each kind
LONGEST_ANSWER = 1024  # bytes of a server's plain answer, such as "Entry not found"
SHOWN = 80  # characters of such an answer in a message
HEADER_LENGTH = 8  # bytes of safetensors' first field; the JSON follows
AGAIN = "download or copy the file again"
LFS = b"version https://git-lfs.github.com/spec/"
PAGES = (b"<!doctype html", b"<html")
ANSWERS = (b"<?xml", b"<error")
BOM, UTF16 = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")
ZIP, PICKLE, GGUF = b"PK\x03\x04", (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), b"GGUF"


@dataclass(frozen=True, slots=True)
class Contents:
    """A foreign file: a predicate for the message (`what`) and a hint."""

    what: str
    hint: str


def foreign_contents(path: Path) -> Contents | None:
    """Recognize foreign contents in a file of weights or JSON; None for anything else."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
        size = path.stat().st_size
    except OSError:
        return None
    if not head:
        return Contents("is empty, with 0 bytes", AGAIN)
    return (
        in_its_place(path, head)
        or other_encoding(path, head)
        or wrong_name(path, head, size)
        or plain_answer(head, size)
    )


def in_its_place(path: Path, head: bytes) -> Contents | None:
    """Recognize a git-lfs pointer, a web page and a server's error."""
    if head.startswith(LFS):
        return Contents(
            "is a git-lfs pointer: the text that git keeps in place of the file itself",
            f"`git -C {shlex.quote(str(path.parent))} lfs pull` brings the file, where git-lfs is"
            " installed; `decant pull ORG/NAME` needs no git",
        )
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(PAGES):
        return Contents("is a web page, saved under the file's name", AGAIN)
    if start.startswith(ANSWERS):
        return Contents("is a server's error in XML, saved under the file's name", AGAIN)
    return None


def wrong_name(path: Path, head: bytes, size: int) -> Contents | None:
    """Recognize weights in another format than the file's name says."""
    here = shlex.quote(str(path))
    if path.suffix == ".safetensors" and head.startswith((ZIP, *PICKLE)):
        return Contents(
            "is written by PyTorch (torch.save), not as safetensors",
            f"`mv {here} {shlex.quote(str(path.with_suffix('.bin')))}`: the name tells the format",
        )
    if path.suffix != ".gguf" and head.startswith(GGUF):
        return Contents("is a GGUF under another name", f"`mv {here} {here}.gguf`, and name that")
    if path.suffix in (".bin", ".pt", ".pth") and is_safetensors(head, size):
        right = shlex.quote(str(path.with_suffix(".safetensors")))
        return Contents("is safetensors under another name", f"`mv {here} {right}`")
    if path.suffix == ".safetensors" and not any(head):
        return Contents(
            "begins with zeros: its download reserved the space and never filled it", AGAIN
        )
    return None


def other_encoding(path: Path, head: bytes) -> Contents | None:
    """Recognize JSON in UTF-16 or with a byte order mark, which JSON readers refuse."""
    if path.suffix != ".json":
        return None
    here = shlex.quote(str(path))
    if head.startswith(UTF16):
        return Contents(
            "is text in UTF-16, as PowerShell writes it",
            f"`iconv -f UTF-16 -t UTF-8 {here} > {here}.utf8 && mv {here}.utf8 {here}`",
        )
    if head.startswith(BOM):
        return Contents(
            "begins with a byte order mark, which JSON does not allow",
            f"`sed -i '1s/^\\xef\\xbb\\xbf//' {here}` removes it",
        )
    return None


def is_safetensors(head: bytes, size: int) -> bool:
    length = int.from_bytes(head[:HEADER_LENGTH], "little")
    return HEADER_LENGTH + length <= size and head[HEADER_LENGTH : HEADER_LENGTH + 1] == b"{"


def plain_answer(head: bytes, size: int) -> Contents | None:
    """Recognize a short line of text, a server's answer where there is no file."""
    try:
        text = head.decode().strip()
    except ValueError:
        return None
    if size > LONGEST_ANSWER or not text.isprintable() or text[:1] in ("{", "["):
        return None
    return Contents(f"holds a line of text: {text[:SHOWN]!r}", AGAIN)
