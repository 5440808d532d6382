# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""The report: its numbers are those of the run, it needs nothing else, and it fits any model and number of classes."""

import base64
import html
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_mtaclip.data.scenes import SCENE_CLASSES
from modeling_mtaclip.metrics import json_ready
from modeling_mtaclip.training.evaluated_images import EvaluatedImage
from modeling_mtaclip.training.evaluation import SegmentationScores
from modeling_mtaclip.training.report import write_report
from tests.training.conftest import draw_folder, prepare


SECTIONS = ["Training", "Classes", "Confusion matrix", "Best images", "Worst images", "Prompt contexts"]
SECTIONS += ["Masks and class texts in CLIP's space", "Options"]


class Page:
    """Titles of sections, pictures with their texts, and rows of cells of tables by id."""

    def __init__(self, path):
        self.text = path.read_text()
        self.titles = [html.unescape(title) for title in re.findall(r"<h2>(.*?)</h2>", self.text)]
        self.pictures = re.findall(r'<img src="([^"]*)"', self.text)
        tables = re.findall(r'<table id="(\w+)">(.*?)</table>', self.text, flags=re.DOTALL)
        self.tables = {name: [_cells(row) for row in content.split("<tr>")[1:]] for name, content in tables}

    def rows(self, name):
        """Rows of a table as mappings from the names of the columns."""
        head, *rows = self.tables[name]
        return [dict(zip(head, row, strict=True)) for row in rows]


def _cells(row):
    cells = re.findall(r"<t[hd](?: [^>]*)?>(.*?)</t[hd]>", row, flags=re.DOTALL)
    return [html.unescape(re.sub(r"<[^>]*>", "", cell)) for cell in cells]


@pytest.fixture(scope="module")
def page(finished):
    return Page(finished.folder / "report.html")


def test_the_report_has_all_sections_and_needs_no_other_file(page):
    texts = set()
    assert page.titles == SECTIONS
    assert len(page.pictures) == len(re.findall(r"\b(?:src|href|srcset)=", page.text))
    assert not re.search(r"<(script|link|iframe|object|embed)|@import|url\(", page.text)
    for uri in page.pictures:
        kind, content = re.fullmatch(r"data:image/([\w+]+);base64,(.*)", uri).groups()
        if kind == "svg+xml":
            root = ElementTree.fromstring(base64.b64decode(content))
            texts |= {each.text.strip() for each in root.iter("{http://www.w3.org/2000/svg}text") if each.text}
            references = re.findall(rb'href="([^"]*)"', base64.b64decode(content))
            assert all(reference.startswith((b"#", b"data:")) for reference in references)
    assert {"cross entropy", "mask", "dice", "contrastive", "mean IoU"} <= texts


def test_figures_and_class_table_are_those_of_the_metrics(finished, page):
    metrics = finished.metrics
    figures = dict(map(reversed, re.findall(r"<b>([^<]*)</b><span>(.*?)</span>", page.text)))
    for label, name in {
        "mean IoU": "eval_mean_iou",
        "mean IoU of the constant prediction": "eval_constant_mean_iou",
        "mean accuracy": "eval_mean_accuracy",
        "pixel accuracy": "eval_overall_accuracy",
    }.items():
        assert figures[label] == f"{metrics[name]:.4f}"
    low, high = metrics["eval_mean_iou_interval"]
    assert figures["95 % interval over images"] == f"{low:.4f} \N{EN DASH} {high:.4f}"
    assert low <= metrics["eval_mean_iou"] <= high
    pixels = finished.trainer.scores.matrix.sum(dim=1)[:-1]
    shown = {name: each for name, each in metrics["classes"].items() if each["iou"] is not None}
    assert page.rows("classes") == [
        {
            "class": name,
            "share of pixels": f"{pixels[SCENE_CLASSES.index(name)] / pixels.sum():.2%}",
            "IoU": f"{each['iou']:.4f}",
            "": "",
            "accuracy": "\N{EN DASH}" if each["accuracy"] is None else f"{each['accuracy']:.4f}",
        }
        for name, each in sorted(shown.items(), key=lambda item: -item[1]["iou"])
    ]


def test_confusions_are_those_of_the_matrix(finished, page):
    counts = finished.trainer.scores.matrix[:-1, :-1].numpy()
    wrong = counts - np.diag(np.diag(counts))
    rows = page.rows("confusions")
    assert len(rows) == min(15, np.count_nonzero(wrong))
    for row in rows:
        true, guessed = SCENE_CLASSES.index(row["ground truth"]), SCENE_CLASSES.index(row["predicted"])
        assert row["of all wrong pixels"] == f"{wrong[true, guessed] / wrong.sum():.1%}"
        assert row["of the class"] == f"{counts[true, guessed] / counts[true].sum():.1%}"
    shares = 100 * counts / counts.sum(axis=1, keepdims=True)
    rows = [[name, *(f"{share:.0f}" for share in row)] for name, row in zip(SCENE_CLASSES, shares, strict=True)]
    assert page.tables["confusion"] == [["", *SCENE_CLASSES], *rows]


