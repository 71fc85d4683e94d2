"""Images and recordings in requests: none is fetched, of an unknown kind, or too large."""

from __future__ import annotations

import base64
import struct
from dataclasses import replace
from typing import Any

import pytest

from runtime.engine.opened_model import open_model
from runtime.gateway.api_errors import ApiError
from runtime.gateway.audio_length import seconds
from runtime.gateway.catalog import ResolvedModel
from runtime.gateway.media_checks import refuse_media
from runtime.gateway.picture_size import pixels
from runtime.gateway.request_limits import Limits
from runtime.gateway.settings import Settings
from tests.support.png import png_head
from tests.support.raw import write_tiny_gguf

WIDTH, HEIGHT = 40_000, 30_000
ROOMY = Settings(limits=Limits(pixels=1 << 31, total_pixels=1 << 31))


def pictures() -> dict[str, bytes]:
    """The first bytes of pictures of that size, as their formats have them."""
    bits = (16_000 - 1) | (15_000 - 1) << 14
    exif = b"\xff\xe1" + struct.pack(">H", 60_000) + b"\0" * 59_998
    frame = b"\xff\xc2\x00\x11\x08" + struct.pack(">HH", HEIGHT, WIDTH)
    extended = (WIDTH - 1).to_bytes(3, "little") + (HEIGHT - 1).to_bytes(3, "little")
    small = b"WEBPVP8X\x0a\0\0\0" + b"\0" * 10
    lossy = b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 16_000, 15_000)
    return {
        "png": png_head(WIDTH, HEIGHT),
        "gif": b"GIF89a" + struct.pack("<HH", WIDTH, HEIGHT),
        "bmp": b"BM" + b"\0" * 12 + struct.pack("<Iii", 40, WIDTH, -HEIGHT),
        "bmp of OS/2": b"BM" + b"\0" * 12 + struct.pack("<IHH", 12, WIDTH, HEIGHT),
        "jpeg": b"\xff\xd8\xff\xe0\x00\x04ab" + exif + b"\xff\xff\xd0" + frame,
        "jpeg with padding": b"\xff\xd8\xff\xe0\x00\x04abjunk" + frame,
        "webp, extended": b"RIFF\0\0\0\0WEBPVP8X\0\0\0\0\0\0\0\0" + extended,
        "webp, lossless": b"RIFF\0\0\0\0WEBPVP8L\0\0\0\0\x2f" + struct.pack("<I", bits),
        "webp, lossy": b"RIFF\0\0\0\0WEBPVP8 \0\0\0\0" + lossy,
        "webp, small with a large frame": b"RIFF\0\0\0\0" + small + b"VP8 \0\0\0\0" + lossy,
    }


def recordings() -> dict[str, bytes]:
    """Recordings of a few bytes that claim a week."""
    week = 7 * 86_400
    head, form = b"RIFF\0\0\0\0WAVE", struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 1, 1, 2, 16)
    fact = struct.pack("<4sII", b"fact", 4, week)
    flac = b"fLaC\0\0\0\x22" + b"\0" * 10 + struct.pack(">Q", 8000 << 44 | week * 8000)
    return {
        "wav, by its count": head + form + fact + b"data\0\0\0\0",
        "wav, by its rate": head + form + b"data\0\0\0\0" + b"\0" * 20_000,
        "flac": flac,
        "mp3": b"\xff\xfb" + b"\0" * 4_000_000,
    }  # fmt: skip


@pytest.fixture
def seeing(tmp_path) -> ResolvedModel:
    model = replace(open_model(write_tiny_gguf(tmp_path / "m.gguf")), projector=tmp_path)
    return ResolvedModel("m", "m", model, None, ())


