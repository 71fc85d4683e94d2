"""`/compare`: asks several models or adapters one question, and keeps one of the answers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from exporter.core.errors import DecantError, InputError, ModelError
from exporter.core.gguf import read_gguf
from exporter.inputs.base_sample import are_of_one_base
from exporter.model_store import find_model, list_models
from runtime.chat.repl.loop import Repl, Taken
from runtime.chat.repl.screen import BOLD
from runtime.engine.adapters import BASE, parse_scale
from runtime.engine.local import Engine, LocalEngine
from runtime.engine.memory_fit import FitOptions
from runtime.engine.openai_client import Delta
from runtime.engine.opened_model import open_model
from runtime.engine.remote_engine import RemoteEngine
from runtime.engine.selection import AdapterSelection
from runtime.terminal.columns import Columns, fits


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model or an adapter that is asked."""

    name: str
    engine: Engine
    selection: AdapterSelection


def compare(repl: Repl, names: str) -> None:
    """Ask all of `names` the last question, and keep the answer that the user picks.

    Without names: the base and every adapter; for a merged model, its base and itself. Raises
    InputError if nothing has been asked.
    """
    conversation = repl.session.conversation
    if conversation.last is None:
        raise InputError("there is nothing to compare yet", hint="ask something first")
    candidates = [candidate(repl, name) for name in names.split() or default_names(repl)]
    if len(candidates) == 1:
        candidates.append(Candidate(repl.who, repl.engine, repl.selection))
    taken = answers(repl, candidates)
    pick = picked(repl, candidates, taken)
    if pick is not None:
        repl.session.record(taken[pick].answered(candidates[pick].name))
        repl.screen.note(f"(kept: {candidates[pick].name})")


def default_names(repl: Repl) -> list[str]:
    if repl.engine.choices:
        return [BASE, *map(str, adapters_as_loaded(repl))]
    return [BASE, repl.engine.model]


def adapters_as_loaded(repl: Repl) -> list[AdapterSelection]:
    """Every adapter: the one in use with its present scale, the others with their loaded scales."""
    if not isinstance(repl.engine, LocalEngine):
        return []
    loaded = (
        AdapterSelection(adapter.name, adapter.scale) for adapter in repl.engine.loaded.adapters
    )
    return [repl.selection if one.adapter == repl.selection.adapter else one for one in loaded]


def candidate(repl: Repl, name: str) -> Candidate:
    """The adapter, base or model that a name means. Raises InputError and ModelError."""
    engine = repl.engine
    if isinstance(engine, RemoteEngine):
        other = RemoteEngine(engine.remote, name, raw=engine.raw)
        return Candidate(name, other, AdapterSelection())
    stem, colon, scale = name.rpartition(":")
    if name in engine.choices:
        loaded = {selection.adapter: selection for selection in adapters_as_loaded(repl)}
        return Candidate(str(loaded[name]), engine, loaded[name])
    if colon and stem in engine.choices:
        selection = AdapterSelection(stem, parse_scale(scale))
        return Candidate(str(selection), engine, selection)
    if name == BASE and engine.choices:
        return Candidate(BASE, engine, AdapterSelection())
    if name == engine.model:
        return Candidate(name, engine, repl.selection)
    return Candidate(name, other_model(repl, name), AdapterSelection())


def other_model(repl: Repl, name: str) -> LocalEngine:
    """Another model, loaded beside the one in use and kept for later comparisons."""
    path = find_base(repl) if name == BASE else find_model(name, repl.store)
    key = path.resolve()
    if key not in repl.others:
        engine = repl.engine
        assert isinstance(engine, LocalEngine)
        options = FitOptions(
            context=engine.fit.context,
            threads=engine.fit.threads,
            gpu_layers=engine.options.gpu_layers,
        )
        repl.others[key] = LocalEngine(
            open_model(path), options, raw=engine.raw, report=repl.screen.report
        )
    return repl.others[key]


def find_base(repl: Repl) -> Path:
    """The base of a merged model, among the exported models. Raises InputError."""
    assert isinstance(repl.engine, LocalEngine)
    header = repl.engine.loaded.header
    base, quant = header.text("decant.base"), header.text("decant.quant")
    if base is None or header.text("decant.adapter") is None:
        raise InputError(
            f"{repl.engine.model} does not say which base it was made from",
            hint="name a model to compare with: /compare MODEL",
        )
    found = []
    for model in list_models(repl.store):
        try:
            other = read_gguf(model.path)
        except ModelError:
            continue
        if other.text("decant.adapter") is None and are_of_one_base(header, other):
            found.append((other.text("decant.quant") != quant, model.path))
    if not found:
        raise InputError(
            f"the base of {repl.engine.model}, {base}, is not among the exported models",
            hint=f"export it, too: decant export --base {base}{f' -q {quant}' if quant else ''}",
        )
    return min(found)[1]


def answers(repl: Repl, candidates: list[Candidate]) -> list[Taken]:
    """Ask the candidates one after another, in columns if they fit. Ctrl-C stops."""
    names = [one.name for one in candidates]
    taken = [Taken() for _ in candidates]
    in_columns = repl.screen.is_fancy and fits(repl.screen.width, len(names))
    try:
        if in_columns:
            heads = [f"{number} {name}" for number, name in enumerate(names, 1)]
            last = repl.session.conversation.last
            title = last.question if last else ""
            with repl.screen.undisturbed(), Columns(heads, title) as columns:
                for number, one in enumerate(candidates):
                    ask_one(repl, one, taken[number], partial(columns.write, number))
        else:
            for number, one in enumerate(candidates):
                repl.screen.line(f"{number + 1} {one.name}", BOLD)
                ask_one(repl, one, taken[number], repl.screen.write)
                repl.screen.fresh_line()
    except KeyboardInterrupt:
        repl.screen.fresh_line()
        repl.screen.note("(stopped)")
    return taken


def ask_one(repl: Repl, one: Candidate, taken: Taken, write: Callable[[str], None]) -> None:
    conversation = repl.session.conversation
    pieces = one.engine.answer(conversation.asking(), repl.settings, one.selection)
    with closing(pieces):
        try:
            for piece in taken.of(pieces):
                if isinstance(piece, Delta):
                    write(piece.text)
        except DecantError as error:  # the other candidates may still answer
            write(f"\n(error: {error.message})")


def picked(repl: Repl, candidates: list[Candidate], taken: list[Taken]) -> int | None:
    """The index of the answer to keep; None for none."""
    there = [number for number, one in enumerate(taken) if one.text]
    if not there:
        repl.screen.note("(nothing to keep: every answer is empty)")
        return None
    listed = ", ".join(f"{number + 1} {candidates[number].name}" for number in there)
    default = there[-1]
    while True:
        try:
            text = repl.lines.choose(f"keep {listed}? Enter: {default + 1}, n none: ")
        except (EOFError, KeyboardInterrupt):
            return None
        if not text:
            return default
        if text in ("n", "none", "0"):
            return None
        if text.isdigit() and int(text) - 1 in there:
            return int(text) - 1
        named = [number for number in there if candidates[number].name == text]
        if named:
            return named[0]
        repl.screen.note(f"{text!r} is not one of them")
