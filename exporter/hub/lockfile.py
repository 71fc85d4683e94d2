"""The lock file: the exact contents of a folder, so that it can be reproduced elsewhere."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from exporter.core.atomic_file import read_json_object, sha256_file
from exporter.core.errors import InputError, VerifyError
from exporter.hub.partial_file import put
from exporter.hub.publish import Place
from exporter.hub.pull_plan import GIT, SHA256, Plan, PlannedFile, refuse_unsafe
from exporter.hub.repo_refs import COMMIT, REPO_TYPES, Ref, repo_name, unsafe

FORMAT = 1
NAME = "decant.lock.json"


def write_plan(plan: Plan, path: Path, place: Place) -> None:
    text = json.dumps(as_json(plan), indent=2, ensure_ascii=False)
    put(path, text.encode() + b"\n", place.own)


def as_json(plan: Plan) -> dict[str, object]:
    return {
        "format": FORMAT,
        "repo": plan.ref.repo,
        "repo_type": plan.ref.repo_type,
        "revision": plan.ref.revision,
        "commit": plan.commit,
        "hashes_from": plan.hashes_from,
        "hashes_from_reference": plan.is_reference,
        "files": [
            {"path": file.path, "size": file.size, "etag": file.etag, "sha256": sha256_of(file)}
            for file in plan.files
        ],
    }


def sha256_of(file: PlannedFile) -> str | None:
    return file.etag if len(file.etag) == SHA256 else file.sha256


def with_sha256(plan: Plan, place: Place) -> Plan:
    """The plan with the sha256 of each file, computed from the folder where it is unknown."""
    return replace(
        plan,
        files=tuple(
            file if sha256_of(file) else replace(file, sha256=sha256_file(place.content(file)))
            for file in plan.files
        ),
    )


def check_sha256(plan: Plan, place: Place) -> None:
    """Raise VerifyError for a file whose sha256 differs from the lock; git's hash is only sha1."""
    for file in plan.files:
        if file.sha256 and sha256_file(place.content(file)) != file.sha256:
            raise VerifyError(
                f"`{file.path}` does not have the sha256 of the lock file",
                hint="the lock file was changed, or made from other files",
            )


def read_plan(path: Path) -> Plan:
    """Read the plan in a lock file. Raises InputError for a damaged or altered one."""
    hint = "a file that `decant pull REPO --local-dir DIR` wrote"
    value = read_json_object(path, error=InputError, hint=hint)
    try:
        plan = parse_plan(value)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"`{path}` is not a lock file: {error!r}", hint=hint) from error
    refuse_unsafe(plan.files, f"`{path}`")
    return plan


def parse_plan(value: dict[str, Any]) -> Plan:  # Any: checked field by field
    if value["format"] != FORMAT or value["repo_type"] not in REPO_TYPES:
        raise ValueError(value["format"])
    ref = Ref(repo_name(value["repo"], value["repo"]), value["repo_type"], value["revision"])
    if not COMMIT.fullmatch(value["commit"]) or unsafe(ref.revision):
        raise ValueError(value["commit"])
    files = []
    for item in value["files"]:
        etag, sha256 = item["etag"], item["sha256"]
        digits = SHA256 if etag == sha256 else GIT
        if not re.fullmatch(rf"[0-9a-f]{{{digits}}}", etag) or type(item["size"]) is not int:
            raise ValueError(etag)
        extra = sha256 if digits == GIT else None
        files.append(PlannedFile(item["path"], item["size"], etag, extra))
    return Plan(
        ref,
        value["commit"],
        tuple(files),
        tuple(str(host) for host in value["hashes_from"]),
        value["hashes_from_reference"] is True,
    )
