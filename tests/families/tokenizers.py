"""The tokenizer of each family: real where it can be had, rebuilt or trained where it cannot."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.llamacpp.toolchain import find_toolchain
from exporter.verify.texts import PLAIN, RARE
from tests.families import rebuilt
from tests.families.material import filling, home, llamacpp_vocabulary, mistral_data, npm_tokenizer

REAL, BORROWED = "real", "a relative's (real)"
REBUILT, TRAINED = "from llama.cpp's vocabulary", "trained here, with its pattern"


@dataclass(frozen=True, slots=True)
class Source:
    """Where a family's tokenizer comes from."""

    origin: str
    """REAL, BORROWED, REBUILT or TRAINED."""
    make: Callable[[Path], None]
    """Fills an empty folder."""
    template: str | None = None
    """One of llama.cpp's chat templates, or INST, where the tokenizer brings none."""


def tokenizer_folder(name: str) -> Path:
    """The folder with a family's tokenizer, made once for this code. Treat as read-only."""
    source = SOURCES[name]
    code = b"".join(Path(module).read_bytes() for module in (__file__, rebuilt.__file__))
    place = home() / f"made-{name}-{hashlib.sha256(code).hexdigest()[:8]}"
    if not place.exists():
        with filling(place) as folder:
            source.make(folder)
            if source.template:
                (folder / "chat_template.jinja").write_text(template_text(source.template))
    return place


def template_text(named: str) -> str:
    if named == INST:
        return INST
    templates = find_toolchain().source / "models" / "templates"
    return (templates / f"{named}.jinja").read_text()


def npm(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        shutil.copytree(npm_tokenizer(name), folder, dirs_exist_ok=True)

    return make


def with_model_file(version: str) -> Callable[[Path], None]:
    """Mistral's sentencepiece file as the hub's folders have it."""

    def make(folder: Path) -> None:
        shutil.copy(mistral_data() / version, folder / "tokenizer.model")
        settings = LLAMA_LOOK | {"legacy": False}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))

    return make


def resaved(make_first: Callable[[Path], None]) -> Callable[[Path], None]:
    """As transformers 5 saves it: tokenizer.json alone."""

    def make(folder: Path) -> None:
        from transformers import AutoTokenizer

        first = folder / "first"
        first.mkdir()
        make_first(first)
        AutoTokenizer.from_pretrained(first).save_pretrained(folder)
        shutil.rmtree(first)

    return make


