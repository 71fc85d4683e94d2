"""Reads the length of a recording from its first bytes.

An engine allocates memory for the length that a file claims, at its model's sample rate, before it
decodes anything: a few kilobytes may claim hours.
"""

from __future__ import annotations

import struct

RIFF_HEAD = 12  # bytes: RIFF, a size, WAVE
CHUNK_HEAD = 8  # bytes: a chunk's name and size
FLAC_INFO = 18  # the offset of the sample rate in FLAC's STREAMINFO, the first block
FLAC_RATE_BITS, FLAC_COUNT_BITS = 20, 36
MP3_LEAST = 1000  # bytes per second: 8 kbit/s, the lowest bit rate


def is_audio(raw: bytes) -> bool:
    """Whether data begins as WAV, FLAC or MP3, by llama.cpp's rule."""
    return is_wav(raw) or raw.startswith((b"fLaC", b"ID3")) or is_mpeg_frame(raw)


def is_wav(raw: bytes) -> bool:
    return raw.startswith(b"RIFF") and raw[8:12] == b"WAVE"


def is_mpeg_frame(raw: bytes) -> bool:
    """Whether data begins with the 11 bits that begin a frame of MP3."""
    return raw[:1] == b"\xff" and len(raw) > 1 and raw[1] & 0xE0 == 0xE0  # noqa: PLR2004


def seconds(raw: bytes, nbytes: int) -> float | None:
    """The length that a recording claims; None where its header cannot be read.

    raw: the file's beginning; nbytes: the size of the whole file. For MP3, the result is the
    longest time that so many bytes can hold.
    """
    try:
        if is_wav(raw):
            return wav_seconds(raw, nbytes)
        if raw.startswith(b"fLaC"):
            return flac_seconds(raw)
    except struct.error:
        return None
    return nbytes / MP3_LEAST


def wav_seconds(raw: bytes, nbytes: int) -> float | None:
    """The length by the chunk `fact` or by the size of the data, whichever is longer."""
    at, rate, frame_nbytes, frames = RIFF_HEAD, 0, 0, 0
    while at + CHUNK_HEAD <= len(raw):
        name, size = raw[at : at + 4], int(struct.unpack_from("<I", raw, at + 4)[0])
        at += CHUNK_HEAD
        if name == b"fmt ":
            _, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", raw, at)
            frame_nbytes = channels * bits / 8
        elif name == b"fact":
            frames = max(frames, int(struct.unpack_from("<I", raw, at)[0]))
        elif name == b"data":
            break
        at += size + size % 2
    if not rate or not frame_nbytes:
        return None
    return float(max(frames, nbytes / frame_nbytes) / rate)


def flac_seconds(raw: bytes) -> float | None:
    """The length by STREAMINFO; None where it gives no rate."""
    (packed,) = struct.unpack_from(">Q", raw, FLAC_INFO)
    rate = packed >> (64 - FLAC_RATE_BITS)
    frames = packed & ((1 << FLAC_COUNT_BITS) - 1)
    return float(frames / rate) if rate else None
