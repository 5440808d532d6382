# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""The model card: `README.md` of a trained model, with the metadata that the Hub reads.

Its text is `templates/model_card.md.jinja`; this file computes what it says.
"""

import math
import platform
import re
from collections.abc import Mapping, Sequence
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers.trainer_utils import has_length

from ..data import DATASETS


if TYPE_CHECKING:
    from .trainer import MTAClipTrainer

TEMPLATE = Path(__file__).parent / "templates" / "model_card.md.jinja"
TASK = "image-segmentation"
TAGS = ("mtaclip", "semantic-segmentation", TASK, "vision")
# Name of a score in the log, the Hub's name of the metric, and ours.
METRICS = (
    ("eval_mean_iou", "mean_iou", "Mean IoU"),
    ("eval_mean_accuracy", "accuracy", "Mean accuracy of the classes"),
    ("eval_overall_accuracy", "accuracy", "Pixel accuracy"),
)
# A card without this line is one that its reader has taken over.
MARKER = "<!-- Written by the training run. Remove this line to keep your own text from then on. -->"
PRIVATE_OPTION = re.compile(r"token|_dir$|^resume_from_checkpoint$|^hub_model_id$")


def write_model_card(trainer: "MTAClipTrainer", model_id: str, tags: Sequence[str] = (), **metadata: Any) -> bool:
    """Writes a trainer's card into its output folder, unless there is one that does not come from a run, and returns
    whether it did.

    `model_id` is the name on the Hub, or of the folder. `metadata`, unless `None`, stand in place of the run's own
    fields of `huggingface_hub.ModelCardData`, and `tags` beside them.
    """
    path, config = Path(trainer.args.output_dir) / "README.md", trainer.model.config
    if path.exists() and MARKER not in path.read_text(encoding="utf-8"):
        return False
    options = public_options(trainer.options)
    splits = {"training": trainer.train_dataset, "validation": trainer.eval_dataset}
    data = getattr(getattr(trainer.train_dataset, "data", None), "info", None)
    dataset = options.get("dataset_name", "scenes")
    title = data.title if data is not None and data.title else dataset
    history, processor = trainer.state.log_history, trainer.processing_class
    evaluation = next((entry for entry in reversed(history) if "eval_mean_iou" in entry), {})
    scores = {name: value for name, value in evaluation.items() if value is not None and math.isfinite(value)}
    results = [
        EvalResult(TASK, dataset, title, metric, scores[key], dataset_split="validation", metric_name=name)
        for key, metric, name in METRICS
        if key in scores
    ]
    sources = [str(options.get(name)) for name in ("model_name_or_path", "text_encoder", "backbone")]
    fields = {
        # The synthetic scenes are ours; what other data permit, only their owners can say.
        "license": "apache-2.0" if data is DATASETS["scenes"] else "unknown",
        "library_name": "transformers",
        "pipeline_tag": TASK,
        "tags": [*TAGS, *([tags] if isinstance(tags, str) else tags)],
        "datasets": [re.sub(r"[^\w./-]+", "-", dataset)],
        "base_model": [name for name in sources if _is_hub_id(name)] or None,
        "metrics": ["mean_iou", "accuracy"],
        "model_name": model_id.split("/")[-1],
        "eval_results": results or None,
    }
    card = ModelCard.from_template(
        ModelCardData(**fields | {name: value for name, value in metadata.items() if value is not None}),
        template_path=str(TEMPLATE),
        marker=MARKER,
        model_id=model_id,
        dataset=title,
        data_license=data and data.license,
        class_names=[config.id2label[index] for index in range(config.num_labels)],
        text_branch=config.text_branch,
        num_parameters=sum(parameter.numel() for parameter in trainer.model.parameters()),
        image_size=dict(processor.size) if processor.do_resize else {},
        scores=scores,
        score_names={key: name for key, _, name in METRICS},
        warnings=trainer.scores.warnings() if trainer.scores else [],
        num_images={name: len(images) for name, images in splits.items() if has_length(images)},
        runtime=next((entry["train_runtime"] for entry in history if "train_runtime" in entry), None),
        options=options,
        python=platform.python_version(),
        versions={name: version(name) for name in ("transformers", "torch", "datasets", "huggingface_hub")},
    )
    card.save(path)
    return True


def public_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that may be shown to others: without tokens, and only the last name of folders and files."""
    return {name: _public(value) for name, value in options.items() if not PRIVATE_OPTION.search(name)}


def _public(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return public_options(value)
    if isinstance(value, list | tuple):
        return [_public(each) for each in value]
    if isinstance(value, str | Path) and not _is_hub_id(str(value)):
        return re.split(r"[\\/]", str(value).rstrip("\\/"))[-1]
    return value


def _is_hub_id(name: str) -> bool:
    """Whether it reads `someone/something` and is no local folder."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None and not Path(name).exists()


__all__ = ["public_options", "write_model_card"]
