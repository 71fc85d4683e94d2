"""The pages for readers, their code blocks and the commands in them.

A block marked `sh` is run by tests/test_readme.py, line after line. A block marked `bash` is not,
and NOT_RUN gives the reason. Other blocks hold no commands.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from exporter.cli.app import COMMANDS, root

CHECKOUT = Path(__file__).parents[2]
GENERATED = CHECKOUT / "docs" / "cli.md"
AT_THE_TOP = ("README.md", "README.zh-CN.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md")
PAGES = tuple(
    path
    for path in (
        *(CHECKOUT / name for name in AT_THE_TOP),
        *sorted((CHECKOUT / "docs").rglob("*.md")),
    )
    if path != GENERATED
)
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
)
SHELLS = ("sh", "bash", "powershell")
COMMENT = re.compile(r"(^|\s)#.*$")
PROGRAMS = re.compile(
    r"^\s*(decant|make|pip|pipx|uv|curl|export|ssh|tar|hf|llama-\w+|lm_eval|ollama|podman|docker"
    r"|sudo|\S*python3?) \S"
)

PUSH = "tests/exporter/cli/test_push_command.py"
HUB, GATEWAY = "tests/exporter/hub", "tests/runtime/gateway"
QUANTIZE, EVALUATION = "tests/exporter/quantize", "tests/runtime/evaluation"
NOT_RUN = (
    (r"make (demo|test|setup|check)$", "sets up a checkout: CI runs them"),
    (r"make [a-z-]+$", "runs whole suites, or needs a network: CI runs them"),
    (
        r"(pip|pipx|uv tool) install ",
        "changes the environment: tests/test_wheel.py installs the wheel",
    ),
    (r"decant setup$", "builds llama.cpp: CI does"),
    (r"decant pull .*modelscope:", f"needs ModelScope: {HUB} has a stand-in"),
    (r"(hf auth login|decant pull ORG/NAME)$", "needs an account"),
    (r"(wsl|xcode-select) ", "is for another system"),
    (r"sudo apt-get ", "changes the machine"),
    (r"(ssh|decant worker|decant serve .*--rpc)\b", f"needs machines: {GATEWAY}/test_rpc.py"),
    (r"decant (chat|eval) .*--(url|data ORG)", f"needs a server, or the hub: {EVALUATION}"),
    (r"decant eval .*--tasks", "needs lm-evaluation-harness: make lm-eval"),
    (r"decant serve\b", f"goes on until it is stopped: {GATEWAY}"),
    (r"decant (push|export .*--push)\b", f"needs a hub that takes files: {PUSH}"),
    (r"decant (import|link|list --all)\b", "needs other programs: tests/exporter/stores"),
    (r"decant launch\b", "needs the tools: tests/runtime/cli/test_launch_command.py"),
    (r"(podman|docker) ", "needs containers: tests/vendor/test_containerfile.py reads the file"),
    (r"curl ", f"needs that server: {GATEWAY}"),
    (r"(for-vllm/serve\.sh|decant export .*--to vllm)\b", "needs vLLM: make vllm"),
    (r"lm_eval ", "needs lm-evaluation-harness: make lm-eval"),
    (r"(tar xf|\S*python -m exporter\.convert)", "needs an sdist: tests/exporter/convert"),
    (r"\S*python -m pytest", "runs tests"),
    (r"(decant (export|inspect)|llama-quantize) .*(types\.txt|elses)", f"see {QUANTIZE}"),
    (r"decant export .*(--size|--bpw|--fit|-q auto)", f"needs larger models: {QUANTIZE}"),
)
"""Commands in `bash` blocks that no test runs, as (pattern, reason)."""


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page."""

    page: Path
    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """Its commands without comments; continued lines and open quotes are joined."""
        found, text = [], ""
        for line in re.sub(r" *\\\n\s*", " ", self.text).splitlines():
            text += line if text else COMMENT.sub("", line).strip()
            if text and text.count("'") % 2 == 0:
                found.append(text)
                text = ""
        return found


def blocks(page: Path) -> Iterator[Block]:
    for found in FENCE.finditer(page.read_text(encoding="utf-8")):
        yield Block(page, found["language"], found["text"])


def commands(page: Path, *languages: str) -> list[str]:
    """The commands of a page's blocks in these languages, in order."""
    return [
        command
        for block in blocks(page)
        if block.language in languages
        for command in block.commands
    ]


def reason_not_run(command: str) -> str | None:
    return next((why for pattern, why in NOT_RUN if re.match(pattern, command)), None)


def decant_arguments(command: str) -> Iterator[list[str]]:
    """The arguments of each `decant` in a line of a shell."""
    for part in re.split(r"\s[|;]\s|&&|\s&$", command):
        words = shlex.split(part.partition(" > ")[0])
        if words[:1] == ["decant"]:
            yield words[1:]


def problem(arguments: list[str]) -> str | None:
    """What click has against a command line; files need not exist."""
    group = click.Context(root, info_name="decant")
    if arguments in (["--help"], ["--version"]):
        return None
    if not arguments or arguments[0] not in COMMANDS:
        return f"there is no command {arguments[:1]}"
    command = root.get_command(group, arguments[0])
    assert command is not None
    context = click.Context(command, group, arguments[0])
    try:
        values, rest, given = command.make_parser(context).parse_args(arguments[1:])
        for option in given:
            if isinstance(option, click.Option) and not isinstance(option.type, click.Path):
                option.type_cast_value(context, values[option.name])
    except click.ClickException as error:
        return error.format_message()
    words = [one for one in command.params if isinstance(one, click.Argument) and one.required]
    if missing := [one.name for one in words if not isinstance(values[one.name], str | tuple)]:
        return f"{missing} is missing"
    return f"{rest} is too much" if rest else None


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as forges make them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.*)$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        slug = re.sub(r"[^\w\- ]", "", plain).strip().replace(" ", "-")
        number = next(
            n for n in range(len(found) + 1) if f"{slug}-{n}".removesuffix("-0") not in found
        )
        found.add(f"{slug}-{number}".removesuffix("-0"))
    return found


def links(page: Path) -> list[str]:
    """The targets of a page's links and pictures."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    text = re.sub(r"`[^`\n]*`", "", text)
    return [
        *re.findall(r"\]\(([^)\s]+)\)", text),
        *re.findall(r'(?:src|srcset|href)="([^"]+)"', text),
    ]
