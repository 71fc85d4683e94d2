"""What lies beside the page's files and is not served."""

from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from runtime.gateway.page_files import PageFiles


@pytest.mark.parametrize("name", ["notes.txt", ".main.js", "main.js~", "page_files.py", "folder"])
def test_what_editors_and_systems_leave_is_not_served(name, tmp_path):
    (tmp_path / "main.js").write_text("let x;")
    (tmp_path / "folder").mkdir()
    if name != "folder":
        (tmp_path / name).write_text("left")
    client = TestClient(Starlette(routes=[Mount("/page", PageFiles(directory=tmp_path))]))

    assert client.get("/page/main.js").text == "let x;"
    assert client.get(f"/page/{name}").status_code == 404
