"""The public modules: complete, and light where they promise it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from kdzoo import api


def test_names_for_readers_and_for_type_checkers_agree():
    tree = ast.parse(Path(api.__file__).read_text())
    (hints,) = [node for node in tree.body if isinstance(node, ast.If)]
    shown = {alias.name: node.module for node in hints.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert shown == api._HOME
    assert sorted(shown) == api.__all__ == dir(api)
    assert all(getattr(api, name) is not None for name in api.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"^module 'kdzoo\.api' has no attribute 'Algorthm'$"):
        api.__getattr__("Algorthm")


def test_hooks_data_executors_and_export_formats_need_no_torch():
    code = "import sys; from kdzoo.api import hookimpl; import kdzoo.api.data, kdzoo.api.execution, kdzoo.api.export\n"
    code += "print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
