"""The export: from adapter and base to GGUF files, in one pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from exporter.convert.config_prefetch import read_ahead
from exporter.convert.gguf_layout import Conversion, lay_out
from exporter.convert.to_gguf import ModelPart, Outtype, convert, has_projector, refuse_dropped
from exporter.core.atomic_file import partial_path, refuse_existing, refuse_locked
from exporter.core.errors import InputError, SpaceError
from exporter.core.events import Note, Report, Step, Warn, once, silent
from exporter.core.ggml_types import AUTO, FLOATS, FTYPES, GGMLType
from exporter.core.gguf import shard_paths
from exporter.core.machine import give_back_large_blocks
from exporter.core.resumable_file import journal_path
from exporter.core.silence import one_numpy_thread, one_thread, quiet_libraries
from exporter.forecast.forecast import Forecast, forecast
from exporter.forecast.rates import Rates
from exporter.formats.export_request import ExportRequest, plan_request, result_name
from exporter.formats.gguf_file import GGUFPlan, Group, check_space, write_files
from exporter.gguf_inputs.gguf_base import gguf_conversion, is_gguf
from exporter.llamacpp.toolchain import Toolchain
from exporter.merge.apply import MergedTensors
from exporter.merge.fingerprint import identity
from exporter.merge.operations import MergeDtype, MergePlan, describe
from exporter.merge.provenance import provenance
from exporter.merge.result_files import result_folder
from exporter.quantize.auto_types import AutoTypes, file_type
from exporter.quantize.imatrix import importance
from exporter.quantize.quantizer import Quantizer, choose_types
from exporter.quantize.type_losses import Weights
from exporter.quantize.type_recipe import PLAIN, RECIPE_KEY, Recipe, check_recipe, recipe_text
from exporter.verify.after import verify_exported
from exporter.verify.verification import Verification


@dataclass(frozen=True, slots=True)
class ExportedFile:
    """A GGUF that was written, or would be after a dry run."""

    path: Path
    quant: str
    nbytes: int
    types: dict[str, int]
    """Type -> number of tensors that have it."""
    shards: tuple[Path, ...] = ()
    """All files of a split model; `path` is the first."""
    chosen: dict[str, str] = field(default_factory=dict)
    """Tensor -> type, if the file's types were chosen tensor by tensor."""


@dataclass(frozen=True, slots=True)
class ExportResult:
    """The result of an export."""

    files: tuple[ExportedFile, ...]
    base: Path
    adapters: tuple[Path, ...]
    tensors: int
    merged: int
    """Number of tensors that the adapters change."""
    seconds: float
    verified: tuple[Verification, ...] = ()
    """The verification of each file."""
    forecast: Forecast | None = None
    """The forecast of the export, after a dry run."""


def export(
    request: ExportRequest,
    toolchain: Toolchain,
    *,
    dry_run: bool = False,
    report: Report = silent,
) -> ExportResult:
    """Merge, convert, quantize and write, tensor by tensor; no other file is written.

    A dry run stops when the plan is complete, before any weight is read. Raises the errors of
    planning, merging and writing, and VerifyError.
    """
    started = time.monotonic()
    one_numpy_thread()
    check_recipe(request.recipe, request.quants)
    known = () if request.split_max else request.outputs  # split files have other names
    refuse_outputs(known, force=request.force, dry_run=dry_run, report=report)
    with read_ahead(request.base) if request.base else nullcontext():
        report(Step("reading the adapter and the base"))
        merge = plan_request(request, toolchain, report=report)
        report(Note(describe(merge)))

        report(Step("planning"))
        give_back_large_blocks()
        tensors = MergedTensors(merge)
        quantizer = Quantizer.load(toolchain, report=report)
        groups = plan_files(request, tensors, toolchain, quantizer, report=report)
    plans = [plan for group in groups for plan in group.plans]
    others = (plan.path for plan in plans if plan.path not in known)
    refuse_outputs(others, force=request.force, dry_run=dry_run, report=report)
    expected = None
    if dry_run:
        warn_of_space(plans, report=report)
        rates = Rates(toolchain, quantizer, request.threads)
        expected = forecast(groups, merge, rates, verify=request.verify)
    else:
        check_space(plans)
        report(Step("merging and quantizing"))
        with one_thread():
            write_files(
                groups, quantizer, force=request.force, threads=request.threads, report=report
            )
    verified: tuple[Verification, ...] = ()
    if request.verify and not dry_run:
        trust = request.trust_remote_code
        firsts = [plan.path for plan in groups[0].plans if not plan.shard]
        seeing = groups[1].plans[0].path if len(groups) > 1 else None
        verified = verify_exported(
            firsts, merge, toolchain, projector=seeing, trust_remote_code=trust, report=report
        )
    return ExportResult(
        exported(plans),
        merge.checkpoint.folder,
        tuple(weighted.adapter.folder for weighted in merge.adapters),
        len(merge.names),
        len(merge.changes),
        time.monotonic() - started,
        verified,
        expected,
    )


