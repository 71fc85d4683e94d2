"""The Modelfile says what the chat template says."""

from __future__ import annotations

import itertools
import json
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from exporter.core.gguf import Array, GGUFFile, read_gguf
from exporter.formats.ollama import modelfile, ollama_settings
from exporter.inputs.chat_template import IrregularError, Template
from exporter.inputs.template_turns import DAY
from exporter.merge.result_files import TEMPLATES
from tests.support.chat_templates import IRREGULAR, REGULAR, TOOLS
from tests.support.go_template import answer_prompt, call_tag, in_one_form, parse_modelfile
from tests.support.tiny import CHAT_TEMPLATE

pytestmark = pytest.mark.lasting

TOKENS = ("<unk>", "<s>", "</s>", "<|eot|>")
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "", "unk_token": "<unk>"}


THINKS_WHEN_ASKED = REGULAR["thinks_unless_told"].replace(
    "enable_thinking is defined and not enable_thinking", "not enable_thinking"
)


def model(template: str | None, **metadata: Any) -> GGUFFile:
    """The header of a GGUF with this chat template."""
    facts = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": Array(len(TOKENS), TOKENS),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    if template:
        facts["tokenizer.chat_template"] = template
    return GGUFFile(Path("m.gguf"), 0, facts | metadata, ())


def conversations(*, system: bool) -> list[list[dict[str, str]]]:
    texts = ["Hi there", "Hello", "What is {{ .Role }}?\nReally.", "I <b>don't</b> know", '"Bye"']
    talks = [
        [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(told)]
        for told in (texts[:1], texts[:3], texts)
    ]
    told = [{"role": "system", "content": "Answer in\n\none word."}]
    return talks + ([told + talk for talk in talks] if system else [])


@pytest.mark.parametrize("name", REGULAR)
@pytest.mark.parametrize("adds_bos", [True, False])
def test_ollama_gives_the_model_what_the_chat_template_would(tmp_path, name, adds_bos):
    made = model(REGULAR[name], **{"tokenizer.ggml.add_bos_token": adds_bos})

    text = modelfile(made, tmp_path)

    for talk in conversations(system=name != "no_system"):
        expected = as_jinja_has_it(REGULAR[name], talk)
        assert answer_prompt(text, talk) == (expected.removeprefix("<s>") if adds_bos else expected)


def tool(name: str) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "Where?"}},
        "required": ["city"],
    }
    function = {"name": name, "description": "Tells the weather.", "parameters": parameters}
    return {"type": "function", "function": function}


def talks_with_tools(*, has_two: bool) -> list[list[dict[str, Any]]]:
    """A question alone, one or two calls with their results, and the talk that goes on."""

    def call(*cities: str, content: str = "") -> dict[str, Any]:
        calls = [
            {"id": "a23456789", "type": "function",
             "function": {"name": "weather", "arguments": {"city": city, "days": 2}}}
            for city in cities
        ]  # fmt: skip
        return {"role": "assistant", "content": content, "tool_calls": calls}

    ask = {"role": "user", "content": "Is it warm in Rome?"}
    warm = {
        "role": "tool",
        "name": "weather",
        "tool_call_id": "a23456789",
        "content": 'It is "warm".',
    }
    answer = {"role": "assistant", "content": "Yes, it is."}
    again = {"role": "user", "content": "And in Oslo?"}
    talks = [
        [ask], [ask, call("Rome"), warm], [ask, call("Rome"), warm, call("Bari"), warm],
        [ask, call("Rome", content="I look."), warm], [ask, call("Rome"), warm, answer, again],
    ]  # fmt: skip
    return [*talks, [ask, call("Rome", "Oslo"), warm, warm]] if has_two else talks


def same_with_tools(template: str, text: str, *, has_two: bool) -> None:
    """Compare a Modelfile's prompts with the chat template's, with one tool and with two."""
    systems: list[list[dict[str, str]]] = [[], [{"role": "system", "content": "Be brief."}]]
    talks = talks_with_tools(has_two=has_two)
    default = parse_modelfile(text).get("SYSTEM")
    for system, talk, count in itertools.product(
        systems[1:] if default else systems, talks, (1, 2)
    ):
        tools = [tool("weather"), tool("time")][:count]
        expected = Template(template, SPECIAL).render([*system, *talk], tools=tools)
        found = answer_prompt(text, [*system, *talk], tools=tools)
        assert in_one_form(found) == in_one_form(expected.removeprefix("<s>"))


@pytest.mark.parametrize(
    ("name", "has_two", "tag"), [("tagged", True, "<call>"), ("one_call", False, "{")]
)
def test_tools_are_offered_called_and_answered_as_the_chat_template_does(
    tmp_path, name, has_two, tag
):
    said: list[Any] = []

    text = modelfile(model(TOOLS[name]), tmp_path, report=said.append)

    assert [event.message for event in said] == [
        "tools are in TEMPLATE; Ollama writes their JSON in its own order and spacing"
    ]
    assert call_tag(parse_modelfile(text)["TEMPLATE"][0]) == tag
    same_with_tools(TOOLS[name], text, has_two=has_two)
    for talk in conversations(system=True):
        expected = as_jinja_has_it(TOOLS[name], talk).removeprefix("<s>")
        assert answer_prompt(text, talk) == expected


