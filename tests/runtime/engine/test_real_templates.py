"""The templates that llama.cpp keeps for its own tests, rendered by the engine as decant starts it.

The oracle is transformers' own rendering; where they differ, UNLIKE says why.
"""

from __future__ import annotations

import copy
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from exporter.core.gguf import read_gguf
from exporter.export import export
from exporter.formats.export_request import ExportRequest
from exporter.llamacpp.normalizer import SPACE_PREFIX
from runtime.engine.chat_format import TOOL, chat_format
from runtime.engine.llama_server import Server, ServerSpec
from runtime.engine.openai_client import Stopped, ask
from runtime.engine.request_texts import front_of
from tests.support.tiny import make_base

pytestmark = [pytest.mark.families, pytest.mark.llamacpp, pytest.mark.trained]

Json = dict[str, Any]
CONTEXT = 8192


def user(text: str) -> Json:
    return {"role": "user", "content": text}


def answer(text: str, **more: object) -> Json:
    return {"role": "assistant", "content": text, **more}


CALL = {"id": "call00001", "type": "function",
        "function": {"name": "weather", "arguments": {"city": "Oslo"}}}  # fmt: skip
RESULT = {"role": "tool", "tool_call_id": "call00001", "name": "weather", "content": "Rain"}
SYSTEM = {"role": "system", "content": "Be brief."}
CASES: dict[str, tuple[list[Json], Json]] = {
    "plain": ([user("Hi there")], {}),
    "system": ([SYSTEM, user("Hi there")], {}),
    "turns": ([user("Hi"), answer("Hello!"), user("Why?"), answer("So."), user("Bye")], {}),
    "system and turns": ([SYSTEM, user("Hi"), answer("Hello!"), user("Why?")], {}),
    "tools": ([user("Is it raining in Oslo?")], {"tools": [TOOL]}),
    "called": ([user("Rain?"), answer("", tool_calls=[CALL]), RESULT], {"tools": [TOOL]}),
    "thought": ([user("Hi"), answer("Hello!", reasoning_content="A greeting."), user("Why?")], {}),
    "thinking": ([user("Hi")], {"enable_thinking": True}),
    "not thinking": ([user("Hi")], {"enable_thinking": False}),
}
REFUSED = "transformers refuses it, llama.cpp does not: "
UNLIKE: dict[tuple[str, str], str] = {}


def unlike(name: str, why: str, *cases: str) -> None:
    UNLIKE.update({(name, case): why for case in cases})


for name in (
    "CohereForAI-c4ai-command-r-plus-tool_use",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
):
    why = REFUSED + "the template goes through `tools`, and there are none"
    unlike(name, why, *(case for case in CASES if case not in ("tools", "called")))
unlike(
    "fireworks-ai-llama-3-firefunction-v2",
    REFUSED + "the template writes `functions`, which only its maker's server defines",
    *CASES,
)
for name in ("Kimi-K2-Instruct", "Kimi-K2-Thinking"):
    unlike(name, REFUSED + "the template appends to a list, which the sandbox forbids", "called")
unlike("google-gemma-2-2b-it", REFUSED + "a system message", "system", "system and turns")
unlike("llama-cpp-deepseek-r1", REFUSED + "it writes a filter's result as JSON", "tools", "called")
unlike(
    "meetkai-functionary-medium-v3.1", "llama.cpp does not escape quotes in JSON", "tools", "called"
)
unlike(
    "google-gemma-4-31B-it-interleaved",
    "llama.cpp mends what it takes for an old template",
    "called",
)
unlike(
    "mistralai-Ministral-3-14B-Reasoning-2512",
    "llama.cpp gives the template thoughts as parts of the content, which is where it reads them",
    "thought",
)


@pytest.fixture(scope="session")
def small(toolchain, tmp_path_factory) -> Path:
    """A model of a moment, whose own template is not used."""
    folder = tmp_path_factory.mktemp("small")
    base = make_base(
        folder / "base", hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        max_position_embeddings=CONTEXT,
    )  # fmt: skip
    export(ExportRequest((), base, ("F16",), (folder / "small.gguf",)), toolchain)
    return folder / "small.gguf"