def plan_files(
    request: ExportRequest,
    tensors: MergedTensors,
    toolchain: Toolchain,
    quantizer: Quantizer,
    *,
    report: Report,
) -> list[Group]:
    """Plan every file: the model's, and its projector's if it has one."""
    merge, recipe = tensors.plan, request.recipe
    conversions, projector = convert_all(request, tensors, toolchain, report=report)
    planner = FilePlanner(merge, provenance(merge, toolchain), identity(merge, toolchain))
    plans = []
    changed = frozenset(filter(tensors.has_base, merge.changes))
    weights = Weights(tensors.read, tensors.read_base, changed)
    for path, quant in zip(request.outputs, request.quants, strict=True):
        conversion = conversions[outtype_for(quant)]
        planned = partial(
            planner.plan, path, quant, conversion, recipe=recipe, split_max=request.split_max
        )
        if quant == AUTO:
            report(Step("choosing types"))
            auto = AutoTypes(
                conversion, recipe, weights, toolchain, quantizer, request.threads, report
            )
            with one_thread():
                types = auto.choose(partial(total_nbytes, planned))
        else:
            types = choose_types(conversion, quant, toolchain, replace(recipe, listed_types=()))
        plans += planned(types)
    slots = next(iter(conversions.values())).slots
    groups = [
        Group(
            plans,
            slots,
            tensors.read,
            tensors.row_blocks,
            next(iter(conversions.values())).token_facts(),
        )
    ]
    if projector:
        path = request.outputs[0].with_name(f"mmproj-{request.name or result_name(merge)}.gguf")
        stored = {slot.name: slot.type for slot in projector.slots}
        plans = planner.plan(path, FLOAT_NAMES[projector.ftype], projector, stored)
        groups.append(Group(plans, projector.slots, tensors.read, tensors.row_blocks))
    return groups


@dataclass(frozen=True, slots=True)
class FilePlanner:
    """Plans the files of one export; its fields are the same for all of them."""

    merge: MergePlan
    provenance: Mapping[str, str | int]
    identity: Mapping[str, str]

    def plan(
        self,
        path: Path,
        quant: str,
        conversion: Conversion,
        types: Mapping[str, GGMLType],
        *,
        recipe: Recipe = PLAIN,
        split_max: int = 0,
    ) -> list[GGUFPlan]:
        """The plan of one model's file, or of the files into which it is split.

        types: of every tensor by name, in the files' order.
        """
        shapes = {slot.name: slot.shape for slot in conversion.slots}
        keys = recipe.keys(quant)
        if quant == AUTO:
            chosen = {name: kind for name, kind in types.items() if kind.name not in FLOATS}
            keys |= {RECIPE_KEY: recipe_text(chosen)}
        headers = conversion.headers(
            dict(types),
            ftype=file_type(types, shapes) if quant == AUTO else FTYPES[quant],
            provenance={**self.provenance, **keys},
            split_max=split_max,
        )
        round_to = rounding(conversion, quant, self.merge.dtype)
        by_tensor = importance(recipe.imatrix, conversion.slots)
        plans = []
        for number, path_of_shard in enumerate(shard_paths(path, len(headers))):
            header = headers[number]
            held = {name: types[name] for name in header.tensors}
            plans.append(
                GGUFPlan(
                    path=path_of_shard,
                    quant=quant,
                    header=header.content,
                    types=held,
                    layout=lay_out(len(header.content), held, shapes),
                    round_to=round_to,
                    importance=by_tensor,
                    identity=self.identity,
                    shard=number,
                )
            )
        return plans


