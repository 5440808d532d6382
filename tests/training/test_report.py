# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""The report: its numbers are those of the run, it needs nothing else, and it fits any model and number of classes."""

import base64
import html
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_mtaclip.data.scenes import SCENE_CLASSES
from modeling_mtaclip.metrics import json_ready
from modeling_mtaclip.training import parse_run_arguments, prepare_run
from modeling_mtaclip.training.evaluated_images import EvaluatedImage
from modeling_mtaclip.training.evaluation import SegmentationScores
from modeling_mtaclip.training.report import write_report
from tests.training.conftest import draw_folder, options


SECTIONS = [
    "Training",
    "Classes",
    "Confusion matrix",
    "Best images",
    "Worst images",
    "Prompt contexts",
    "Masks and class texts in CLIP's space",
    "Options",
]


class Page:
    """Titles of sections, pictures with their texts, and rows of cells of tables by id."""

    def __init__(self, text):
        self.text, self.titles = text, [html.unescape(title) for title in re.findall(r"<h2>(.*?)</h2>", text)]
        self.pictures = re.findall(r'<img src="([^"]*)" alt="([^"]*)"', text)
        tables = re.findall(r'<table id="(\w+)">(.*?)</table>', text, flags=re.DOTALL)
        self.tables = {name: [_cells(row) for row in content.split("<tr>")[1:]] for name, content in tables}

    def rows(self, name):
        """Rows of a table as mappings from the names of the columns."""
        head, *rows = self.tables[name]
        return [dict(zip(head, row, strict=True)) for row in rows]


def _cells(row):
    cells = re.findall(r"<t[hd](?: [^>]*)?>(.*?)</t[hd]>", row, flags=re.DOTALL)
    return [html.unescape(re.sub(r"<[^>]*>", "", cell)) for cell in cells]


