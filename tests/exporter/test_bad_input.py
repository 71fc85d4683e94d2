"""What a person can get wrong: the message names the thing, the hint helps, nothing is left."""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from huggingface_hub import constants

from exporter.cli.app import run
from exporter.core.atomic_file import free_bytes
from tests.support.raw import copy, edit_json
from tests.support.tiny import make_adapter, make_base

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained]

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Failure:
    """How a refused export ended."""

    exit_code: int
    message: str
    hint: str


Refused = Callable[..., Failure]


@pytest.fixture
def refused(tmp_path, capsys) -> Refused:
    """Run an export that must fail, and check that it left the output folder empty."""

    def run_export(*arguments: object) -> Failure:
        output = tmp_path / "out"
        output.mkdir(exist_ok=True)
        exit_code = run(["export", *map(str, arguments), "-o", str(output / "model.gguf")])
        printed = capsys.readouterr()
        assert printed.out == ""
        assert "Traceback" not in printed.err
        assert list(output.iterdir()) == []
        message, _, hint = printed.err.partition("\n\nhint: ")
        return Failure(exit_code, message.partition("error: ")[2], hint)

    return run_export


@pytest.fixture
def base(tiny_base, tmp_path):
    return copy(tiny_base, tmp_path / "base")


@pytest.fixture
def adapter(tiny_adapter, tmp_path):
    return copy(tiny_adapter, tmp_path / "lora")


def change_value(path: Path, name: str, value: float) -> None:
    """Set the first value of a tensor, float32 or bfloat16."""
    content = bytearray(path.read_bytes())
    length = struct.unpack("<Q", content[:8])[0]
    entry = json.loads(content[8 : 8 + length])[name]
    at = 8 + length + entry["data_offsets"][0]
    raw = struct.pack("<f", value)
    content[at : at + len(raw)] = (
        raw if entry["dtype"] == "F32" else raw[2:] + content[at + 2 : at + 4]
    )
    path.write_bytes(content)


def test_a_folder_without_an_adapter_config(refused, adapter):
    (adapter / "adapter_config.json").unlink()

    failed = refused(adapter)

    assert failed.exit_code == 3
    assert "adapter_config.json` is missing" in failed.message
    assert "beside `adapter_model.safetensors`" in failed.hint


def test_a_base_that_is_not_given_and_cannot_be_had(refused, adapter, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="org/nowhere")

    failed = refused(adapter)

    assert failed.exit_code == 6
    assert "'org/nowhere'" in failed.message
    assert "--base" in failed.hint


def test_a_base_that_is_not_given_and_not_found(refused, adapter, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="org/nowhere")

    failed = refused(adapter)

    assert failed.exit_code == 3
    assert "'org/nowhere'" in failed.message
    assert "--base" in failed.hint


def test_an_adapter_that_does_not_name_its_base(refused, adapter):
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=None)

    assert "does not say which base" in refused(adapter).message


def test_an_adapter_for_another_base(refused, adapter, tmp_path):
    other = make_base(tmp_path / "other", hidden_size=512)

    failed = refused(adapter, "--base", other)

    assert failed.exit_code == 3
    assert "down_proj.weight` is [512, 512] in the base" in failed.message
    assert "and [256, 512] in the adapter" in failed.message
    assert "more" in failed.message
    assert "pass that as --base" in failed.hint


def test_a_cut_safetensors(refused, adapter, base):
    path = base / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1000])

    failed = refused(adapter, "--base", base)

    assert failed.exit_code == 3
    assert str(path) in failed.message
    assert "cut short" in failed.message


def test_a_cut_adapter(refused, adapter, base):
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:100])

    assert "cut short" in refused(adapter, "--base", base).message


def test_a_shard_missing_from_the_folder(refused, adapter, base):
    (base / WEIGHTS).unlink()
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))

    failed = refused(adapter, "--base", base)

    assert failed.exit_code == 3
    assert "model-00001-of-00002.safetensors` is missing" in failed.message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("merge_dtype", ["float32", "base"])
