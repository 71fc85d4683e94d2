"""Renames the state_dict of a model with PEFT's layers into PEFT's saved names.

Trainers that do not use PEFT's save (torch.save, DeepSpeed's zero_to_fp32.py, FSDP) leave the
adapter's name in the names of its tensors: …q_proj.lora_A.default.weight.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from exporter.core.errors import AdapterError
from exporter.inputs.lazy_tensor import Tensor, renamed

NAMED = re.compile(
    r"(?P<stem>.+\.(?:lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector))"
    r"\.(?!weight$|bias$)(?P<name>[^.]+)(?P<end>\.weight|\.bias)?"
)
SAVED = re.compile(r"(?P<stem>.+)\.modules_to_save\.[^.]+(?P<end>\..+)")
WHOLE = re.compile(r"(?P<stem>.+)\.modules_to_save(\.default)?(?P<end>\..+)")
PLAIN = re.compile(r"\.lora_(A|B)\.(weight|bias)$|\.lora_embedding_(A|B)$")
FROZEN = re.compile(r"\.original_module\.|\.base_layer\.(?!bias$)")


def without_adapter_name(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors under PEFT's names; a file that PEFT saved stays unchanged.

    Shapes, (rows, columns) for a matrix, stay the same. The frozen base weights under PEFT's layers
    are dropped; other tensors stay, and replace the base's by equal or trained values. Raises
    AdapterError for tensors of several adapters in one file.
    """
    found = {name: match for name in tensors if (match := NAMED.fullmatch(name))}
    names = sorted({match["name"] for match in found.values()})
    if not names or any(PLAIN.search(name) for name in tensors.keys() - found.keys()):
        return without_wrapper(tensors)
    if len(names) > 1:
        raise AdapterError(
            f"`{path}` holds the tensors of {len(names)} adapters: {', '.join(names)}",
            hint="save each by itself: model.save_pretrained(FOLDER, selected_adapters=[NAME])",
        )
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = found.get(name) or SAVED.fullmatch(name)
        if match:
            new = match["stem"] + (match["end"] or "")
        elif FROZEN.search(name):
            continue
        else:
            new = name
        plain[new] = renamed(tensor, new)
    return plain


def without_wrapper(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove PEFT's wrapper from the names of modules_to_save, shapes (…) unchanged.

    A tensor that exists under both names keeps both.
    """
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = WHOLE.fullmatch(name)
        new = match["stem"] + match["end"] if match else name
        new = name if new in tensors else new
        plain[new] = renamed(tensor, new)
    return plain
