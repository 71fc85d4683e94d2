"""Adapter → GGUF adapter, for llama-server's --lora: A and B as they are, nothing merged.

Of the base only the config and the headers are looked at. llama.cpp's model classes rename and
rearrange each pair as they would its weight. The scaling is in B: the format has one alpha for
all modules, and no rsLoRA.
"""

from __future__ import annotations

import re
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.adapter import AdapterSpec, open_adapter
from exporter.arrange import Arrange
from exporter.checkpoint import Checkpoint, open_checkpoint, read_tensor
from exporter.convert import (
    LazySource,
    find_class,
    hparams_of,
    imported,
    tensors_from,
    warnings_reported,
)
from exporter.core.errors import AdapterError, UnsupportedError
from exporter.core.events import Note, Report, Step, Warn, silent
from exporter.core.files import atomic_write, refuse_existing
from exporter.core.gguf import DEFAULT_ALIGNMENT
from exporter.core.quiet import quiet_libraries
from exporter.ends import find_ends
from exporter.kinds import refuse_for_adapter_file
from exporter.merge import MergedTensors, is_finite, split_experts
from exporter.own_code import no_code_run
from exporter.plan import plan_merge
from exporter.prequantized import dequantized_by_llamacpp
from exporter.products import Product
from exporter.provenance import provenance
from exporter.refusals import UNUSABLE, unusable
from exporter.slots import headers_of
from exporter.sources import find_base
from exporter.steps import ExpertSum, LoraSum, MergePlan, Replace, WeightedAdapter
from exporter.toolchain import Toolchain

if TYPE_CHECKING:
    import torch

ALPHA = 0.0  # llama-adapter.h: without an alpha the scale is the user's alone, whatever the rank
EMBEDDING = "token_embd.weight"
EXPERT = re.compile(r"(?P<stack>.+\.experts)\.\d+\..+\.weight")
# Their graphs (src/models/*.cpp) multiply with some weights without looking for adapters.
DEAF = ("deepseek", "kimi", "glm-dsa", "glm5", "hy-v4", "hy_v4", "minicpm3", "plm", "bailingmoe3",
        "dots3", "granite-switch", "rwkv", "arwkv")  # fmt: skip
# The other architectures do so with a few: tables beside the embedding, T5's distances, Gemma 3n's
# and 4's inputs of each layer and AltUp, Nemotron's latent experts, a classifier's head.
DEAF_TENSORS = re.compile(
    r"embd|token_types|attn_rel_b|per_layer_model_proj|altup_(proj|router)|ffn_latent_|^cls\b"
)
MERGED_INSTEAD = "leave out `--to lora`: the merged model can hold it"
ALIGNED = DEFAULT_ALIGNMENT


@dataclass(frozen=True, slots=True)
class LoraRequest:
    """Which adapter to write, and where."""

    adapter: Path
    base: Path | None
    """None takes the base that the adapter names."""
    output: Path
    scale: float = 1.0
    """What the adapter's own scaling is multiplied by."""
    trust_remote_code: bool = False
    force: bool = False


@dataclass(frozen=True, slots=True)
class LoraFile:
    """A GGUF adapter that now exists, or would after a dry run."""

    path: Path
    nbytes: int
    architecture: str
    pairs: int
    """How many tensors of the base it changes."""
    base: Path
    adapter: Path
    seconds: float


@dataclass(frozen=True, slots=True)
class Adapted:
    """A pair under its GGUF name, as llama.cpp stores it."""

    name: str
    a: torch.Tensor  # (…, rank, n_in); of the embedding (vocabulary, rank)
    b: torch.Tensor  # (…, n_out, rank)


