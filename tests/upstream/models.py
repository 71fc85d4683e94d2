"""What upstream's presets download, made here: tiny models of random weights.

Their texts mean nothing, so a test that knows the words of a trained model passes nowhere; all
others ask how a server behaves, which needs no words.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from exporter.lora import LoraRequest, export_lora
from exporter.pipeline import export
from exporter.request import ExportRequest
from exporter.toolchain import Toolchain
from tests.architectures import make_architecture
from tests.tiny import make_adapter

COMMON = """a about all and are as at be because book but by can cat come day do dog find first for
from get give go good have he her here him his how I if in into is it its just know like little
look make me meaning my new no not now of on one only or other our out people say see she small so
some take test than that the their them then there these they thing think this time to two up use
want was way we well what when which who will with work would year you your once upon life believe
write long story very capital country question answer example assistant system user"""
WORDS = COMMON.split()
FILL_IN_MIDDLE = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
IMAGE = ("<image_soft_token>", "<start_of_image>", "<end_of_image>")
SPECIAL = 3  # <unk>, <s> and </s>: ids 0 to 2
PIECES = 512
POOLING = "sentence_transformers.models.Pooling"
CONTEXT = 8192


def make_models(folder: Path, toolchain: Toolchain) -> dict[str, str]:
    """Every file that the plugin puts in a preset's place, by the name it knows it by."""
    folder.mkdir(parents=True, exist_ok=True)
    text = make_text_model(folder / "text", layers=2)
    tall = make_text_model(folder / "tall", layers=4)
    files = {
        "text": one(text, folder / "text.gguf", toolchain),
        "infill": one(
            make_text_model(folder / "infill", layers=2, symbols=FILL_IN_MIDDLE),
            folder / "infill.gguf",
            toolchain,
        ),
        "tall": one(tall, folder / "tall.gguf", toolchain),
        "split": split(tall, folder / "split.gguf", toolchain),
        "lora": adapter(tall, folder / "tall.lora.gguf", toolchain),
        "embedding": one(make_encoder(folder / "embedding"), folder / "embedding.gguf", toolchain),
        "reranker": one(
            make_encoder(folder / "reranker", labels=1), folder / "reranker.gguf", toolchain
        ),
    }
    # in a folder of its own, or the others would be taken to see with its projector
    sees = folder / "sees"
    sees.mkdir(exist_ok=True)
    files["vision"] = one(make_vision_model(sees / "vision"), sees / "vision.gguf", toolchain)
    files["projector"] = str(sees / "mmproj-vision.gguf")
    return files


def one(base: Path, output: Path, toolchain: Toolchain) -> str:
    export(ExportRequest((), base, ("F16",), (output,)), toolchain)
    return str(output)


def split(base: Path, output: Path, toolchain: Toolchain) -> str:
    """The first of the parts of a model."""
    request = ExportRequest((), base, ("F16",), (output,), split_max=1_000_000)
    return str(export(request, toolchain).files[0].path)


def adapter(base: Path, output: Path, toolchain: Toolchain) -> str:
    trained = make_adapter(output.parent / "lora", base)
    return str(export_lora(LoraRequest(trained, base, output), toolchain).path)


def make_text_model(folder: Path, *, layers: int, symbols: Sequence[str] = ()) -> Path:
    """A Llama that is never sure, never ends by itself and says nothing but printable pieces."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(layers)
    config = LlamaConfig(
        vocab_size=PIECES, hidden_size=128, intermediate_size=256, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=CONTEXT,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.normal_(std=0.2)
        # A constant in the stream of every token; against it, the rows of what is never said.
        model.model.embed_tokens.weight[:, 0] = 1.0
        model.lm_head.weight[:, 0] = 0.0
        never = [*range(SPECIAL + len(symbols) + 256)]  # special pieces, then one for each byte
        model.lm_head.weight[never] = 0.0
        model.lm_head.weight[never, 0] = -20.0
    model.to(torch.bfloat16).save_pretrained(folder)
    make_vocabulary(folder, symbols)
    return folder


def make_vocabulary(folder: Path, symbols: Sequence[str]) -> None:
    """Sentencepiece with byte fallback, and no chat template: the server takes ChatML then."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences()), model_writer=model, vocab_size=PIECES,
        model_type="bpe", byte_fallback=True, hard_vocab_limit=False,
        control_symbols=list(symbols), minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    settings = {
        "tokenizer_class": "LlamaTokenizer", "legacy": False,
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
        "add_bos_token": True, "add_eos_token": False,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def sentences() -> Iterable[str]:
    """Texts that hold every letter, digit and mark, and the words in changing order."""
    yield from (
        "a a b b c c d d 0 1 2 3 4 5 6 7 8 9 . , ; : ! ? - ' \" ( ) { } [ ] < > | / _ = + *",
    ) * 5
    yield from ("".join(chr(code) for code in range(ord("A"), ord("z") + 1)),) * 5
    for step in range(1, 40):
        yield " ".join(WORDS[i * step % len(WORDS)] for i in range(60))


def make_encoder(folder: Path, *, labels: int = 0) -> Path:
    """An encoder that embeds texts; with `labels`, one with a head, which judges pairs."""
    import sentencepiece
    import torch
    import transformers

    folder.mkdir(exist_ok=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences()), model_writer=model, vocab_size=PIECES,
        model_type="unigram", hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (folder / "sentencepiece.bpe.model").write_bytes(model.getvalue())
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "XLMRobertaTokenizer"}')
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).vocab_size()
    config = transformers.XLMRobertaConfig(
        vocab_size=pieces + 2, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128, max_position_embeddings=1026, num_labels=labels or 2,
    )  # fmt: skip
    torch.manual_seed(5)
    kind: Any = (
        transformers.XLMRobertaForSequenceClassification
        if labels
        else (transformers.XLMRobertaModel)
    )
    encoder = kind(config)
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
    encoder.save_pretrained(folder)
    if not labels:  # as sentence-transformers says how texts become one vector
        pooling = {"idx": 1, "name": "1", "path": "pooling", "type": POOLING}
        (folder / "modules.json").write_text(json.dumps([pooling]))
        (folder / "pooling").mkdir(exist_ok=True)
        (folder / "pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    return folder


def make_rows(folder: Path) -> None:
    """Give the model a row of its embedding for each piece of the vocabulary."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(folder)
    model.resize_token_embeddings(PIECES, mean_resizing=False)
    model.save_pretrained(folder)


def make_vision_model(folder: Path) -> Path:
    """A Gemma 3 that sees, and its projector."""
    make_architecture("gemma3_vlm", folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = CONTEXT
    (folder / "config.json").write_text(json.dumps(config))
    make_vocabulary(folder, IMAGE)
    make_rows(folder)
    pictures = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures))
    return folder