def execute(folder, *arguments, **overrides):
    """A run that is over: the run, metrics.json and report.html, if there is one."""
    values = {"dataset_name": folder / "data", "output_dir": folder / "out", "check_data": "none"} | overrides
    given = [*(arguments or options(**values)), "--report_to", "none"]
    run = prepare_run(*parse_run_arguments(given))
    run.execute()
    report = run.folder / "report.html"
    page = Page(report.read_text()) if report.exists() else None
    return run, json.loads((run.folder / "metrics.json").read_text()), page


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of four steps with an evaluation after every second step."""
    folder = tmp_path_factory.mktemp("report")
    torch.manual_seed(0)
    draw_folder(folder / "data", num_validation=5)
    return execute(folder)


def test_the_report_has_all_sections_and_needs_no_other_file(finished):
    page, texts = finished[2], set()
    assert page.titles == SECTIONS
    assert len(page.pictures) == len(re.findall(r"\b(?:src|href|srcset)=", page.text))
    assert not re.search(r"<(script|link|iframe|object|embed)|@import|url\(", page.text)
    for uri, _ in page.pictures:
        kind, content = re.fullmatch(r"data:image/([\w+]+);base64,(.*)", uri).groups()
        if kind == "svg+xml":
            root = ElementTree.fromstring(base64.b64decode(content))
            texts |= {each.text.strip() for each in root.iter("{http://www.w3.org/2000/svg}text") if each.text}
            references = re.findall(rb'href="([^"]*)"', base64.b64decode(content))
            assert all(reference.startswith((b"#", b"data:")) for reference in references)
    assert {"cross entropy", "mask", "dice", "contrastive", "mean IoU"} <= texts


def test_key_figures_are_those_of_the_metrics(finished):
    _, metrics, page = finished
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


def test_class_table_is_that_of_the_metrics(finished):
    run, metrics, page = finished
    pixels = run.trainer.scores.matrix.sum(dim=1)[:-1]
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


def test_confusions_are_those_of_the_matrix(finished):
    counts = finished[0].trainer.scores.matrix[:-1, :-1].numpy()
    wrong = counts - np.diag(np.diag(counts))
    rows = finished[2].rows("confusions")
    assert len(rows) == min(15, np.count_nonzero(wrong))
    for row in rows:
        true, guessed = SCENE_CLASSES.index(row["ground truth"]), SCENE_CLASSES.index(row["predicted"])
        assert row["of all wrong pixels"] == f"{wrong[true, guessed] / wrong.sum():.1%}"
        assert row["of the class"] == f"{counts[true, guessed] / counts[true].sum():.1%}"
    head, *matrix = finished[2].tables["confusion"]
    assert head == ["", *SCENE_CLASSES]
    shares = 100 * counts / counts.sum(axis=1, keepdims=True)
    assert matrix == [
        [name, *(f"{share:.0f}" for share in row)] for name, row in zip(SCENE_CLASSES, shares, strict=True)
    ]


def test_best_and_worst_images_are_those_of_the_scores(finished):
    in_order = [(score.name, f"{score.mean_iou:.4f}") for score in finished[0].trainer.scores.per_image.scores()]
    shown = re.findall(r"<b>([\w/.]+): mean IoU ([\d.]+)", finished[2].text)
    assert shown == [*in_order[:1:-1], *in_order[:2]]


def test_context_table_is_that_of_the_counts(finished):
    table = finished[0].trainer.scores.contexts[:, :-1]
    rows = {row["class"]: row for row in finished[2].rows("contexts")}
    assert rows.keys() == {SCENE_CLASSES[index] for index in table.sum(axis=1).nonzero()[0]}
    for name, row in rows.items():
        counts = table[SCENE_CLASSES.index(name)]
        assert int(row["masks"]) == counts.sum()
        shares = counts[counts > 0] / counts.sum()
        assert row["most often"] == f"{counts.argmax() + 1} ({counts.max() / counts.sum():.0%})"
        assert float(row["entropy (bits)"]) == pytest.approx(-(shares * np.log2(shares)).sum(), abs=1e-3)


def test_evaluation_alone_has_no_curves(finished, tmp_path):
    run, _, page = finished
    run.trainer.save_model(tmp_path / "model")
    given = {"model_name_or_path": tmp_path / "model", "dataset_name": run.folder.parent / "data"}
    given |= {"output_dir": tmp_path / "out", "do_eval": True, "use_cpu": True, "num_threads": 1}
    arguments = [str(part) for name, value in given.items() for part in (f"--{name}", value)]
    _, _, alone = execute(tmp_path, *arguments)
    assert alone.titles == SECTIONS[1:]
    assert not (tmp_path / "out" / "README.md").exists()
    assert all(alone.rows(name) == page.rows(name) for name in ("classes", "contexts"))


@pytest.mark.parametrize(
    ("overrides", "titles"),
    [({"text_branch": False, "max_steps": 2}, [*SECTIONS[:5], "Options"]), ({"report": False, "max_steps": 1}, None)],
)
def test_models_without_text_and_runs_without_report(tmp_path, overrides, titles):
    draw_folder(tmp_path / "data")
    overrides |= {"eval_strategy": "no", "load_best_model_at_end": False, "num_pictures": 1}
    _, _, page = execute(tmp_path, **overrides)
    assert (page and page.titles) == titles
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
    palette = [(0, 0, 0)] * len(names)
    path = tmp_path / "report.html"
    write_report(path, title="x", metrics=metrics, scores=scores, palette=palette, images=images, options=options)
    return Page(path.read_text()), scores.warnings()


def test_many_classes_with_unusual_names(tmp_path):
    names = [f"class <{index}> & more" for index in range(149)] + ["never seen"]
    generator = torch.Generator().manual_seed(0)
    label_maps = [torch.randint(0, 149, (2, 40, 50), generator=generator) for _ in range(3)]
    page, warnings = report_of(tmp_path, names, label_maps)
    assert len(page.rows("classes")) == 149
    assert "Neither annotated nor predicted: never seen." in page.text
    assert "<0>" not in page.text
    assert page.tables["confusion"][0] == ["", *names[:-1]]
    assert len(page.tables["confusion"]) == 150
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
    assert all(warning in page.text for warning in warnings)
    assert "2 training images could not be used" in page.text
    assert "1 validation images could not be used" in page.text
    assert page.titles == ["Classes", "Confusion matrix", "Best images", "Options"]
    assert "No pixel is predicted wrong." in page.text
    assert "token" not in page.text
    assert "&#34;a&#34;: &#34;c&#34;" in page.text
    _, warnings = report_of(tmp_path, ["a", "b"], [(truth, truth + 255), (truth, truth), (truth + 1, truth + 1)])
    assert warnings == ["1 of 3 evaluated images have no annotated pixel and don't count."]
