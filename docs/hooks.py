"""Docstrings name other objects as ``:class:`dcem.CEM```; in the site these become links."""

import re

ROLE = re.compile(r":(?:class|func|meth|mod):<code>(?:~?)([\w.]+)</code>")


def on_page_content(html: str, **_: object) -> str:
    """Turn roles into references that mkdocs-autorefs resolves; those to unlisted objects stay plain code."""
    return ROLE.sub(r'<autoref identifier="\1" optional><code>\1</code></autoref>', html)
