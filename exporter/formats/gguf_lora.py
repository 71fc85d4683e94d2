"""Adapter → GGUF adapter, for llama-server's --lora: A and B unchanged, nothing merged.

Only the base's config and headers are read. llama.cpp's model classes rename and rearrange each
pair like its weight. B contains the scaling: the format has one alpha for all modules, and no
rsLoRA.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.convert.arrange import Arrange
from exporter.convert.converter_model import converter_model
from exporter.convert.embedder import warn_of_lost_modules
from exporter.convert.gguf_layout import headers_of
from exporter.convert.lora_products import adds_something, moved, product_of, zero_product
from exporter.convert.low_rank import MERGED_INSTEAD, Product
from exporter.convert.output_scales import SCALED, output_scales, scaled
from exporter.convert.refusals import UNUSABLE, unusable
from exporter.core.atomic_file import atomic_write, refuse_existing
from exporter.core.errors import AdapterError, UnsupportedError
from exporter.core.events import Note, Report, Step, Warn, silent
from exporter.core.gguf import DEFAULT_ALIGNMENT
from exporter.core.silence import quiet_libraries
from exporter.formats.adapter_prompts import prompts_of, write_prompts
from exporter.gguf_inputs.placed_adapter import on_base
from exporter.inputs.adapter import open_adapter
from exporter.inputs.adapter_kinds import refuse_for_adapter_file
from exporter.inputs.adapter_spec import AdapterSpec
from exporter.inputs.header_prompts import AdapterPrompts
from exporter.inputs.locate import find_base
from exporter.inputs.open_checkpoint import open_checkpoint
from exporter.inputs.own_code import no_code_run
from exporter.inputs.quantized.plain_base import dequantized
from exporter.llamacpp.converter_import import imported, warnings_reported
from exporter.llamacpp.toolchain import Toolchain
from exporter.merge.adapter_doubts import say_doubts
from exporter.merge.merge_plan import plan_merge
from exporter.merge.operations import MergePlan, Replace, WeightedAdapter
from exporter.merge.provenance import provenance
from exporter.merge.tied_embeddings import find_embeddings

if TYPE_CHECKING:
    import torch

ALPHA = 0.0  # llama-adapter.h: without an alpha the scale is the user's, whatever the rank
EMBEDDING = "token_embd.weight"
EXPERT = re.compile(r"(?P<stack>.+\.experts)\.\d+\..+\.weight")
# architectures whose graphs (src/models/*.cpp) multiply by some weights without adapters
IGNORES_LORA = (
    "deepseek", "kimi", "glm-dsa", "glm5", "hy-v4", "hy_v4", "minicpm3", "plm", "bailingmoe3",
    "dots3", "dflash", "gemma4-assistant", "graniteswitch", "mistral4", "rwkv", "arwkv",
)  # fmt: skip
# Tensors that other graphs, too, multiply by without adapters: tables beside the embedding, T5's
# distances, Gemma 3n's and 4's inputs per layer and AltUp, Nemotron's latent experts, a head.
TENSORS_WITHOUT_LORA = re.compile(
    r"embd|token_types|attn_rel_b|per_layer_model_proj|altup_(proj|router)|ffn_latent_|^cls\b"
)
ALIGNED = DEFAULT_ALIGNMENT


@dataclass(frozen=True, slots=True)
class LoraRequest:
    """The adapter to write, and where."""

    adapter: Path
    base: Path | None
    """The base; None for the one that the adapter names."""
    output: Path
    scale: float = 1.0
    """The user's factor on the adapter's scaling."""
    trust_remote_code: bool = False
    force: bool = False


@dataclass(frozen=True, slots=True)
class LoraFile:
    """A GGUF adapter that was written, or would be after a dry run."""

    path: Path
    nbytes: int
    architecture: str
    pairs: int
    """Number of the base's tensors that it changes."""
    base: Path
    adapter: Path
    seconds: float


