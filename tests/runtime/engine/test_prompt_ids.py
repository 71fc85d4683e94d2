"""The tokens that an engine sees of conversations are those that transformers makes of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from exporter.core.errors import EngineError
from exporter.core.gguf import read_gguf
from exporter.export import export
from exporter.formats.export_request import ExportRequest
from exporter.inputs.chat_template import Template
from runtime.engine.chat_format import TOOL, Facts, chat_format, format_of
from runtime.engine.gguf_tokenizer import open_tokenizer, render_chat
from runtime.engine.llama_server import Server, ServerSpec
from runtime.engine.openai_client import Delta, ask, ask_json
from runtime.engine.request_texts import front_of, unlike
from runtime.gateway.ollama.ollama_request import Ability, chat_question, generate_question
from tests.runtime.gateway.conftest import serving
from tests.support.chat_templates import REGULAR
from tests.support.tiny import CHAT_TEMPLATE, make_base

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained]

Json = dict[str, Any]
CONTEXT = 2048
THINKING = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + eos_token }}"
    "{% endfor %}{% if tools is not none %}{{ tools | tojson }}{% endif %}"
    "{% if date_string is defined %}{{ 'It is ' }}{{ date_string }}{% endif %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}"
    "{% if not enable_thinking %}{{ '<think></think>' }}{% endif %}{% endif %}"
)
"""Thinking is off unless it is asked for, and a date is told only where one is given."""
TEMPLATES = {
    "with BOS": CHAT_TEMPLATE, "without BOS": REGULAR["chatml"], "switches": THINKING,
    "plain": "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}",
}  # fmt: skip
TALKS: list[list[Json]] = [
    [{"role": "user", "content": "the cat"}],
    [{"role": "system", "content": " be brief "}, {"role": "user", "content": "Hi\n\nthere"}],
    [
        {"role": "user", "content": "what is <|user|> and </s> to you?"},
        {"role": "assistant", "content": "  marks"},
        {"role": "user", "content": "cafe\u0301 ✓"},
    ],
]


@pytest.fixture(scope="session")
def bases(tmp_path_factory) -> dict[str, Path]:
    """The same model with sentencepiece's file, and as transformers saves it today."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("bases")
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    made = {
        name: make_base(folder / name, max_position_embeddings=CONTEXT, **small)
        for name in ("sentencepiece", "saved", "letters")
    }
    AutoTokenizer.from_pretrained(made["saved"]).save_pretrained(made["saved"])
    (made["saved"] / "tokenizer.model").unlink()
    spell(made["letters"])
    return made


def spell(folder: Path) -> None:
    """Give the model a byte-level tokenizer, as Qwen's: it composes letters first."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    (folder / "tokenizer.model").unlink()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>"],
        show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(["the cat and the café sat on that mat"] * 9, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
        "unk_token": "<unk>", "chat_template": CHAT_TEMPLATE,
    }  # fmt: skip
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 3, 4]}')
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.fixture(scope="session")
def models(bases, toolchain, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    for name, base in bases.items():
        export(ExportRequest((), base, ("F16",), (folder / f"{name}.gguf",)), toolchain)
    return {name: folder / f"{name}.gguf" for name in bases}


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


@pytest.fixture(scope="module")
def switched(bases, models, toolchain):
    """A model whose template has switches: gives the engine's prompt, and transformers'."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bases["letters"])
    header = read_gguf(models["letters"])
    chat = chat_format(header, THINKING)
    front = front_of(header, chat)
    spec = ServerSpec(models["letters"], CONTEXT, threads=1, chat=chat)
    with Server(spec, toolchain) as server:

        def both(body: Json, **switches: object) -> tuple[str, str]:
            found = ask_json(server, "/apply-template", front.ready("/apply-template", body))
            wanted = tokenizer.apply_chat_template(
                TALKS[0], chat_template=THINKING, add_generation_prompt=True, tokenize=False,
                **switches,
            )  # fmt: skip
            return found["prompt"], str(wanted)

        yield both


