#!/usr/bin/env python
# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Compares recipes on real photographs: ours, its ablation, and transformers' Mask2Former as the peer.

    python scripts/study.py run recipe --dataset_name DIR --seeds 0 1 2
    python scripts/study.py run peer --dataset_name DIR --seeds 0 --options --learning_rate 1e-4
    python scripts/study.py ablation --dataset_name DIR --seeds 0 1 2
    python scripts/study.py tables

DIR is a folder like the README's `my_data`. Every run appends a line to docs/results/runs.jsonl when it ends; runs
that are there already are not repeated, so that an interrupted study goes on where it was. `tables` writes the tables
of docs/results.md. With `--hold_out PREFIX` a run is trained and evaluated on training images alone: those whose names
start with the prefix (a video sequence, say) are the ones it is evaluated on. Settings are chosen that way.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, logging

from modeling_mtaclip import MTAClipConfig, MTAClipForSemanticSegmentation
from modeling_mtaclip.loss_mtaclip import MTAClipCriterion
from modeling_mtaclip.modeling_mtaclip import MTAClipForSemanticSegmentationOutput
from modeling_mtaclip.training import MTAClipTrainer, Run, parse_run_arguments, prepare_run


ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "docs" / "results" / "runs.jsonl"
PAGE = ROOT / "docs" / "results.md"
# What every run of the ablation has in common, whatever the recipe says: it fits a fixed budget.
ABLATION_OPTIONS = ("--max_steps", "300", "--warmup_steps", "50", "--ema_decay", "0.99")


@dataclass
class Setting:
    """One row of a table.

    Attributes:
        label (`str`): what the table calls it.
        options (`Sequence[str]`): added to the recipe's.
        config (`Mapping[str, Any]`): fields of `MTAClipConfig`, added to the recipe's `model_config`.
        texts (`str`, *optional*): replaces the text embeddings: `"phrase"` (a fixed "a photo of a" as the context),
            `"prototypes"` (mean backbone features of each class) or `"random"` (as long as these).
        learns_temperature (`bool`): the contrastive loss's temperature is a weight, 0.07 at the start.
        is_peer (`bool`): transformers' Mask2Former.
    """

    label: str
    options: Sequence[str] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    texts: str | None = None
    learns_temperature: bool = False
    is_peer: bool = False


NO_CLASS_MASKS = {"class_mask_weight": 0.0, "class_mask_share": 0.0}
WITHOUT_TEXT = ("--text_branch", "False")
SETTINGS = {
    "recipe": Setting("the recipe"),
    "peer": Setting("Mask2Former of transformers", WITHOUT_TEXT, NO_CLASS_MASKS, is_peer=True),
    "no_text": Setting("no text branch", WITHOUT_TEXT, NO_CLASS_MASKS),
    "text_queries": Setting("text queries", config=NO_CLASS_MASKS | {"contrastive_weight": 0.0}),
    "contrastive": Setting("text queries and contrastive loss", config=NO_CLASS_MASKS),
    "contexts_1": Setting("1 context", ("--num_prompt_contexts", "1"), NO_CLASS_MASKS),
    "contexts_5": Setting("5 contexts", ("--num_prompt_contexts", "5"), NO_CLASS_MASKS),
    "separate": Setting("negatives: separate", ("--contrastive_negatives", "separate"), NO_CLASS_MASKS),
    "all_positive": Setting("negatives: all_positive", ("--contrastive_negatives", "all_positive"), NO_CLASS_MASKS),
    "temperature_0.07": Setting("temperature 0.07", ("--contrastive_temperature", "0.07"), NO_CLASS_MASKS),
    "temperature_learned": Setting("temperature learned", config=NO_CLASS_MASKS, learns_temperature=True),
    "fixed_phrase": Setting(
        'fixed context "a photo of a"',
        ("--num_prompt_contexts", "1", "--prompt_length", "4"),
        NO_CLASS_MASKS,
        texts="phrase",
    ),
    "masks_in_training": Setting(
        "class masks in training", config={"class_mask_weight": 1.0, "class_mask_share": 0.0}
    ),
    "masks_in_prediction": Setting(
        "class masks in prediction", config={"class_mask_weight": 0.0, "class_mask_share": 0.5}
    ),
    "masks_in_both": Setting("class masks in both", config={"class_mask_weight": 1.0, "class_mask_share": 0.5}),
    "texts_random": Setting("texts: random vectors", config=NO_CLASS_MASKS, texts="random"),
    "texts_prototypes": Setting("texts: class prototypes", config=NO_CLASS_MASKS, texts="prototypes"),
}
ABLATION = [name for name in SETTINGS if name not in ("recipe", "peer")]


