# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""The model card: `README.md` of a trained model, with the metadata that the Hub reads."""

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..configuration_mtaclip import MTAClipConfig
from ..image_processing_mtaclip import MTAClipImageProcessor


PIPELINE_TAG = "image-segmentation"
TAGS = ("mtaclip", "semantic-segmentation", "image-segmentation", "vision")
# Figures of the card: name in the log without its prefix, the Hub's name of the metric, and ours.
METRICS = (
    ("mean_iou", "mean_iou", "Mean IoU"),
    ("mean_accuracy", "accuracy", "Mean accuracy of the classes"),
    ("overall_accuracy", "accuracy", "Pixel accuracy"),
)
# The drawn scenes are ours; what other data permit, only their owners can say.
DATA_LICENSES = {"scenes": "apache-2.0"}
# A card without this line is one that its reader has taken over.
MARKER = "<!-- Written by the training run. Remove this line to keep your own text from then on. -->"
LOCAL_OPTIONS = ("output_dir", "data_dir", "resume_from_checkpoint", "hub_model_id")
PATH_OPTIONS = ("dataset_name", "model_name_or_path", "text_encoder", "backbone", "backbone_weights")
CITATION = """@inproceedings{das2024mtaclip,
  title     = {{MTA-CLIP}: Language-Guided Semantic Segmentation with Mask-Text Alignment},
  author    = {Das, Anurag and Hu, Xinting and Jiang, Li and Schiele, Bernt},
  booktitle = {Computer Vision -- ECCV 2024},
  year      = {2024}
}"""


@dataclass
class CardContent:
    """What a model card is made of.

    Attributes:
        model_id (`str`): name on the Hub, or of the folder.
        config ([`MTAClipConfig`]): of the model.
        num_parameters (`int`): of the model.
        options (`Mapping[str, Any]`): of the run, as [`public_options`] gives them.
        history (`Sequence[Mapping[str, Any]]`): the trainer's log.
        num_images (`Mapping[str, int]`): images of each split that was used, as far as known.
        image_size (`str`): how images are resized.
        license (`str`, *optional*): of the weights; by default that of known data, or `"unknown"`.
        tags (`Sequence[str]`): added to the default ones.
        language (`str`, *optional*): of the class names.
        datasets (`Sequence[str]`): on which it was trained; by default the run's.
        base_models (`Sequence[str]`): on the Hub, from which the weights start; by default the run's.
    """

    model_id: str
    config: MTAClipConfig
    num_parameters: int
    options: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]] = ()
    num_images: Mapping[str, int] = field(default_factory=dict)
    image_size: str = ""
    license: str | None = None
    tags: Sequence[str] = ()
    language: str | None = None
    datasets: Sequence[str] = ()
    base_models: Sequence[str] = ()

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return (*self.datasets, self.options.get("dataset_name", "scenes"))[0]

    @property
    def evaluation(self) -> Mapping[str, Any]:
        """The log's last evaluation, empty without any."""
        return next((entry for entry in reversed(self.history) if "eval_mean_iou" in entry), {})


