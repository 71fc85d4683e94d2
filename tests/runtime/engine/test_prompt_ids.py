"""The tokens that an engine sees of conversations are those that transformers makes of them."""

from __future__ import annotations

import json
import shutil

import pytest

from exporter.core.gguf import read_gguf
from exporter.export import export
from exporter.formats.export_request import ExportRequest
from exporter.inputs.chat_template import Template
from runtime.engine.chat_format import TOOL, Facts, chat_format, format_of
from runtime.engine.gguf_tokenizer import open_tokenizer, render_chat
from runtime.engine.llama_server import Server, ServerSpec
from runtime.engine.openai_client import ask, ask_json
from runtime.engine.request_texts import front_of, unlike
from tests.support.template_models import CONTEXT, TALKS, TEMPLATES, Json

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", ["sentencepiece", "saved", "letters"])
def test_the_engine_sees_what_transformers_makes_of_a_conversation(
    bases, models, toolchain, name, template
):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bases[name])
    text, header = TEMPLATES[template], read_gguf(models[name])
    chat = chat_format(header, text)
    front = front_of(header, chat)
    with Server(ServerSpec(models[name], CONTEXT, threads=1, chat=chat), toolchain) as server:

        def ids(route: str, body: Json) -> list[int]:
            found = ask_json(server, route, front.ready(route, body))
            return ids_of(server, found["prompt"])

        def counted(route: str, body: Json) -> int:
            return int(ask_json(server, route, front.ready(route, body))["input_tokens"])

        for talk in TALKS:
            wanted = tokenizer.apply_chat_template(
                talk, chat_template=text, add_generation_prompt=True, return_dict=False
            )
            assert ids("/apply-template", {"messages": talk}) == wanted
            assert counted("/v1/chat/completions/input_tokens", {"messages": talk}) == len(wanted)
            assert counted("/v1/messages/count_tokens", as_anthropic(talk)) == len(wanted)
        for begun in ("The cat", " so  "):
            talk = [*TALKS[0], {"role": "assistant", "content": begun}]
            goes_on = {"continue_final_message": True, "add_generation_prompt": False}
            wanted = tokenizer.apply_chat_template(
                talk, chat_template=text, return_dict=False, **goes_on
            )
            assert ids("/apply-template", {"messages": talk, **goes_on}) == wanted


def ids_of(server: Server, prompt: str) -> list[int]:
    """The tokens of a prompt, made as llama-server makes those of a conversation."""
    body = {"content": prompt, "add_special": True, "parse_special": True}
    return [int(token) for token in ask_json(server, "/tokenize", body)["tokens"]]


def as_anthropic(talk: list[Json]) -> Json:
    system = {"system": talk[0]["content"]} if talk[0]["role"] == "system" else {}
    return {"messages": [one for one in talk if one["role"] != "system"], **system}


@pytest.mark.parametrize("template", ["with BOS", "without BOS"])
@pytest.mark.parametrize("name", ["sentencepiece", "saved", "letters"])
def test_a_text_that_is_no_conversation_begins_as_the_tokenizer_has_it(
    bases, models, toolchain, name, template
):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bases[name])
    header = read_gguf(models[name])
    chat = chat_format(header, TEMPLATES[template])
    front = front_of(header, chat)
    with Server(ServerSpec(models[name], CONTEXT, threads=1, chat=chat), toolchain) as server:
        for text in ("the cat", " the cat", "</s>the cat", "cafe\u0301"):
            prompt = front.ready("/v1/completions", {"prompt": text})["prompt"]
            assert ids_of(server, prompt) == tokenizer(text)["input_ids"], text
            body = {"prompt": [text], "max_tokens": 1}
            found = ask_json(server, "/v1/completions", front.ready("/v1/completions", body))
            assert found["usage"]["prompt_tokens"] == len(tokenizer(text)["input_ids"])


TOKENS = (
    "{{ bos_token }}{{ image_token }}{% for m in messages %}{{ m.role + m.content + eos_token }}"
    "{% endfor %}{{ pad_token }}{% if add_generation_prompt %}{{ 'assistant' }}{% endif %}"
)
"""A first token that the tokenizer lacks, an extra token, and a padding token."""