def test_an_adapter_that_makes_a_weight_nan_or_infinite(refused, adapter, base, value, merge_dtype):
    name = "model.layers.1.mlp.up_proj"
    weights = adapter / "adapter_model.safetensors"
    change_value(weights, f"base_model.model.{name}.lora_B.weight", value)

    failed = refused(adapter, "--base", base, "--merge-dtype", merge_dtype)

    assert failed.exit_code == 3
    assert f"`{name}.weight`" in failed.message
    assert "merging makes" in failed.message
    assert "earlier checkpoint" in failed.hint


@pytest.mark.parametrize("name", ["model.layers.2.mlp.up_proj.weight", "model.norm.weight"])
def test_a_base_that_holds_nan(refused, adapter, base, name):
    change_value(base / WEIGHTS, name, float("nan"))

    failed = refused(adapter, "--base", base)

    assert failed.exit_code == 3
    assert "1 of " in failed.message
    assert f"`{name}` in the base" in failed.message


def test_an_architecture_that_llamacpp_does_not_know(refused, adapter, base):
    edit_json(base / "config.json", architectures=["OPTForCausalLM"], model_type="opt")

    failed = refused(adapter, "--base", base)

    assert failed.exit_code == 3
    assert "'OPTForCausalLM'" in failed.message
    assert "--to safetensors" in failed.hint


def test_a_base_without_a_tokenizer(refused, adapter, base):
    for path in base.glob("token*"):
        path.unlink()

    failed = refused(adapter, "--base", base)

    assert failed.exit_code == 3
    assert str(base) in failed.message
    assert "tokenizer" in failed.hint


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", "256"), ("hidden_size", -1), ("num_attention_heads", 0),
        ("num_hidden_layers", "three"), ("vocab_size", {}), ("rms_norm_eps", "small"),
        ("max_position_embeddings", [256]), ("rope_parameters", "default"),
        ("architectures", 3), ("architectures", []), ("architectures", {}),
    ],
)  # fmt: skip
def test_a_config_that_makes_no_sense(refused, adapter, base, key, value):
    edit_json(base / "config.json", **{key: value})

    failed = refused(adapter, "--base", base)

    assert failed.exit_code == 3
    assert str(base) in failed.message


def test_a_rank_that_the_config_denies(refused, adapter, base):
    edit_json(adapter / "adapter_config.json", r=4)

    failed = refused(adapter, "--base", base)

    assert failed.exit_code == 3
    assert "says rank 4" in failed.message


def test_an_output_that_exists_is_kept_and_named(adapter, base, tmp_path, capsys):
    output = tmp_path / "model.gguf"
    output.write_bytes(b"precious")

    exit_code = run(["export", str(adapter), "--base", str(base), "-o", str(output)])

    assert exit_code == 8
    assert "--force" in capsys.readouterr().err
    assert output.read_bytes() == b"precious"

    assert run(["export", str(adapter), "--base", str(base), "-o", str(output), "--force"]) == 0
    assert output.read_bytes()[:4] == b"GGUF"


def test_a_disk_that_is_too_small_is_known_before_a_weight_is_read(refused, tmp_path, base):
    """A base of holes, larger than the disk; reading its weights would take minutes."""
    rows = free_bytes(tmp_path) // (256 * 2) + 1
    with (base / WEIGHTS).open("r+b") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        entries = json.loads(file.read(length))
        end = max(e["data_offsets"][1] for key, e in entries.items() if key != "__metadata__")
        grown = end + rows * 512
        entries["lm_head.weight"] |= {"shape": [rows, 256], "data_offsets": [end, grown]}
        header = json.dumps(entries).encode()
        file.seek(0)
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + grown)
    started = time.monotonic()

    failed = refused("--base", base, "-q", "F16")

    assert failed.exit_code == 5
    assert re.search(r"has [\d.]+ (bytes|.B) free, and .* needs [\d.]+ .B", failed.message)
    assert "smaller -q" in failed.hint
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        (["export"], 2, "name an adapter folder"),
        (["export", "x", "-q", "Q4_M"], 3, "unknown quantization 'Q4_M'"),
        (["export", "x", "--merge-dtype", "bf16"], 2, "float32"),
        (["export", "x", "--scale", "nan"], 2, "--scale nan"),
        (["export", "x", "-q", "Q4_0", "-q", "Q8_0", "-o", "one.gguf"], 3, "2 quantizations"),
    ],
)
def test_a_mistyped_command_line(arguments, exit_code, said, capsys):
    assert run(arguments) == exit_code
    assert said in capsys.readouterr().err


