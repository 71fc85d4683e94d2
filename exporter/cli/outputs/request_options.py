"""Steps that the formats of `decant export` share: they turn options into a request and paths."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING

import click

from exporter.cli.common_options import store
from exporter.cli.outputs.output_format import ExportOptions
from exporter.cli.sizes import parse_size
from exporter.cli.terminal_renderer import print_json, print_table, reporting
from exporter.core.atomic_file import partial_path
from exporter.core.errors import InputError
from exporter.core.events import Note, Report
from exporter.core.ggml_types import parse_quant
from exporter.core.paths import model_name, run_of, size_text
from exporter.core.resumable_file import journal_path
from exporter.model_store import file_name
from exporter.quantize.type_recipe import Recipe, check_recipe, no_text

if TYPE_CHECKING:
    from exporter.formats.export_request import ExportRequest, FolderResult
    from exporter.hub.pull import Pulled

LONGEST_NAME = 220  # bytes of 255: .NAME-00001-of-00002.gguf.partial is written first
FEW_CHARACTERS = 40  # characters of a long name that an error message shows
PARTS = "{}-?????-of-?????.gguf"  # the files of a split model
OTHER_FILES = (".bin", ".safetensors", ".pt", ".pth", ".ggml", ".zip", ".onnx")


def merge_request(
    options: ExportOptions, adapters: list[Path], base: Path | None
) -> tuple[ResultNames, ExportRequest]:
    """The merged model's names, and the request for it."""
    from exporter.formats.export_request import ExportRequest

    chosen, names = chosen_quants(options.quants), names_of(options, adapters, base)
    split = options.split_max_size
    return names, ExportRequest(
        tuple(zip(adapters, (weight for _, weight in options.adapters), strict=False)),
        base,
        chosen,
        outputs=output_paths(options.output, names.name, chosen),
        name=names.name,
        recipe=options.recipe,
        merge_dtype=options.merge_dtype,
        combine=options.combine,
        base_roundtrip=options.base_roundtrip,
        trust_remote_code=options.trust_remote_code,
        split_max=parse_size("--split-max-size", split) if split else 0,
        force=options.force,
        verify=not options.no_verify,
        threads=options.thread_count,
    )


def chosen_quants(quants: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(parse_quant(quant) for quant in quants))


@dataclass(frozen=True, slots=True)
class ResultNames:
    """The names that a result may have."""

    name: str
    """The one for people: of a training run that the user named, the run's."""
    exact: str
    """The name with the checkpoint that decant chose in the run; else the same."""

    def chosen(self, paths_by: Callable[[str], Sequence[Path]], *, quiet: bool) -> str:
        """The name to write by: `name`, or `exact` if an export by that name was stopped.

        paths_by: the paths to write by a name. Results of training runs had the exact name before.
        Such a result stays, and is reported.
        """
        if self.name == self.exact:
            return self.name
        paths, earlier = paths_by(self.name), paths_by(self.exact)
        if paths == earlier:  # -o names the file
            return self.name
        is_begun = any(is_result(path) or is_unfinished(path) for path in paths)
        with reporting(quiet=quiet) as report:
            if not is_begun and (left := list(filter(is_unfinished, earlier))):
                report(Note(f"a stopped export of this checkpoint goes on: `{left[0].name}`"))
                return self.exact
            for path in filter(is_result, earlier):
                report(Note(f"`{path}`, an earlier export of this checkpoint, stays as it is"))
        return self.name


def is_result(path: Path) -> bool:
    """Whether a result exists, whole or in parts."""
    return path.exists() or any(path.parent.glob(PARTS.format(escape(path.stem))))


def is_unfinished(path: Path) -> bool:
    """Whether a stopped export left the remains of a file or a folder, which can be resumed."""
    parts = f".{PARTS}.journal".format(escape(path.stem))
    return (
        journal_path(path).exists() or partial_path(path).is_dir() or any(path.parent.glob(parts))
    )


def names_of(options: ExportOptions, adapters: list[Path], base: Path | None) -> ResultNames:
    """The names of the result of these inputs."""
    from exporter.gguf_inputs.gguf_base import gguf_name, is_gguf
    from exporter.inputs.adapter import open_adapter

    if adapters:
        opened = [open_adapter(folder) for folder in adapters]
        return ResultNames(
            "-".join(adapter.name for adapter in opened),
            "-".join(adapter.exact_name for adapter in opened),
        )
    base = base or Path()
    if is_gguf(base):
        return ResultNames(gguf_name(base), gguf_name(base))
    named = options.adapters[0][0] if options.adapters else options.base
    run = run_of(Path(named or ""), base)
    return ResultNames(model_name(run or base), model_name(base))


