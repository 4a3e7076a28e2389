"""Docstrings name other objects as ``:class:`dcem.CEM```; in the site these become links."""

import re

ROLE = re.compile(r":(?:class|func|meth|mod):<code>([\w.]+)</code>")
NAMESAKES = {"dcem.minimize": "dcem.minimize.minimize"}  # a function whose module has the same name


def on_page_content(html: str, **_: object) -> str:
    """Turn roles into references that mkdocs-autorefs resolves; those to unlisted objects stay plain code."""

    def link(role: re.Match[str]) -> str:
        target = NAMESAKES.get(role[1], role[1])
        return f'<autoref identifier="{target}" optional><code>{role[1]}</code></autoref>'

    return ROLE.sub(link, html)
