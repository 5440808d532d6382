# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""The report: its numbers are those of the run, it needs nothing else, and it fits any model and number of classes."""

import base64
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_mtaclip.data.scenes import SCENE_CLASSES
from modeling_mtaclip.metrics import MeanIoU, json_ready
from modeling_mtaclip.training import parse_run_arguments, prepare_run
from modeling_mtaclip.training.evaluation import SegmentationScores
from modeling_mtaclip.training.report import score_warnings, write_report
from tests.training.conftest import draw_folder, options


SECTIONS = [
    "Training",
    "Classes",
    "Confusion matrix",
    "Best images",
    "Worst images",
    "Prompt contexts",
    "Masks and class texts of one image",
    "Masks and class texts in CLIP's space",
    "Options",
]


class Page(HTMLParser):
    """Titles of sections, pictures by their text, rows of cells of tables by id, and all that names a resource."""

    def __init__(self, text):
        super().__init__()
        self.titles, self.pictures, self.links, self.tables, self.text = [], {}, [], {}, text
        self._target = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.links += [(tag, name, value) for name, value in attributes.items() if name in ("src", "href", "srcset")]
        if tag == "img":
            self.pictures.setdefault(attributes["alt"], []).append(attributes["src"])
        elif tag == "table":
            self._table = self.tables[attributes["id"]] = []
        elif tag == "tr":
            self._table.append([])
        elif tag in ("h2", "th", "td"):
            self._target = self.titles if tag == "h2" else self._table[-1]
            self._target.append("")

    def handle_endtag(self, tag):
        if tag in ("h2", "th", "td"):
            self._target = None

    def handle_data(self, text):
        if self._target is not None:
            self._target[-1] += text

    def rows(self, name):
        """Rows of a table as mappings from the names of the columns."""
        head, *rows = self.tables[name]
        return [dict(zip(head, row, strict=True)) for row in rows]


