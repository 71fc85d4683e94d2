"""Adapters that make a classifier of a base: what is saved loads as one, and answers alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from exporter.convert.upstream_fixes import patch_settings
from exporter.core.errors import AdapterError, UnsupportedError
from exporter.core.events import Warn
from exporter.core.gguf import read_gguf as read_header
from exporter.export import export
from exporter.formats.export_request import ExportRequest
from exporter.formats.safetensors_folder import save_merged
from exporter.llamacpp.converter_import import imported
from exporter.llamacpp.toolchain import Toolchain
from tests.support.architectures import ARCHITECTURES, SIZE
from tests.support.reference import read_gguf
from tests.support.roads import difference, load_tensors, logits, shake
from tests.support.tiny import make_tokenizer

pytestmark = [pytest.mark.trained, pytest.mark.filterwarnings("ignore")]

ENCODER = {k: v for k, v in SIZE.items() if k != "num_key_value_heads"} | {"num_hidden_layers": 2}
MODERN = {"cls_token_id": 1, "sep_token_id": 2, "global_attn_every_n_layers": 2}
CONFIGS: dict[str, Any] = {
    "bert": lambda t: t.BertConfig(**ENCODER),
    "roberta": lambda t: t.RobertaConfig(**ENCODER | {"max_position_embeddings": 130}),
    "distilbert": lambda t: t.DistilBertConfig(
        vocab_size=320, dim=64, hidden_dim=96, n_layers=2, n_heads=4, max_position_embeddings=128
    ),
    "modernbert": lambda t: t.ModernBertConfig(**ENCODER | MODERN),
}
Q = {"target_modules": ["q_proj"]}
ATTENTION = {"target_modules": ["query", "value"]}
FLOAT32 = 1e-5
AUTO = {
    "SEQ_CLS": "SequenceClassification",
    "TOKEN_CLS": "TokenClassification",
    "QUESTION_ANS": "QuestionAnswering",
}
POOLER = ("cls.weight", "cls.bias")


def make(kind: str, auto: str, folder: Path, **changes: Any) -> Path:
    """A base with random weights, saved as the class that `auto` gives."""
    import torch
    import transformers

    make_config = CONFIGS.get(kind) or ARCHITECTURES[kind].config
    config = make_config(transformers)
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    getattr(transformers, auto).from_config(config).save_pretrained(folder)
    return folder


def train(
    base: Path, folder: Path, *, task: str = "SEQ_CLS", count: int = 3, **settings: Any
) -> Any:
    """An adapter with a head, saved in `folder`; gives the unmerged model."""
    import torch
    import transformers
    from peft import LoraConfig, PeftModel, get_peft_model

    auto = AUTO[task]
    kind = getattr(transformers, f"AutoModelFor{auto}")

    def load() -> Any:
        torch.manual_seed(1)  # so that what is not saved is random alike
        return kind.from_pretrained(base, num_labels=count).eval()

    model = get_peft_model(load(), LoraConfig(task_type=task, **settings))
    shake(model)
    model.save_pretrained(folder)
    return PeftModel.from_pretrained(load(), folder).eval()


def request(base: Path, adapter: Path, **more: Any) -> ExportRequest:
    return ExportRequest(((adapter, 1.0),), base, (), (), **more)


CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "AutoModelForCausalLM", Q),
    "llama_headless": ("llama", "AutoModel", Q),
    "tokens": ("llama", "AutoModelForCausalLM", Q | {"task": "TOKEN_CLS"}),
    "qwen3_two_labels": ("qwen3", "AutoModelForCausalLM", Q | {"count": 2}),
    "gpt2": ("gpt2", "AutoModelForCausalLM", {"target_modules": ["c_attn"]}),
    "opt": ("opt", "AutoModelForCausalLM", Q),
    "bert": ("bert", "AutoModel", ATTENTION),
    "bert_tokens": ("bert", "AutoModelForMaskedLM", ATTENTION | {"task": "TOKEN_CLS"}),
    "roberta": ("roberta", "AutoModelForMaskedLM", ATTENTION),
    "roberta_with_a_pooler": ("roberta", "AutoModel", ATTENTION),
    "distilbert": (
        "distilbert",
        "AutoModelForMaskedLM",
        {"target_modules": ["q_lin"]},
    ),
    "modernbert": ("modernbert", "AutoModelForMaskedLM", {"target_modules": ["Wqkv"]}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_result_is_a_classifier_that_answers_as_the_unmerged_one(tmp_path, case):
    import transformers

    kind, auto, settings = CASES[case]
    base = make(kind, auto, tmp_path / "base")
    unmerged = train(base, tmp_path / "lora", **settings)

    save_merged(request(base, tmp_path / "lora"), tmp_path / "out")

    config = json.loads((tmp_path / "out" / "config.json").read_text())
    (name,) = config["architectures"]
    assert name == type(unmerged.get_base_model()).__name__
    count = settings.get("count", 3)
    assert config["id2label"] == {str(n): f"LABEL_{n}" for n in range(count)}
    merged, info = getattr(transformers, name).from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert (info["missing_keys"], info["unexpected_keys"]) == (set(), set())
    assert difference(logits(merged.eval()), logits(unmerged)) < FLOAT32
    assert merged.num_labels == count


def test_a_tied_base_with_a_grown_vocabulary_leaves_no_head(tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification as Auto

    base = make("llama", "AutoModelForCausalLM", tmp_path / "base", tie_word_embeddings=True)
    torch.manual_seed(1)
    model = Auto.from_pretrained(base, num_labels=3).eval()
    model.resize_token_embeddings(330, mean_resizing=False)
    model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=["embed_tokens"]))
    shake(model)
    model.save_pretrained(tmp_path / "lora")

    save_merged(request(base, tmp_path / "lora"), tmp_path / "out")

    merged, info = Auto.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert (info["missing_keys"], info["unexpected_keys"]) == (set(), set())
    assert difference(logits(merged.eval()), logits(model)) < FLOAT32
    assert merged.config.vocab_size == 330


@pytest.mark.parametrize(
    ("kind", "auto", "target", "lost"),
    [
        ("bert", "AutoModelForMaskedLM", "query", r"bert\.pooler\.dense\.weight"),
        ("modernbert", "AutoModel", "Wqkv", r"head\.dense\.weight"),
    ],
)
def test_a_part_that_training_began_at_random_and_lost_is_named(tmp_path, kind, auto, target, lost):
    """PEFT saves `classifier` and `score` by itself, and nothing else that is new."""
    base = make(kind, auto, tmp_path / "base")
    train(base, tmp_path / "lora", target_modules=[target])

    with pytest.raises(AdapterError, match=f"`{lost}` of .* neither in the base nor") as caught:
        save_merged(request(base, tmp_path / "lora"), tmp_path / "out")

    assert "modules_to_save" in (caught.value.hint or "")


def test_labels_are_those_of_a_config_beside_the_adapter(tmp_path):
    base = make("llama", "AutoModelForCausalLM", tmp_path / "base")
    train(base, tmp_path / "lora", **Q)
    names = {"0": "bad", "1": "so so", "2": "good"}
    config = tmp_path / "lora" / "config.json"

    config.write_text(json.dumps({"id2label": names, "problem_type": "regression"}))
    save_merged(request(base, tmp_path / "lora"), tmp_path / "out")
    config.write_text(json.dumps({"id2label": {"0": "of another head"}}))
    save_merged(request(base, tmp_path / "lora"), tmp_path / "other")

    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (said["id2label"], said["problem_type"]) == (names, "regression")
    assert said["label2id"] == {"bad": 0, "so so": 1, "good": 2}
    other = json.loads((tmp_path / "other" / "config.json").read_text())
    assert other["id2label"]["2"] == "LABEL_2"


def test_a_kind_that_transformers_cannot_classify_with_is_named(tmp_path):
    base = make("mamba", "AutoModelForCausalLM", tmp_path / "base")
    adapter = tmp_path / "lora"
    train(make("llama", "AutoModelForCausalLM", tmp_path / "other"), adapter, **Q)
    weights = load_tensors(adapter)
    from safetensors.torch import save_file

    kept = {name: values for name, values in weights.items() if "score" in name}
    save_file(kept, adapter / "adapter_model.safetensors")

    with pytest.raises(UnsupportedError, match="transformers has none of the kind 'mamba'"):
        save_merged(request(base, adapter), tmp_path / "out")


def test_a_model_that_marks_answers_keeps_its_head_and_its_class(tmp_path):
    import torch
    import transformers

    base = make("bert", "AutoModelForMaskedLM", tmp_path / "base")
    spans = ATTENTION | {"task": "QUESTION_ANS", "count": 2}
    unmerged = train(base, tmp_path / "lora", **spans)

    save_merged(request(base, tmp_path / "lora"), tmp_path / "out")

    merged = transformers.BertForQuestionAnswering.from_pretrained(tmp_path / "out").eval()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        ours, theirs = merged(input_ids=ids), unmerged(input_ids=ids)
    assert difference(ours.start_logits, theirs.start_logits) < FLOAT32
    assert difference(ours.end_logits, theirs.end_logits) < FLOAT32


def test_a_class_that_calls_the_base_otherwise_is_refused(tmp_path):
    base = make("llama", "AutoModelForCausalLM", tmp_path / "base")
    train(base, tmp_path / "lora", **Q | {"task": "QUESTION_ANS", "count": 2})

    with pytest.raises(UnsupportedError, match="calls its parts `transformer"):
        save_merged(request(base, tmp_path / "lora"), tmp_path / "out")


@pytest.mark.llamacpp
@pytest.mark.parametrize("case", ["llama", "gpt2"])
def test_llamacpp_has_no_such_classifier_and_the_error_says_so(tmp_path, toolchain, case):
    kind, auto, settings = CASES[case]
    base = make(kind, auto, tmp_path / "base")
    make_tokenizer(base)
    train(base, tmp_path / "lora", **settings)
    wanted = ExportRequest(((tmp_path / "lora", 1.0),), base, ("F16",), (tmp_path / "m.gguf",))

    with pytest.raises(UnsupportedError, match="ForSequenceClassification'") as caught:
        export(wanted, toolchain)

    assert "--to safetensors" in (caught.value.hint or "")


@pytest.fixture
def converter(toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch) -> Any:
    """llama.cpp's own, without vocabularies: it knows them by the hashes of published ones."""
    with imported(toolchain):
        import torch
        from conversion import ModelBase, ModelType, bert, get_model_architecture, get_model_class

        for kind in vars(bert).values():
            if isinstance(kind, type) and issubclass(kind, bert.TextModel):
                monkeypatch.setattr(kind, "set_vocab", bert.TextModel._set_vocab_none)

        def convert(folder: Path, output: Path) -> Path:
            import gguf

            hparams = patch_settings(
                ModelBase.load_hparams(folder, is_mistral_format=False), folder
            )
            made = get_model_class(get_model_architecture(hparams, ModelType.TEXT))
            ftype = gguf.LlamaFileType.MOSTLY_F16
            with torch.inference_mode():
                made(folder, ftype, output, model_name="x", hparams=hparams).write()
            return output

        yield convert


