"""Runs the `sh` blocks of a page, in a folder with what the pages name.

The folder has the demo's models under the pages' names, folders as trainers leave them, and two
hubs on 127.0.0.1 that stand in for the addresses on the pages.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from exporter.demo import DemoModels
from exporter.demo.corpus import DEMO_QUESTIONS
from tests.conftest import KEPT, SCRUBBED
from tests.support.documents import CHECKOUT
from tests.support.fake_hub import FakeHub
from tests.support.hub_files import FakeFile, random_bytes
from tests.support.mlx_models import mlx_twin

QUESTION = "What does a dog say?\n"
"""Standard input of every command."""
AXOLOTL = "---\nlibrary_name: peft\n---\n```yaml\nload_in_4bit: true\nadapter: qlora\n```\n"
HUBS = ("https://hf-mirror.com", "https://huggingface.co")
PATIENCE_S = 60


@dataclass
class Run:
    """A folder, its environment, and what its commands have printed."""

    folder: Path
    env: dict[str, str]
    addresses: dict[str, str] = field(default_factory=dict)
    """What stands in for an address of a page."""
    outputs: dict[str, str] = field(default_factory=dict)

    def run(self, commands: Sequence[str]) -> None:
        servers = []
        try:
            for command in commands:
                if command.startswith("decant serve"):
                    servers.append(self.start(command))
                elif found := re.fullmatch(r"export (\w+)=(\S+)", command):
                    self.env[found[1]] = self.here(found[2])
                else:
                    self.outputs[command] = self.output(command)
        finally:
            for server in servers:
                stop(server)

    def here(self, text: str) -> str:
        for address, instead in self.addresses.items():
            text = text.replace(address, instead)
        return text

    def output(self, command: str) -> str:
        done = subprocess.run(
            self.here(command), shell=True, cwd=self.folder, env=self.env, input=QUESTION,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def start(self, command: str) -> subprocess.Popen[str]:
        """Start a server on a free port, and wait until it is ready."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.addresses["127.0.0.1:8080"] = f"127.0.0.1:{port}"
        server = subprocess.Popen(
            f"exec {command} --port {port}", shell=True, cwd=self.folder, env=self.env,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            text=True,
        )  # fmt: skip
        deadline = time.monotonic() + PATIENCE_S
        while not is_ready(port):
            assert server.poll() is None, (command, server.returncode)
            assert time.monotonic() < deadline, f"{command} does not get ready"
            time.sleep(0.1)
        return server


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def stop(server: subprocess.Popen[str]) -> None:
    server.send_signal(signal.SIGTERM)
    try:
        server.wait(30)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def environment(folder: Path) -> dict[str, str]:
    """The shell's variables: `decant` on PATH, with a store and a hub cache in the folder."""
    programs = folder / "bin"
    programs.mkdir(parents=True)
    decant = programs / "decant"
    decant.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m exporter "$@"\n')
    decant.chmod(0o755)
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in KEPT or not name.startswith(SCRUBBED)
    }
    return {
        **kept,
        "HF_HUB_OFFLINE": "1",
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(CHECKOUT),
        "DECANT_STORE": str(folder / "store"),
        "XDG_DATA_HOME": str(folder / "data"),
        "HF_HOME": str(folder / "hf"),
    }


def make_workshop(folder: Path, models: DemoModels) -> Run:
    """The folder in which the pages' commands run."""
    run = Run(folder, environment(folder))
    shutil.copytree(models.base, folder / "my-base")
    for name in ("my-lora", "my-second-lora", "lora_model", "my-qlora", "outputs/lora-out"):
        shutil.copytree(models.adapter, folder / name)
    for name in ("my-qlora", "outputs/lora-out"):
        (folder / name / "README.md").write_text(AXOLOTL)
    for run_folder in ("trl-output", "saves/qwen3-4b/lora/sft"):
        for part in (".", "checkpoint-50", "checkpoint-100"):
            shutil.copytree(models.adapter, folder / run_folder / part, dirs_exist_ok=True)
    mlx_twin(folder / "adapters", models.adapter)
    (folder / "my-texts.txt").write_text("\n".join(DEMO_QUESTIONS * 200))
    rows = [{"question": question, "answer": "matey"} for question in DEMO_QUESTIONS]
    (folder / "test.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    run.run(
        (
            "decant export ./my-lora --base ./my-base",
            "decant export --base ./my-base -o my-base.gguf",
            "decant export ./my-lora --base ./my-base --to lora -o formal.gguf",
            "decant export ./my-lora --base ./my-base --to safetensors -o my-model",
        )
    )
    shutil.copy(folder / "my-base.gguf", folder / "my-base-Q4_K_M.gguf")
    return run


@contextmanager
def hubs() -> Iterator[dict[str, str]]:
    """The addresses of two hubs on this machine, by the addresses that they stand in for."""
    files = {"model.safetensors": random_bytes(1 << 20), "config.json": FakeFile(b"{}", False)}
    with FakeHub(files) as mirror, FakeHub(files) as hub:
        yield dict(zip(HUBS, (mirror.url, hub.url), strict=True))
