"""Build the source distribution and wheels with and without kernels, and try each as a stranger would.

Every one is installed into an environment that holds nothing but torch, and runs the README's examples there; then it
is taken out again, and nothing of it may be left.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "src/dcem/__init__.py").read_text("utf-8"))[1]  # type: ignore[index]
WARNINGS = ("-W", "error", "-W", "ignore:Failed to initialize NumPy:UserWarning")  # torch's own, without NumPy
TRY = """
import doctest, importlib.metadata, pathlib, sys
import dcem
version, kernels, readme = sys.argv[1:]
home = pathlib.Path(dcem.__file__).parent
assert "site-packages" in str(home), home
assert dcem.__version__ == importlib.metadata.version("dcem") == version, dcem.__version__
assert (home / "py.typed").exists()
assert bool([*home.rglob("*.so"), *home.rglob("*.pyd")]) == (kernels == "True"), "kernels"
result = doctest.testfile(readme, module_relative=False, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
assert result.attempted > 10 and not result.failed, result
print(f"{result.attempted} examples, kernels: {kernels}")
"""


def run(*command: str | Path, **environment: str) -> str:
    environment = {**{k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, **environment}
    done = subprocess.run(
        list(map(str, command)), cwd=tempfile.gettempdir(), env=environment, text=True, stdout=subprocess.PIPE
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\nfailed: {' '.join(map(str, command[:4]))} ...")
    return done.stdout


def main() -> None:
    shutil.rmtree(DIST, ignore_errors=True)
    build = [sys.executable, "-m", "build", ROOT, "--outdir", DIST]
    run(*build, "--sdist")
    (source,) = DIST.glob("*.tar.gz")
    build[3] = source  # wheels are made of what the source distribution holds
    with tempfile.TemporaryDirectory() as unpacked:
        shutil.unpack_archive(source, unpacked)
        build[3] = next(Path(unpacked).iterdir())
        run(*build, "--wheel")
        (native,) = DIST.glob("*.whl")
        run(*build, "--wheel", DCEM_NATIVE="0")
    (pure,) = set(DIST.glob("*.whl")) - {native}
    assert pure.name.endswith("-py3-none-any.whl"), pure
    run(sys.executable, "-m", "twine", "check", "--strict", source, native, pure)
    with tempfile.TemporaryDirectory() as folder:
        run(sys.executable, "-m", "venv", folder)
        python = Path(folder) / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        install = [python, "-m", "pip", "install", "-q", "--no-compile", "-c", ROOT / "constraints.txt"]
        run(*install, "torch")  # first and alone, as in the Makefile
        before = run(python, "-m", "pip", "freeze")
        for file, kernels in ((source, True), (native, True), (pure, False)):
            run(*install, file)
            print(run(python, *WARNINGS, "-c", TRY, VERSION, str(kernels), ROOT / "README.md"), end="")
            run(python, "-m", "pip", "uninstall", "-q", "-y", "dcem")
            assert run(python, "-m", "pip", "freeze") == before, "it asks for more than torch, or leaves something"
            assert not [*Path(folder).rglob("dcem*")], "it leaves files"
            print(f"{file.name}: the README's examples run")


if __name__ == "__main__":
    main()
