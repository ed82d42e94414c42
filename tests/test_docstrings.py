"""Every example in a docstring is run."""

import doctest
import importlib
import pkgutil

import pytest

import scatterdp

MODULES = sorted(
    m.name for m in pkgutil.walk_packages(scatterdp.__path__, "scatterdp.") if not m.name.endswith("__main__")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_of(name):
    module = importlib.import_module(name)
    results = doctest.testmod(module, optionflags=doctest.IGNORE_EXCEPTION_DETAIL | doctest.ELLIPSIS)
    assert results.failed == 0
