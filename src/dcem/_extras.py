"""What an extra of the package brings, and the message where it is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs(what: str, extra: str) -> Iterator[None]:
    """Say which extra to install where a module of others is missing that `what` imports."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "dcem":
            raise
        message = f"{what} needs {error.name}: pip install 'dcem[{extra}]'"
        raise ModuleNotFoundError(message, name=error.name) from None
