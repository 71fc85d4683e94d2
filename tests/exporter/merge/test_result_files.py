from __future__ import annotations

import json

import pytest

from exporter.convert.to_gguf import convert
from exporter.core.errors import AdapterError, CheckpointError, UnsupportedError
from exporter.inputs.adapter import open_adapter
from exporter.inputs.open_checkpoint import open_checkpoint
from exporter.merge.apply import MergedTensors
from exporter.merge.merge_plan import plan_merge
from exporter.merge.operations import WeightedAdapter
from exporter.merge.result_files import result_folder, templates_in
from tests.support.raw import copy, edit_json, write_adapter, write_base, write_safetensors


@pytest.fixture
def base(tmp_path):
    folder = write_base(tmp_path / "base")
    (folder / "tokenizer.json").write_text('{"of": "base"}')
    (folder / "merges.txt").write_text("a b")
    (folder / "tokenizer_config.json").write_text('{"chat_template": "base"}')
    (folder / "generation_config.json").write_text("{}")
    return folder


def planned(base, adapter):
    return plan_merge(open_checkpoint(base), [WeightedAdapter(open_adapter(adapter))])


def files(plan, **options):
    with result_folder(plan, **options) as folder:
        return folder, {
            path.name: path.read_text()
            for path in folder.iterdir()
            if path.is_file() and path.suffix != ".safetensors"
        }


def test_an_adapter_that_saved_no_tokenizer_leaves_the_bases_folder_alone(base, tmp_path):
    folder, _ = files(planned(base, write_adapter(tmp_path / "lora")))

    assert folder == base


def test_the_adapters_tokenizer_goes_before_the_bases_as_a_whole(base, tmp_path):
    adapter = write_adapter(tmp_path / "lora")
    (adapter / "tokenizer.json").write_text('{"of": "adapter"}')
    (adapter / "tokenizer_config.json").write_text("{}")

    folder, found = files(planned(base, adapter))

    assert found["tokenizer.json"] == '{"of": "adapter"}'
    assert found["tokenizer_config.json"] == "{}"
    assert "merges.txt" not in found  # it belongs to the other vocabulary
    assert found["generation_config.json"] == "{}"
    assert not folder.exists()


def test_a_chat_template_alone_is_taken_too(base, tmp_path):
    adapter = write_adapter(tmp_path / "lora")
    (adapter / "chat_template.jinja").write_text("adapter's")
    (adapter / "tokenizer_config.json").write_text("{}")  # settings without a vocabulary

    _, found = files(planned(base, adapter))

    assert found["chat_template.jinja"] == "adapter's"
    assert found["tokenizer.json"] == '{"of": "base"}'
    assert found["tokenizer_config.json"] == "{}"  # llama.cpp's converter would take its template


@pytest.mark.parametrize(
    ("written", "content"),
    [
        ("tokenizer_config.json", '{"chat_template": "adapter\'s"}'),
        ("chat_template.json", '{"chat_template": "adapter\'s"}'),
        ("chat_template.jinja", "adapter's"),
    ],
)
@pytest.mark.parametrize("base_has", ["tokenizer_config.json", "chat_template.jinja"])
@pytest.mark.parametrize("vocabulary", [False, True])
def test_an_adapters_template_goes_before_its_bases_wherever_both_have_it(
    base, tmp_path, written, content, base_has, vocabulary
):
    if base_has == "chat_template.jinja":
        (base / "tokenizer_config.json").write_text("{}")
        (base / base_has).write_text("base's")
    adapter = write_adapter(tmp_path / "lora")
    (adapter / written).write_text(content)
    if vocabulary:
        (adapter / "tokenizer.json").write_text('{"of": "adapter"}')

    with result_folder(planned(base, adapter)) as folder:
        assert templates_in(folder) == {"default": "adapter's"}
        assert gguf_template(folder) == "adapter's"


def gguf_template(folder):
    """What llama.cpp's converter takes: tokenizer_config.json's own before a file."""
    said = folder / "tokenizer_config.json"
    settings = json.loads(said.read_text()) if said.exists() else {}
    return settings.get("chat_template") or (folder / "chat_template.jinja").read_text()


