"""Tiny models with tokenizers as trainers save them today, and their GGUFs in llama.cpp."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.convert.to_gguf import convert
from exporter.core.events import Event
from exporter.core.gguf import Array, GGUFFile, read_gguf
from exporter.inputs.open_checkpoint import open_checkpoint
from exporter.llamacpp.normalizer import NORMALIZER, SPACE_PREFIX, normalizer, spaced
from exporter.llamacpp.vocabulary import Vocabulary, vocabulary
from exporter.merge.apply import MergedTensors
from exporter.merge.merge_plan import plan_merge
from exporter.verify.texts import PLAIN, RARE
from tests.support.tiny import CHAT_TEMPLATE, make_tokenizer
from tests.support.tiny_t5 import make_unigram

if TYPE_CHECKING:
    from exporter.llamacpp.toolchain import Toolchain

SPECIAL = ("<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>")
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # llama.cpp's kinds of tokens
WORDS = (
    "the cat and the other cats sat on that mat", "it's 1234 5678 naïve café",
    "def f(x): return x\n", "a  b   c\n\n\nd", "Ünï 각 가나다 ｶﾅ 你好",
) * 3  # fmt: skip
TEXTS = (*PLAIN, *RARE)


@dataclass
class Converted:
    """A folder's tokenizer in llama.cpp and in transformers, and the GGUF's keys for it."""

    loaded: Vocabulary
    file: GGUFFile
    tokenizer: Any
    events: list[Event] = field(default_factory=list)

    def ids(self, text: str, **options: bool) -> list[int]:
        """llama.cpp's ids of a raw text that decant's front has prepared."""
        ready = normalizer(self.file.text(NORMALIZER))(text)
        special = tuple(str(token) for token in self.tokenizer.added_tokens_decoder.values())
        if not ready.startswith(special):
            ready = spaced(ready, self.file.text(SPACE_PREFIX))
        return self.loaded.encode(ready, **options)

    def unlike(self, texts: Sequence[str], *, special: bool = False) -> list[str]:
        """The texts for which transformers' tokenizer gives other ids."""
        return [
            text
            for text in texts
            if self.ids(text, special=special)
            != self.tokenizer(text, add_special_tokens=special)["input_ids"]
        ]

    def unlike_chats(self, chats: Sequence[Sequence[Mapping[str, str]]]) -> list[str]:
        """The rendered conversations whose ids differ from those of transformers."""
        found = []
        for chat in chats:
            text = self.tokenizer.apply_chat_template(list(chat), tokenize=False)
            ids = self.tokenizer.apply_chat_template(list(chat), tokenize=True)["input_ids"]
            if self.loaded.encode(text) != ids:
                found.append(text)
        return found

    def value(self, name: str) -> Any:
        return self.file.metadata.get(f"tokenizer.ggml.{name}")


@contextmanager
def converted(folder: Path, toolchain: Toolchain, name: str = "m") -> Iterator[Converted]:
    """Write the header of a folder's GGUF, without weights, and load its vocabulary."""
    from transformers import AutoTokenizer

    events: list[Event] = []
    tensors = MergedTensors(plan_merge(open_checkpoint(folder), []))
    conversion = convert(tensors, folder, toolchain, model_name=name, report=events.append)
    path = folder / "header.gguf"
    path.write_bytes(conversion.headers({}, ftype=conversion.ftype)[0].content)
    with vocabulary(path, toolchain) as loaded:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        yield Converted(loaded, read_gguf(path, keep_items=1 << 20), tokenizer, events)


def make_model(folder: Path, rows: int, kind: str = "Llama", **changes: Any) -> None:
    """A model of one layer with random weights and an embedding of `rows` tokens."""
    import transformers

    settings: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": rows,
        "max_position_embeddings": 64, "head_dim": 16,
    }  # fmt: skip
    model_class = getattr(transformers, f"{kind}ForCausalLM")
    model_class(model_class.config_class(**settings | changes)).save_pretrained(folder)


def save_pieces(folder: Path, *, legacy: bool = False, template: str | None = CHAT_TEMPLATE) -> int:
    """Save a Llama's tokenizer as transformers 5 does, only tokenizer.json; returns its size."""
    from transformers import AutoTokenizer

    folder.mkdir(exist_ok=True)
    make_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (folder / name).unlink()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    edit(folder / "tokenizer_config.json", legacy=legacy)
    return len(tokenizer)