def in_every_place(raw: bytes) -> list[dict[str, Any]]:
    """Requests with a file, wherever llama.cpp takes one from."""
    packed = base64.b64encode(raw).decode()
    url = f"data:image/png;base64,{packed}"
    source = {"type": "base64", "media_type": "image/png", "data": packed}
    part = {"type": "image_url", "image_url": {"url": url}}
    return [
        {"messages": [{"content": [part]}]},
        {"messages": [{"content": [{"type": "image", "source": source}]}]},
        {"messages": [{"content": [{"type": "tool_result", "content": [part]}]}]},
        {"messages": [{"content": [{"type": "input_audio", "input_audio": {"data": packed}}]}]},
        {"messages": [{"content": [{"type": "input_video", "input_video": {"url": url}}]}]},
        {"input": [{"content": [{"type": "input_image", "image_url": url}]}]},
        {"input": {"content": [part]}},
        {"content": [{"content": [part]}]},
        {"prompt": {"prompt_string": "x", "multimodal_data": [packed]}},
        {"prompt": ["x", {"prompt_string": "x", "multimodal_data": [packed]}]},
        {"input": [{"prompt_string": "x", "multimodal_data": [packed]}]},
    ]


@pytest.mark.parametrize("kind", pictures())
def test_a_picture_that_would_fill_the_memory_is_refused_by_its_first_bytes(kind, seeing):
    raw = pictures()[kind]

    assert pixels(raw) in (1_200_000_000, 240_000_000)
    for body in in_every_place(raw + b"\0" * 100):
        with pytest.raises(ApiError, match=r"an image has \d+ pixels"):
            refuse_media(body, seeing, Settings())
        refuse_media(body, seeing, ROOMY)


def test_many_pictures_count_together(seeing):
    packed = base64.b64encode(png_head(8000, 8000)).decode()
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{packed}"}}

    refuse_media({"messages": [{"content": [part] * 2}]}, seeing, Settings())
    with pytest.raises(ApiError, match="the request's images have 192000000 pixels"):
        refuse_media({"messages": [{"content": [part]}] * 3}, seeing, Settings())


@pytest.mark.parametrize("kind", recordings())
def test_a_recording_that_claims_a_week_is_refused_by_its_first_bytes(kind, seeing):
    raw = recordings()[kind]

    assert (seconds(raw, len(raw)) or 0) >= 4000
    for body in in_every_place(raw):
        with pytest.raises(ApiError, match=r"the request has \d+ seconds of audio"):
            refuse_media(body, seeing, Settings())
        refuse_media(body, seeing, Settings(limits=Limits(audio_s=1 << 30)))


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"\xff\xd8\xff", b"GIF89a",
        b"RIFF\0\0\0\0WEBPVP8 ", b"\xff\xd8" + b"\xff" * 99,
        b"\x89PNG\r\n\x1a\n\0\0\0\x04CgBI" + b"\0" * 99,  # the size follows, in another chunk
        b"\0\0\x02\0\0\0\0\0\0\0\0\0" + struct.pack("<HH", 20_000, 20_000) + b"\x18\0",  # TGA
        b"8BPS\0\x01" + b"\0" * 7 + b"\x03" + struct.pack(">II", 20_000, 20_000),  # PSD
        b"P6 20000 20000 255\n", b"#?RADIANCE\n", b"\x53\x80\xf6\x34",
        b"#EXTM3U\n", b"\0\0\0\x20ftypisom", b"\x1aE\xdf\xa3",  # a playlist and videos, for ffmpeg
        b"RIFF\0\0\0\0WAVEdata\0\0\0\0", b"fLaC",
    ],
    ids=range(19),
)  # fmt: skip
def test_what_is_of_an_unknown_kind_or_size_never_reaches_the_engine(raw, seeing):
    for body in in_every_place(raw):
        with pytest.raises(ApiError) as caught:
            refuse_media(body, seeing, ROOMY)
        assert caught.value.status == 400


@pytest.mark.parametrize("text", ["é", "=", "A", "AAAA=AAAA", "A" * 5])
def test_what_is_no_base64_never_reaches_the_engine(text, seeing):
    with pytest.raises(ApiError):
        refuse_media({"prompt": {"multimodal_data": [text]}}, seeing, ROOMY)


def test_a_tools_parameter_may_be_called_like_an_image(seeing):
    tool = {"function": {"parameters": {"properties": {"type": "image", "image": {"a": 1}}}}}

    refuse_media({"tools": [tool], "messages": [{"content": "hi"}]}, seeing, Settings())