ON, OFF = {"enable_thinking": True}, {"enable_thinking": False}


@pytest.mark.parametrize(
    ("asked", "switches"),
    [
        ({}, {}),
        ({"chat_template_kwargs": ON}, ON),
        ({"chat_template_kwargs": OFF}, OFF),
        ({"chat_template_kwargs": {"date_string": "today"}}, {"date_string": "today"}),
        ({"tools": [TOOL]}, {"tools": [TOOL]}),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, ON),
        ({"thinking": {"type": "disabled"}}, OFF),
        ({"thinking": {"type": "enabled"}, "chat_template_kwargs": OFF}, OFF),
        ({"reasoning_effort": "none"}, OFF),
        ({"reasoning": {"effort": "none"}}, OFF),
        ({"reasoning_effort": "low"}, {}),
    ],
)
def test_a_switch_stands_as_transformers_leaves_it_unless_a_request_says_otherwise(
    switched, asked, switches
):
    got, wanted = switched({"messages": TALKS[0], **asked}, **switches)

    assert got == wanted.removeprefix("<s>" if got[:3] != "<s>" else "")


@pytest.mark.parametrize(("think", "switches"), [(None, {}), (True, ON), (False, OFF)])
def test_ollamas_think_is_the_templates_switch(switched, think, switches):
    model = Ability("m", CONTEXT, thinks=True)
    said = {"think": think, "messages": TALKS[0]}
    asked = chat_question(said, model).body
    same = generate_question({"think": think, "prompt": TALKS[0][0]["content"]}, model).body

    got, wanted = switched(asked, **switches)

    assert asked["messages"] == same["messages"]
    assert got == wanted.removeprefix("<s>" if got[:3] != "<s>" else "")


CHANNELS = (
    "{% for m in messages %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
    "{# answers begin with <|channel|> #}"
)


@pytest.fixture(scope="module")
def channels(models, toolchain):
    """An engine that expects channels, as gpt-oss writes them, of a template that names them."""
    chat = chat_format(read_gguf(models["letters"]), CHANNELS)
    with Server(ServerSpec(models["letters"], CONTEXT, threads=1, chat=chat), toolchain) as server:
        yield server


LOOSE = {"max_tokens": 5, "temperature": 0, "logit_bias": [[2, False]]}


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_keeps_to_no_format_is_given_as_it_was_written(channels, stream):
    prompt = ask_json(channels, "/apply-template", {"messages": TALKS[0]})["prompt"]
    wanted = ask_json(channels, "/completion", {"prompt": prompt, **LOOSE})["content"]
    if stream:
        pieces = [*ask(channels, TALKS[0], LOOSE)]
        got = "".join(piece.text for piece in pieces if isinstance(piece, Delta))
    else:
        body = {"messages": TALKS[0], **LOOSE}
        found = ask_json(channels, "/v1/chat/completions", body)
        got = found["choices"][0]["message"]["content"]

    assert wanted
    assert got.replace("\ufffd", "") == wanted.replace("\ufffd", "")


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
@pytest.mark.parametrize("stream", [False, True])
def test_such_an_answer_says_that_it_keeps_to_no_format(channels, route, stream):
    body = {"messages": TALKS[0], "input": "the cat", "stream": stream, **LOOSE}
    with channels.post(route, body) as response:
        header, text = response.getheader("X-Decant-Unparsed"), response.read().decode()

    assert header == (None if stream else "1")
    assert '"unparsed":true' in text
    ended = ('_reason":"length"', '_reason":"max_tokens"', '"status":"completed"')
    assert any(why in text for why in ended)


def test_the_gateway_hands_that_on_in_every_api(models, tmp_path):
    template = tmp_path / "channels.jinja"
    template.write_text(CHANNELS)
    body = {"model": "letters", "messages": TALKS[0], "stream": False, **LOOSE}
    with serving(tmp_path, models["letters"], "--chat-template", template) as served:
        for path in ("/v1/chat/completions", "/v1/messages", "/api/chat"):
            asked = {**body, "options": {"num_predict": 5}}
            with served.send("POST", path, asked) as response:
                said = json.loads(response.read())
            assert response.getheader("X-Decant-Unparsed") == "1", said
            assert said.get("unparsed") or said["choices"][0]["unparsed"]