def test_a_template_finds_the_special_tokens_that_transformers_hands_it(bases, toolchain, tmp_path):
    from transformers import AutoTokenizer

    shutil.copytree(bases["letters"], tmp_path / "base")
    said = json.loads((tmp_path / "base" / "tokenizer_config.json").read_text())
    del said["bos_token"]
    said |= {"chat_template": TOKENS, "pad_token": "<unk>"}
    said["extra_special_tokens"] = {"image_token": "<|user|>"}
    (tmp_path / "base" / "tokenizer_config.json").write_text(json.dumps(said))
    path = tmp_path / "base.gguf"
    export(ExportRequest((), tmp_path / "base", ("F16",), (path,)), toolchain)
    header = read_gguf(path)
    chat = chat_format(header)
    front = front_of(header, chat)
    wanted = AutoTokenizer.from_pretrained(tmp_path / "base").apply_chat_template(
        TALKS[0], add_generation_prompt=True, tokenize=False
    )
    with Server(ServerSpec(path, CONTEXT, threads=1, chat=chat), toolchain) as server:
        body = front.ready("/apply-template", {"messages": TALKS[0]})
        got = ask_json(server, "/apply-template", body)["prompt"]
        said_of_it = [*unlike(server, chat)]
    with open_tokenizer(path, toolchain) as tokenizer:
        same = render_chat(tokenizer, TALKS[0])

    assert (got, same, said_of_it) == (wanted, wanted, [])


def test_a_template_for_tools_is_used_where_there_are_tools(models, toolchain):
    plain = "\n {% for m in messages %}{{ m.content }}{% endfor %}{{ eos_token }} \n"
    tools = "{% for tool in tools %}{{ tool.function.name }}\n{% endfor %}{{ bos_token }}\n  \n"
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    facts = Facts(
        plain, tools, tuple(tokens.items()), adds_bos=False, adds_eos=False, puts_space=False,
        is_chosen=False,
    )  # fmt: skip
    spec = ServerSpec(models["letters"], CONTEXT, threads=1, chat=format_of(facts))
    with Server(spec, toolchain) as server:
        for body, wanted in (({}, plain), ({"tools": [TOOL]}, tools)):
            asked = {"messages": TALKS[0], **body}
            expected = Template(wanted, tokens).render(TALKS[0], tools=body.get("tools"))
            assert ask_json(server, "/apply-template", asked)["prompt"] == expected


def test_what_is_rendered_otherwise_than_by_transformers_is_named(models, toolchain):
    template = (
        "{{ bos_token }}{% if messages[0].role == 'system' %}"
        "{{ raise_exception('no system, please') }}{% endif %}"
        "{% for m in messages %}{{ '%5.1f' | format(1.25) }}{{ m.role + m.content }}{% endfor %}"
        "{% if tools %}{{ 'tools' }}{% endif %}"
    )
    chat = chat_format(read_gguf(models["letters"]), template)
    with Server(ServerSpec(models["letters"], CONTEXT, threads=1, chat=chat), toolchain) as server:
        question, system, *_ = unlike(server, chat)

    assert question.startswith("a question: transformers writes '<s>  1.2userHi")
    assert "llama.cpp '<s>%5.1fuserHi" in question
    assert system.startswith("a system message: transformers refuses it (no system, please)")


@pytest.mark.parametrize("token", [2, 3, 4])
def test_an_answer_stops_at_every_end_that_the_generation_config_names(models, toolchain, token):
    chat = chat_format(read_gguf(models["letters"]))
    settings = {"max_tokens": 4, "logit_bias": [[token, 1000]]}
    with Server(ServerSpec(models["letters"], CONTEXT, threads=1, chat=chat), toolchain) as server:
        *said, stopped = ask(server, TALKS[0], settings)

    assert (said, stopped.reason, stopped.tokens) == ([], "stop", 1)