def save_unigram(folder: Path) -> int:
    """Save a T5's tokenizer as transformers 5 does; returns its size."""
    from transformers import AutoTokenizer

    make_unigram(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for name in ("spiece.model", "tokenizer_config.json"):
        (folder / name).unlink()
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def save_bytes(
    folder: Path, *cuts: Any, normalizer: Any = None, words: Sequence[Any] = (), **options: Any
) -> int:
    """Save a byte-level BPE that is trained on a few words; returns its size.

    cuts: its pre-tokenizers; words: tokens that are added after the training; options: settings of
    transformers' tokenizer.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    if normalizer is not None:
        inner.normalizer = normalizer
    inner.pre_tokenizer = pre_tokenizers.Sequence(list(cuts))
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(SPECIAL), show_progress=False, min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    inner.train_from_iterator(WORDS, trainer)
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    folder.mkdir(exist_ok=True)
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | options
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **settings)
    tokenizer.add_tokens(list(words))
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def add_token(folder: Path, content: str, **flags: bool) -> None:
    """Add a token at the end of tokenizer.json."""
    whole = json.loads((folder / "tokenizer.json").read_text())
    number = max(*whole["model"]["vocab"].values(), *(t["id"] for t in whole["added_tokens"])) + 1
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    token = {"id": number, "content": content, "special": True} | plain | flags
    edit(folder / "tokenizer.json", added_tokens=[*whole["added_tokens"], token])


def byte_level(**options: bool) -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.ByteLevel(**{"add_prefix_space": False} | options)


def save_neox(folder: Path, toolchain: Toolchain) -> int:
    """Save GPT-NeoX's real tokenizer, rebuilt from llama.cpp's copy of the vocabulary."""
    keys = upstream_vocabulary(toolchain, "gpt-neox")
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    added = [
        {"id": at, "content": text, "normalized": kind == USER_DEFINED, "special": kind == CONTROL}
        | plain
        for at, (text, kind) in enumerate(zip(keys["tokens"], keys["token_type"], strict=True))
        if kind in (CONTROL, USER_DEFINED)
    ]
    numbers = {token["id"] for token in added}
    vocabulary = {text: at for at, text in enumerate(keys["tokens"]) if at not in numbers}
    model = {"type": "BPE", "vocab": vocabulary, "merges": list(keys["merges"])}
    cuts = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    save_json(folder, model, added, normalizer={"type": "NFC"}, pre_tokenizer=cuts, decoder=cuts)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(keys["tokens"])


def save_llama2(folder: Path, toolchain: Toolchain) -> int:
    """Save Llama 2's real tokenizer as the tokenizer.json that transformers makes of it."""
    keys = upstream_vocabulary(toolchain, "llama-spm")
    vocabulary = {text: at for at, text in enumerate(keys["tokens"])}
    merges = [
        (number, vocabulary[text[:at]], vocabulary[text[at:]], text[:at], text[at:])
        for text, number in vocabulary.items()
        if keys["token_type"][number] == NORMAL
        for at in range(1, len(text))
        if text[:at] in vocabulary and text[at:] in vocabulary
    ]
    pairs = [[left, right] for *_, left, right in sorted(merges)]
    model = {
        "type": "BPE", "vocab": vocabulary, "merges": pairs, "unk_token": "<unk>",
        "fuse_unk": True, "byte_fallback": True,
    }  # fmt: skip
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [
        {"id": at, "content": text, "special": True} | flags
        for at, text in enumerate(("<unk>", "<s>", "</s>"))
    ]
    spaces = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    decoder = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}
    save_json(folder, model, added, normalizer=None, pre_tokenizer=spaces, decoder=decoder)
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(vocabulary)


def save_llama2_pieces(folder: Path, toolchain: Toolchain) -> int:
    """Save Llama 2's real tokenizer.model, rebuilt, without tokenizer.json."""
    from sentencepiece import sentencepiece_model_pb2 as schema

    keys = upstream_vocabulary(toolchain, "llama-spm")
    proto = schema.ModelProto()
    for text, score, kind in zip(keys["tokens"], keys["scores"], keys["token_type"], strict=True):
        proto.pieces.add(piece=text, score=score, type=kind)  # the kinds are sentencepiece's
    proto.trainer_spec.model_type = proto.trainer_spec.BPE
    proto.trainer_spec.byte_fallback = True
    proto.normalizer_spec.remove_extra_whitespaces = False
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(proto.SerializeToString())
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(proto.pieces)


def save_json(folder: Path, model: Any, added: Any, **parts: Any) -> None:
    folder.mkdir(exist_ok=True)
    whole = {"version": "1.0", "added_tokens": added, "post_processor": None, "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(whole | parts))


def upstream_vocabulary(toolchain: Toolchain, name: str) -> dict[str, Any]:
    """The arrays of one of llama.cpp's own vocabularies."""
    path = toolchain.source / "models" / f"ggml-vocab-{name}.gguf"
    metadata = read_gguf(path, keep_items=1 << 20).metadata
    prefix = "tokenizer.ggml."
    return {
        key.removeprefix(prefix): value.items
        for key, value in metadata.items()
        if key.startswith(prefix) and isinstance(value, Array)
    }
