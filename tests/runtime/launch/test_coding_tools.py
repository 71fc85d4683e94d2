"""What each tool is given: the address, the model and its context, and a key in no argument."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from runtime.launch.coding_tools import TOOLS, WANTED_CONTEXT, Endpoint
from runtime.launch.shown_settings import file_text, shell_lines

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Endpoint("http://127.0.0.1:8123", "base:pirate@0.5", 32768)
SECRET = Endpoint(HERE.url, HERE.model, HERE.context, "s3cret")
ALL = pytest.mark.parametrize("tool", TOOLS.values(), ids=lambda tool: tool.name)


@ALL
def test_a_tool_gets_the_address_and_the_model(tool):
    given = [
        json.dumps(tool.content(HERE)),
        *([] if tool.needs_file else [json.dumps([*tool.arguments(HERE), tool.env(HERE)])]),
    ]

    for text in given:
        assert "http://127.0.0.1:8123" in text
        assert "base:pirate@0.5" in text


@ALL
def test_a_key_is_in_no_argument_and_in_no_text_for_people(tool):
    shown = shell_lines(tool, SECRET), file_text(tool, SECRET, Path("file"))

    assert "s3cret" not in " ".join([*tool.arguments(SECRET), *tool.overrides(SECRET)])
    assert not [text for text in shown if "s3cret" in text]
    if not tool.needs_file:
        assert "DECANT_API_KEY" in shown[0]


@ALL
def test_an_answer_leaves_room_for_the_question(tool):
    assert 0 <= tool.least < WANTED_CONTEXT
    assert HERE.answer == 8192
    assert Endpoint("", "", 4096).answer == 1024


@ALL
def test_the_settings_file_is_in_the_home_folder_unless_the_environment_says_otherwise(tool):
    home = Path("/home/me")
    elsewhere = {"CLAUDE_CONFIG_DIR": "/e", "CODEX_HOME": "/e", "XDG_CONFIG_HOME": "/e"}

    assert home in tool.path({}, home).parents
    if tool.name != "aider" and not (tool.name == "vscode" and sys.platform == "darwin"):
        assert Path("/e") in tool.path(elsewhere, home).parents


def test_codex_gets_on_its_command_line_what_its_profile_has():
    tool = TOOLS["codex"]
    words = tool.arguments(SECRET)
    pairs = [word for flag, word in pairwise(words) if flag == "-c"]
    profile = tomllib.loads(tool.format.merged("", tool.content(SECRET)))

    assert tomllib.loads("\n".join(pairs)) | {"model": words[1]} == profile
    assert profile["model_providers"]["decant"]["wire_api"] == "responses"
    assert profile["model_providers"]["decant"]["env_key"] == "DECANT_API_KEY"
    assert "env_key" not in tool.content(HERE)["model_providers"]["decant"]


def test_claude_codes_variables_come_before_those_in_the_users_file():
    tool = TOOLS["claude"]
    flag, text = tool.overrides(HERE)

    assert flag == "--settings"
    assert json.loads(text)["env"].items() < tool.env(HERE).items()
    assert "ANTHROPIC_BASE_URL" in json.loads(text)["env"]


def test_vs_code_is_told_what_fits_into_the_context():
    (model,) = TOOLS["vscode"].content(HERE)["models"]

    assert model["maxInputTokens"] + model["maxOutputTokens"] == HERE.context
    assert model["url"] == "http://127.0.0.1:8123/v1/chat/completions"