def test_images_and_contexts_are_those_of_the_scores(finished, page):
    scores = finished.trainer.scores
    in_order = [(score.name, f"{score.mean_iou:.4f}") for score in scores.images()]
    assert re.findall(r"<b>([\w/.]+): mean IoU ([\d.]+)", page.text) == [*in_order[:1:-1], *in_order[:2]]
    rows, table = {row["class"]: row for row in page.rows("contexts")}, scores.contexts[:, :-1]
    assert rows.keys() == {SCENE_CLASSES[index] for index in table.sum(axis=1).nonzero()[0]}
    for name, row in rows.items():
        counts = table[SCENE_CLASSES.index(name)]
        assert int(row["masks"]) == counts.sum()
        shares = counts[counts > 0] / counts.sum()
        assert row["most often"] == f"{counts.argmax() + 1} ({counts.max() / counts.sum():.0%})"
        assert float(row["entropy (bits)"]) == pytest.approx(-(shares * np.log2(shares)).sum(), abs=1e-3)


def test_evaluation_alone_has_no_curves(finished, page, tmp_path):
    finished.trainer.save_model(tmp_path / "model")
    prepare(
        tmp_path,
        model_name_or_path=tmp_path / "model",
        dataset_name=finished.folder.parent / "data",
        do_eval=True,
    ).execute()
    alone = Page(tmp_path / "out" / "report.html")
    assert alone.titles == SECTIONS[1:]
    assert all(alone.rows(name) == page.rows(name) for name in ("classes", "contexts"))
    assert not (tmp_path / "out" / "README.md").exists()


@pytest.mark.parametrize("overrides", [{"text_branch": False, "max_steps": 2}, {"report": False, "max_steps": 1}])
def test_models_without_text_and_runs_without_report(tmp_path, overrides):
    draw_folder(tmp_path / "data")
    prepare(tmp_path, eval_strategy="no", num_pictures=1, **overrides).execute()
    path = tmp_path / "out" / "report.html"
    assert path.exists() == overrides.get("report", True)
    assert not path.exists() or Page(path).titles == [*SECTIONS[:5], "Options"]
    assert len(list((tmp_path / "out" / "pictures").iterdir())) == 1


def report_of(tmp_path, names, label_maps, options=None, **metrics):
    """The page of some pairs of prediction and ground truth, and the warnings about their scores."""
    scores, images = SegmentationScores(names, ignore_index=255), {}
    for index, (prediction, truth) in enumerate(label_maps):
        scores.add(prediction, truth, f"image {index}")
        image = Image.new("RGB", (truth.shape[1], truth.shape[0]))
        images[f"image {index}"] = EvaluatedImage(f"image {index}", image, truth, prediction)
    scores.finish()
    metrics |= {f"eval_{name}": value for name, value in (scores.summary() | scores.details()).items()}
    metrics = json_ready(metrics | {"classes": scores.per_class()})
    palette, path = [(0, 0, 0)] * len(names), tmp_path / "report.html"
    write_report(path, title="x", metrics=metrics, scores=scores, palette=palette, images=images, options=options)
    return Page(path), scores.warnings()


def test_many_classes_with_unusual_names(tmp_path):
    names = [f"class <{index}> & more" for index in range(149)] + ["never seen"]
    generator = torch.Generator().manual_seed(0)
    label_maps = [torch.randint(0, 149, (2, 40, 50), generator=generator) for _ in range(3)]
    page, warnings = report_of(tmp_path, names, label_maps)
    assert len(page.rows("classes")) == 149
    assert "Neither annotated nor predicted: never seen." in page.text
    assert "<0>" not in page.text
    assert [row[0] for row in page.tables["confusion"]] == page.tables["confusion"][0] == ["", *names[:-1]]
    assert warnings == [
        "1 of 150 classes are annotated in no evaluated image, so that the scores say nothing about how well they are "
        "found: never seen."
    ]


def test_scores_of_nothing_are_no_success(tmp_path):
    void = torch.full((4, 6), 255)
    page, (warning,) = report_of(tmp_path, ["road", "sky"], [(torch.zeros_like(void), void)] * 2)
    assert warning.startswith("There are no scores: no pixel of the 2 evaluated images is annotated")
    assert warning in page.text
    assert page.titles == []
    assert not re.search(r"\b(nan|None|null|1\.0000)\b", page.text)
    assert page.text.count("<b>&ndash;</b>") == 5


def test_scores_that_say_little_are_called_that(tmp_path):
    truth = torch.zeros(4, 6, dtype=torch.long)
    options = {"hub_token": "x", "a": "/b/c"}
    page, warnings = report_of(tmp_path, ["road", "sky"], [(truth, truth)], options=options, num_bad=2, eval_num_bad=1)
    assert [warning.split(":")[0][:40] for warning in warnings] == [
        "1 of 2 classes are annotated in no evalu",
        "Only one image was evaluated",
        "The mean IoU is not above that of always",
    ]
    shown = ["2 training images could not be used", "1 validation images could not be used"]
    shown += ["No pixel is predicted wrong.", "&#34;a&#34;: &#34;c&#34;"]
    assert all(text in page.text for text in [*warnings, *shown])
    assert "token" not in page.text
    assert page.titles == ["Classes", "Confusion matrix", "Best images", "Options"]
    _, warnings = report_of(tmp_path, ["a", "b"], [(truth, truth + 255), (truth, truth), (truth + 1, truth + 1)])
    assert warnings == ["1 of 3 evaluated images have no annotated pixel and don't count."]
