"""Checks the origin, the kind and the size of images and recordings in a request.

llama.cpp fetches addresses, takes kinds of images whose size is not checked here (TGA, PSD, PNM …),
and hands files of other kinds to an installed ffmpeg. Clients get none of this.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from runtime.engine.media import image_kind
from runtime.gateway.api_errors import bad_request
from runtime.gateway.audio_length import is_audio, seconds
from runtime.gateway.catalog import ResolvedModel
from runtime.gateway.picture_size import pixels
from runtime.gateway.settings import Settings

KINDS = ("image_url", "input_image", "image", "video_url", "input_video", "audio_url",
         "input_audio")  # fmt: skip
"""Types of message parts that hold media."""
HOLDERS = (*KINDS, "source")
"""Keys of such a part that hold an address, or an object with one."""
ADDRESSES = ("url", "data")
PACKED = "multimodal_data"
"""The key of media in llama.cpp's form of prompts."""
DESCRIPTIONS = ("tools", "response_format", "json_schema", "format", "output_config")
"""Fields of a body that describe answers, in which such names mean nothing."""
HEAD = 1 << 20  # bytes of a file that hold its size; a JPEG's preview precedes it
QUAD = 4  # characters of base64 for three bytes
SHOWN = 80  # characters of an address in an error


@dataclass
class Totals:
    """The decoded size of all media of one request."""

    pixels: int = 0
    seconds: float = 0


def refuse_media(body: Mapping[str, Any], resolved: ResolvedModel, settings: Settings) -> None:
    """Raise ApiError for media that the engine would download, or that it has no memory for."""
    totals = Totals()
    for node in objects(body):
        if node.get("type") in KINDS:
            for address in addresses(node):
                check_address(address, resolved, settings, totals)
        packed = node.get(PACKED)
        for one in packed if isinstance(packed, list) else ():
            if isinstance(one, str):
                check_size(one, settings, totals)


def objects(body: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """All objects in a body, at any depth, but for descriptions of answers."""
    todo: list[object] = [value for name, value in body.items() if name not in DESCRIPTIONS]
    while todo:
        one = todo.pop()
        if isinstance(one, dict):
            yield one
            todo.extend(one.values())
        elif isinstance(one, list):
            todo.extend(one)


def addresses(part: Mapping[str, Any]) -> Iterator[object]:
    """All addresses that an engine might take from a part. Raises ApiError without one."""
    found: list[object] = []
    for holder in HOLDERS:
        value = part.get(holder)
        if isinstance(value, dict):
            found.extend(value[name] for name in ADDRESSES if name in value)
        elif value is not None:
            found.append(value)
    if not found:
        raise bad_request("an image has no address: give it as a data: URL")
    yield from found


def check_address(
    address: object, resolved: ResolvedModel, settings: Settings, totals: Totals
) -> None:
    """Raise ApiError for another host's address, for bad data, or if the model takes no images."""
    if not isinstance(address, str) or not address:
        raise bad_request("an image has no address: give it as a data: URL")
    is_remote = not address.startswith("data:") and (
        address.startswith("http") or ":" in address[:SHOWN]
    )
    if is_remote and host_of(address) not in settings.media_hosts:
        raise bad_request(
            f"images are not fetched from {address[:SHOWN]!r}: send them as data: URLs"
        )
    if resolved.model.projector is None:
        raise bad_request(f"{resolved.id!r} cannot see: it has no projector")
    if not is_remote:
        is_url = address.startswith("data:")
        check_size(address.partition(",")[2] if is_url else address, settings, totals)


def host_of(address: str) -> str | None:
    try:
        found = urlsplit(address)
    except ValueError:
        return None
    return found.hostname if found.scheme in ("http", "https") else None


def check_size(packed: str, settings: Settings, totals: Totals) -> None:
    """Raise ApiError for a file in base64 of an unknown kind, or too large when decoded."""
    limits, raw = settings.limits, beginning(packed)
    if image_kind(raw) is not None:
        found = pixels(raw)
        if found is None:
            raise bad_request("an image is damaged: its width and height cannot be read")
        totals.pixels += found
        refuse_above(found, limits.pixels, "an image has {} pixels")
        refuse_above(totals.pixels, limits.total_pixels, "the request's images have {} pixels")
    elif is_audio(raw):
        length_s = seconds(raw, len(packed) * 3 // QUAD)
        if length_s is None:
            raise bad_request("a recording is damaged: its length cannot be read")
        totals.seconds += length_s
        refuse_above(int(totals.seconds), limits.audio_s, "the request has {} seconds of audio")
    else:
        raise bad_request(
            "an image is not PNG, JPEG, GIF, BMP or WebP (nor a recording WAV, MP3 or FLAC)"
        )


def refuse_above(found: int, most: int, what: str) -> None:
    if found > most:
        raise bad_request(f"{what.format(found)}, and this server takes {most}", code="too_many")


def beginning(packed: str) -> bytes:
    """The first bytes of a file in base64; empty for other text."""
    start = "".join(packed[: HEAD * 2].split())[:HEAD]
    try:
        return base64.b64decode(start[: len(start) // QUAD * QUAD] or start)
    except (binascii.Error, ValueError):
        return b""