@dataclass(frozen=True, slots=True)
class Adapted:
    """A pair under its GGUF name, as llama.cpp stores it."""

    name: str
    a: torch.Tensor  # (…, rank, n_in); of the embedding (vocabulary, rank)
    b: torch.Tensor  # (…, n_out, rank)
    is_scaled: bool = False
    """Whether the model has a scale on the weight's output, which b contains."""


def export_lora(
    request: LoraRequest, toolchain: Toolchain, *, dry_run: bool = False, report: Report = silent
) -> LoraFile:
    """Write one adapter as a GGUF that llama.cpp applies beside the base.

    Raises UnsupportedError, with the reason, for an adapter with more than A and B, or for a tensor
    to which llama.cpp applies no adapter; nothing is dropped silently.
    """
    started = time.monotonic()
    if dry_run and not request.force and request.output.exists():
        report(Warn(f"`{request.output}` exists: the export itself will need --force"))
    elif not dry_run:
        refuse_existing(request.output, force=request.force)
    report(Step("reading the adapter and the base's config"))
    plan = plan_lora(request, toolchain, report=report)
    warn_of_lost_modules(request.adapter, plan.checkpoint.folder, report=report)
    architecture, pairs = adapted_pairs(
        plan, toolchain, trust_remote_code=request.trust_remote_code, report=report
    )
    prompts = prompts_of(plan, trust_remote_code=request.trust_remote_code, report=report)
    header = header_of(plan, architecture, pairs, prompts)
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
    """Plan each pair as for a merge; anything else in the adapter is refused."""
    adapter = open_adapter(request.adapter, refuse=refuse_for_adapter_file, report=report)
    refuse_more_than_pairs(adapter)
    checkpoint = open_checkpoint(
        request.base or find_base(adapter, report=report),
        trust_remote_code=request.trust_remote_code,
    )
    adapter = on_base(adapter, checkpoint, toolchain, report=report)
    checkpoint = dequantized(checkpoint, toolchain)
    plan = plan_merge(checkpoint, [WeightedAdapter(adapter, request.scale)])
    say_doubts(adapter, checkpoint, report=report)
    plan = settle_tied(plan)
    if invocation_tokens(adapter):
        report(Note("an aLoRA: llama-server applies it from its invocation tokens on"))
    return plan


def refuse_more_than_pairs(adapter: AdapterSpec) -> None:
    """Raise UnsupportedError for whole tensors, rows and other parts that the format lacks."""
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


def settle_tied(plan: MergePlan) -> MergePlan:
    """Raise UnsupportedError for a change of tied embeddings: a GGUF has one tensor for both.

    Pairs that add nothing are dropped.
    """
    embeddings = find_embeddings(plan.checkpoint)
    if not embeddings.tied:
        return plan
    changes = dict(plan.changes)
    for end in (embeddings.head, embeddings.embedding):
        change = changes.get(end)
        if change is None or all(isinstance(step, Replace) for step in change.steps):
            continue
        if adds_something(product_of(end, plan)):
            raise UnsupportedError(
                f"the adapter changes `{end}`, and the base's embedding and head are tied:"
                " llama.cpp has one tensor for both, and cannot adapt one of them",
                hint=MERGED_INSTEAD,
            )
        del changes[end]
    return replace(plan, changes=changes)


def adapted_pairs(
    plan: MergePlan, toolchain: Toolchain, *, trust_remote_code: bool, report: Report
) -> tuple[str, tuple[Adapted, ...]]:
    """The architecture's GGUF name, and every pair as llama.cpp's class lays it out.

    Raises UnsupportedError for an architecture whose graph ignores adapters.
    """
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
                scales = output_scales(model, plan.checkpoint, UNUSABLE)
            except UnsupportedError:
                raise
            except UNUSABLE as error:
                raise unusable(folder, plan.checkpoint.architecture, error) from error
            architecture = str(model.gguf_writer.arch)
            if architecture.startswith(IGNORES_LORA):
                raise UnsupportedError(
                    f"llama.cpp's {architecture} multiplies with some of its weights without"
                    " looking for adapters",
                    hint=MERGED_INSTEAD,
                )
            refuse_dropped(plan, [product for _, product in made])
            return architecture, tuple(all_settled(made, scales))


