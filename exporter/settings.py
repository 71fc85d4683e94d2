"""A model's settings: what the converter needs to see of them, and whether GGUF can hold them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from exporter.core.errors import CheckpointError
from exporter.core.files import read_json_object


def mend(hparams: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What the converter looks for and transformers 5 no longer gives."""
    kind = hparams.get("model_type")
    if kind == "gpt_neox":
        rope = hparams.get("rope_parameters") or {}
        hparams.setdefault("rotary_pct", rope.get("partial_rotary_factor", 1.0))
    if kind == "gpt2":
        hparams.setdefault("n_ctx", hparams.get("n_positions"))
    if kind == "falcon" and hparams.get("multi_query"):
        written = read_json_object(folder / "config.json", error=CheckpointError, hint="")
        # all heads share one: the number that transformers fills in is of another layout
        if not hparams.get("new_decoder_architecture"):
            hparams["num_kv_heads"] = written.get("n_head_kv", 1)
    return hparams


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
