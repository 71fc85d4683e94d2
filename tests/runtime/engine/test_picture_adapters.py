"""The adapters of a request apply to its pictures; those of an earlier request do not."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from exporter.export import export
from exporter.formats.export_request import ExportRequest
from exporter.llamacpp.converter_import import imported
from runtime.engine.llama_server import Server, ServerSpec
from runtime.engine.openai_client import ask_json
from tests.support.png import make_png
from tests.support.vision import make_seeing

pytestmark = [
    pytest.mark.llamacpp, pytest.mark.trained, pytest.mark.filterwarnings("ignore")
]  # fmt: skip
ADAPTED = ("attn_q.weight", "attn_k.weight", "attn_v.weight", "ffn_up.weight", "ffn_down.weight")
RANK = 8


def write_lora(model: Path, path: Path) -> Path:
    """A LoRA of random weights that changes each layer of a GGUF."""
    import gguf
    import numpy as np

    dice = np.random.default_rng(0)
    read = gguf.GGUFReader(model)
    writer = gguf.GGUFWriter(path, read.fields["general.architecture"].contents())
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 2.0 * RANK)
    for tensor in read.tensors:
        if tensor.name.startswith("blk.") and tensor.name.endswith(ADAPTED):
            n_in, n_out = (int(size) for size in tensor.shape)
            a, b = dice.normal(0, 0.2, (RANK, n_in)), dice.normal(0, 0.2, (n_out, RANK))
            writer.add_tensor(f"{tensor.name}.lora_a", a.astype(np.float32))
            writer.add_tensor(f"{tensor.name}.lora_b", b.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def likeliest(server: Server, content: object, scale: float) -> dict[str, float]:
    """The logarithms of the likelihoods of the first tokens of an answer."""
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": content}], "max_tokens": 1, "temperature": 0,
        "logprobs": True, "top_logprobs": 6, "lora": [{"id": 0, "scale": scale}],
    }  # fmt: skip
    answer = ask_json(server, "/v1/chat/completions", body)
    first = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return {token["token"]: token["logprob"] for token in first}


def picture(path: Path, side: int) -> list[dict[str, Any]]:
    data = base64.b64encode(make_png(path, side).read_bytes()).decode()
    return [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
        {"type": "text", "text": "what"},
    ]


def test_a_picture_is_computed_with_its_requests_adapters(toolchain, tmp_path):
    """What precedes the picture is known from the request before, so that it comes first."""
    base, model = make_seeing("qwen2_5_vl", tmp_path / "base"), tmp_path / "seeing-F16.gguf"
    export(ExportRequest((), base, ("F16",), (model,)), toolchain)
    with imported(toolchain):
        lora = write_lora(model, tmp_path / "l.gguf")
    one, other = picture(tmp_path / "one.png", 64), picture(tmp_path / "other.png", 96)
    spec = ServerSpec(
        model, 512, threads=1, parallel=2, adapters=(lora,), projector=tmp_path / "mmproj-base.gguf"
    )
    with Server(spec, toolchain) as server:
        expected = likeliest(server, one, 0.0)
        likeliest(server, other, 0.0)
        assert likeliest(server, one, 0.0) == pytest.approx(expected, abs=1e-3)
        likeliest(server, other, 0.0)
        adapted = likeliest(server, "hello", 1.0)

        assert adapted != pytest.approx(likeliest(server, "hello", 0.0), abs=0.1)
        likeliest(server, other, 0.0)
        likeliest(server, "hello", 1.0)
        assert likeliest(server, one, 0.0) == pytest.approx(expected, abs=1e-3)
        changed = likeliest(server, other, 1.0)
        likeliest(server, one, 1.0)
        likeliest(server, "hello", 0.0)
        assert likeliest(server, other, 1.0) == pytest.approx(changed, abs=1e-3)