def public_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that may be shown to others: without folders of this machine, of which only the last name is kept."""
    shown = {name: value for name, value in options.items() if name not in LOCAL_OPTIONS}
    for name in PATH_OPTIONS:
        if shown.get(name) is not None and not _is_hub_id(shown[name]):
            shown[name] = Path(shown[name]).name
    return shown


def as_list(names: str | Sequence[str] | None) -> list[str]:
    """Names given as one, several or none."""
    return [names] if isinstance(names, str) else list(names or ())


def size_in_words(image_processor: MTAClipImageProcessor) -> str:
    """How the image processor resizes images, as a sentence."""
    if not image_processor.do_resize:
        return "Images keep their size."
    sides = ", ".join(
        f"{name.replace('_', ' ')} {value}" for name, value in dict(image_processor.size).items() if value
    )
    return f"Images are resized: {sides}."


def _is_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()


def write_model_card(path: str | Path, content: CardContent) -> bool:
    """Writes the card, unless there is one that does not come from a run.

    Args:
        path (`str` or `Path`): the file, `README.md` in the model's folder.
        content ([`CardContent`]): what it says.

    Returns:
        `bool`: whether it was written.
    """
    path = Path(path)
    if path.exists() and MARKER not in path.read_text(encoding="utf-8"):
        return False
    sections = {
        "Results": _results(content),
        "How to use": _usage(content.model_id),
        "Data": _data(content),
        "Recipe": _recipe(content),
        "Citation": f"```bibtex\n{CITATION}\n```",
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items() if text)
    introduction = (
        f"# {content.model_id}\n\n[MTA-CLIP](https://arxiv.org/abs/2407.21654) for semantic segmentation with "
        f"{content.config.num_labels} classes, {_with_units(content.num_parameters)} parameters, trained on "
        f"{content.dataset}: a Mask2Former whose decoder sees the class names as CLIP text embeddings."
    )
    if not content.config.text_branch:
        introduction += " This model leaves the text out."
    card = ModelCard(f"---\n{_metadata(content).to_yaml()}\n---\n\n{MARKER}\n\n{introduction}\n\n{body}\n")
    card.save(path)
    return True


def _metadata(content: CardContent) -> ModelCardData:
    evaluation = content.evaluation
    results = [
        EvalResult(
            task_type=PIPELINE_TAG,
            dataset_type=content.dataset,
            dataset_name=content.dataset,
            dataset_split="validation",
            metric_type=metric,
            metric_name=name,
            metric_value=evaluation[f"eval_{key}"],
        )
        for key, metric, name in METRICS
        if f"eval_{key}" in evaluation
    ]
    base_models = [*content.base_models] or [
        content.options[name]
        for name in ("model_name_or_path", "text_encoder", "backbone")
        if _is_hub_id(content.options.get(name) or "")
    ]
    return ModelCardData(
        license=content.license or DATA_LICENSES.get(content.dataset, "unknown"),
        language=content.language,
        library_name="transformers",
        pipeline_tag=PIPELINE_TAG,
        tags=list(dict.fromkeys((*TAGS, *content.tags))),
        datasets=[*content.datasets] or [content.dataset],
        base_model=base_models or None,
        metrics=list(dict.fromkeys(metric for _, metric, _ in METRICS)),
        model_name=content.model_id.split("/")[-1],
        eval_results=results or None,
    )


def _results(content: CardContent) -> str:
    evaluation = content.evaluation
    if not evaluation:
        return "It was not evaluated."
    rows = [(name, f"{evaluation[f'eval_{key}']:.4f}") for key, _, name in METRICS]
    rows.append(("Mean IoU of the constant prediction", f"{evaluation['eval_constant_mean_iou']:.4f}"))
    names = [content.config.id2label[index] for index in range(content.config.num_labels)]
    classes = [(name, f"{evaluation[f'eval_iou_{name}']:.4f}") for name in names if f"eval_iou_{name}" in evaluation]
    return (
        f"On the validation images of {content.dataset}, each at its own size:\n\n{_table(('', ''), rows)}\n\n"
        f"<details><summary>IoU of each class</summary>\n\n{_table(('class', 'IoU'), classes)}\n\n</details>"
    )


def _usage(model_id: str) -> str:
    return f"""```python
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

processor = AutoImageProcessor.from_pretrained("{model_id}", trust_remote_code=True)
model = AutoModelForSemanticSegmentation.from_pretrained("{model_id}", trust_remote_code=True).eval()

image = Image.open("photo.jpg")
with torch.no_grad():
    outputs = model(**processor(image, return_tensors="pt"))
labels = processor.post_process_semantic_segmentation(outputs, target_sizes=[(image.height, image.width)])[0]
print([model.config.id2label[index] for index in labels.unique().tolist()])
```

The folder carries the model's code, which `trust_remote_code=True` runs; with the package `modeling_mtaclip`
installed, `import modeling_mtaclip` takes its place."""


def _data(content: CardContent) -> str:
    counts = ", ".join(f"{number} {split} images" for split, number in content.num_images.items())
    names = ", ".join(content.config.id2label[index] for index in range(content.config.num_labels))
    license_note = ""
    if content.license is None and content.dataset not in DATA_LICENSES:
        license_note = " What may be done with the weights depends on the terms of these data."
    return (
        f"{content.dataset}{f' ({counts})' if counts else ''}. {content.image_size}{license_note}\n\n"
        f"Classes: {names}.\n\nThe model knows these classes only, and the kind of pictures it was trained on; on "
        "others it is wrong without saying so."
    )


def _recipe(content: CardContent) -> str:
    runtime = next((entry["train_runtime"] for entry in content.history if "train_runtime" in entry), None)
    time = f" It took {runtime / 60:.1f} minutes." if runtime is not None else ""
    versions = ", ".join(
        f"{name} {version(name)}" for name in ("transformers", "torch", "datasets", "huggingface_hub")
    )
    rows = [(f"`{name}`", f"`{value}`") for name, value in content.options.items()]
    return (
        "Trained with `scripts/run_seg.py` of MTA-CLIP for Hugging Face. Options that differ from their defaults:\n\n"
        f"{_table(('option', 'value'), rows)}\n\n{time.strip()} Python {platform.python_version()}, {versions}."
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _with_units(number: int) -> str:
    return f"{number / 1e6:.1f} million"


__all__ = ["CardContent", "as_list", "public_options", "size_in_words", "write_model_card"]
