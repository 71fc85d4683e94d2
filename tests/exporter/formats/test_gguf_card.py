from __future__ import annotations

from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from exporter.formats.gguf_card import (
    CardFile,
    CardPlace,
    evaluation_in,
    files_in,
    gguf_card,
    is_ours,
)

FILE = CardFile(
    "m-Q4_K_M.gguf", "ab" * 32, 4_000_000, "model", "Q4_K_M",
    checks=[["weights", "right", "12 tensors"], ["tokenizer", "not judged", "a | b"]],
    provenance={"decant.base": "base", "decant.adapter": "lora"},
    base="org/base", title="`lora` merged into `org/base`", carried={"license": "mit"},
)  # fmt: skip
LARGE = replace(FILE, name="m-Q8_0.gguf", quant="Q8_0", nbytes=8_000_000, checks=[])
HUB = CardPlace("me/m-GGUF", "hf.co", "https://huggingface.co/me/m-GGUF")


def test_the_front_matter_is_what_the_hub_reads():
    data = ModelCard(gguf_card([FILE, LARGE], HUB, "")).data.to_dict()

    assert data == {
        "base_model": "org/base",
        "base_model_relation": "quantized",
        "library_name": "gguf",
        "license": "mit",
        "quantized_by": "decant",
        "tags": ["gguf", "llama-cpp", "decant", "lora"],
    }


def test_an_adapter_is_one_of_its_base():
    adapter = replace(FILE, kind="adapter", name="lora.lora.gguf", quant="F32", checks=[])
    text = gguf_card([adapter], HUB, "")

    assert ModelCard(text).data.to_dict()["base_model_relation"] == "adapter"
    assert "llama-cli -m BASE.gguf --lora lora.lora.gguf" in text
    assert "ollama" not in text


def test_without_a_known_base_there_is_no_relation():
    data = ModelCard(gguf_card([replace(FILE, base="", carried={})], HUB, "")).data.to_dict()

    assert not {"base_model", "base_model_relation", "license"} & data.keys()


@pytest.mark.parametrize(
    "line",
    [
        "llama-cli -hf me/m-GGUF:Q4_K_M",
        "ollama run hf.co/me/m-GGUF:Q4_K_M",
        "lms get https://huggingface.co/me/m-GGUF@Q4_K_M",
        "decant chat me/m-GGUF:Q4_K_M",
    ],
)
def test_lines_to_paste_name_the_quantization_that_is_usual(line: str):
    assert f"```sh\n{line}\n```" in gguf_card([LARGE, FILE], HUB, "")


def test_the_table_says_what_was_verified():
    text = gguf_card([FILE, LARGE], HUB, "")

    assert "| `m-Q4_K_M.gguf` | Q4_K_M | 4 MB | right |" in text
    assert "| `m-Q8_0.gguf` | Q8_0 | 8 MB | no |" in text
    assert "| `m-Q4_K_M.gguf` | weights | right | 12 tensors |" in text
    assert r"| `m-Q4_K_M.gguf` | tokenizer | not judged | a \| b |" in text


def test_a_wrong_file_is_called_wrong():
    wrong = replace(FILE, checks=[["weights", "WRONG", "blk.0 differs"]])

    assert "| 4 MB | WRONG |" in gguf_card([wrong], HUB, "")


def test_what_a_card_says_of_its_files_can_be_read_back():
    odd = replace(FILE, name="m-->.gguf", provenance={"decant.base": "<!-- x --> \u2028"})
    text = gguf_card([odd, LARGE], HUB, "## Evaluation\n\ngood\n")

    assert files_in(text) == [odd, LARGE]
    assert evaluation_in(text) == "## Evaluation\n\ngood"
    assert gguf_card(files_in(text), HUB, evaluation_in(text)) == text


def test_a_card_that_was_changed_is_no_longer_decants():
    text = gguf_card([FILE], HUB, "")

    assert is_ours(text)
    assert not is_ours(text.replace("merged into", "mixed into"))
    assert not is_ours(text + "\nmore\n")
    assert not is_ours("# A model\n")


@pytest.mark.parametrize("facts", ["{}", '{"name": 1', '{"unknown": 1}', "[]"])
def test_facts_of_another_version_are_left_out(facts: str):
    assert files_in(f"<!-- decant file {facts} -->\n") == []


def test_texts_of_a_file_cannot_write_markdown():
    odd = replace(FILE, title="", provenance={"decant.base": "x\n\n# <script>|`y`"})

    text = gguf_card([odd], HUB, "")

    assert "<script>" not in text
    assert "- `decant.base`: x # &lt;script&gt;\\|\\`y\\`" in text
