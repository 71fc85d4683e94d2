"""`decant push` as a person types it."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from exporter.cli.app import root
from tests.conftest import CHECKOUT, Decant
from tests.support.fake_upload_hub import FakeUploadHub
from tests.support.hub_files import FakeFile
from tests.support.upload_files import TOKEN, FakeRepo
from tests.support.upload_stage import MADE, REPO, environment, write_gguf

pytestmark = pytest.mark.faults  # processes: about a second each
PAGE = (CHECKOUT / "docs" / "share.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines()]
TRUST = ("--trust-token", "127.0.0.1")


@pytest.fixture
def hub() -> Iterator[FakeUploadHub]:
    with FakeUploadHub() as hub:
        yield hub


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DECANT_STORE", str(tmp_path / "store"))
    for quant in ("Q4_K_M", "Q8_0"):
        write_gguf(tmp_path / "store" / f"my-lora-{quant}.gguf")
    return tmp_path / "store"


@pytest.fixture
def push(hub: FakeUploadHub, store: Path, decant: Decant) -> Callable[..., object]:
    def run(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
        return decant("push", *arguments, **{**environment(hub), **env})

    return run


def test_a_push_prints_the_address_and_says_what_it_does(push: Decant, hub: FakeUploadHub):
    done = push("my-lora", REPO, *TRUST)

    assert (done.returncode, done.stdout) == (0, f"{hub.url}/{REPO}\n")
    assert "sending my-lora-Q4_K_M.gguf: 100% of 4." in done.stderr
    assert "org/my-lora-GGUF (created, public): 2 files, sent: 2 files" in done.stderr
    assert "Q4_K_M.gguf was not verified by decant" in done.stderr
    assert set(hub.contents(REPO)) == {
        "my-lora-Q4_K_M.gguf", "my-lora-Q8_0.gguf", "README.md",
    }  # fmt: skip


def test_a_dry_run_lists_what_is_there(push: Decant, hub: FakeUploadHub):
    push("my-lora-Q8_0", REPO, *TRUST)
    before = dict(hub.contents(REPO))
    done = push("my-lora", REPO, *TRUST, "--dry-run")

    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [(row[0], row[2]) for row in rows] == [
        ("FILE", "THERE"), ("my-lora-Q4_K_M.gguf", "no"), ("my-lora-Q8_0.gguf", "yes"),
        ("README.md", "no"),
    ]  # fmt: skip
    assert hub.contents(REPO) == before


def test_json_has_the_files_and_the_card_and_no_token(push: Decant, hub: FakeUploadHub):
    done = push("my-lora", REPO, *TRUST, "--json", "--private")

    value = json.loads(done.stdout)
    assert (value["private"], value["created"], value["card_was"]) == (True, True, "to send")
    assert value["commit"] == hub.repos[REPO].head
    assert value["card"].encode() == hub.contents(REPO)["README.md"]
    assert TOKEN not in done.stdout + done.stderr


def test_a_readme_of_somebody_is_kept_unless_it_is_said(push: Decant, hub: FakeUploadHub):
    hub.repos[REPO] = FakeRepo(files={"README.md": FakeFile(b"# Mine\n", is_lfs=False)})

    done = push("my-lora", REPO, *TRUST)
    assert (done.returncode, hub.contents(REPO)["README.md"]) == (0, b"# Mine\n")
    assert "is kept; `decant push … --overwrite-card` replaces it" in done.stderr

    push("my-lora", REPO, *TRUST, "--overwrite-card")
    assert hub.contents(REPO)["README.md"].startswith(b"---\nbase_model: org/small-base\n")


def test_the_token_goes_to_no_host_that_is_not_trusted(push: Decant, hub: FakeUploadHub):
    done = push("my-lora", REPO)

    assert (done.returncode, hub.requests) == (6, [])
    assert f"--trust-token {hub.host} if that hub is yours" in done.stderr


def test_of_several_hubs_one_must_be_named(push: Decant, hub: FakeUploadHub):
    done = push("my-lora", REPO, *TRUST, HF_ENDPOINT=f"{hub.url},{hub.other}")
    named = push("my-lora", REPO, *TRUST, "--endpoint", hub.url, HF_ENDPOINT=hub.other)

    assert (done.returncode, "names 2 hubs, and a push goes to one" in done.stderr) == (3, True)
    assert named.returncode == 0
    assert {one.host for one in hub.requests} == {hub.host}


def test_debugging_shows_no_token(push: Decant, hub: FakeUploadHub):
    hub.faults.commit = [403]
    done = push("my-lora", REPO, *TRUST, DECANT_DEBUG="1", HF_DEBUG="1")

    assert done.returncode == 6
    assert "committing to org/my-lora-GGUF: " in done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert "s3cret" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("my-lora",), 2, "MODEL"),
        (("my-lora", "x"), 3, "names no owner"),
        (("my-lora", "a b/c"), 3, "does not name a repo"),
        (("my-lora", "org/x@v1"), 3, "goes to the branch main"),
        (("my-lora", "https://huggingface.co/org/x"), 3, "is on huggingface.co"),
        ((REPO, "pyproject.toml"), 3, "the repo comes last"),
        (("my-lor", REPO), 3, "did you mean my-lora"),
        (("docs", REPO), 3, "`docs` has no GGUF"),
        (("my-lora", REPO, "--evaluation", "nope.md"), 2, "nope.md"),
    ],
)
def test_mistakes_are_named(push: Decant, arguments: tuple[str, ...], code: int, words: str):
    done = push(*arguments, *TRUST)

    assert (done.returncode, words in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"HF_TOKEN": "", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}, "there is no access token"),
        ({"HF_TOKEN": "hf_other"}, "does not accept the token (401)"),
        ({"HF_HUB_OFFLINE": "1"}, "decant is offline"),
    ],
)
def test_a_push_without_a_hub_or_a_token_is_refused(push: Decant, env: dict[str, str], words: str):
    done = push("my-lora", REPO, *TRUST, **env)

    assert (done.returncode, words in done.stderr) == (6, True), done.stderr


def test_an_evaluation_of_a_file_is_in_the_card(push: Decant, hub: FakeUploadHub, tmp_path: Path):
    section = tmp_path / "section.md"
    section.write_text("## Evaluation\n\n81 % of the answers are right.\n")

    push("my-lora", REPO, *TRUST, "--evaluation", section)

    assert b"81 % of the answers are right." in hub.contents(REPO)["README.md"]


def test_every_other_command_of_the_page_is_one():
    (line,) = [line for line in LINES if not line.startswith("decant push")]
    program, name, *arguments = shlex.split(line)

    command = root.get_command(click.Context(root), name)
    assert program == "decant"
    assert command.make_context(name, arguments).params["push"] == "ORG/my-lora-GGUF"


def test_every_push_of_the_page_runs_in_order(hub: FakeUploadHub, store: Path, tmp_path: Path):
    pushes = [line.replace("ORG/", "org/") for line in LINES if line.startswith("decant push")]
    write_gguf(tmp_path / "exported" / "my-lora-F16.gguf", MADE)
    command = tmp_path / "decant"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m exporter "$@" {" ".join(TRUST)}\n')
    command.chmod(0o755)
    env = environment(hub)
    env["PATH"] = f"{tmp_path}:{env['PATH']}"
    assert len(pushes) == 3

    for line in pushes:
        done = subprocess.run(
            line, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (line, done.stderr)

    assert hub.repos[REPO].private
    assert set(hub.contents(REPO)) == {
        "my-lora-F16.gguf", "my-lora-Q4_K_M.gguf", "my-lora-Q8_0.gguf", "README.md",
    }  # fmt: skip
