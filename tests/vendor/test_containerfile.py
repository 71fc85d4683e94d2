"""The Containerfile does what its page and the pages about installing say."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.support.documents import commands, problem

CHECKOUT = Path(__file__).parents[2]
PAGE = CHECKOUT / "docs" / "container.md"
TEXT = (CHECKOUT / "Containerfile").read_text(encoding="utf-8")
KNOWN = (
    "ARG",
    "FROM",
    "RUN",
    "WORKDIR",
    "COPY",
    "ENV",
    "USER",
    "VOLUME",
    "EXPOSE",
    "ENTRYPOINT",
    "CMD",
)


def instructions(text: str) -> list[tuple[str, str]]:
    """The instructions in order, continued lines joined, comments left out."""
    plain = "".join(f"{line}\n" for line in text.splitlines() if not line.startswith("#"))
    lines = re.sub(r" *\\\n\s*", " ", plain).splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines) if word]


FILE = instructions(TEXT)


def all_of(word: str) -> list[str]:
    return [rest for name, rest in FILE if name == word]


def test_every_instruction_is_a_known_one():
    assert {name for name, _ in FILE} <= set(KNOWN)
    assert [name for name, _ in FILE][:2] == ["ARG", "FROM"]


def test_it_installs_as_the_page_about_installing_does():
    page = (CHECKOUT / "docs" / "install.md").read_text(encoding="utf-8")
    runs = " && ".join(all_of("RUN"))

    assert "pip install 'decant-llm[export]'" in page
    assert "pip install --no-cache-dir -c constraints.txt" in runs
    assert "EXTRA=[export]" in all_of("ARG")
    assert "\ndecant setup " in page
    assert re.search(r"\bdecant setup$", runs)


def test_everything_that_is_copied_is_there_and_not_ignored():
    copied = [name for line in all_of("COPY") for name in line.split()[:-1]]
    lines = (CHECKOUT / ".containerignore").read_text(encoding="utf-8").splitlines()
    kept = {line[1:] for line in lines if line.startswith("!")}

    assert "*" in lines
    assert kept == set(copied)
    assert [name for name in copied if not (CHECKOUT / name).exists()] == []
    assert (CHECKOUT / ".dockerignore").read_text() == "\n".join(lines) + "\n"


def test_what_the_package_is_built_of_is_copied():
    project = (CHECKOUT / "pyproject.toml").read_text(encoding="utf-8")
    copied = {name for line in all_of("COPY") for name in line.split()[:-1]}
    named = re.findall(
        r"^(?:readme = |license-files = \[|packages = \[)(.*)$", project, re.MULTILINE
    )
    needed = set(re.findall(r'"([^"]+)"', " ".join(named))) | {"vendor"}

    assert {"exporter", "runtime", "README.md", "LICENSE"} <= needed
    assert needed <= copied


def test_ports_users_and_folders_are_those_of_the_page():
    page = PAGE.read_text(encoding="utf-8")

    assert all_of("EXPOSE") == ["8080"]
    assert "| port 8080 |" in page
    assert all_of("VOLUME") == ["/data"]
    assert "| `/data` |" in page
    assert all_of("WORKDIR")[-1] == "/work"
    assert "| `/work` |" in page
    assert all_of("USER") == ["decant"]
    (uid,) = re.findall(r"--uid (\d+)", TEXT)
    assert f"`decant`, number {uid}" in page


def test_the_arguments_are_those_of_the_page_with_their_defaults():
    arguments = dict(line.partition("=")[::2] for line in all_of("ARG"))
    page = PAGE.read_text(encoding="utf-8").partition("## Build arguments")[2]

    for name, default in arguments.items():
        assert f"`{name}`" in page
        if default:
            assert re.search(rf"^\| `{name}` \| `{re.escape(default)}` \|", page, re.MULTILINE)
    for command in commands(PAGE, "bash"):
        given = re.findall(r"--build-arg (\w+)=", command)
        assert set(given) <= arguments.keys()
    shown = re.sub(r"^# {2,}|\\\n# +", "", TEXT, flags=re.MULTILINE)
    for command in commands(PAGE, "bash"):
        if command.startswith("podman build"):
            assert command in shown


def test_nothing_runs_as_root_after_the_packages():
    names = [name for name, _ in FILE]
    last_run = max(place for place, name in enumerate(names) if name == "RUN")

    assert names.index("USER") < last_run
    assert "USER" not in names[names.index("USER") + 1 :]


def test_the_default_command_is_one_that_decant_takes():
    (entry,), (command,) = map(json.loads, all_of("ENTRYPOINT")), map(json.loads, all_of("CMD"))

    assert entry[:2] == ["sh", "-c"]
    assert shlex.split(entry[2])[-3:] == ["exec", "decant", "$@"]
    assert command == ["serve", "--host", "0.0.0.0"]


@pytest.mark.parametrize("command", [line for line in commands(PAGE, "bash") if " run " in line])
def test_each_run_of_the_page_keeps_the_data_and_is_a_command_of_decant(command):
    words = shlex.split(command)
    image = max(place for place, word in enumerate(words) if re.fullmatch(r"decant(:cuda)?", word))
    rest = words[image + 1 :] or ["serve", "--host", "0.0.0.0"]

    assert any(re.fullmatch(r"decant(-cuda)?:/data", word) for word in words)
    assert problem(rest) is None
