"""The page's files: served as they lie in `page/`, under a policy that lets nothing else in."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

FOLDER = Path(__file__).with_name("page")
INDEX = "index.html"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "connect-src 'self'",
    "img-src 'self' data:",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    # text that becomes markup by mistake is an error, not a hole
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


@dataclass(frozen=True, slots=True)
class PageFile:
    """An ASGI app that answers with one file, read once: the page is small."""

    content: bytes
    headers: dict[str, str]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.answer(Request(scope))(scope, receive, send)

    def answer(self, request: Request) -> Response:
        """The file, its head alone, or that the browser has it already."""
        if is_known(request.headers.get("if-none-match", ""), self.headers["ETag"]):
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=self.headers)
        length = {"Content-Length": str(len(self.content))}
        body = b"" if request.method == "HEAD" else self.content
        return Response(body, headers=self.headers | length)


def page_routes() -> list[Route]:
    """`/` and `/page/NAME` for each file; whatever else is asked for under `/page/` is unknown."""
    files = {path.name: page_file(path) for path in sorted(FOLDER.iterdir()) if is_served(path)}
    named = [route(f"/page/{name}", file) for name, file in files.items()]
    return [route("/", files[INDEX]), *named]


def is_served(path: Path) -> bool:
    """Whether it is the page's: editors and systems leave files of their own."""
    return path.is_file() and path.suffix in TYPES and not path.name.startswith(".")


def page_file(path: Path) -> PageFile:
    content = path.read_bytes()
    tag = sha256(content).hexdigest()[:32]
    return PageFile(content, HEADERS | {"Content-Type": TYPES[path.suffix], "ETag": f'"{tag}"'})


def route(path: str, file: PageFile) -> Route:
    return Route(path, file, methods=["GET", "HEAD"])


def is_known(tags: str, own: str) -> bool:
    """RFC 9110, 13.1.2: a list of tags, weak ones too, or `*`."""
    listed = {tag.strip().removeprefix("W/") for tag in tags.split(",")}
    return own in listed or "*" in listed
