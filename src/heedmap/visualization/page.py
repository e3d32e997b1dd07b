"""The HTML templates: one environment for every page."""

import math

import jinja2


def page_template(name: str, folder: str = "report") -> jinja2.Template:
    """Return a template of a folder of the package: the one environment, which escapes all values.

    Its filters write shares (``percent``) and options (``shown``).
    """
    pages = jinja2.Environment(
        loader=jinja2.PackageLoader("heedmap", folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters["percent"] = percent
    pages.filters["shown"] = _shown
    return pages.get_template(name)


def percent(share: float, digits: int = 1) -> str:
    """Write a share as per cent; a thin space keeps the sign beside its number."""
    return "-" if math.isnan(share) else f"{100 * share:.{digits}f}\u202f%"


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(_shown(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
