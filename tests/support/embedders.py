"""Tiny embedders and rerankers as sentence-transformers saves them, and their expected answers."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.support.architectures import NO_KV, SIZE, VOCABULARY

TYPES = "sentence_transformers.models."
LETTERS = "etaoinshrdlucmfwypvbgkjqxz"
MODES = {
    "cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "last": "lasttoken",
    "weighted": "weightedmean_tokens",
}  # fmt: skip


def make_embedder(
    folder: Path, kind: str = "qwen3", pooling: str = "mean", *, normalize: bool = True,
    context: int = 256, seed: int = 0, **changes: Any,
) -> Path:  # fmt: skip
    """A tiny embedder as sentence-transformers saves one; all its layers change the vectors."""
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {"bert": make_wordpiece, "xlmr": make_unigram, "qwen3": make_pieces}[kind](folder)
    size = (SIZE if kind == "qwen3" else NO_KV) | {"vocab_size": vocabulary}
    size["max_position_embeddings"] = context + 2 * (kind == "xlmr")
    more = {
        "bert": {},
        "xlmr": {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 1},
        "qwen3": {"head_dim": 16},
    }
    config = {"bert": "BertConfig", "xlmr": "XLMRobertaConfig", "qwen3": "Qwen3Config"}[kind]
    auto = changes.pop("auto", "AutoModel")
    torch.manual_seed(seed)
    made = getattr(transformers, config)(**size | more[kind] | changes)
    shake(model := getattr(transformers, auto).from_config(made))
    model.save_pretrained(folder)
    modules = [("Transformer", "", {}), ("Pooling", "1_Pooling", pooling_config(pooling))]
    make_modules(folder, [*modules, *([("Normalize", "2_Normalize", {})] if normalize else [])])
    return folder


def make_dense_embedder(folder: Path, *widths: int) -> Path:
    """A tiny EmbeddingGemma: two-way attention, a mean, dense layers of these widths."""
    import torch
    import transformers
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    make_pieces(folder, prefix=False)
    layers = ["sliding_attention"] * 5 + ["full_attention"]  # the only order that llama.cpp has
    config = transformers.Gemma3TextConfig(
        **SIZE | {"num_hidden_layers": 6}, head_dim=16, query_pre_attn_scalar=16,
        use_bidirectional_attention=True, sliding_window=512, layer_types=layers,
    )  # fmt: skip
    torch.manual_seed(0)
    shake(model := transformers.Gemma3TextModel(config))
    model.save_pretrained(folder)
    modules = [("Transformer", "", {}), ("Pooling", "1_Pooling", pooling_config("mean"))]
    for place, (width, wider) in enumerate(pairwise((64, *widths)), start=2):
        path = f"{place}_Dense"
        (folder / path).mkdir()
        weight = torch.randn(wider, width) / width**0.5
        save_file({"linear.weight": weight}, folder / path / "model.safetensors")
        settings: dict[str, Any] = {"in_features": width, "out_features": wider, "bias": False}
        settings["activation_function"] = "torch.nn.modules.linear.Identity"
        modules.append(("Dense", path, settings))
    make_modules(folder, [*modules, ("Normalize", "9_Normalize", {})])
    return folder


def pooling_config(*modes: str) -> dict[str, Any]:
    chosen = {f"pooling_mode_{name}": mode in modes for mode, name in MODES.items()}
    return {"word_embedding_dimension": 64} | chosen


def make_modules(folder: Path, modules: Sequence[tuple[str, str, dict[str, Any]]]) -> None:
    """modules.json and each module's config.json: (class, folder, its settings)."""
    listed = [
        {"idx": place, "name": str(place), "path": path, "type": TYPES + kind}
        for place, (kind, path, _) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    for _, path, settings in modules:
        if path:
            (folder / path).mkdir(exist_ok=True)
        if settings:
            (folder / path / "config.json").write_text(json.dumps(settings))


def shake(model: Any, *, gain: float = 3.0) -> None:
    """Make the weights so large that a few different tokens change a text's vector."""
    import torch

    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
            else:
                parameter.mul_(gain)


def make_pieces(folder: Path, *, words: Sequence[str] = (), prefix: bool = True) -> int:
    """A sentencepiece tokenizer; words: each is one token; prefix: a space before each text."""
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences()), model_writer=written, vocab_size=VOCABULARY,
        model_type="bpe", byte_fallback=True, hard_vocab_limit=False, add_dummy_prefix=prefix,
        normalization_rule_name="identity", remove_extra_whitespaces=False, pad_id=0,
        unk_id=3, user_defined_symbols=list(words), minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    settings = {
        "tokenizer_class": "LlamaTokenizer" if prefix else "GemmaTokenizer",
        "legacy": False, "bos_token": "<s>",
        "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "add_bos_token": True,
        "add_eos_token": False,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return VOCABULARY


def sentences() -> list[str]:
    return [f"{a}{b} {b}{a}{c} the {c}{a}" for a in LETTERS for b in LETTERS for c in "aeiou"]


def make_wordpiece(folder: Path) -> int:
    """BERT's tokenizer: letters and pairs of them."""
    from transformers import BertTokenizer

    pairs = [a + b for a in LETTERS for b in LETTERS]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{c}" for c in LETTERS)]
    words += [*"0123456789.,?!", *pairs[:120], *(f"##{pair}" for pair in pairs[120:220])]
    BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(folder)
    return len(words)


def make_unigram(folder: Path) -> int:
    """XLM-RoBERTa's tokenizer, as transformers 5 saves it."""
    import sentencepiece
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences()), model_writer=written, vocab_size=318,
        model_type="unigram", hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (folder / "sentencepiece.bpe.model").write_bytes(written.getvalue())
    made = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = [(name, 0.0) for name in special]
    pieces += [(made.id_to_piece(n), made.get_score(n)) for n in range(3, made.get_piece_size())]
    pieces.append(("<mask>", 0.0))
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )  # fmt: skip
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        pad_token="<pad>", cls_token="<s>", sep_token="</s>", mask_token="<mask>",
    ).save_pretrained(folder)  # fmt: skip
    return len(pieces)


def make_ranker(folder: Path, kind: str, **changes: Any) -> Path:
    """A tiny cross-encoder with one score."""
    auto = "AutoModelForSequenceClassification"
    make_embedder(folder, kind, "cls", auto=auto, num_labels=1, **changes)
    (folder / "modules.json").unlink()
    return folder


def scores(folder: Path, query: str, documents: Sequence[str]) -> list[float]:
    """transformers' score of each pair of the query and a document."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        pairs = (tokenizer(query, document, return_tensors="pt") for document in documents)
        return [float(model(**pair).logits[0, 0]) for pair in pairs]


def vectors(model: Any, tokenizer: Any, texts: Sequence[str], pooling: str = "mean") -> Any:
    """transformers' vector of each text, computed alone and scaled to length 1: (texts, width)."""
    import torch

    rows = []
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            states = model(input_ids=ids).last_hidden_state[0]  # (tokens, width)
        rows.append({"mean": states.mean(0), "cls": states[0], "last": states[-1]}[pooling])
    return torch.nn.functional.normalize(torch.stack(rows), dim=1).numpy()
