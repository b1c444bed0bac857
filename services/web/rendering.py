"""Renders templates.  Everything is escaped; a name that a template gets wrong is an error."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import jinja2
from starlette.requests import Request
from starlette.responses import HTMLResponse

from services.operations import words
from services.web.security import Right

FOLDER = Path(__file__).parent
STATIC = FOLDER / "static"

_environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(FOLDER / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters.update(ago=words.ago, duration=words.duration, size=words.size)

PAGES = (
    ("/", "Overview", "o"),
    ("/runs", "Runs", "r"),
    ("/experiments", "Experiments", "e"),
    ("/schedules", "Schedules", "s"),
    ("/tools", "Tools", "t"),
)
"""What the head of each page links to: path, name and key."""


def page(request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """Render a template as the response to a request.

    Args:
        request: gives the template the path, the rights of the session and the token for forms.
        template: the name of its file.
        status: of the response.
        values: further names for the template.
    """
    root = request.scope.get("root_path", "")

    def link(path: str, **query: str) -> str:
        return f"{root}{path}?{urlencode(query)}" if query else f"{root}{path}"

    html = _environment.get_template(template).render(
        root=root,
        link=link,
        path=request.url.path.removeprefix(root),
        pages=PAGES,
        csrf=request.scope["csrf"],
        may_act=request.scope["right"] is Right.ACT,
        **values,
    )
    return HTMLResponse(html, status)


def query(request: Request) -> Mapping[str, str]:
    """The members of the query string that are not empty."""
    return {name: value for name, value in request.query_params.items() if value}


def place(request: Request, path: str, **members: str) -> str:
    """The address of a page with this query string, below the prefix of a proxy."""
    return f"{request.scope.get('root_path', '')}{path}?{urlencode(members)}"