class Mask2FormerPeer(nn.Module):
    """transformers' Mask2Former in place of our model, with the backbone of one of ours.

    Args:
        model ([`MTAClipForSemanticSegmentation`]): without text branch; gives sizes, classes and the loaded backbone.
    """

    def __init__(self, model: MTAClipForSemanticSegmentation) -> None:
        super().__init__()
        config = self.config = model.config
        peer = Mask2FormerForUniversalSegmentation(
            Mask2FormerConfig(
                backbone_config=config.backbone_config,
                num_labels=config.num_labels,
                num_queries=config.num_queries,
                feature_size=config.hidden_size,
                hidden_dim=config.hidden_size,
                mask_feature_size=config.mask_feature_size,
                encoder_layers=config.encoder_layers,
                encoder_feedforward_dim=config.encoder_feedforward_dim,
                # Counts the prediction before the first layer.
                decoder_layers=config.decoder_layers + 1,
                dim_feedforward=config.decoder_feedforward_dim,
            )
        )
        peer.model.pixel_level_module.encoder.load_state_dict(model.model.backbone.state_dict())
        # Where the trainer looks for the backbone's lower learning rate.
        self.model = nn.ModuleDict({"backbone": peer.model.pixel_level_module.encoder})
        self.peer = peer

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.peer.device

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, image_classes: Tensor | None = None, **kwargs: Any
    ) -> MTAClipForSemanticSegmentationOutput:
        """Losses and predictions of transformers' own model, in the form of ours."""
        targets = {}
        if labels is not None:
            targets["class_labels"] = [classes[classes >= 0] for classes in image_classes]
            targets["mask_labels"] = [
                (label_map == classes[:, None, None]).float()
                for label_map, classes in zip(labels, targets["class_labels"], strict=True)
            ]
        outputs = self.peer(pixel_values, **targets)
        loss = None if labels is None else outputs.loss.squeeze()
        return MTAClipForSemanticSegmentationOutput(
            loss=loss,
            class_queries_logits=outputs.class_queries_logits,
            masks_queries_logits=outputs.masks_queries_logits,
            loss_components={} if loss is None else {"mask2former": loss.detach()},
        )


class CriterionWithTemperature(MTAClipCriterion):
    """The criterion with a temperature of the contrastive loss that learns, as CLIP's."""

    def __init__(self, config: MTAClipConfig) -> None:
        super().__init__(config)
        self.log_temperature = nn.Parameter(torch.tensor(0.07).log())

    def _query_losses(self, class_queries_logits: Tensor, similarity: Tensor, *rest: Tensor) -> dict[str, Tensor]:
        return super()._query_losses(class_queries_logits, similarity / self.log_temperature.exp(), *rest)


class FixedTexts(nn.Module):
    """Text embeddings that are given and don't learn, in place of prompts and text encoder.

    Args:
        embeddings (`Tensor` of shape `(C, K + 1, E)`): of the classes and "no object".
    """

    def __init__(self, embeddings: Tensor) -> None:
        super().__init__()
        self.embeddings = nn.Buffer(embeddings)

    def forward(self) -> Tensor:
        """The embeddings."""
        return self.embeddings


