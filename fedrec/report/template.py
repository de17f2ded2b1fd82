"""The templates of the pages, which stand in `template.toml`."""

import tomllib
from functools import cache
from pathlib import Path

import jinja2

from fedrec.metrics import higher_is_better
from fedrec.report.findings import change, count, label, number, plural, size


def render(template: str, **values: object) -> str:
    """Return a page by the name of its template."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.DictLoader(tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"number": number, "size": size, "label": label, "count": count}
    environment.globals |= {"change": change, "higher_is_better": higher_is_better, "plural": plural}
    return environment
