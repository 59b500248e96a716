"""Where things lie: folders that look like packages must never shadow the standard library."""

from __future__ import annotations

import operator
import sysconfig
from pathlib import Path


def test_operator_is_the_standard_librarys():
    assert Path(operator.__file__).parent == Path(sysconfig.get_paths()["stdlib"])
    assert operator.itemgetter


def test_the_folders_are_no_packages():
    root = Path(__file__).parents[3]
    for folder in ("operator", "runner", "tests", "tests/unit", "tests/unit/operator"):
        assert not (root / folder / "__init__.py").exists(), f"{folder} would be a package"
