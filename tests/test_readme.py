"""The README's examples; those of the documentation are collected by pytest itself."""

import doctest
from pathlib import Path


def test_the_examples_of_the_readme():
    result = doctest.testfile(str(Path(__file__).parents[1] / "README.md"), module_relative=False)
    assert result.attempted > 0
    assert result.failed == 0