def tekken(folder: Path) -> None:
    """Mistral's tekken file as the tokenizer.json of the hub's folders."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    said = json.loads((mistral_data() / "tekken_240911.json").read_text())
    total = said["config"]["default_num_special_tokens"]
    specials = [*TEKKEN_NAMES]
    specials += [f"<SPECIAL_{number}>" for number in range(len(specials), total)]
    letters = bytes_to_unicode()
    ranks: dict[bytes, int] = {}
    kept = said["config"]["default_vocab_size"] - total
    for token in said["vocab"][:kept]:
        ranks[base64.b64decode(token["token_bytes"])] = token["rank"]
    merges = []
    for piece, rank in ranks.items():
        pairs = [
            (ranks[piece[:at]], ranks[piece[at:]], piece[:at], piece[at:])
            for at in range(1, len(piece))
            if piece[:at] in ranks and piece[at:] in ranks
        ]
        merges += [(rank, *pair) for pair in sorted(pairs, key=lambda pair: pair[:2])]
    merges.sort(key=lambda merge: merge[0])

    def written(piece: bytes) -> str:
        return "".join(letters[byte] for byte in piece)

    model = {
        "type": "BPE", "ignore_merges": True,
        "vocab": {text: at for at, text in enumerate(specials)}
        | {written(piece): rank + total for piece, rank in ranks.items()},
        "merges": [[written(merge[3]), written(merge[4])] for merge in merges],
    }  # fmt: skip
    bos = {"id": "<s>", "ids": [1], "tokens": ["<s>"]}
    first, rest = (
        {"SpecialToken": {"id": "<s>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    )
    rebuilt.save(
        folder, model, [rebuilt.special(at, text) for at, text in enumerate(specials)],
        pre_tokenizer=rebuilt.PRETOKENIZERS["tekken"], decoder=rebuilt.GPT2,
        post_processor={
            "type": "TemplateProcessing", "single": [first, rest], "pair": [first, rest, rest],
            "special_tokens": {"<s>": bos},
        },
        bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
    )  # fmt: skip


def bpe(vocabulary: str, pattern: str, **settings: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        rebuilt.byte_level(llamacpp_vocabulary(vocabulary), pattern, folder, **settings)

    return make


def small(pattern: str, names: tuple[str, ...], **settings: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        rebuilt.trained((*PLAIN, *RARE), pattern, folder, names, **settings)

    return make


def xlm_roberta(folder: Path) -> None:
    names = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    rebuilt.unigram(
        llamacpp_vocabulary("nomic-bert-moe"), folder, list, special=names,
        tokenizer_class="XLMRobertaTokenizer", bos_token="<s>", eos_token="</s>",
        pad_token="<pad>", unk_token="<unk>", cls_token="<s>", sep_token="</s>",
        mask_token="<mask>",
    )  # fmt: skip
    add_post_processor(folder, [("<s>", 0)], [("</s>", 2)])


def t5(folder: Path) -> None:
    """XLM-R's pieces in T5's order: padding, end, unknown, then the rest."""

    def order(pieces: list[Any]) -> list[Any]:
        ends = ("<pad>", "</s>", "<unk>")
        rest = [piece for piece in pieces if piece[0] not in (*ends, "<s>", "<mask>")]
        return [[text, 0.0] for text in ends] + rest

    rebuilt.unigram(
        llamacpp_vocabulary("nomic-bert-moe"), folder, order, special=("<pad>", "</s>", "<unk>"),
        tokenizer_class="T5Tokenizer", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        extra_ids=0,
    )  # fmt: skip
    add_post_processor(folder, [], [("</s>", 1)])


def qwen3_embedding(folder: Path) -> None:
    """Qwen 3's with the token that its embedders read a text's meaning at."""
    npm("qwen3")(folder)
    add_post_processor(folder, [], [("<|endoftext|>", 151643)])


def gemma4(folder: Path) -> None:
    rebuilt.gemma4(
        llamacpp_vocabulary("gemma-4"), folder, bos_token="<bos>", eos_token="<eos>",
        unk_token="<unk>", pad_token="<pad>",
    )  # fmt: skip
    add_post_processor(folder, [("<bos>", 2)], [])


def bert(folder: Path) -> None:
    rebuilt.wordpiece(
        llamacpp_vocabulary("bert-bge"), folder, tokenizer_class="BertTokenizer",
        unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]",
        mask_token="[MASK]", do_lower_case=True,
    )  # fmt: skip


def modernbert(folder: Path) -> None:
    rebuilt.byte_level(
        llamacpp_vocabulary("gpt-neox"), "gpt-2", folder, normalizer={"type": "NFC"},
    )  # fmt: skip
    path = folder / "tokenizer.json"
    whole = json.loads(path.read_text())
    size = len(whole["model"]["vocab"]) + len(whole["added_tokens"])
    names = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
    whole["added_tokens"] += [rebuilt.special(size + n, name) for n, name in enumerate(names)]
    path.write_text(json.dumps(whole))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]", "cls_token": "[CLS]",
        "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]",
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    add_post_processor(folder, [("[CLS]", size + 1)], [("[SEP]", size + 2)])


def add_post_processor(
    folder: Path, first: list[tuple[str, int]], last: list[tuple[str, int]]
) -> None:
    """Have a tokenizer.json put tokens around every text."""
    path = folder / "tokenizer.json"
    whole = json.loads(path.read_text())

    def around(part: str) -> list[dict[str, Any]]:
        def named(tokens: list[tuple[str, int]]) -> list[dict[str, Any]]:
            return [{"SpecialToken": {"id": text, "type_id": 0}} for text, _ in tokens]

        return [*named(first), {"Sequence": {"id": part, "type_id": 0}}, *named(last)]

    whole["post_processor"] = {
        "type": "TemplateProcessing", "single": around("A"), "pair": around("A") + around("B"),
        "special_tokens": {
            text: {"id": text, "ids": [number], "tokens": [text]} for text, number in first + last
        },
    }  # fmt: skip
    path.write_text(json.dumps(whole))


TEKKEN_NAMES = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]",
    "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
)  # fmt: skip
INST = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + eos_token }}{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
"""A template of Llama 2's and early Mistral's form."""
LLAMA_LOOK = {
    "tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>",
    "unk_token": "<unk>", "add_bos_token": True, "add_eos_token": False,
}  # fmt: skip
END_OF_TEXT = {
    "bos_token": "<|endoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
}
SOURCES: dict[str, Source] = {
    **{
        name: Source(REAL, npm(name))
        for name in ("qwen3", "qwen2_5", "gemma3", "llama3_2", "deepseek_v3", "mistral_nemo")
    },
    "gemma2": Source(REAL, npm("gemma2"), "google-gemma-2-2b-it"),
    "llama2": Source(REAL, npm("llama2"), INST),
    "gptoss": Source(REAL, npm("gptoss"), "openai-gpt-oss-120b"),
    "gpt2": Source(REAL, npm("gpt2")),
    "mistral_v1": Source(REAL, with_model_file("tokenizer.model.v1"), INST),
    "mistral_v3": Source(
        REAL, resaved(with_model_file("mistral_instruct_tokenizer_240323.model.v3")),
        "mistralai-Mistral-Nemo-Instruct-2407",
    ),
    "tekken": Source(REAL, tekken, "Mistral-Small-3.2-24B-Instruct-2506"),
    "ministral3": Source(REAL, tekken, "mistralai-Ministral-3-14B-Reasoning-2512"),
    "phi3": Source(
        REBUILT,
        resaved(lambda folder: rebuilt.sentencepiece_model(
            llamacpp_vocabulary("phi-3"), folder, **(LLAMA_LOOK | {"eos_token": "<|endoftext|>"})
        )),
        "microsoft-Phi-3.5-mini-instruct",
    ),
    "gpt4o": Source(BORROWED, npm("gpt4o")),
    "gemma4": Source(
        REBUILT,
        gemma4,
        "google-gemma-4-31B-it",
    ),
    "qwen35": Source(
        REBUILT,
        bpe("qwen35", "qwen35", normalizer={"type": "NFC"}, eos_token="<|im_end|>",
            pad_token="<|endoftext|>"),
        "Qwen3.5-4B",
    ),
    "command_r": Source(
        REBUILT, bpe("command-r", "command-r", bos_token="<BOS_TOKEN>",
                     eos_token="<|END_OF_TURN_TOKEN|>", pad_token="<PAD>"),
        "CohereForAI-c4ai-command-r7b-12-2024-tool_use",
    ),
    "starcoder2": Source(REBUILT, bpe("starcoder", "starcoder", **END_OF_TEXT)),
    "falcon": Source(REBUILT, bpe("falcon", "falcon", eos_token="<|endoftext|>")),
    "granite3": Source(REBUILT, bpe("refact", "starcoder", **END_OF_TEXT), "ibm-granite-granite-3.3-2B-Instruct"),
    "olmo": Source(REBUILT, bpe("gpt-neox", "gpt-2", normalizer={"type": "NFC"}, eos_token="<|endoftext|>")),
    "smollm3": Source(BORROWED, npm("llama3_2"), "HuggingFaceTB-SmolLM3-3B"),
    "granite4": Source(TRAINED, small("cl100k", ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>", "<|pad|>"),
                                      bos_token="<|end_of_text|>", eos_token="<|end_of_text|>", pad_token="<|pad|>"),
                       "ibm-granite-granite-4.0"),
    "glm4": Source(TRAINED, small("cl100k", ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>",
                                             "<|observation|>", "<think>", "</think>"), eos_token="<|endoftext|>",
                                  pad_token="<|endoftext|>"), "GLM-4.6"),
    "nemotron_h": Source(BORROWED, tekken, "NVIDIA-Nemotron-Nano-v2"),
    "lfm2": Source(TRAINED, small("cl100k", ("<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"),
                                  bos_token="<|startoftext|>", eos_token="<|im_end|>", pad_token="<|pad|>"), "LFM2-8B-A1B"),
    "bloom": Source(TRAINED, small("bloom", ("<unk>", "<s>", "</s>", "<pad>"), bos_token="<s>", eos_token="</s>",
                                   pad_token="<pad>", unk_token="<unk>")),
    "xlm_r": Source(REBUILT, xlm_roberta),
    "t5": Source(REBUILT, t5),
    "qwen3_embedding": Source(REAL, qwen3_embedding),
    "bert": Source(REBUILT, bert),
    "modernbert": Source(REBUILT, modernbert),
}  # fmt: skip
