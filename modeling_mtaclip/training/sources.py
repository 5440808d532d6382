# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run needs from elsewhere, whether it is there, and stand-ins for what is not, so that a run can be tried."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from huggingface_hub import try_to_load_from_cache
from PIL import Image
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES

from ..data import DATASETS, DatasetInfo, SegmentationData, make_scene
from .arguments import DataArguments, ModelArguments


OPENAI = "https://openaipublic.azureedge.net/clip/models"
# Where to get what no program may or can fetch for the user.
ADDRESSES = {
    "RN50.pt": f"{OPENAI}/afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762/RN50.pt",
    "RN101.pt": f"{OPENAI}/8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599/RN101.pt",
    "ViT-B-16.pt": f"{OPENAI}/5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f/ViT-B-16.pt",
    "ade20k": "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
    "cityscapes": "https://www.cityscapes-dataset.com (gtFine_trainvaltest.zip, leftImg8bit_trainvaltest.zip)",
}
WEIGHT_OPTIONS = ("model_name_or_path", "original_checkpoint", "mask2former", "text_encoder", "backbone_weights")
WEIGHT_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
# Without these there is nothing that could be tried.
ESSENTIAL = ("model_name_or_path", "original_checkpoint")
# Files of which one is in the cache if a repository of the Hub has been downloaded.
HUB_FILES = ("model.safetensors", "pytorch_model.bin", "config.json", "tokenizer.json")


@dataclass
class Source:
    """Something that a run reads.

    Attributes:
        option (`str`): which names it.
        value (`str`): the option's value.
        is_there (`bool`): whether it is on this machine.
        how_to_get (`str`): what happens, or is to be done, if it is not.
    """

    option: str
    value: str
    is_there: bool
    how_to_get: str = ""


def find_sources(model: ModelArguments, data: DataArguments) -> list[Source]:
    """Lists what a run reads; nothing is downloaded."""
    return [*_weights(model), *_data(data)]


def _weights(arguments: ModelArguments) -> Iterator[Source]:
    for option in WEIGHT_OPTIONS:
        value = getattr(arguments, option, None)
        if value == "pretrained":
            yield _on_hub(option, _repository_of_backbone(arguments.backbone))
        elif value is not None:
            yield _local_or_on_hub(option, value)


def _repository_of_backbone(name: str) -> str:
    """The Hub's repository that has the weights of a backbone."""
    if "/" in name:
        return name.removeprefix("hf-hub:")
    import timm

    return timm.get_pretrained_cfg(name).hf_hub_id or name if timm.is_model(name) else name


def _local_or_on_hub(option: str, value: str) -> Source:
    if Path(value).exists() or _is_package(value):
        return Source(option, value, is_there=True)
    if value.endswith(WEIGHT_SUFFIXES):
        address = ADDRESSES.get(Path(value).name)
        advice = f"download {address} to {value}" if address else "there is no such file"
        return Source(option, value, is_there=False, how_to_get=advice)
    return _on_hub(option, value)


def _is_package(name: str) -> bool:
    try:
        metadata.version(name)
    except (metadata.PackageNotFoundError, ValueError):
        return False
    return True


def _on_hub(option: str, repository: str) -> Source:
    if Path(repository).is_dir():
        return Source(option, repository, is_there=True)
    cached = "/" in repository and any(isinstance(try_to_load_from_cache(repository, name), str) for name in HUB_FILES)
    return Source(option, repository, cached, "would be downloaded from the Hub")


def _data(arguments: DataArguments) -> Iterator[Source]:
    name = arguments.dataset_name
    if name == "scenes":
        return
    if name in STAND_INS:
        folder = arguments.data_dir or name
        advice = f"download {ADDRESSES[name]}, unpack it and give its folder as --data_dir"
        yield Source("data_dir", str(folder), Path(folder).is_dir(), advice)
    elif Path(name).is_dir():
        yield Source("dataset_name", name, is_there=True)
    else:
        yield Source("dataset_name", name, is_there=False, how_to_get="would be downloaded from the Hub")


@dataclass
class _KnownData:
    """What must be known of a data set to draw scenes in its place."""

    info: DatasetInfo
    height: int
    width: int
    num_train: int
    num_validation: int

    def scenes(self, seeds: range) -> Dataset:
        """Scenes of the data set's size, as many as it has images."""

        def draw(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
            scenes = [make_scene(seed) for seed in batch["seed"]]
            size = (self.width, self.height)
            return {
                "image": [image.resize(size) for image, _ in scenes],
                "annotation": [annotation.resize(size, Image.Resampling.NEAREST) for _, annotation in scenes],
                "name": [f"scene {seed}" for seed in batch["seed"]],
            }

        return Dataset.from_dict({"seed": list(seeds)}).with_transform(draw)

    def load(self) -> SegmentationData:
        """The data set's classes with scenes in place of its images; they show only its first few classes."""
        first = self.num_train
        splits = {
            "train": self.scenes(range(first)),
            "validation": self.scenes(range(first, first + self.num_validation)),
        }
        return SegmentationData(DatasetDict(splits), self.info.with_label_ids())


STAND_INS = {
    "ade20k": _KnownData(DATASETS["ade20k"], 512, 683, 20_210, 2_000),
    "cityscapes": _KnownData(DATASETS["cityscapes"], 1024, 2048, 2_975, 500),
}


def stand_in_for_data(arguments: DataArguments, sources: list[Source]) -> SegmentationData | None:
    """Drawn scenes in place of a data set that is not there, if its classes are known; `None` if it is there.

    Raises:
        ValueError: it is not there, and nothing is known of it.
    """
    missing = [source for source in sources if source.option in ("data_dir", "dataset_name") and not source.is_there]
    if not missing:
        return None
    if arguments.dataset_name not in STAND_INS:
        raise ValueError(
            f"The data set {arguments.dataset_name!r} is not on this machine, and its classes are not known. Load it "
            "once with `datasets`, or try the run on another: --dataset_name scenes"
        )
    return STAND_INS[arguments.dataset_name].load()


def stand_in_for_weights(arguments: ModelArguments, sources: list[Source]) -> ModelArguments:
    """Options with random weights in place of those that are not there.

    Raises:
        ValueError: a whole model that is not there.
    """
    missing = {source.option for source in sources if source.option in WEIGHT_OPTIONS and not source.is_there}
    essential = sorted(missing & set(ESSENTIAL))
    if essential:
        raise ValueError(f"{essential} is not on this machine, and its sizes are not known: nothing can be tried.")
    changes: dict[str, Any] = dict.fromkeys(missing)
    if "backbone_weights" in missing and "/" in (arguments.backbone or ""):
        changes["backbone"] = _type_of_backbone(arguments.backbone)
    return replace(arguments, **changes)


def _type_of_backbone(repository: str) -> str:
    """The model type that a repository's name tells, for `backbone_config` to give the sizes."""
    name = repository.split("/")[-1]
    types = [kind for kind in MODEL_FOR_BACKBONE_MAPPING_NAMES if name.startswith(kind)]
    if not types:
        raise ValueError(f"The backbone {repository!r} is not on this machine: download it, or name another.")
    return max(types, key=len)


__all__ = ["Source", "find_sources", "stand_in_for_data", "stand_in_for_weights"]
