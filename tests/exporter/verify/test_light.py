"""Tokenizer, template, settings; the command; and what an export does with a wrong file."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from exporter.core.errors import VerifyError
from tests.support.raw import edit_json
from tests.support.tiny import make_adapter, make_base, make_tokenizer

pytestmark = [
    pytest.mark.llamacpp,
    pytest.mark.trained,
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture
def file(pour, tiny_base, tiny_adapter, tmp_path) -> Path:
    return pour(tiny_base, tiny_adapter, tmp_path / "m.gguf", "Q8_0")


@pytest.fixture
def other(tiny_base, tmp_path) -> Path:
    """The same base, to be given other settings."""
    return Path(shutil.copytree(tiny_base, tmp_path / "other"))


def test_another_tokenizer_is_found(verify, file, other, tiny_adapter):
    make_tokenizer(other, letters="qxzjkvwbp")

    with pytest.raises(VerifyError, match=r"\d+ of \d+ texts cut into the same tokens; '.* from"):
        verify(file, other, tiny_adapter).refuse()


def test_another_template_is_found(verify, file, other, tiny_adapter):
    path = other / "tokenizer_config.json"
    template = json.loads(path.read_text())["chat_template"]
    edit_json(path, chat_template=template.replace("|>'", "|> '"))

    with pytest.raises(VerifyError, match=r"chat template gives '.*' and '.*' in transformers"):
        verify(file, other, tiny_adapter).refuse()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
         r"llama\.rope\.freq_base is 10000"),
        ({"max_position_embeddings": 512}, r"llama\.context_length is 256 and should be 512"),
        ({"rms_norm_eps": 1e-3}, r"llama\.attention\.layer_norm_rms_epsilon"),
    ],
)  # fmt: skip
def test_other_settings_are_found(verify, file, other, tiny_adapter, changes, named):
    edit_json(other / "config.json", **changes)

    with pytest.raises(VerifyError, match=named):
        verify(file, other, tiny_adapter).refuse()


def test_values_beyond_half_floats_are_said_with_the_type_that_holds_them(verify, pour, tmp_path):
    from safetensors.torch import load_file, save_file

    base = make_base(tmp_path / "large", dtype="float32", num_hidden_layers=1)
    weights = load_file(base / "model.safetensors")
    weights["model.layers.0.mlp.down_proj.weight"] *= 1e7
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    adapter = make_adapter(tmp_path / "lora", base)

    file = pour(base, adapter, tmp_path / "m.gguf", "F16")
    with pytest.raises(VerifyError, match="in F16 ends at 65,504") as told:
        verify(file, base, adapter).refuse()

    assert "`-q BF16`" in told.value.hint


def test_no_other_base_is_suspected_where_all_rows_are_right(verify, file, other, tiny_adapter):
    edit_json(other / "tokenizer_config.json", eos_token="<|user|>")

    with pytest.raises(VerifyError) as told:
        verify(file, other, tiny_adapter).refuse()

    assert told.value.hint.startswith("export it again")
    assert "of this base" not in told.value.hint


def test_another_end_of_text_is_found(verify, file, other, tiny_adapter):
    edit_json(other / "tokenizer_config.json", eos_token="<|user|>")

    with pytest.raises(VerifyError, match=r"its eos token is 2 '</s>' and should be 3"):
        verify(file, other, tiny_adapter).refuse()


def test_the_command_says_what_is_right_and_what_is_wrong(
    warm_decant, file, tiny_base, tiny_adapter, tmp_path
):
    right = warm_decant("verify", file, "--base", tiny_base, "--adapter", tiny_adapter, "--json")
    assert right.returncode == 0, right.stderr
    told = json.loads(right.stdout)
    assert [check["name"] for check in told["checks"]] == [
        "weights", "tokenizer", "special tokens", "chat template", "settings", "loading", "logits",
    ]  # fmt: skip
    assert told["ok"]

    other = make_adapter(tmp_path / "other-lora", tiny_base, seed=4)
    wrong = warm_decant("verify", file, "--base", tiny_base, "--adapter", other)
    assert wrong.returncode == 7
    assert "warning: the file was made with the adapter 'tiny-lora', not with" in wrong.stderr
    assert "is like another tensor" in wrong.stderr
    assert "logits" not in wrong.stdout  # there is nothing more to ask

    scaled = warm_decant("verify", file, "--base", tiny_base, "--adapter", f"{tiny_adapter}:0.5")
    assert scaled.returncode == 7
    assert "at scale 1, not 0.5" in scaled.stderr


def test_the_command_refuses_what_it_cannot_compare(warm_decant, file, tiny_base, tmp_path):
    assert warm_decant("verify", file).returncode == 2
    missing = warm_decant("verify", tmp_path / "no.gguf", "--base", tiny_base)
    assert missing.returncode == 3
    assert "Traceback" not in missing.stderr
    (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:5000])
    cut = warm_decant("verify", tmp_path / "cut.gguf", "--base", tiny_base, "--light")
    assert (cut.returncode, "not a whole GGUF" in cut.stderr) == (3, True)
    (tmp_path / "text").write_bytes(b"\xff\xfe")
    text = warm_decant("verify", file, "--base", tiny_base, "--text", tmp_path / "text")
    assert (text.returncode, "not UTF-8" in text.stderr) == (3, True)


def test_every_export_is_verified_unless_told_not_to(
    warm_decant, tiny_base, tiny_adapter, tmp_path
):
    made = warm_decant(
        "export", tiny_adapter, "--base", tiny_base, "-o", tmp_path / "a.gguf", "--json"
    )
    (verified,) = json.loads(made.stdout)["verified"]
    assert verified["seconds"] > 0
    assert all(not check["problems"] for check in verified["checks"])
    assert "a.gguf is right, in" in made.stderr

    unchecked = warm_decant(
        "export", tiny_adapter, "--base", tiny_base, "-o", tmp_path / "b.gguf", "--json",
        "--no-verify",
    )  # fmt: skip
    assert json.loads(unchecked.stdout)["verified"] == []


def test_an_export_that_comes_out_wrong_has_no_name(
    toolchain, tiny_base, tiny_adapter, tmp_path, monkeypatch
):
    """The merge is made to leave the adapter out of one tensor."""
    from exporter.export import export
    from exporter.formats.export_request import ExportRequest
    from exporter.merge.row_blocks import PlainSum

    right = PlainSum.of

    def forgetful(step):
        skipped = step.pair.module == "model.layers.1.mlp.up_proj"
        return replace(right(step), factor=0.0) if skipped else right(step)

    monkeypatch.setattr(PlainSum, "of", forgetful)
    output = tmp_path / "m.gguf"

    with pytest.raises(VerifyError, match=r"`blk\.1\.ffn_up\.weight`"):
        export(
            ExportRequest(((tiny_adapter, 1.0),), tiny_base, ("F16",), (output,), verify=True),
            toolchain,
        )

    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf.rejected"]


def test_the_demos_models_pass_in_seconds(pour, verify, tmp_path):
    from exporter.demo import make_demo_models
    from exporter.llamacpp.toolchain import cache_folder

    models = make_demo_models(cache_folder() / "demo")
    found = verify(
        pour(models.base, models.adapter, tmp_path / "m.gguf", "Q4_K_M"),
        models.base,
        models.adapter,
    )

    found.refuse()
    assert found.seconds < 3
