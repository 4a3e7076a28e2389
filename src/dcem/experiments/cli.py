"""Where the installed `dcem` script begins."""

from dcem.experiments.harness.command import main

__all__ = ["main"]
