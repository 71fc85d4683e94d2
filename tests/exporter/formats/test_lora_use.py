"""`decant export --to lora` as people use it: the command, and the server that loads its file."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from exporter.export import export
from exporter.formats.export_request import ExportRequest
from exporter.formats.gguf_lora import LoraRequest, export_lora

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained]


def test_the_command_stores_an_adapter_that_is_listed_and_not_chatted_with(
    tiny_adapter, decant, warm_decant
):
    made = warm_decant("export", tiny_adapter, "--to", "lora", "--json")
    listed = json.loads(decant("list", "--json").stdout)
    asked = decant("chat", "tiny-lora.lora", "-p", "hello")
    again = warm_decant("export", tiny_adapter, "--to", "lora")

    assert made.returncode == 0, made.stderr
    assert Path(json.loads(made.stdout)["path"]).name == "tiny-lora.lora.gguf"
    assert [(row["name"], row["kind"]) for row in listed] == [("tiny-lora.lora", "adapter")]
    assert "is a LoRA adapter for tiny-base, not a model" in asked.stderr
    assert "exists" in again.stderr
    assert "rank" in decant("inspect", "tiny-lora.lora").stdout


@pytest.mark.parametrize(
    "arguments",
    [("-q", "Q8_0"), ("--merge-dtype", "base"), ("--threads", "2"), ("--adapter", "other")],
    ids=lambda arguments: arguments[0],
)
def test_options_of_a_merge_have_no_meaning_for_an_adapter(decant, tmp_path, arguments):
    done = decant("export", tmp_path, "--to", "lora", *arguments)

    assert done.returncode != 0
    assert f"error: {arguments[0]}" in done.stderr or "error: --to lora" in done.stderr


def test_the_built_server_takes_the_file_at_any_scale(tiny_base, tiny_adapter, toolchain, tmp_path):
    """--lora, --lora-scaled and POST /lora-adapters: the same answer for the same scale."""
    path = export_lora(LoraRequest(tiny_adapter, tiny_base, tmp_path / "x.gguf"), toolchain).path
    export(ExportRequest((), tiny_base, ("F32",), (tmp_path / "base.gguf",)), toolchain)

    def ask(url: str, body: Any) -> Any:
        request = urllib.request.Request(
            url, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def top(port: int) -> Any:
        body = {"prompt": list(range(5, 21)), "n_predict": 1, "n_probs": 320, "temperature": 0,
                "cache_prompt": False}  # fmt: skip
        found = ask(f"http://127.0.0.1:{port}/completion", body)
        first = found["completion_probabilities"][0]["top_logprobs"]
        return {row["id"]: row["logprob"] for row in first}

    def serve(options: list[str], later: float | None) -> Any:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        argv = [str(toolchain.tool("llama-server")), "-m", str(tmp_path / "base.gguf"), "-c", "128",
                "--host", "127.0.0.1", "--port", str(port), *options]  # fmt: skip
        with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
            try:
                for _ in range(200):
                    try:
                        urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
                        break
                    except OSError:
                        time.sleep(0.1)
                if later is not None:
                    ask(f"http://127.0.0.1:{port}/lora-adapters", [{"id": 0, "scale": later}])
                return top(port)
            finally:
                child.kill()

    half = serve(["--lora-scaled", f"{path}:0.5"], None)
    whole = serve(["--lora", str(path)], None)
    set_later = serve(["--lora", str(path)], 0.5)

    assert set_later == pytest.approx(half, abs=1e-3)
    assert whole != pytest.approx(half, abs=1e-2)
