"""`--to vllm`: the adapters as they were trained, under the names that `decant serve` has."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from exporter.cli.app import run
from exporter.cli.outputs.vllm_output import split_name
from exporter.core.errors import AdapterError, OutputError, UnsupportedError
from exporter.core.events import Note
from exporter.formats.vllm import export_for_vllm
from exporter.inputs.adapter import open_adapter
from exporter.model_store import file_name
from runtime.engine.adapters import Adapter, parse_adapter
from runtime.engine.opened_model import open_model
from runtime.gateway.catalog import Catalog
from tests.support.raw import write_adapter, write_base, write_safetensors, write_tiny_gguf
from tests.support.vllm_folders import exported, request

pytestmark = pytest.mark.trained  # vLLM's format is safetensors', of the [export] extra

STEM = "base_model.model.model.layers.0.self_attn.q_proj"


# Names and the command.


def test_the_command_serves_base_and_adapters_by_decants_names(tmp_path):
    pirate, liar = write_adapter(tmp_path / "pirate"), write_adapter(tmp_path / "liar")
    made = export_for_vllm(request(tmp_path / "out", pirate, liar))

    assert made.models == ("base", "base:pirate", "base:liar")
    assert list(made.command) == [
        "vllm", "serve", "org/base", "--served-model-name", "base", "--enable-lora",
        "--max-lora-rank", "8", "--max-loras", "3", "--lora-modules",
        '{"name": "base:pirate", "path": "adapters/pirate", "base_model_name": "base"}',
        '{"name": "base:liar", "path": "adapters/liar", "base_model_name": "base"}',
    ]  # fmt: skip
    assert json.loads((tmp_path / "out" / "vllm.json").read_text()) == {
        "models": list(made.models),
        "command": list(made.command),
    }
    assert "`base:liar`" in (tmp_path / "out" / "README.md").read_text()


def test_the_names_are_those_of_decant_serve(tmp_path):
    gguf = write_tiny_gguf(tmp_path / file_name("Llama-3.2-1B", "Q4_K_M"))
    adapter = parse_adapter(str(write_adapter(tmp_path / "my-lora")))
    model = replace(open_model(gguf), adapters=(Adapter(adapter.name, Path(adapter.place), 1.0),))
    base = write_base(tmp_path / "Llama-3.2-1B")
    made = export_for_vllm(request(tmp_path / "out", tmp_path / "my-lora", base=str(base)))

    assert list(made.models) == Catalog([model]).ids()


@pytest.mark.parametrize("text", ["./my-lora", "x.v2/my-lora", "a=./my-lora", "a+b=org/name"])
def test_an_adapters_name_is_found_as_decant_serve_finds_it(text):
    wanted = parse_adapter(text)

    assert split_name(text) == (wanted.name, wanted.place)


def test_the_script_runs_the_command_from_anywhere_with_more_arguments(tmp_path):
    adapter = write_adapter(tmp_path / "pirate")
    folder = exported(
        tmp_path / "it's an out", adapter, base=str(write_base(tmp_path / "a 'base'"))
    )
    fake = tmp_path / "bin" / "vllm"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\npwd\nfor word in "$@"; do printf "%s\\n" "$word"; done\n')
    fake.chmod(0o755)
    path = f"{fake.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [folder / "serve.sh", "--port", "8001"], cwd="/", env={"PATH": path},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    cwd, *words = done.stdout.splitlines()
    command = json.loads((folder / "vllm.json").read_text())["command"]
    place = words.index("--port")

    assert words[place : place + 2] == ["--port", "8001"]
    assert words[:place] + words[place + 2 :] == command[1:]
    assert words[1] == str(tmp_path / "a 'base'")
    assert (Path(cwd) / json.loads(words[-1])["path"] / "adapter_model.safetensors").is_file()


def test_without_vllm_the_script_says_so(tmp_path):
    folder = exported(tmp_path / "out", write_adapter(tmp_path / "a"))
    argv, env = [folder / "serve.sh"], {"PATH": str(tmp_path)}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)

    assert done.returncode == 127
    assert done.stderr.splitlines() == [
        "error: vllm is not on the PATH",
        "",
        "hint: activate its environment, or pip install vllm",
    ]


@pytest.mark.parametrize(("rank", "allowed"), [(1, "8"), (8, "8"), (17, "32"), (512, "512")])
def test_the_greatest_rank_is_one_that_vllm_takes(tmp_path, rank, allowed):
    adapter = of_rank(tmp_path / "a", rank)
    command = export_for_vllm(request(tmp_path / "out", adapter)).command

    assert command[command.index("--max-lora-rank") + 1] == allowed


def of_rank(folder: Path, rank: int) -> Path:
    write_adapter(folder, r=rank)
    shapes = {f"{STEM}.lora_A.weight": (rank, 8), f"{STEM}.lora_B.weight": (8, rank)}
    write_safetensors(folder / "adapter_model.safetensors", shapes)
    return folder


@pytest.mark.parametrize(
    ("count", "at_once", "in_memory"),
    [(1, "2", None), (7, "8", None), (8, "8", None), (9, "8", "9")],
)
def test_a_place_stays_free_and_what_a_batch_does_not_hold_is_kept_in_memory(
    tmp_path, count, at_once, in_memory
):
    adapters = [write_adapter(tmp_path / f"a{number}") for number in range(count)]
    command = export_for_vllm(request(tmp_path / "out", *adapters)).command
    options = dict(itertools.pairwise(command))

    assert options["--max-loras"] == at_once
    assert options.get("--max-cpu-loras") == in_memory


def test_a_base_in_the_hubs_cache_is_named_by_repo_and_commit(tmp_path):
    commit = "0" * 40
    base = write_base(tmp_path / "models--org--Llama" / "snapshots" / commit)
    adapter = write_adapter(tmp_path / "a", base_model_name_or_path=str(base))
    command = export_for_vllm(request(tmp_path / "out", adapter)).command

    assert command[2:5] == ("org/Llama", "--revision", commit)
    assert command[command.index("--served-model-name") + 1] == "Llama"


def test_adapters_of_two_bases_need_a_word(tmp_path):
    one = write_adapter(tmp_path / "one")
    other = write_adapter(tmp_path / "other", base_model_name_or_path="org/other")
    with pytest.raises(AdapterError, match="org/base and org/other"):
        exported(tmp_path / "out", one, other)

    assert exported(tmp_path / "out", one, other, base="org/base", name="mine").exists()


# What is refused.


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"peft_type": "IA3"}, "LoRA only"),
        ({"use_dora": True}, "no DoRA"),
        ({"lora_bias": True}, "biases"),
        ({"alora_invocation_tokens": [1]}, "every token"),
        ({"target_parameters": ["mlp.experts.down_proj"]}, "experts"),
        ({"init_lora_weights": "pissa"}, "changing the base"),
        ({"init_lora_weights": "corda"}, "not saved"),
    ],
)
def test_what_vllm_cannot_serve_is_refused_with_the_reason(tmp_path, config, why):
    with pytest.raises(UnsupportedError, match=why):
        exported(tmp_path / "out", write_adapter(tmp_path / "a", **config))

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "shape", "what"),
    [
        ("base_model.model.lm_head.weight", (16, 8), "modules_to_save"),
        (f"{STEM}.base_layer.bias", (8,), None),
        (
            "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta",
            (1, 8),
            "rows",
        ),
    ],
)
def test_tensors_beside_a_and_b_are_refused_by_name(tmp_path, name, shape, what):
    adapter = write_adapter(tmp_path / "a")
    pair = {f"{STEM}.lora_A.weight": (2, 8), f"{STEM}.lora_B.weight": (8, 2)}
    write_safetensors(adapter / "adapter_model.safetensors", pair | {name: shape})
    if what is None:  # the base's own, which vLLM would stumble over, is left out
        folder = exported(tmp_path / "out", adapter)
        assert set(open_adapter(folder / "adapters" / "a").saved) == set()
        return
    with pytest.raises(UnsupportedError, match=what):
        exported(tmp_path / "out", adapter)


def test_a_rank_above_vllms_greatest_is_refused(tmp_path):
    with pytest.raises(UnsupportedError, match="rank 513"):
        exported(tmp_path / "out", of_rank(tmp_path / "a", 513))


def test_a_config_of_another_training_is_refused(tmp_path):
    with pytest.raises(AdapterError, match="says rank 3"):
        exported(tmp_path / "out", write_adapter(tmp_path / "a", r=3))


def test_an_adapted_head_is_told_of(tmp_path):
    adapter = write_adapter(tmp_path / "a")
    stem = "base_model.model.lm_head"
    shapes = {f"{stem}.lora_A.weight": (2, 8), f"{stem}.lora_B.weight": (16, 2)}
    write_safetensors(adapter / "adapter_model.safetensors", shapes)
    told: list[Any] = []
    export_for_vllm(request(tmp_path / "out", adapter), report=told.append)

    assert [event for event in told if isinstance(event, Note) and "head" in event.message]


def test_only_a_folder_of_its_own_is_replaced(tmp_path):
    adapter = write_adapter(tmp_path / "a")
    folder = exported(tmp_path / "out", adapter)
    with pytest.raises(OutputError, match="exists"):
        exported(folder, adapter)
    (folder / "adapters" / "old").mkdir()
    exported(folder, adapter, force=True)
    assert [path.name for path in (folder / "adapters").iterdir()] == ["a"]
    (folder / "mine").mkdir()
    with pytest.raises(OutputError, match="not replaced"):
        exported(folder, adapter, force=True)
    with pytest.raises(OutputError, match="or lie in it"):
        exported(adapter / "out", adapter)


# The command line.


def test_the_command_line_names_adapters_and_scales_and_shows_json(tmp_path, capsys):
    pirate, liar = write_adapter(tmp_path / "pirate"), write_adapter(tmp_path / "liar")
    out = tmp_path / "out"
    argv = ["export", f"arr={pirate}", "--adapter", f"{liar}:0.5", "--to", "vllm", "--name", "m"]
    code = run([*argv, "-o", str(out), "--json", "--quiet"])
    made = json.loads(capsys.readouterr().out)

    assert code == 0
    assert made["models"] == ["m", "m:arr", "m:liar"]
    config = json.loads((out / "adapters" / "liar" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (2, 2)  # half of 4


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    adapter = write_adapter(tmp_path / "pirate")
    out = tmp_path / "out"

    assert run(["export", str(adapter), "--to", "vllm", "-o", str(out), "--dry-run"]) == 0
    assert "would hold base:pirate" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    "more",
    [
        ["-q", "Q8_0"], ["--threads", "2"], ["--combine", "linear"], ["--pure"],
        ["--merge-dtype", "base"], ["--split-max-size", "1GB"], ["--trust-remote-code"],
        ["--max-shard-size", "1GB"],
    ],
)  # fmt: skip
def test_options_without_meaning_are_refused(tmp_path, more, capsys):
    adapter = write_adapter(tmp_path / "a")

    assert run(["export", str(adapter), "--to", "vllm", *more]) == 2
    told = capsys.readouterr().err
    assert more[0] in told or "types and importance matrices" in told


def test_two_adapters_of_one_name_are_told_apart_by_the_user(tmp_path, capsys):
    one, other = write_adapter(tmp_path / "x" / "a"), write_adapter(tmp_path / "y" / "a")
    argv = ["export", str(one), "--adapter", str(other), "--to", "vllm"]

    assert run(argv) == 2
    assert "NAME=PATH" in capsys.readouterr().err


def test_a_name_is_for_vllm_only(tmp_path, capsys):
    assert run(["export", str(write_adapter(tmp_path / "a")), "--name", "x"]) == 2
    assert "--to vllm" in capsys.readouterr().err