@pytest.mark.llamacpp
@pytest.mark.parametrize(
    ("case", "count"),
    [("bert", 3), ("roberta", 3), ("roberta", 2), ("distilbert", 3), ("modernbert", 3)],
)
def test_encoders_with_a_head_become_the_converters_gguf(
    tmp_path, toolchain, converter, case, count
):
    """Byte for byte what convert_hf_to_gguf.py makes of PEFT's merge, and BERT's pooler."""
    kind, auto, settings = CASES[case]
    base = make(kind, auto, tmp_path / "base")
    unmerged = train(base, tmp_path / "lora", count=count, **settings)
    said: list[Any] = []
    merged = unmerged.merge_and_unload()
    merged.save_pretrained(tmp_path / "peft")
    output = tmp_path / "ours.gguf"

    export(
        ExportRequest(((tmp_path / "lora", 1.0),), base, ("F16",), (output,), merge_dtype="base"),
        toolchain,
        report=said.append,
    )

    usual = converter(tmp_path / "peft", tmp_path / "usual.gguf")
    (expected, theirs), (actual, ours) = read_gguf(usual), read_gguf(output)
    pooler = (
        {name: ours.pop(name) for name in list(ours) if name in POOLER} if case == "bert" else {}
    )
    assert ours == theirs
    assert len(pooler) == (2 if case == "bert" else 0)
    assert {name for name in ours if name.startswith("cls")}
    words = {"bert": "token types", "distilbert": "tanh"}.get(case)
    warned = [getattr(event, "message", "") for event in said if isinstance(event, Warn)]
    assert any(words in text for text in warned) if words else not warned
    differing = {k for k in expected.keys() | actual.keys() if expected.get(k) != actual.get(k)}
    labels = {"bert.classifier.output_labels"} if count == 2 else set()  # it forgets two
    found = {key for key in differing if not key.startswith(("decant.", "general."))}
    assert found == labels