@pytest.mark.families
@pytest.mark.llamacpp
@pytest.mark.parametrize(
    "name",
    [
        "Qwen-Qwen2.5-7B-Instruct",
        "Qwen-Qwen3-0.6B",
        "Qwen-QwQ-32B",
        "meta-llama-Llama-3.1-8B-Instruct",
        "meta-llama-Llama-3.3-70B-Instruct",
        "ibm-granite-granite-4.0",
        "mistralai-Ministral-3-14B-Reasoning-2512",
    ],
)
def test_tools_of_families_are_in_template(toolchain, tmp_path, name):
    path = toolchain.source / "models" / "templates" / f"{name}.jinja"
    template = path.read_text(encoding="utf-8")

    text = modelfile(model(template), tmp_path)

    assert call_tag(parse_modelfile(text)["TEMPLATE"][0]) in ("<tool_call>", "{", "[TOOL_CALLS]")
    same_with_tools(template, text, has_two="single tool-calls" not in template)


@pytest.mark.families
@pytest.mark.llamacpp
def test_real_templates_become_ollamas(toolchain, tmp_path):
    left_out = []
    for path in sorted((toolchain.source / "models" / "templates").glob("*.jinja")):
        template = path.read_text(encoding="utf-8")
        said: list[Any] = []
        text = modelfile(model(template), tmp_path, report=said.append)
        if "TEMPLATE" not in text:
            left_out.append((path.stem, said[0].message))
            continue
        has_system = not any("no place for a system" in event.message for event in said)
        for talk in conversations(system=has_system):
            expected = as_jinja_has_it(template, talk)
            assert answer_prompt(text, talk) == expected.removeprefix("<s>"), path.stem

    assert [name for name, why in left_out if "'functions' is undefined" in why] == [
        "fireworks-ai-llama-3-firefunction-v2"
    ]
    assert len(left_out) == 1, left_out


def as_jinja_has_it(template: str, talk: list[dict[str, str]]) -> str:
    """With the date that the template has without a clock, else with a fixed one."""
    for clock, has_tools in itertools.product((None, lambda: DAY), (True, False)):
        try:
            return Template(template, SPECIAL, clock).render(talk, has_tools=has_tools)
        except IrregularError as error:
            last = error
    raise last


@pytest.mark.parametrize("name", IRREGULAR)
def test_a_template_that_does_more_is_left_out_and_said(tmp_path, name):
    made = model(IRREGULAR[name])
    said: list[Any] = []

    text = modelfile(made, tmp_path, report=said.append)

    assert "TEMPLATE" not in text
    assert parse_modelfile(text)["FROM"] == ["./m.gguf"]
    assert ["cannot be written as Ollama's TEMPLATE" in event.message for event in said] == [True]


def test_what_lets_a_model_see_is_named_too(tmp_path):
    said = parse_modelfile(modelfile(model(None), tmp_path, ["mmproj-m.gguf"]))

    assert said["FROM"] == ["./m.gguf", "./mmproj-m.gguf"]


def test_an_answer_that_comes_last_is_gone_on_with(tmp_path):
    made = model(REGULAR["chatml"])
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well"}]

    prompt = answer_prompt(modelfile(made, tmp_path), talk)

    assert prompt == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nWell"


def test_a_default_system_text_is_the_modelfiles(tmp_path):
    made = model(REGULAR["default_system"])
    said = parse_modelfile(modelfile(made, tmp_path))
    assert said["SYSTEM"] == ['You are "Ada", a helpful assistant.']

    made = model(REGULAR["chatml"])
    assert "SYSTEM" not in parse_modelfile(modelfile(made, tmp_path))


def test_what_a_template_says_beyond_conversations_is_told(tmp_path):
    said: list[Any] = []
    made = model(REGULAR["with_tools"])
    modelfile(made, tmp_path, report=said.append)
    assert "also speaks of tools" in said[0].message

    made = model(REGULAR["no_system"])
    modelfile(made, tmp_path, report=said.append)
    assert "no place for a system message" in said[1].message

    made = model(None)
    modelfile(made, tmp_path, report=said.append)
    assert "no chat template" in said[2].message


def test_thinking_is_ollamas_switch_where_the_template_thinks_by_itself(tmp_path):
    template = REGULAR["thinks_unless_told"]
    said: list[Any] = []
    text = modelfile(model(template), tmp_path, report=said.append)
    talk = conversations(system=True)[-1]

    for think in (None, True, False):
        switch = {} if think is None else {"enable_thinking": think}
        expected = Template(template, SPECIAL).render(talk, variables=switch)
        assert answer_prompt(text, talk, think=think) == expected
    assert "{{ if and $last .Thinking }}<think>{{ .Thinking }}</think>{{ end }}" in text
    assert said == []


