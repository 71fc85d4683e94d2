"""The coding tools that `decant launch` starts, each with the settings that it reads."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from runtime.launch.settings_formats import (
    Json,
    JsonFile,
    NamedEntries,
    OwnToml,
    SettingsFormat,
    YamlLines,
)

KEY_VARIABLE = "DECANT_API_KEY"
NO_KEY = "decant"
"""Sent where a tool insists on a key and the server has none."""
WANTED_CONTEXT = 65536  # tokens; Ollama's documents recommend 64,000 for such tools
ANSWER_MAX = 8192  # tokens of one answer
ANSWER_SHARE = 4  # an answer gets at most this part of the context: a quarter
PROVIDER = "decant"
"""The name of decant among a tool's providers."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The model that a tool is to use, and the server that has it."""

    url: str
    """Without a final /v1."""
    model: str
    context: int
    """Tokens of one conversation."""
    key: str = ""

    @property
    def token(self) -> str:
        return self.key or NO_KEY

    @property
    def answer(self) -> int:
        """The most tokens that an answer may take of the context."""
        return min(ANSWER_MAX, self.context // ANSWER_SHARE)


def nothing(endpoint: Endpoint) -> dict[str, str]:
    """Give no variables."""
    del endpoint
    return {}


def no_arguments(endpoint: Endpoint) -> list[str]:
    """Give no arguments."""
    del endpoint
    return []


@dataclass(frozen=True, slots=True)
class CodingTool:
    """A program that asks a model, and the settings that choose the model."""

    name: str
    title: str
    program: str
    install: str
    """The command that installs it."""
    least: int
    """Tokens of its first request for a question of one word, as GPT-4o counts them: measured in
    November 2026 with 2.1.197 of claude, 0.171.0 of codex, 1.18.33 of opencode and 0.86.2 of aider;
    0 if unknown."""
    path: Callable[[Mapping[str, str], Path], Path]
    """Its settings file, by the environment and the home folder."""
    format: SettingsFormat
    content: Callable[[Endpoint], Json]
    """The values for that file."""
    env: Callable[[Endpoint], dict[str, str]] = nothing
    """The same values as variables, so that no file is needed."""
    arguments: Callable[[Endpoint], list[str]] = no_arguments
    overrides: Callable[[Endpoint], list[str]] = no_arguments
    """More arguments, for values that the user's settings file has, too."""
    after: str = ""
    """How the written file is used, for people."""
    needs_file: bool = False
    """Whether it reads the settings from its file only."""
    returns_at_once: bool = False
    """Whether its command ends while the program goes on."""


def claude_env(endpoint: Endpoint) -> dict[str, str]:
    """Claude Code's variables: code.claude.com/docs/en/env-vars."""
    model = endpoint.model
    return {
        "ANTHROPIC_BASE_URL": endpoint.url,
        "ANTHROPIC_AUTH_TOKEN": endpoint.token,
        "ANTHROPIC_API_KEY": "",  # a key would be sent in place of the token
        "ANTHROPIC_MODEL": model,
        "ANTHROPIC_DEFAULT_OPUS_MODEL": model,
        "ANTHROPIC_DEFAULT_SONNET_MODEL": model,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": model,
        "CLAUDE_CODE_SUBAGENT_MODEL": model,
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(endpoint.answer),
        "CLAUDE_CODE_AUTO_COMPACT_WINDOW": str(endpoint.context),
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",  # it changes with each request
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }


def claude_settings(endpoint: Endpoint) -> Json:
    return {"env": claude_env(endpoint)}


def claude_overrides(endpoint: Endpoint) -> list[str]:
    """The variables on the command line: the user's file takes precedence over the environment."""
    plain = {
        name: value
        for name, value in claude_env(endpoint).items()
        if name != "ANTHROPIC_AUTH_TOKEN"
    }
    return ["--settings", json.dumps({"env": plain})]


def claude_path(env: Mapping[str, str], home: Path) -> Path:
    return Path(env.get("CLAUDE_CONFIG_DIR") or home / ".claude") / "settings.json"


def codex_provider(endpoint: Endpoint) -> Json:
    found: Json = {
        "name": PROVIDER,
        "base_url": f"{endpoint.url}/v1",
        "wire_api": "responses",
        # a local model may compute a long prompt for minutes before its first token
        "stream_idle_timeout_ms": 600_000,
    }
    return found | ({"env_key": KEY_VARIABLE} if endpoint.key else {})


def codex_settings(endpoint: Endpoint) -> Json:
    """A profile: developers.openai.com/codex/config-advanced."""
    return {
        "model": endpoint.model,
        "model_provider": PROVIDER,
        "model_context_window": endpoint.context,
        "web_search": "disabled",
        "model_providers": {PROVIDER: codex_provider(endpoint)},
    }


def codex_arguments(endpoint: Endpoint) -> list[str]:
    found = codex_settings(endpoint)
    model, provider = found.pop("model"), found.pop("model_providers")[PROVIDER]
    inline = {f"model_providers.{PROVIDER}.{key}": value for key, value in provider.items()}
    pairs = [f"{key}={json.dumps(value)}" for key, value in (found | inline).items()]
    return ["-m", model, *(part for pair in pairs for part in ("-c", pair))]


def codex_env(endpoint: Endpoint) -> dict[str, str]:
    return {KEY_VARIABLE: endpoint.key} if endpoint.key else {}


def codex_path(env: Mapping[str, str], home: Path) -> Path:
    return Path(env.get("CODEX_HOME") or home / ".codex") / f"{PROVIDER}.config.toml"


def opencode_settings(endpoint: Endpoint) -> Json:
    """opencode's settings: opencode.ai/docs/providers."""
    model = f"{PROVIDER}/{endpoint.model}"
    limit = {"context": endpoint.context, "output": endpoint.answer}
    return {
        "$schema": "https://opencode.ai/config.json",
        "provider": {
            PROVIDER: {
                "npm": "@ai-sdk/openai-compatible",
                "name": PROVIDER,
                "options": {"baseURL": f"{endpoint.url}/v1", "apiKey": endpoint.token},
                "models": {endpoint.model: {"name": endpoint.model, "limit": limit}},
            }
        },
        "model": model,
        "small_model": model,
    }


def opencode_env(endpoint: Endpoint) -> dict[str, str]:
    return {"OPENCODE_CONFIG_CONTENT": json.dumps(opencode_settings(endpoint))}


def opencode_path(env: Mapping[str, str], home: Path) -> Path:
    return Path(env.get("XDG_CONFIG_HOME") or home / ".config") / "opencode" / "opencode.json"


def aider_settings(endpoint: Endpoint) -> Json:
    """aider's options: aider.chat/docs/config/aider_conf.html."""
    model = f"openai/{endpoint.model}"
    return {
        "model": model,
        "weak-model": model,
        "openai-api-base": f"{endpoint.url}/v1",
        "openai-api-key": endpoint.token,
    }


def aider_arguments(endpoint: Endpoint) -> list[str]:
    """aider's arguments without the key, which other users could read in the list of processes."""
    found = aider_settings(endpoint)
    found.pop("openai-api-key")
    pairs = [part for key, value in found.items() for part in (f"--{key}", value)]
    return [*pairs, "--no-show-model-warnings"]


def aider_env(endpoint: Endpoint) -> dict[str, str]:
    return {"AIDER_OPENAI_API_KEY": endpoint.token}


def aider_path(env: Mapping[str, str], home: Path) -> Path:
    del env
    return home / ".aider.conf.yml"


def vscode_settings(endpoint: Endpoint) -> Json:
    """A custom endpoint: code.visualstudio.com/docs/agent-customization/language-models."""
    return {
        "name": PROVIDER,
        "vendor": "customendpoint",
        "apiKey": endpoint.token,
        "apiType": "chat-completions",
        "models": [
            {
                "id": endpoint.model,
                "name": endpoint.model,
                "url": f"{endpoint.url}/v1/chat/completions",
                "toolCalling": True,
                "vision": False,
                "maxInputTokens": endpoint.context - endpoint.answer,
                "maxOutputTokens": endpoint.answer,
            }
        ],
    }


def vscode_path(env: Mapping[str, str], home: Path) -> Path:
    if sys.platform == "darwin":
        folder = home / "Library" / "Application Support"
    else:
        folder = Path(env.get("XDG_CONFIG_HOME") or home / ".config")
    return folder / "Code" / "User" / "chatLanguageModels.json"


TOOLS = {
    tool.name: tool
    for tool in (
        CodingTool(
            "claude", "Claude Code", "claude", "npm install -g @anthropic-ai/claude-code",
            18000, claude_path, JsonFile(), claude_settings, claude_env, overrides=claude_overrides,
        ),
        CodingTool(
            "codex", "Codex CLI", "codex", "npm install -g @openai/codex",
            9000, codex_path, OwnToml(), codex_settings, codex_env, codex_arguments,
            after=f"codex --profile {PROVIDER}",
        ),
        CodingTool(
            "opencode", "opencode", "opencode", "npm install -g opencode-ai",
            7000, opencode_path, JsonFile(), opencode_settings, opencode_env,
        ),
        CodingTool(
            "aider", "aider", "aider", "uv tool install --python 3.12 aider-chat",
            600, aider_path, YamlLines(), aider_settings, aider_env, aider_arguments,
        ),
        CodingTool(
            "vscode", "Visual Studio Code", "code", "https://code.visualstudio.com",
            0, vscode_path, NamedEntries(), vscode_settings,
            after="choose the model in the chat's model picker",
            needs_file=True, returns_at_once=True,
        ),
    )
}  # fmt: skip