def export_lora(
    request: LoraRequest, toolchain: Toolchain, *, dry_run: bool = False, report: Report = silent
) -> LoraFile:
    """Write one adapter as a GGUF that llama.cpp applies beside the base.

    Raises UnsupportedError, with the reason, for an adapter that is more than A and B, or for a
    place where llama.cpp applies none; nothing is left out unsaid.
    """
    started = time.monotonic()
    if dry_run and request.output.exists():
        report(Warn(f"`{request.output}` exists: the export itself will need --force"))
    elif not dry_run:
        refuse_existing(request.output, force=request.force)
    report(Step("reading the adapter and the base's config"))
    plan = plan_lora(request, toolchain, report=report)
    architecture, pairs = adapted_pairs(
        plan, toolchain, trust_remote_code=request.trust_remote_code, report=report
    )
    header = header_of(plan, architecture, pairs)
    nbytes = len(header) + sum(padded(t) for pair in pairs for t in (pair.a, pair.b))
    if not dry_run:
        write(request.output, header, pairs, force=request.force)
    return LoraFile(
        request.output,
        nbytes,
        architecture,
        len(pairs),
        plan.checkpoint.folder,
        plan.adapters[0].adapter.folder,
        time.monotonic() - started,
    )


def plan_lora(request: LoraRequest, toolchain: Toolchain, *, report: Report) -> MergePlan:
    """Where each pair belongs, as for a merge; what is no pair is refused."""
    adapter = open_adapter(request.adapter, refuse=refuse_for_adapter_file, report=report)
    refuse_more_than_pairs(adapter)
    checkpoint = open_checkpoint(
        request.base or find_base(adapter, report=report),
        trust_remote_code=request.trust_remote_code,
    )
    checkpoint = dequantized_by_llamacpp(checkpoint, toolchain)
    plan = plan_merge(checkpoint, [WeightedAdapter(adapter, request.scale)])
    refuse_tied(plan)
    if invocation_tokens(adapter):
        report(Note("an aLoRA: llama-server applies it from its invocation tokens on"))
    return plan


def refuse_more_than_pairs(adapter: AdapterSpec) -> None:
    """Stop at whole tensors, rows and other things that the format has no place for."""
    held = {
        "replaces `{}` as a whole (modules_to_save or bias)": adapter.values,
        "trains single tokens of `{}`": adapter.rows,
        "has `{}` beside A and B": {
            tensor.name: tensor for pair in adapter.pairs for tensor in pair.extras.values()
        },
    }
    for what, tensors in held.items():
        if tensors:
            raise UnsupportedError(
                f"`{adapter.folder}` {what.format(next(iter(tensors)))}, and a GGUF adapter holds"
                " nothing but pairs of A and B",
                hint=MERGED_INSTEAD,
            )


def refuse_tied(plan: MergePlan) -> None:
    """Stop at a change to either end of tied embeddings: in GGUF both are one tensor."""
    ends = find_ends(plan.checkpoint)
    if not ends.tied:
        return
    for end in (ends.head, ends.embedding):
        change = plan.changes.get(end)
        if change is not None and any(not isinstance(step, Replace) for step in change.steps):
            raise UnsupportedError(
                f"the adapter changes `{end}`, and the base's embedding and head are tied:"
                " llama.cpp has one tensor for both, and cannot adapt one of them",
                hint=MERGED_INSTEAD,
            )


def adapted_pairs(
    plan: MergePlan, toolchain: Toolchain, *, trust_remote_code: bool, report: Report
) -> tuple[str, tuple[Adapted, ...]]:
    """The architecture's GGUF name, and every pair as llama.cpp's class for it lays it out."""
    folder = plan.checkpoint.folder
    with (
        quiet_libraries(),
        imported(toolchain),
        warnings_reported(report),
        nullcontext() if trust_remote_code else no_code_run(),
    ):
        import torch

        with torch.inference_mode():
            try:
                model, arrange = converter_model(plan.checkpoint)
                made = list(rearranged(model, plan, arrange))
            except UNUSABLE as error:
                raise unusable(folder, plan.checkpoint.architecture, error) from error
            architecture = str(model.gguf_writer.arch)
            if architecture.startswith(DEAF):
                raise UnsupportedError(
                    f"llama.cpp's {architecture} multiplies with some of its weights without"
                    " looking for adapters",
                    hint=MERGED_INSTEAD,
                )
            refuse_dropped(plan, [product for _, product in made])
            return architecture, tuple(settled(name, product) for name, product in made)


