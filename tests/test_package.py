"""What `import optidel_hf` offers: names that can be completed, of modules that are loaded when they are used."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

import optidel_hf


@pytest.mark.parametrize("name", optidel_hf.__all__)
def test_every_public_name_is_there_and_says_what_it_is(name: str) -> None:
    assert name in dir(optidel_hf)
    assert getattr(optidel_hf, name).__doc__


def test_the_version_is_that_of_the_installed_package() -> None:
    assert optidel_hf.__version__ == version("optidel_hf")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = optidel_hf.nothing


def test_importing_it_alone_loads_no_library_that_takes_seconds() -> None:
    loaded = "import sys, optidel_hf; print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True).stdout == "set()\n"