def output_paths(output: Path | None, name: str, quants: tuple[str, ...]) -> tuple[Path, ...]:
    """The path of each quantization: the named file, or one in a folder or the store.

    Raises InputError for several quantizations and one file.
    """
    if output:
        refuse_name(output)
    if output is None or output.suffix.lower() != ".gguf" or output.is_dir():
        folder = output or store()
        return tuple(folder / file_name(name, quant) for quant in quants)
    if len(quants) > 1:
        raise InputError(
            f"{len(quants)} quantizations cannot all be written to `{output}`",
            hint=f"name a folder: -o {output.with_suffix('')}",
        )
    return (output,)


def refuse_name(output: Path) -> None:
    """Raise InputError for a name that neither a GGUF nor a folder can have."""
    is_gguf = output.suffix.lower() == ".gguf"
    if len(os.fsencode(output.name)) > LONGEST_NAME:
        raise InputError(
            f"`{output.name[:FEW_CHARACTERS]}…` is a longer name than {LONGEST_NAME} bytes,"
            " too long for a file system with the suffixes of a partial file",
            hint="-o with a shorter name",
        )
    if output.suffix in OTHER_FILES and not output.is_dir():
        raise InputError(
            f"`{output}` has the name of a file that is no GGUF",
            hint=f"-o {output.with_suffix('.gguf')}, or a folder; --to safetensors writes the"
            " merged model for transformers",
        )
    if output.exists() and not output.is_dir() and not is_gguf:
        raise InputError(f"`{output}` is a file, and no GGUF", hint="-o FILE.gguf, or a folder")


def show_absent(pulls: tuple[Pulled, ...], *, as_json: bool) -> None:
    """List the files that an export would pull first; its outputs are known only after that."""
    if as_json:
        print_json({"to_pull": [pull_value(pulled) for pulled in pulls], "dry_run": True})
        return
    rows = [
        (pulled.plan.ref.repo, file.path, size_text(file.size))
        for pulled in pulls
        for file in pulled.missing
    ]
    print_table(("REPO", "FILE", "SIZE"), rows)
    nbytes = sum(file.size for pulled in pulls for file in pulled.missing)
    click.echo(
        f"an export would first pull {len(rows)} files, {size_text(nbytes)};"
        " its outputs are known when they are here",
        err=True,
    )


def pull_value(pulled: Pulled) -> dict[str, object]:
    return {
        "repo": pulled.plan.ref.repo,
        "commit": pulled.plan.commit,
        "files": [{"path": file.path, "nbytes": file.size} for file in pulled.missing],
        "nbytes": sum(file.size for file in pulled.missing),
    }


def refuse_taken_files(
    options: ExportOptions, quants: tuple[str, ...], name: str, *, report: Report
) -> None:
    """Raise OutputError if a GGUF of the result's name exists."""
    from exporter.export import refuse_outputs

    if not options.split_max_size:  # split files have other names
        paths = output_paths(options.output, name, quants)
        refuse_outputs(paths, force=options.force, dry_run=False, report=report)


def refuse_recipe(recipe: Recipe, quants: tuple[str, ...]) -> None:
    """Raise UnsupportedError for options without effect, InputError for a missing text."""
    check_recipe(recipe, quants)
    if recipe.calibrate is not None and not recipe.calibrate.is_file():
        raise no_text(recipe.calibrate)


def output_folder(options: ExportOptions, ending: str, name: str) -> Path:
    """The folder of -o, else NAME-ending in the current folder."""
    from exporter.model_store import plain_name

    return options.output or Path(f"{plain_name(name)}-{ending}")


def folder_by(names: ResultNames, options: ExportOptions, ending: str) -> Path:
    """The folder to write, by the result's name."""

    def folders(name: str) -> tuple[Path, ...]:
        return (output_folder(options, ending, name),)

    return folders(names.chosen(folders, quiet=options.quiet))[0]


def refuse_file(output: Path | None, to: str) -> None:
    """Raise UsageError for the name of a file if a folder is written."""
    if output and output.suffix in (".gguf", ".safetensors"):
        raise click.UsageError(f"--to {to} makes a folder: `-o {output.with_suffix('')}`")


def show_folder(made: FolderResult, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        print_json(asdict(made) | {"dry_run": dry_run})
        return
    click.echo(f"{made.path}")
    click.echo(f"  {size_text(made.nbytes)} in {files_text(len(made.files))}", err=True)
    done = "would change" if dry_run else f"{made.seconds:.1f} s; merged"
    click.echo(f"{done} {made.merged} of {made.tensors} tensors", err=True)


def files_text(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"