def converter_model(checkpoint: Checkpoint) -> tuple[Any, Arrange]:
    """llama.cpp's class for the base, ready to rename and rearrange; it reads no weight.

    And what is done to a tensor before the class is given it.
    """
    import gguf
    from conversion import ModelBase

    folder = checkpoint.folder
    hparams = hparams_of(checkpoint, folder, checkpoint.tensors)
    model_class, _ = find_class(hparams, "text", checkpoint.tensors)
    source = LazySource(MergedTensors(MergePlan(checkpoint)), hparams)
    with tensors_from(source, ModelBase):
        made = model_class(
            folder,
            gguf.LlamaFileType.ALL_F32,
            folder / "unused.gguf",
            model_name=checkpoint.name,
            hparams=hparams,
        )
    return made, source.arrange


def rearranged(model: Any, plan: MergePlan, arrange: Arrange) -> list[tuple[str, Product]]:
    """What the class makes of each pair, by GGUF name. Experts go with all of their layer."""
    made = []
    stacks = {found["stack"] for name in plan.changes if (found := EXPERT.fullmatch(name))}
    for name in plan.names:
        change = plan.changes.get(name)
        if change is not None:
            product = product_of(name, plan)
        elif (found := EXPERT.fullmatch(name)) and found["stack"] in stacks:
            product = nothing(plan.checkpoint.tensors[name].shape)
        else:
            continue
        kept = model.filter_tensors((name, lambda: None))
        if product is None or kept is None:
            continue
        number = next((int(part) for part in kept[0].split(".") if part.isdecimal()), None)
        made.extend(model.modify_tensors(arrange(name, product), kept[0], number))
    return [(name, product) for name, product in made if product.sources]


def product_of(name: str, plan: MergePlan) -> Product | None:
    """What an adapter adds to one tensor of the checkpoint, its scaling in b."""
    change = plan.changes[name]
    steps = [step for step in change.steps if not is_unchanged(step, name, plan)]
    if not steps:
        return None
    step = steps[0]
    if isinstance(step, LoraSum):
        a, b = (read_tensor(half).float() for half in (step.pair.a, step.pair.b))
        scaling, turned = step.scaling * step.scale, step.kind != "linear"
    elif isinstance(step, ExpertSum):
        a, b = split_experts(step)  # (experts, rank, in), (experts, out, rank)
        scaling, turned = step.scaling, step.transposed
        if step.expert is not None:
            a, b = a[step.expert], b[step.expert]
    else:
        raise UnsupportedError(
            f"a GGUF adapter cannot hold what the adapter does to `{name}` ({type(step).__name__})",
            hint=MERGED_INSTEAD,
        )
    if len(steps) > 1:
        raise UnsupportedError(f"`{name}` is changed more than once", hint=MERGED_INSTEAD)
    if turned:
        a, b = b.transpose(-1, -2), a.transpose(-1, -2)
    if isinstance(step, ExpertSum) and step.expert is not None:
        b = b[step.first_row : step.first_row + change.shape[0]]
    b = b * scaling
    if not is_finite(a) or not is_finite(b):
        raise AdapterError(
            f"the adapter's matrices for `{name}` hold NaN or infinite values",
            hint="the training diverged: use an earlier checkpoint of the adapter",
        )
    return Product(a, b, frozenset({name}))


