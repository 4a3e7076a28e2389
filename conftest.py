"""Import the package before pytest imports its files one by one: a function may be named as the module it is in."""

import dcem  # noqa: F401