def execute(tmp_path, **overrides):
    """A run that is over: the run, metrics.json and report.html."""
    defaults = {"dataset_name": tmp_path / "data", "output_dir": tmp_path / "out", "check_data": "none"}
    arguments = options(**(defaults | overrides))
    run = prepare_run(*parse_run_arguments([*arguments, "--report_to", "none"]))
    run.execute()
    folder = tmp_path / "out"
    return run, json.loads((folder / "metrics.json").read_text()), Page((folder / "report.html").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of four steps with an evaluation after every second step."""
    folder = tmp_path_factory.mktemp("report")
    torch.manual_seed(0)
    draw_folder(folder / "data", num_validation=5)
    return execute(folder)


@pytest.fixture(scope="module")
def predicted(finished):
    """Names, annotations and predictions of all validation images, each predicted by itself."""
    trainer, predicted = finished[0].trainer, []
    for example in trainer.eval_dataset:
        with torch.no_grad():
            outputs = trainer.model(**trainer.processing_class(example["image"], return_tensors="pt"))
        truth = np.array(example["annotation"])
        prediction = trainer.processing_class.post_process_semantic_segmentation(outputs, [truth.shape])[0]
        predicted.append((example["name"], truth, prediction.numpy(), outputs))
    return predicted


def test_the_report_has_all_sections_and_needs_no_other_file(finished):
    page = finished[2]
    assert page.titles == SECTIONS
    assert {tag for tag, _, _ in page.links} == {"img"}
    assert all(value.startswith("data:image/") for _, _, value in page.links)
    assert not re.search(r"<(script|link|iframe|object|embed)|@import|url\(", page.text)
    for uri in (uri for sources in page.pictures.values() for uri in sources):
        kind, content = re.fullmatch(r"data:image/([\w+]+);base64,(.*)", uri).groups()
        if kind == "svg+xml":
            references = re.findall(rb'href="([^"]*)"', base64.b64decode(content))
            assert all(reference.startswith((b"#", b"data:")) for reference in references)


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


def test_class_table_is_recomputed_and_sorted_by_gain_over_the_first_evaluation(finished, predicted):
    run, metrics, page = finished
    metric = MeanIoU(num_labels=len(SCENE_CLASSES), ignore_index=255)
    for _, truth, prediction, _ in predicted:
        metric.add(prediction=prediction, reference=truth)
    figures = metric.compute()
    first = next(entry for entry in run.trainer.state.log_history if "eval_mean_iou" in entry)
    assert first["step"] == 2
    assert "<b>first evaluation (step 2)</b>" in page.text
    rows = page.rows("classes")
    assert {row["class"] for row in rows} == {
        name for name, each in metrics["classes"].items() if each["iou"] is not None
    }
    for row in rows:
        label = SCENE_CLASSES.index(row["class"])
        before = first.get(f"eval_iou_{row['class']}", 0.0)
        assert float(row["IoU"]) == pytest.approx(figures["per_category_iou"][label], abs=1e-4)
        assert float(row["IoU of reference"]) == pytest.approx(before, abs=1e-4)
        assert float(row["gain"]) == pytest.approx(metrics["classes"][row["class"]]["iou"] - before, abs=1e-4)
    gains = [float(row["gain"]) for row in rows]
    assert gains == sorted(gains, reverse=True)


def test_confusions_are_recomputed(finished, predicted):
    counts = np.zeros((len(SCENE_CLASSES),) * 2)
    for _, truth, prediction, _ in predicted:
        np.add.at(counts, (truth[truth != 255], prediction[truth != 255]), 1)
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


def test_best_and_worst_images_are_recomputed(finished, predicted):
    scores = {}
    for name, truth, prediction, _ in predicted:
        ious = []
        for label in range(len(SCENE_CLASSES)):
            mine, theirs = (prediction == label) & (truth != 255), truth == label
            if (mine | theirs).any():
                ious.append((mine & theirs).sum() / (mine | theirs).sum())
        scores[name] = np.mean(ious)
    in_order = sorted(scores, key=scores.get)
    shown = re.findall(r"<b>([\w/.]+): mean IoU ([\d.]+)", finished[2].text)
    assert [name for name, _ in shown] == [*in_order[:1:-1], *in_order[:2]]
    for name, value in shown:
        assert float(value) == pytest.approx(scores[name], abs=1e-4)


def test_context_table_is_recomputed(finished, predicted):
    wins = {name: [0, 0] for name in SCENE_CLASSES}
    for _, _, _, outputs in predicted:
        for query, label in enumerate(outputs.class_queries_logits[0].argmax(dim=-1).tolist()):
            if label < len(SCENE_CLASSES):
                wins[SCENE_CLASSES[label]][int(outputs.mask_text_similarity[0, :, query, label].argmax())] += 1
    rows = finished[2].rows("contexts")
    assert {row["class"] for row in rows} == {name for name, counts in wins.items() if sum(counts)}
    for row in rows:
        counts = np.array(wins[row["class"]])
        assert int(row["masks"]) == counts.sum()
        shares = counts[counts > 0] / counts.sum()
        assert row["most often"] == f"{counts.argmax() + 1} ({counts.max() / counts.sum():.0%})"
        assert float(row["entropy (bits)"]) == pytest.approx(-(shares * np.log2(shares)).sum(), abs=1e-3)


def test_similarity_matrix_is_the_models(finished, predicted):
    page = finished[2]
    masks_of = {name: outputs.class_queries_logits[0].argmax(dim=-1) for name, _, _, outputs in predicted}
    picked = max(masks_of, key=lambda name: len(set(masks_of[name].tolist()) - {len(SCENE_CLASSES)}))
    assert f"{picked}: of 5 images" in page.text
    outputs = next(outputs for name, _, _, outputs in predicted if name == picked)
    queries = (masks_of[picked] < len(SCENE_CLASSES)).nonzero()[:, 0]
    cosines = outputs.mask_text_similarity[0, :, queries].amax(dim=0)
    order = outputs.class_queries_logits[0, queries].softmax(dim=-1).amax(dim=-1).argsort(descending=True)
    labels = masks_of[picked][queries[order]].tolist()
    head, *rows = page.tables["similarity"]
    assert head == ["", *SCENE_CLASSES, "no object"]
    assert [row[0] for row in rows] == [f"{i} {SCENE_CLASSES[label]}" for i, label in enumerate(labels, start=1)]
    shown = [[float(cell) for cell in row[1:]] for row in rows]
    np.testing.assert_allclose(shown, cosines[order], atol=0.0051)


def test_curves_show_loss_terms_and_scores(finished):
    ((picture,),) = [uris for alt, uris in finished[2].pictures.items() if alt.startswith("Loss")]
    root = ElementTree.fromstring(base64.b64decode(picture.removeprefix("data:image/svg+xml;base64,")))
    texts = {element.text.strip() for element in root.iter("{http://www.w3.org/2000/svg}text") if element.text}
    assert {"cross entropy", "mask", "dice", "contrastive", "mean IoU"} <= texts


@pytest.fixture(scope="module")
def evaluation_options(finished, tmp_path_factory):
    """Options that evaluate the run's model again."""
    trainer = finished[0].trainer
    folder = tmp_path_factory.mktemp("model")
    trainer.save_model(folder)
    data = trainer.args.output_dir.removesuffix("out") + "data"
    return [
        "--do_eval",
        "--model_name_or_path",
        str(folder),
        "--dataset_name",
        data,
        "--use_cpu",
        "--report_to",
        "none",
    ]


def test_evaluation_alone_has_no_curves_and_gains_over_the_constant_prediction(finished, evaluation_options, tmp_path):
    _, metrics, page = finished
    prepare_run(*parse_run_arguments([*evaluation_options, "--output_dir", str(tmp_path)])).execute()
    alone = Page((tmp_path / "report.html").read_text())
    assert alone.titles[0] == "Classes"
    assert "<b>constant prediction</b>" in alone.text
    assert not (tmp_path / "README.md").exists()
    assert alone.rows("contexts") == page.rows("contexts")
    ious = {name: each["iou"] for name, each in metrics["classes"].items() if each["iou"] is not None}
    gains = {row["class"]: float(row["gain"]) + float(row["IoU of reference"]) for row in alone.rows("classes")}
    assert gains == pytest.approx(ious, abs=2e-4)


def test_a_model_without_text_has_no_text_sections(tmp_path):
    draw_folder(tmp_path / "data")
    _, _, page = execute(tmp_path, text_branch=False, eval_strategy="no", load_best_model_at_end=False)
    assert page.titles == [*SECTIONS[:5], "Options"]


def test_the_report_can_be_left_out(tmp_path):
    draw_folder(tmp_path / "data")
    arguments = options(dataset_name=tmp_path / "data", output_dir=tmp_path / "out", report=False, num_pictures=1)
    prepare_run(*parse_run_arguments([*arguments, "--report_to", "none", "--check_data", "none"])).execute()
    assert not (tmp_path / "out" / "report.html").exists()
    assert len(list((tmp_path / "out" / "pictures").iterdir())) == 1


def report_of(tmp_path, names, label_maps, options=None, **metrics):
    """The page of some pairs of prediction and ground truth, and the warnings about their scores."""
    scores = SegmentationScores(names, ignore_index=255)
    for index, (prediction, truth) in enumerate(label_maps):
        scores.add(prediction, truth, f"image {index}", Image.new("RGB", (truth.shape[1], truth.shape[0])))
    scores.finish()
    metrics |= {f"eval_{name}": value for name, value in (scores.summary() | scores.details()).items()}
    metrics = json_ready(metrics | {"classes": scores.per_class()})
    palette = [(0, 0, 0)] * len(names)
    path = tmp_path / "report.html"
    write_report(path, title="x", metrics=metrics, scores=scores, palette=palette, options=options)
    return Page(path.read_text()), score_warnings(scores)


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


@pytest.mark.slow
def test_two_processes_report_what_one_does(finished, evaluation_options, run_seg, tmp_path):
    run_seg(*evaluation_options, "--output_dir", tmp_path, num_processes=2)
    page = Page((tmp_path / "report.html").read_text())
    for name in ("confusion", "confusions", "contexts", "similarity"):
        assert page.tables[name] == finished[2].tables[name]
    shown = [re.findall(r"([\w/.]+: mean IoU [\d.]+)", text) for text in (page.text, finished[2].text)]
    assert shown[0] == shown[1]
    assert len(shown[0]) == 5
