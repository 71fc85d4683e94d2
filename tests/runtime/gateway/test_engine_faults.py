"""Errors of an engine: its own failures stay 500, faults in the request become 400."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

import pytest

from runtime.gateway.routes_llama import read_refusal


@dataclass
class Refusal:
    """An engine's answer with an error."""

    message: str
    status: int = 500

    async def read(self) -> bytes:
        return json.dumps({"error": {"message": self.message}}).encode()


@pytest.mark.parametrize(
    ("message", "status"),
    [
        ("decode() failed: std::bad_alloc", 500),
        ("Compute error.", 500),
        ("Only one of grammar and json_schema may be set", 400),
        ("[json.exception.type_error.302] type must be number", 400),
    ],
)
def test_only_faults_of_the_request_become_400(message, status):
    error = asyncio.run(read_refusal(Refusal(message)))  # type: ignore[arg-type]

    assert error.status == status
    assert message.partition("] ")[2] in str(error)