@torch.no_grad()
def class_prototypes(run: Run, num_images: int = 60) -> Tensor:
    """Mean of the backbone's features at 1/8, in each class of the training images, centered and of unit length."""
    model, examples = run.trainer.model, run.trainer.train_dataset
    config = model.config
    model.eval()
    sums = counts = 0
    for index in np.linspace(0, len(examples) - 1, num_images).astype(int).tolist():
        image, labels = (examples[index][name].to(model.device) for name in ("pixel_values", "labels"))
        features = model.model.backbone(image[None]).feature_maps[1][0].flatten(1)
        height, width = (length // 8 for length in labels.shape)
        labels = F.interpolate(labels[None, None].float(), (height, width)).long().flatten()
        inside = F.one_hot(labels.where(labels < config.num_labels, config.num_labels), config.num_labels + 1).float()
        sums, counts = sums + inside.T @ features.T, counts + inside.sum(dim=0)
    model.train()
    prototypes = sums / counts.clamp(min=1)[:, None]
    return F.normalize(prototypes - prototypes.mean(dim=0), dim=-1).cpu()


@torch.no_grad()
def replace_texts(run: Run, kind: str) -> None:
    """Gives a run's model other text embeddings, as of [`Setting`]."""
    model = run.trainer.model
    texts = model.model.text_model
    if kind == "phrase":
        tokens = run.trainer.tokenizer("a photo of a", add_special_tokens=False)["input_ids"][
            : texts.contexts.shape[1]
        ]
        embedded = texts.text_encoder.text_model.embeddings.token_embedding.weight[tokens]
        texts.contexts[:, : len(tokens)] = embedded
        texts.contexts.requires_grad_(False)
        return
    shape = texts().shape
    embeddings = torch.randn(shape[1:])
    if kind == "prototypes":
        prototypes = class_prototypes(run)
        # Distances are kept, nearly, by a random projection to the texts' size.
        embeddings = prototypes @ torch.randn(prototypes.shape[1], shape[-1])
    model.model.text_model = FixedTexts(F.normalize(embeddings, dim=-1).expand(shape).contiguous())


@contextmanager
def held_out(folder: Path, prefix: str | None) -> Iterator[Path]:
    """The data set, or one of its training images alone, of which those with the prefix are the validation split."""
    if prefix is None:
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / folder.name
        for kind in ("images", "annotations"):
            for path in sorted((folder / kind / "train").iterdir()):
                target = root / kind / ("val" if path.name.startswith(prefix) else "train") / path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(path.resolve())
        if not (root / "images" / "val").is_dir():
            raise SystemExit(f"No training image of {folder} starts with {prefix!r}.")
        (root / "classes.json").write_text((folder / "classes.json").read_text())
        yield root


def prepare(setting: Setting, arguments: argparse.Namespace, dataset: Path, seed: int, output_dir: str) -> Run:
    """A run of the recipe with what the setting changes; model and data are checked."""
    # No score chooses the checkpoint: the last one counts.
    options = ["--dataset_name", str(dataset), "--output_dir", output_dir, "--seed", str(seed), "--report", "False"]
    options += ["--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "False"]
    options += ["--num_pictures", "0", "--report_to", "none", "--boundary_metrics", "True"]
    parts = parse_run_arguments([str(arguments.config), *options, *setting.options, *arguments.options])
    if setting.is_peer:
        parts[0].model_config = {
            name: value for name, value in parts[0].model_config.items() if name.endswith("feedforward_dim")
        }
    parts[0].model_config |= setting.config
    run = prepare_run(*parts)
    trainer = run.trainer
    if setting.texts is not None:
        replace_texts(run, setting.texts)
    if setting.learns_temperature:
        trainer.model.criterion = CriterionWithTemperature(trainer.model.config)
    if setting.is_peer:
        run.trainer = MTAClipTrainer(
            model=Mask2FormerPeer(trainer.model),
            args=trainer.args,
            train_dataset=trainer.train_dataset,
            eval_dataset=trainer.eval_dataset,
            data_collator=trainer.data_collator,
            processing_class=trainer.processing_class,
        )
    return run


def execute(name: str, arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Trains and evaluates one setting and returns the line for it."""
    setting = SETTINGS[name]
    with held_out(arguments.dataset_name, arguments.hold_out) as dataset, tempfile.TemporaryDirectory() as temporary:
        folder = f"{arguments.output_dir}/{name}_{seed}" if arguments.output_dir else temporary
        run = prepare(setting, arguments, dataset, seed, folder)
        args = run.trainer.args
        processor_start, start = time.process_time(), time.monotonic()
        run.trainer.train()
        minutes, processor_minutes = (time.monotonic() - start) / 60, (time.process_time() - processor_start) / 60
        if arguments.output_dir:
            run.trainer.save_model()
        run.evaluate()
    return {
        **identity(name, arguments, seed),
        "label": setting.label,
        "commit": git("rev-parse", "--short", "HEAD")
        + ("+" if git("status", "--porcelain", "modeling_mtaclip") else ""),
        "processor": torch.cuda.get_device_name() if torch.cuda.is_available() else processor_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "steps": args.max_steps,
        "images": args.max_steps * args.train_batch_size * args.gradient_accumulation_steps,
        "minutes": round(minutes, 2),
        "processor_minutes": round(processor_minutes, 2),
        "mean_iou": run.metrics["eval_mean_iou"],
        "boundary_f_score": run.metrics["eval_boundary_f_score"],
        "iou": {name: figures["iou"] for name, figures in run.metrics["classes"].items()},
    }


def identity(name: str, arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    """What tells one run from another."""
    return {
        "study": arguments.command,
        "setting": name,
        "seed": seed,
        "config": f"{arguments.config.name} {digest(arguments.config)}",
        "options": list(arguments.options),
        "evaluated_on": arguments.hold_out or "validation",
    }


def digest(config: Path) -> str:
    """Tells states of a configuration file apart, whatever its comments."""
    content = json.dumps(yaml.safe_load(config.read_text()), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:8]


def git(*arguments: str) -> str:
    """What git answers in this repository; nothing where there is none."""
    finished = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return finished.stdout.strip()


def processor_name() -> str:
    """The processor's name and whether it multiplies bfloat16 in hardware."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    extensions = [name for name in ("avx2", "avx512_bf16", "amx_bf16") if name in fields.get("flags", "").split()]
    return f"{fields.get('model name', platform.processor())} ({', '.join(extensions)})"


def read_runs() -> list[dict[str, Any]]:
    """All runs so far."""
    return [json.loads(line) for line in RUNS.read_text().splitlines()] if RUNS.is_file() else []


def run_all(names: Sequence[str], arguments: argparse.Namespace) -> None:
    """Runs what is not there yet, seed by seed, so that an interrupted study has all rows of its first seeds."""
    for seed in arguments.seeds:
        for name in names:
            wanted = identity(name, arguments, seed)
            if any(wanted.items() <= line.items() for line in map(dict, read_runs())):
                continue
            line = execute(name, arguments, seed)
            RUNS.parent.mkdir(parents=True, exist_ok=True)
            with RUNS.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(
                f"{name}, seed {seed}: mean IoU {line['mean_iou']:.4f} after {line['minutes']:.1f} minutes", flush=True
            )


def groups_of(runs: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Runs that differ in nothing but their seed, in the order of the settings."""
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for line in sorted(runs, key=lambda line: list(SETTINGS).index(line["setting"])):
        groups.setdefault((line["setting"], line["config"], *line["options"], line["steps"]), []).append(line)
    return list(groups.values())


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Figures of each group, mean ± standard deviation over seeds, in percent."""
    rows = [["", "options", "recipe", "processor", "steps", "images", "minutes", "mIoU", "boundary F", "seeds"]]
    for group in groups_of(runs):
        first = group[0]
        options = first["options"]
        if tuple(options[: len(ABLATION_OPTIONS)]) == ABLATION_OPTIONS:
            options = options[len(ABLATION_OPTIONS) :]
        processors = sorted({line["processor"].removeprefix("NVIDIA ").split(" (")[0] for line in group})
        cells = [first["label"], " ".join(options), first["config"].split()[-1], ", ".join(processors)]
        cells += [first["steps"], first["images"], f"{np.mean([line['minutes'] for line in group]):.1f}"]
        cells += [mean_and_deviation([100 * line[key] for line in group]) for key in ("mean_iou", "boundary_f_score")]
        rows.append([*cells, len(group)])
    return markdown(rows)


def class_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """IoU of each class, a column for each group."""
    groups = groups_of(runs)
    rows = [["", *(group[0]["label"] for group in groups)]]
    for name in groups[0][0]["iou"]:
        rows.append([name, *(mean_and_deviation([100 * line["iou"][name] for line in group]) for group in groups)])
    return markdown(rows)


def markdown(rows: Sequence[Sequence[Any]]) -> str:
    """A table whose first row is its head."""
    head, *body = (f"| {' | '.join(map(str, row))} |" for row in rows)
    return "\n".join([head, f"| {' | '.join(['---'] * len(rows[0]))} |", *body])


def mean_and_deviation(values: Sequence[float]) -> str:
    """`71.2 ± 0.4`; of one value only the value."""
    deviation = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{deviation}"


def write_tables() -> None:
    """Replaces what stands between the marks `<!-- KIND: STUDY, SPLIT -->` and `<!-- end -->` of the page, where KIND
    is `table` or `classes`."""

    def written(match: re.Match) -> str:
        kind, study, split = match.groups()
        runs = [
            line
            for line in read_runs()
            if line["study"] == study and (line["evaluated_on"] == "validation") == (split == "validation")
        ]
        text = {"table": table, "classes": class_table}[kind](runs) if runs else "No runs yet."
        return f"<!-- {kind}: {study}, {split} -->\n{text}\n<!-- end -->"

    PAGE.write_text(
        re.sub(r"<!-- (table|classes): (\w+), ([\w ]+) -->.*?<!-- end -->", written, PAGE.read_text(), flags=re.S)
    )


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("tables", help="write the tables of docs/results.md")
    for command in ("run", "ablation"):
        each = commands.add_parser(command, help="run one setting" if command == "run" else "run all of the ablation")
        if command == "run":
            each.add_argument("setting", choices=list(SETTINGS))
        each.add_argument("--dataset_name", type=Path, required=True, help="folder of the data set")
        each.add_argument("--config", type=Path, default=ROOT / "configs" / "camvid.yaml", help="the recipe")
        each.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
        each.add_argument("--hold_out", help="evaluate on the training images with this prefix, not on validation")
        each.add_argument("--output_dir", help="keep the models here; by default they are not kept")
        each.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="further options of run_seg.py")
    return parser.parse_args(arguments)


def main() -> None:
    """Runs a command of the study."""
    arguments = parse_arguments()
    if arguments.command == "tables":
        write_tables()
        return
    logging.set_verbosity_error()
    if arguments.command == "ablation":
        arguments.options = [*ABLATION_OPTIONS, *arguments.options]
    run_all(ABLATION if arguments.command == "ablation" else [arguments.setting], arguments)


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