@pytest.mark.llamacpp
@pytest.mark.parametrize("case", ["bert", "roberta", "distilbert", "modernbert"])
def test_two_labels_need_no_names(tmp_path, toolchain, converter, case):
    """The converter takes them for transformers' placeholders, and misplaces the head."""
    kind, auto, settings = CASES[case]
    base = make(kind, auto, tmp_path / "base")
    train(base, tmp_path / "lora", count=2, **settings)
    output = tmp_path / "x.gguf"
    export(ExportRequest(((tmp_path / "lora", 1.0),), base, ("F16",), (output,)), toolchain)

    header = read_header(output)
    labels = header.metadata[f"{header.architecture}.classifier.output_labels"]
    assert "cls.output.weight" in {tensor.name for tensor in header.tensors}
    assert labels.items == ("LABEL_0", "LABEL_1")


@pytest.mark.llamacpp
def test_a_reranker_whose_head_llamacpp_does_not_have_is_refused(tmp_path, toolchain, converter):
    kind, auto, settings = CASES["distilbert"]
    base = make(kind, auto, tmp_path / "base")
    train(base, tmp_path / "lora", count=1, **settings)

    with pytest.raises(UnsupportedError, match="tanh in a head where DistilBERT has ReLU"):
        export(
            ExportRequest(((tmp_path / "lora", 1.0),), base, ("F16",), (tmp_path / "x.gguf",)),
            toolchain,
        )