def test_named_templates_of_both_are_kept_the_adapters_before_the_bases(base, tmp_path):
    named = [{"name": name, "template": f"base {name}"} for name in ("default", "rag", "tool_use")]
    (base / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    adapter = write_adapter(tmp_path / "lora")
    (adapter / "additional_chat_templates").mkdir()
    (adapter / "additional_chat_templates" / "tool_use.jinja").write_text("adapter's")

    with result_folder(planned(base, adapter)) as folder:
        assert templates_in(folder) == {
            "default": "base default", "rag": "base rag", "tool_use": "adapter's",
        }  # fmt: skip


def test_a_tokenizer_saved_whole_without_a_template_keeps_its_bases(base, tmp_path):
    adapter = write_adapter(tmp_path / "lora")
    (adapter / "tokenizer.json").write_text('{"of": "adapter"}')
    (adapter / "tokenizer_config.json").write_text("{}")

    with result_folder(planned(base, adapter)) as folder:
        assert templates_in(folder) == {"default": "base"}


def test_an_adapters_generation_settings_go_before_its_bases(base, tmp_path):
    adapter = write_adapter(tmp_path / "lora")
    (adapter / "generation_config.json").write_text('{"eos_token_id": 5}')

    assert files(planned(base, adapter))[1]["generation_config.json"] == '{"eos_token_id": 5}'


def test_a_damaged_template_file_is_an_error_with_a_hint(base, tmp_path):
    adapter = write_adapter(tmp_path / "lora")
    (adapter / "tokenizer_config.json").write_text("{")

    with pytest.raises(AdapterError, match=r"tokenizer_config\.json` is not JSON"):
        files(planned(base, adapter))


def test_pieces_that_only_the_base_has_are_kept_and_what_was_added_is_named(base, tmp_path):
    (base / "tokenizer.model").write_text("pieces")
    adapter = write_adapter(tmp_path / "lora")
    added = {"id": 16, "content": "<new>", "special": True}
    (adapter / "tokenizer.json").write_text(json.dumps({"added_tokens": [added]}))
    (adapter / "tokenizer_config.json").write_text('{"eos_token": "<new>"}')

    _, found = files(planned(base, adapter))

    settings = json.loads(found["tokenizer_config.json"])
    assert found["tokenizer.model"] == "pieces"
    assert settings["eos_token"] == "<new>"
    assert settings["added_tokens_decoder"]["16"]["content"] == "<new>"


def test_the_config_says_what_the_merge_changed_also_inside_a_vision_model(base, tmp_path):
    text = {"vocab_size": 16, "tie_word_embeddings": False}
    edit_json(base / "config.json", text_config=text)
    names = ("model.embed_tokens.weight", "lm_head.weight")
    write_safetensors(base / "model.safetensors", dict.fromkeys(names, (16, 8)))
    adapter = write_adapter(tmp_path / "lora", modules_to_save=["embed_tokens", "lm_head"])
    write_safetensors(
        adapter / "adapter_model.safetensors",
        {f"base_model.model.{name}": (18, 8) for name in names},
    )

    config = json.loads(files(planned(base, adapter))[1]["config.json"])

    assert config["vocab_size"] == config["text_config"]["vocab_size"] == 18


def test_an_adapters_tokenizer_with_code_of_its_own_is_refused(base, tmp_path):
    adapter = write_adapter(tmp_path / "lora")
    (adapter / "tokenizer.json").write_text("{}")
    (adapter / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": "x.Evil"}}')
    plan = planned(base, adapter)

    with pytest.raises(UnsupportedError, match="auto_map"), result_folder(plan):
        pass

    _, found = files(plan, trust_remote_code=True)
    assert "auto_map" in found["tokenizer_config.json"]


EVIL = """
from pathlib import Path
from transformers import PreTrainedTokenizerFast
Path({path!r}).write_text("run")
class Evil(PreTrainedTokenizerFast):
    pass
"""


@pytest.mark.llamacpp
@pytest.mark.trained
@pytest.mark.parametrize("trusted", [False, True])
def test_a_tokenizers_code_runs_only_when_it_is_trusted(tiny_base, toolchain, tmp_path, trusted):
    """llama.cpp's converter asks transformers to run it, for the architectures of one family."""
    model = copy(tiny_base, tmp_path / "model")
    edit_json(model / "config.json", architectures=["HunYuanDenseV1ForCausalLM"])
    edit_json(
        model / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["evil.Evil", None]},
        tokenizer_class="Evil",
    )
    ran = tmp_path / "ran"
    (model / "evil.py").write_text(EVIL.format(path=str(ran)))
    tensors = MergedTensors(plan_merge(open_checkpoint(model, trust_remote_code=True)))

    with pytest.raises((CheckpointError, UnsupportedError)) as caught:  # it is no such model
        convert(tensors, model, toolchain, model_name="x", trust_remote_code=trusted)

    assert ran.exists() == trusted
    assert trusted or "does not run" in str(caught.value)


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("one", {"default": "one"}),
        ([{"name": "default", "template": "a"}], {"default": "a"}),
        ({"default": "a", "tool_use": "b"}, {"default": "a", "tool_use": "b"}),
        ("", {}),
        (" \n", {}),
        ({}, {}),
        (None, {}),
    ],
)
def test_templates_are_read_in_every_form_that_transformers_takes(tmp_path, said, found):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": said}))
    (tmp_path / "chat_template.jinja").write_text("\n")

    assert templates_in(tmp_path) == found
