# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""What all tests share: no hub access, the folder of real data and reference numbers, one seed."""

import os
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path


os.environ["HF_HUB_OFFLINE"] = "1"
# Lists of the files that tests draw, which are of no use afterward.
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="datasets")
# Tests in several processes at once would get in each other's way with a thread for each core.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch


REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_xdist_auto_num_workers() -> Generator[None, int, int]:
    """With `-n auto`, machines with many cores would need 2 GB of memory for each."""
    return min((yield), 8)


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["HF_DATASETS_CACHE"], ignore_errors=True)


@pytest.fixture(scope="session")
def repository_dir() -> Path:
    """The root of this checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with the real data and reference numbers: `MTACLIP_SHARED`, or `../shared` beside the checkout."""
    folder = Path(os.environ.get("MTACLIP_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: set MTACLIP_SHARED to the folder with the real data and reference numbers")
    return folder


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test starts from the same random state."""
    torch.manual_seed(0)