def convert_all(
    request: ExportRequest, tensors: MergedTensors, toolchain: Toolchain, *, report: Report
) -> tuple[dict[Outtype, Conversion], Conversion | None]:
    """The merged model as GGUF, for each necessary output type of the converter, and its projector.

    Raises UnsupportedError if neither holds a tensor that an adapter changed.
    """
    trust, name = request.trust_remote_code, request.name or result_name(tensors.plan)
    report = once(report)  # the converter's messages repeat for each output type
    if is_gguf(tensors.plan.checkpoint.folder):
        return {
            outtype: gguf_conversion(tensors, toolchain, outtype=outtype, model_name=name)
            for outtype in dict.fromkeys(map(outtype_for, request.quants))
        }, None
    outtypes = dict.fromkeys(outtype_for(quant) for quant in request.quants)
    with (
        result_folder(tensors.plan, trust_remote_code=trust) as folder,
        read_ahead(folder),
        quiet_libraries(),
    ):

        def converted(outtype: Outtype, part: ModelPart, report: Report = silent) -> Conversion:
            made = convert(
                tensors,
                folder,
                toolchain,
                outtype=outtype,
                model_name=name,
                part=part,
                trust_remote_code=trust,
                report=report,
            )
            return replace(made, loaded=None)

        first, *others = outtypes
        conversions = {first: converted(first, "text", report)}
        conversions |= {outtype: converted(outtype, "text") for outtype in others}
        projector = None
        if has_projector(folder, toolchain, report=report):
            try:
                projector = converted("auto", "projector", report)
            except InputError as error:
                refuse_dropped(tensors.plan.changes, conversions.values(), because=error)
                report(
                    Warn(f"no mmproj is written, and the model takes text alone: {error.message}")
                )
    made = [*conversions.values(), *([projector] if projector else [])]
    used = set().union(*(conversion.used for conversion in made))
    unused = (name for name in tensors.plan.changes if name not in used)
    refuse_dropped(filter(tensors.changes_something, unused), made)
    return conversions, projector


def total_nbytes(
    planned: Callable[[Mapping[str, GGMLType]], list[GGUFPlan]], types: Mapping[str, GGMLType]
) -> int:
    """The size of a model's files with these types."""
    return sum(plan.layout.size for plan in planned(types))


FLOAT_NAMES = {FTYPES[name]: name for name in FLOATS}


def outtype_for(quant: str) -> Outtype:
    match quant:
        case "F32" | "F16" | "BF16":
            return quant
        case _:
            return "auto"


def rounding(conversion: Conversion, quant: str, merge_dtype: MergeDtype) -> dict[str, GGMLType]:
    """Tensors to round, with the 16-bit type: the usual pipeline quantizes a 16-bit GGUF, and so
    rounds them.
    """
    if merge_dtype == "float32" or quant in FLOATS:
        return {}
    return {slot.name: slot.type for slot in conversion.slots if slot.type.name != "F32"}


def refuse_outputs(paths: Iterable[Path], *, force: bool, dry_run: bool, report: Report) -> None:
    """Raise OutputError for existing files, except those of a stopped export, which are read
    later.
    """
    for path in paths:
        if dry_run and not force and path.exists():
            report(Warn(f"`{path}` exists: the export itself will need --force"))
        elif not journal_path(path).exists():
            refuse_existing(path, force=force)
        partial = partial_path(path)
        if not dry_run and partial.exists():
            refuse_locked(partial)


def warn_of_space(plans: list[GGUFPlan], *, report: Report) -> None:
    """Warn if the files do not fit on their disk: a dry run still tells what they need."""
    try:
        check_space(plans)
    except SpaceError as error:
        report(Warn(f"{error.message}: the export itself will stop"))


def exported(plans: list[GGUFPlan]) -> tuple[ExportedFile, ...]:
    """The written files, with those of a split model taken together."""
    models: list[list[GGUFPlan]] = []
    for plan in plans:
        if plan.shard:
            models[-1].append(plan)
        else:
            models.append([plan])
    return tuple(
        ExportedFile(
            shards[0].path,
            shards[0].quant,
            sum(plan.layout.size for plan in shards),
            count(kind for plan in shards for kind in plan.types.values()),
            tuple(plan.path for plan in shards) if len(shards) > 1 else (),
            {name: kind.name for plan in shards for name, kind in plan.types.items()}
            if shards[0].quant == AUTO
            else {},
        )
        for shards in models
    )


def count(types: Iterable[GGMLType]) -> dict[str, int]:
    names = [kind.name for kind in types]
    return {name: names.count(name) for name in sorted(set(names))}
