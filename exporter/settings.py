"""The converted model's settings, looked at before a file is begun."""

from __future__ import annotations

import struct
from typing import Any


def pack_settings(writer: Any) -> None:
    """Have every single setting put into bytes, as happens again when the header is written.

    The converter takes whatever stands in config.json; only its bytes show that it is no number.
    """
    for key, value in writer.kv_data[0].items():
        if value.type.name != "ARRAY":
            try:
                writer._pack_val(value.value, value.type, add_vtype=True)  # noqa: SLF001
            except struct.error as error:
                raise ValueError(f"{value.value!r} is not what {key} can be: {error}") from error
