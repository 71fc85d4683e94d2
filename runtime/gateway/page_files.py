"""Serves the page's files from `page/`, with a policy that allows no other sources."""

from __future__ import annotations

import os
from http import HTTPStatus
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER = Path(__file__).with_name("page")
INDEX = "index.html"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""Content types by suffix. The system's table may call a script plain text."""
POLICY = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "connect-src 'self'",
    "img-src 'self' data:",
    "frame-src 'self'",  # the page of a report
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    # turning text into markup by mistake raises an error in the browser
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
)
HEADERS = {
    "Content-Security-Policy": "; ".join(POLICY),
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


class PageFiles(StaticFiles):
    """The files of `page/`, each with the policy's headers."""

    async def index(self, request: Request) -> Response:
        return await self.get_response(INDEX, request.scope)

    def file_response(
        self,
        full_path: str | os.PathLike[str],
        stat_result: os.stat_result,
        scope: Scope,
        status_code: int = HTTPStatus.OK,
    ) -> Response:
        """The file, or 304 when the browser already has it.

        Raises HTTPException (404) for files that editors and systems leave there.
        """
        path = Path(full_path)
        if path.suffix not in TYPES or path.name.startswith("."):
            raise HTTPException(HTTPStatus.NOT_FOUND)
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update({**HEADERS, "Content-Type": TYPES[path.suffix]})
        return response


def page_routes() -> list[BaseRoute]:
    """The routes `/`, and `/page/NAME` for each file."""
    files = PageFiles(directory=FOLDER)
    return [Route("/", files.index), Mount("/page", files)]