def rearranged(model: Any, plan: MergePlan, arrange: Arrange) -> list[tuple[str, Product]]:
    """The class's layout of each pair, by GGUF name; other experts of its layer get zero pairs."""
    made = []
    stacks = {found["stack"] for name in plan.changes if (found := EXPERT.fullmatch(name))}
    for name in plan.names:
        change = plan.changes.get(name)
        if change is not None:
            product = product_of(name, plan)
        elif (found := EXPERT.fullmatch(name)) and found["stack"] in stacks:
            product = zero_product(plan.checkpoint.tensors[name].shape)
        else:
            continue
        kept = model.filter_tensors((name, lambda: None))
        if product is None or kept is None:
            continue
        number = next((int(part) for part in kept[0].split(".") if part.isdecimal()), None)
        arranged = arrange(name, product)
        made.extend(moved(arranged, partial(model.modify_tensors, name=kept[0], bid=number)))
    return [(name, product) for name, product in made if product.sources]


def refuse_dropped(plan: MergePlan, products: list[Product]) -> None:
    """Raise UnsupportedError if llama.cpp's text model lacks the tensor of a pair."""
    used = frozenset().union(*(product.sources for product in products))
    changed = {name for name, change in plan.changes.items() if change.steps}
    unused = sorted(changed - used)
    if dropped := [name for name in unused if adds_something(product_of(name, plan))]:
        raise UnsupportedError(
            f"llama.cpp's model has no place for `{dropped[0]}`, which the adapter changes"
            f" ({len(dropped)} of {len(changed)} tensors)",
            hint="train the language model's own layers only, or leave out `--to lora`",
        )


def all_settled(
    made: list[tuple[str, Product]], scales: dict[str, torch.Tensor]
) -> Iterator[Adapted]:
    """Every pair as llama.cpp reads it; zero pairs only if their tensor accepts adapters.

    scales: output scales of weights, (1,) or (experts,), by their names.
    """
    for name, product in made:
        scale = scales.get(name)
        try:
            found = settled(name, scaled(product, scale))
        except UnsupportedError:
            if not product.is_zero:
                raise
        else:
            yield replace(found, is_scaled=scale is not None)


def settled(name: str, product: Product) -> Adapted:
    """The pair as llama.cpp reads it; the embedding's update is looked up by rows of A.

    Raises UnsupportedError for a tensor to which llama.cpp applies no adapter.
    """
    a, b = (half.contiguous() for half in product.whole())
    if name == EMBEDDING:
        return Adapted(name, b, a.T.contiguous())
    if not name.endswith(".weight") or TENSORS_WITHOUT_LORA.search(name):
        raise UnsupportedError(
            f"llama.cpp applies no adapter to `{name}`, which this one changes"
            f" (`{min(product.sources)}`)",
            hint=MERGED_INSTEAD,
        )
    return Adapted(name, a, b)


def header_of(
    plan: MergePlan, architecture: str, pairs: tuple[Adapted, ...], prompts: AdapterPrompts
) -> bytes:
    """All bytes before the data, padded."""
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
    if names := [pair.name for pair in pairs if pair.is_scaled]:
        writer.add_string(SCALED, ",".join(names))
    for key, value in provenance(plan).items():
        if key not in ("decant.merge_dtype", "decant.base_roundtrip"):
            writer.add_string(key, str(value))
    write_prompts(writer, prompts)
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
    """The tokens that activate an aLoRA. Raises AdapterError if they are not token ids."""
    tokens = adapter.config.get("alora_invocation_tokens") or []
    if not isinstance(tokens, list) or not all(type(n) is int and 0 <= n < 1 << 31 for n in tokens):
        raise AdapterError(
            f"`{adapter.folder}` has alora_invocation_tokens={tokens!r}, which are not token ids",
            hint="restore the adapter_config.json that PEFT wrote",
        )
    return tokens


def padded(values: torch.Tensor) -> int:
    """Bytes of a float32 tensor (…) with its padding."""
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
