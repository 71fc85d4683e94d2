"""Folders of evaluations, as `decant eval` leaves them."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from runtime.evaluation.report.report_folder import PAGE, REPORT, VERSION, json_bytes
from tests.support.evaluations import cases, evaluation

HTML = "<!doctype html><title>report</title><p>a report"


def stored(root: Path, name: str, *, html: str = HTML, data: str = "", **changed: Any) -> Path:
    """A report's folder, with the given HTML as its page."""
    found = replace(evaluation(cases(count=20)), **changed)
    if data:
        found = replace(found, data=replace(found.data, name=data))
    folder = root / name
    folder.mkdir(parents=True)
    (folder / REPORT).write_bytes(json_bytes({"version": VERSION, **asdict(found)}))
    (folder / PAGE).write_text(html, encoding="utf-8")
    return folder
