# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Loads the test suites that transformers' source distribution carries, from the folder `TRANSFORMERS_SOURCE`.

The distribution has only the files at the top of its `tests` folder. What they import from elsewhere concerns text
generation, exporters and the hub, and is replaced by stand-ins.
"""

import importlib
import json
import os
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType
from unittest import mock

from transformers import PreTrainedModel

from modeling_mtaclip.data.scenes import make_scene


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
        hub.url_to_local_path = _picture
        sys.modules[hub.__name__] = hub
    return importlib.import_module(f"{PACKAGE}.{name}")


def load_pipeline_suite(model: PreTrainedModel, image_processor: type, pipeline_tests: type) -> ModuleType:
    """Imports transformers' tests of pipelines, with a model in place of the tiny ones of the hub.

    Args:
        model (`PreTrainedModel`): the model, saved where the suite looks for it.
        image_processor (`type`): class of its image processor.
        pipeline_tests (`type`): what is tested for image segmentation; transformers' own class is not distributed.
    """
    folder, name = Path(tempfile.mkdtemp()), type(model).__name__
    model.save_pretrained(folder / model.config.model_type / name)
    image_processor().save_pretrained(folder / model.config.model_type / name)
    (folder / "reports").mkdir()
    summary = {name: {"tokenizer_classes": [], "processor_classes": [image_processor.__name__]}}
    (folder / "reports" / "tiny_model_summary.json").write_text(json.dumps(summary))
    with mock.patch.dict(os.environ, TRANSFORMERS_TINY_MODEL_PATH=str(folder)):
        suite = load_suite("test_pipeline_mixin")
    setattr(suite.transformers_module, image_processor.__name__, image_processor)
    path, _, class_name = suite.pipeline_test_mapping["image-segmentation"]["test"].rpartition(".")
    module = ModuleType(path)
    setattr(module, class_name, pipeline_tests)
    suite.pipeline_test_mapping["image-segmentation"] = {"test": f"{PACKAGE}.pipelines.{class_name}"}
    sys.modules[f"{PACKAGE}.pipelines"] = module
    return suite


@cache
def _picture(url: str) -> str:
    """A drawn scene in place of a picture from the hub."""
    folder = tempfile.mkdtemp()
    path = Path(folder) / "picture.png"
    make_scene(0)[0].save(path)
    return str(path)


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