@pytest.mark.parametrize("template", [REGULAR["chatml"], THINKS_WHEN_ASKED])
def test_a_model_that_does_not_think_by_itself_is_not_told_to(tmp_path, template):
    """Ollama has every model think that can, unless a request says otherwise."""
    text = modelfile(model(template), tmp_path)
    talk = conversations(system=True)[0]

    assert "Think" not in text
    assert answer_prompt(text, talk) == Template(template, SPECIAL).render(talk)


def test_answers_stop_at_the_models_own_ends(tmp_path):
    made = model(REGULAR["headers"], **{"tokenizer.ggml.eot_token_id": 3})

    assert parse_modelfile(modelfile(made, tmp_path))["stop"] == ["</s>", "<|eot|>"]


def test_answers_stop_at_all_ends_that_the_configs_name(tmp_path):
    (tmp_path / "config.json").write_text('{"eos_token_id": 2}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 3, 99]}')

    said = parse_modelfile(modelfile(model(REGULAR["chatml"]), tmp_path))

    assert said["stop"] == ["</s>", "<|eot|>", "<|im_end|>"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20,
             "repetition_penalty": 1.05, "max_length": 8192},
            {"temperature": "0.7", "top_p": "0.8", "top_k": "20", "repeat_penalty": "1.05",
             "num_ctx": "8192"},
        ),
        ({"temperature": 0.6, "do_sample": False}, {"temperature": "0"}),
        ({"temperature": None, "top_k": "many", "top_p": True, "max_length": 20}, {}),
    ],
)  # fmt: skip
def test_parameters_are_the_generation_configs(tmp_path, settings, expected):
    made = model(None)
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))

    said = parse_modelfile(modelfile(made, tmp_path))

    assert {k: v for k, (v,) in said.items() if k not in ("FROM", "stop")} == expected


def test_without_a_base_the_parameters_are_those_in_the_gguf():
    keys = {"temp": 0.6000000238418579, "top_k": 20, "min_p": True, "mirostat": 1}
    made = model(None, **{f"general.sampling.{key}": value for key, value in keys.items()})

    found = ollama_settings(made, None)
    assert found.parameters == {"temperature": "0.6", "top_k": "20"}
    assert found.stops == ("</s>",)
    assert found.template is None


@pytest.mark.trained
@pytest.mark.parametrize("name", [name for name in REGULAR if name != "tools_without_asking"])
def test_templates_are_rendered_as_transformers_does(tiny_base, name):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

    for talk, generation in itertools.product(
        conversations(system=name != "no_system"), (True, False)
    ):
        expected = tokenizer.apply_chat_template(
            talk, chat_template=REGULAR[name], tokenize=False, add_generation_prompt=generation
        )
        rendered = Template(REGULAR[name], tokens, datetime.now)
        assert rendered.render(talk, generation=generation) == expected


@pytest.mark.llamacpp
@pytest.mark.trained
@pytest.mark.slow
def test_the_folder_holds_the_gguf_and_its_modelfile(
    warm_decant, tiny_base, tiny_adapter, tmp_path
):
    output = tmp_path / "pirate"
    command = ("export", tiny_adapter, "--base", tiny_base, "--to", "ollama", "-q", "Q8_0")

    done: subprocess.CompletedProcess[str] = warm_decant(*command, "-o", output)

    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{output}\n"
    assert f"ollama create pirate -f {output / 'Modelfile'}" in done.stderr
    assert sorted(path.name for path in output.iterdir()) == ["Modelfile", "tiny-lora-Q8_0.gguf"]
    assert [path.name for path in tmp_path.iterdir()] == ["pirate"]
    text = (output / "Modelfile").read_text()
    said = parse_modelfile(text)
    assert said["FROM"] == ["./tiny-lora-Q8_0.gguf"]
    assert said["stop"] == ["</s>"]
    assert "ADAPTER" not in text
    gguf = read_gguf(output / "tiny-lora-Q8_0.gguf")
    assert gguf.text("tokenizer.chat_template") == CHAT_TEMPLATE
    talk = conversations(system=True)[-1]
    assert "<s>" + answer_prompt(text, talk) == Template(CHAT_TEMPLATE, SPECIAL).render(talk)

    again = warm_decant(*command, "-o", output)
    assert again.returncode == 8
    assert "exists" in again.stderr
    assert warm_decant(*command, "-o", output, "--force", "--json").returncode == 0
    two = warm_decant(*command, "-q", "Q4_K_M", "-o", tmp_path / "two")
    assert (two.returncode, "a Modelfile names one GGUF" in two.stderr) == (2, True)
    assert TEMPLATES[0] not in {path.name for path in output.iterdir()}
