"""Popular families, each exported, verified, talked to and compared with transformers.

The table of what they give is docs/families.md, which a whole run writes.
"""

from __future__ import annotations

import pytest

from tests.families.cells import COLUMNS, ENGINE, WITHOUT_GGUF, Case, engine_of
from tests.families.models import FAMILIES, make_family
from tests.families.table import keep_row

pytestmark = [
    pytest.mark.families,
    pytest.mark.llamacpp,
    pytest.mark.trained,
    pytest.mark.filterwarnings("ignore"),  # transformers' and peft's, of models so small
]

WRONG = "✗"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_exported_verified_and_answers(name, warm_decant, tmp_path, request):
    base, adapter = make_family(name, tmp_path)
    case = Case(name, FAMILIES[name], base, adapter, warm_decant, tmp_path)
    row = {}
    for column, check in COLUMNS.items():
        if case.gguf.exists() or column in WITHOUT_GGUF:
            row[column] = cell_of(lambda check=check: check(case))
    if case.gguf.exists() and case.has_template:
        with engine_of(case) as engine:
            for column, check in ENGINE.items():
                row[column] = cell_of(lambda check=check: check(case, engine))
    keep_row(request.config, name, row)

    assert not {column: cell for column, cell in row.items() if cell.startswith(WRONG)}


def cell_of(check) -> str:
    """A cell, and of a check that fails what it says."""
    try:
        return check()
    except AssertionError as error:
        return f"{WRONG} {error}"
