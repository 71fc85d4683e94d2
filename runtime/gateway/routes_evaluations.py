"""The gateway's routes of evaluations: the list of reports, and the page of each."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

from starlette.responses import Response

from runtime.gateway.access import Guard, key_needed
from runtime.gateway.api_errors import ApiError, encoded
from runtime.gateway.call import Call, Route
from runtime.gateway.evaluation_reports import PAGE_NAME, ROUTE

PAGE_POLICY = (
    # a report has its own, stricter policy; this one holds for any file of its name
    "default-src 'none'",
    "style-src 'unsafe-inline'",
    "script-src 'unsafe-inline'",
    "img-src data:",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'self'",
    # in a tab, too, the report's script has no origin: it reads neither the key nor the API
    "sandbox allow-scripts",
)
PAGE_HEADERS = {
    "Content-Security-Policy": "; ".join(PAGE_POLICY),
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


async def evaluations(call: Call) -> Response:
    """List the reports; damaged ones become notes."""
    gateway = call.gateway
    found = await asyncio.to_thread(gateway.reports.listing, has_keys=bool(gateway.settings.keys))
    headers = {"Cache-Control": "no-store"}
    # texts of the data may hold half a surrogate pair, for which JSONResponse raises an error
    return Response(encoded(found), media_type="application/json", headers=headers)


async def report_page(call: Call) -> Response:
    """The page of one report. Raises ApiError: 401 without key and ticket, 404 without report."""
    gateway, name = call.gateway, call.request.path_params["id"]
    if gateway.settings.keys and not is_let_in(call, name):
        raise key_needed("a key or a ticket is needed: open the report from the list again")
    page = await asyncio.to_thread(gateway.reports.page, name)
    if page is None:
        raise ApiError(HTTPStatus.NOT_FOUND, f"there is no report {name[:200]!r}")
    return Response(page, media_type="text/html; charset=utf-8", headers=PAGE_HEADERS)


def is_let_in(call: Call, name: str) -> bool:
    """Whether a request for a report has one of the server's keys, or the report's ticket."""
    request, gateway = call.request, call.gateway
    if Guard(gateway.settings).client_key(dict(request.scope["headers"])) is not None:
        return True
    return gateway.reports.is_valid(request.query_params.get("ticket", ""), name)


ROUTES = (
    Route("GET", ROUTE, evaluations),
    Route("GET", f"{ROUTE}/{{id}}/{PAGE_NAME}", report_page),
)
