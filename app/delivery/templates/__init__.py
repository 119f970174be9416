"""What people read: mails and the pages of claim links, in Jinja2 beside this file."""

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

_FOLDER = Path(__file__).parent

# By the names that templates know them by. They work once the two variables of `.env` are set.
SAMPLES: Mapping[str, str] = {
    name: (_FOLDER / f"sample_{name}.txt").read_text(encoding="utf-8").rstrip("\n")
    for name in ("curl", "python", "javascript")
}
STYLE = (_FOLDER / "style.css").read_text(encoding="utf-8")


def render(template: str, **values: Any) -> str:
    """Fill in a template: escaped in `.html`, as it is in `.txt`; a name without a value raises."""
    return _environment().get_template(template).render(**values)


def utc_text(moment: datetime) -> str:
    """Write a moment for people, to the minute."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


@cache
def _environment() -> "Environment":
    # Not at import: a worker that shows no page need not hold a template engine.
    import jinja2  # noqa: PLC0415
    from markupsafe import Markup  # noqa: PLC0415

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=jinja2.select_autoescape(["html"], default=False),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["samples"] = SAMPLES
    environment.globals["style"] = Markup(STYLE)  # noqa: S704  # a constant of ours, and no markup
    environment.filters["utc"] = utc_text
    return environment