@pytest.fixture(scope="session")
def prompts(small, toolchain) -> dict[str, dict[str, str | None]]:
    """Of each template, the engine's prompt of each case; None where it refuses."""
    header = read_gguf(small)
    # its vocabulary has none of the special tokens that a prompt begins with: no space before them
    header = replace(header, metadata={**header.metadata, SPACE_PREFIX: ""})

    def rendered(path: Path) -> tuple[str, dict[str, str | None]]:
        chat = chat_format(header, path.read_text(encoding="utf-8"))
        spec = ServerSpec(small, CONTEXT, threads=1, chat=chat)
        with Server(spec, toolchain) as server:
            found = {name: prompt(server, *case) for name, case in CASES.items()}
            found["answer"] = said(server)
        return path.stem, found

    with ThreadPoolExecutor(3) as pool:
        return dict(pool.map(rendered, templates(toolchain)))


def templates(toolchain) -> list[Path]:
    return sorted((toolchain.source / "models" / "templates").glob("*.jinja"))


def prompt(server: Server, messages: list[Json], more: Json) -> str | None:
    body: Json = {"messages": with_texts(messages)}
    switches = dict(more)
    if "tools" in switches:
        body["tools"] = switches.pop("tools")
    if switches:
        body["chat_template_kwargs"] = switches
    front = front_of(read_gguf(server.spec.model), server.spec.chat)
    with server.post("/apply-template", front.ready("/apply-template", body)) as response:
        found = json.loads(response.read())
    return found["prompt"] if response.status == 200 else None


def with_texts(messages: list[Json]) -> list[Json]:
    """The same with arguments of calls as texts, which is OpenAI's form."""
    told = copy.deepcopy(messages)
    for message in told:
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
    return told


def said(server: Server) -> str | None:
    """The answer of a model that keeps to no format; None where it is lost."""
    settings = {"max_tokens": 8, "seed": 1, "temperature": 0, "logit_bias": [[2, False]]}
    told: list[Json] = [user("Hi there")]
    with server.post("/v1/chat/completions", {"messages": told, **settings}) as response:
        found = json.loads(response.read())
    if response.status != 200:
        return None
    message = found["choices"][0]["message"]
    whole = str(message.get("reasoning_content") or "") + str(message["content"] or "")
    pieces = [one.text for one in ask(server, told, settings) if not isinstance(one, Stopped)]
    return whole if without_halves(whole) == without_halves("".join(pieces)) else None


def without_halves(text: str) -> str:
    """A model of random weights also writes bytes that are no characters."""
    return text.replace("\ufffd", "")


def expected(template: str, messages: list[Json], more: Json) -> str | None:
    """Transformers' prompt; None where it refuses."""
    import jinja2
    from transformers.utils.chat_template_utils import render_jinja_template

    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | more
    try:
        texts, _ = render_jinja_template(
            [messages], chat_template=template, add_generation_prompt=True, **settings
        )
    except (jinja2.TemplateError, TypeError):
        return None
    return str(texts[0])


def test_every_prompt_is_transformers_or_named(prompts, toolchain):
    differing = {}
    for path in templates(toolchain):
        template = path.read_text(encoding="utf-8")
        for name, case in CASES.items():
            wanted, got = expected(template, *case), prompts[path.stem][name]
            if wanted is None:  # some templates want arguments as texts
                wanted = expected(template, with_texts(case[0]), case[1])
            if got != (wanted if wanted is None else wanted.removeprefix("<s>")):
                differing[path.stem, name] = (wanted, got)

    assert len(prompts) >= 70
    assert differing.keys() == UNLIKE.keys(), {
        key: differing.get(key) for key in differing.keys() ^ UNLIKE.keys()
    }


def test_no_answer_is_lost_for_its_format(prompts):
    lost = [name for name, found in prompts.items() if not found["answer"]]

    assert lost == []