def is_unchanged(step: object, name: str, plan: MergePlan) -> bool:
    """Whether a step only repeats the base's own embedding, which PEFT saves beside its LoRA."""
    if not isinstance(step, Replace):
        return False
    source = plan.changes[name].source
    if source is None or source.shape != step.values.shape:
        raise UnsupportedError(
            f"the adapter has {step.values.shape[0]} tokens for `{name}`, the base has"
            f" {source.shape[0] if source else 'none'}: a GGUF adapter cannot add tokens",
            hint=MERGED_INSTEAD,
        )
    return True


def nothing(shape: tuple[int, ...]) -> Product:
    """An expert that was not trained, among those that were."""
    import torch

    return Product(torch.zeros(1, shape[-1]), torch.zeros(*shape[:-1], 1), frozenset())


def refuse_dropped(plan: MergePlan, products: list[Product]) -> None:
    """Stop when a pair found no place in llama.cpp's text model."""
    used = frozenset().union(*(product.sources for product in products))
    changed = {name for name, change in plan.changes.items() if change.steps}
    if dropped := sorted(changed - used):
        raise UnsupportedError(
            f"llama.cpp's model has no place for `{dropped[0]}`, which the adapter changes"
            f" ({len(dropped)} of {len(changed)} tensors)",
            hint="train the language model's own layers only, or leave out `--to lora`",
        )


def settled(name: str, product: Product) -> Adapted:
    """As llama.cpp reads it; it looks the embedding's update up by rows of A."""
    a, b = (half.contiguous() for half in product.whole())
    if name == EMBEDDING:
        return Adapted(name, b, a.T.contiguous())
    if not name.endswith(".weight") or DEAF_TENSORS.search(name):
        raise UnsupportedError(
            f"llama.cpp applies no adapter to `{name}`, which this one changes"
            f" (`{min(product.sources)}`)",
            hint=MERGED_INSTEAD,
        )
    return Adapted(name, a, b)


def header_of(plan: MergePlan, architecture: str, pairs: tuple[Adapted, ...]) -> bytes:
    """Everything before the data, padded."""
    import gguf

    adapter = plan.adapters[0].adapter
    writer = gguf.GGUFWriter(path=None, arch=architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, ALPHA)
    writer.add_name(adapter.name)
    if tokens := invocation_tokens(adapter):
        writer.add_key_value(
            gguf.Keys.Adapter.ALORA_INVOCATION_TOKENS,
            tokens,
            gguf.GGUFValueType.ARRAY,
            gguf.GGUFValueType.UINT32,
        )
    for key, value in provenance(plan).items():
        if key not in ("decant.merge_dtype", "decant.base_roundtrip"):
            writer.add_string(key, str(value))
    for pair in pairs:
        for half, values in (("lora_a", pair.a), ("lora_b", pair.b)):
            writer.add_tensor_info(
                f"{pair.name}.{half}",
                tuple(values.shape),
                "float32",
                values.numel() * 4,
                raw_dtype=gguf.GGMLQuantizationType.F32,
            )
    (header,) = headers_of(writer)
    return header.content


def invocation_tokens(adapter: AdapterSpec) -> list[int]:
    """The tokens that switch an aLoRA on; AdapterError when they are no token ids."""
    tokens = adapter.config.get("alora_invocation_tokens") or []
    if not isinstance(tokens, list) or not all(type(n) is int and 0 <= n < 1 << 31 for n in tokens):
        raise AdapterError(
            f"`{adapter.folder}` has alora_invocation_tokens={tokens!r}, which are no token ids",
            hint="restore the adapter_config.json that PEFT wrote",
        )
    return tokens


def padded(values: torch.Tensor) -> int:
    nbytes = values.numel() * 4
    return nbytes + -nbytes % ALIGNED


def write(path: Path, header: bytes, pairs: tuple[Adapted, ...], *, force: bool) -> None:
    with atomic_write(path, force=force) as file:
        file.write(header)
        for pair in pairs:
            for values in (pair.a, pair.b):
                data = values.numpy().tobytes()
                file.write(data)
                file.write(bytes(padded(values) - len(data)))
