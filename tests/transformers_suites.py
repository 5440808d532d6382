# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Loads the test suites that transformers' source distribution carries, from the folder `TRANSFORMERS_SOURCE`.

The distribution has only the files at the top of its `tests` folder. What they import from elsewhere concerns text
generation, exporters and the hub, and is replaced by empty stand-ins.
"""

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType


SOURCE = os.environ.get("TRANSFORMERS_SOURCE")
PACKAGE = "transformers_suites"


def load_suite(name: str) -> ModuleType:
    """Imports a file of transformers' tests.

    Args:
        name (`str`): such as `test_modeling_common`.
    """
    if PACKAGE not in sys.modules:
        _package(PACKAGE, Path(SOURCE) / "tests")
        _stand_in("exporters", "test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
        _stand_in("generation", "test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
        hub = ModuleType("fetch_hub_objects_for_ci")
        hub.url_to_local_path = lambda url: url
        sys.modules[hub.__name__] = hub
    return importlib.import_module(f"{PACKAGE}.{name}")


def _package(name: str, *folders: Path) -> ModuleType:
    package = ModuleType(name)
    package.__path__ = [str(folder) for folder in folders]
    sys.modules[name] = package
    return package


def _stand_in(folder: str, file: str, **contents: type) -> None:
    _package(f"{PACKAGE}.{folder}")
    module = ModuleType(f"{PACKAGE}.{folder}.{file}")
    vars(module).update(contents)
    sys.modules[module.__name__] = module