def test_several_quantizations_need_a_folder(adapter, base, tmp_path, capsys):
    arguments = ["export", str(adapter), "--base", str(base), "-q", "Q4_0", "-q", "Q8_0", "-o"]

    assert run([*arguments, str(tmp_path / "one.gguf")]) == 3
    assert "name a folder" in capsys.readouterr().err

    assert run([*arguments, f"{tmp_path}/many"]) == 0
    assert sorted(path.name for path in (tmp_path / "many").iterdir()) == [
        "lora-Q4_0.gguf",
        "lora-Q8_0.gguf",
    ]


@pytest.fixture(scope="session")
def slow_export(tmp_path_factory):
    """A base and adapter whose export takes some seconds on one thread."""
    folder = tmp_path_factory.mktemp("slow")
    base = make_base(folder / "base", hidden_size=768, intermediate_size=2048, num_hidden_layers=8)
    return base, make_adapter(folder / "lora", base)


@pytest.fixture
def writing(slow_export, tmp_path):
    """A process in the middle of writing `out/model.gguf`."""
    base, adapter = slow_export
    argv = [sys.executable, "-m", "exporter", "export", str(adapter), "--base", str(base)]
    argv += ["--threads", "1", "-o", str(tmp_path / "out" / "model.gguf")]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "quantizing:" in line:
                break
        assert (tmp_path / "out" / ".model.gguf.partial").exists()
        assert not (tmp_path / "out" / "model.gguf").exists()
        yield process
        process.kill()


def test_ctrl_c_while_writing_leaves_no_model_and_says_what_is_kept(writing, tmp_path):
    writing.send_signal(signal.SIGINT)
    _, printed = writing.communicate(timeout=20)

    assert writing.returncode == 130
    assert "Traceback" not in printed
    assert not (tmp_path / "out" / "model.gguf").exists()
    assert "tensors are kept: the same command resumes from there" in printed


def test_kill_9_while_writing_leaves_no_model_and_the_next_export_cleans_up(
    writing, slow_export, tmp_path
):
    writing.kill()
    writing.wait(20)
    assert not (tmp_path / "out" / "model.gguf").exists()

    base, adapter = slow_export
    output = tmp_path / "out" / "model.gguf"
    assert run(["export", str(adapter), "--base", str(base), "-o", str(output), "--quiet"]) == 0
    assert [path.name for path in output.parent.iterdir()] == ["model.gguf"]


def test_a_second_export_to_the_same_name_is_told(writing, slow_export, tmp_path, capsys):
    base, adapter = slow_export
    output = tmp_path / "out" / "model.gguf"

    assert run(["export", str(adapter), "--base", str(base), "-o", str(output), "--quiet"]) == 8
    assert "another process is writing" in capsys.readouterr().err
    assert writing.poll() is None


def test_a_missing_build_says_how_to_get_it(tiny_base, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DECANT_CACHE", str(tmp_path))

    assert run(["export", "--base", str(tiny_base), "-o", str(tmp_path / "x.gguf")]) == 4
    assert "`decant setup`" in capsys.readouterr().err


def test_a_missing_compiler_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DECANT_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))

    assert run(["setup"]) == 4
    printed = capsys.readouterr().err
    assert "C++ compiler" in printed
    assert "hint:" in printed