UNREADABLE = "{{ messages | tojson }}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
"""llama.cpp finds no way to read answers to it, and does not start."""


def test_a_template_whose_answers_llama_cpp_cannot_read_is_used_for_plain_ones(
    bases, models, tmp_path
):
    from transformers import AutoTokenizer

    template = tmp_path / "unreadable.jinja"
    template.write_text(UNREADABLE)
    wanted = AutoTokenizer.from_pretrained(bases["letters"]).apply_chat_template(
        TALKS[0], chat_template=UNREADABLE, add_generation_prompt=True, return_dict=False
    )
    body = {"model": "letters", "messages": TALKS[0], "max_tokens": 2}
    with serving(tmp_path, models["letters"], "--chat-template", template) as served:
        counts = []
        for path in ("/v1/chat/completions", "/v1/messages"):
            status, said = served.ask(path, body)
            assert status == 200, said
            usage = said["usage"]
            cached = usage.get("cache_read_input_tokens", 0)
            counts.append(usage.get("prompt_tokens", cached + usage.get("input_tokens", 0)))
        log = served.log.read_text()

    assert counts == [len(wanted)] * 2
    assert "cannot take its answers apart" in log


def test_with_tools_it_stays_an_error(channels):
    body = {"messages": TALKS[0], "tools": [TOOL], **LOOSE}

    with pytest.raises(EngineError, match="does not match the expected"):
        ask_json(channels, "/v1/chat/completions", body)


def test_an_answer_that_keeps_to_its_format_says_nothing(models, toolchain):
    chat = chat_format(read_gguf(models["letters"]))
    spec = ServerSpec(models["letters"], CONTEXT, threads=1, chat=chat)
    body = {"messages": TALKS[0], **LOOSE}
    with Server(spec, toolchain) as server, server.post("/v1/messages", body) as response:
        assert response.getheader("X-Decant-Unparsed") is None
        assert "unparsed" not in response.read().decode()


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


def test_every_api_gives_the_model_the_same_prompt(bases, models, tmp_path):
    from transformers import AutoTokenizer

    template = tmp_path / "own.jinja"
    template.write_text(THINKING)
    tokenizer = AutoTokenizer.from_pretrained(bases["letters"])
    question = {"role": "user", "content": "cafe\u0301 </s> the cat"}
    few = {"num_predict": 1}

    def wanted(**switches: object) -> int:
        ids = tokenizer.apply_chat_template(
            [question], chat_template=THINKING, add_generation_prompt=True, return_dict=False,
            **switches,
        )  # fmt: skip
        return len(ids)

    def told(path: str, **body: object) -> int:
        status, said = served.ask(path, {"model": "letters", "max_tokens": 1, **body})
        assert status == 200, said
        usage = said.get("usage", {})
        counts = [usage.get("prompt_tokens"), said.get("prompt_eval_count")]
        if "cache_read_input_tokens" in usage:
            counts.append(usage["input_tokens"] + usage["cache_read_input_tokens"])
        return int(next(count for count in counts if count is not None))

    assert wanted() != wanted(**ON)
    with serving(tmp_path, models["letters"], "--chat-template", template) as served:
        chat, text = {"messages": [question]}, question["content"]
        plain = {"options": few, "stream": False}
        budget = {"type": "enabled", "budget_tokens": 1024}
        for path, body, switched in (
            ("/v1/chat/completions", chat, {"chat_template_kwargs": ON}),
            ("/v1/messages", chat, {"thinking": budget}),
            ("/api/chat", {**chat, **plain}, {"think": True}),
            ("/api/generate", {"prompt": text, **plain}, {"think": True}),
        ):
            assert told(path, **body) == wanted(), path
            assert told(path, **body, **switched) == wanted(**ON), path
