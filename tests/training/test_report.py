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

from modeling_mtaclip import MTAClipImageProcessor
from modeling_mtaclip.data.scenes import SCENE_CLASSES
from modeling_mtaclip.metrics import MeanIoU
from modeling_mtaclip.training import parse_run_arguments, prepare_run
from modeling_mtaclip.training.evaluated_images import align_masks
from modeling_mtaclip.training.evaluation import SegmentationScores
from modeling_mtaclip.training.report import write_report
from modeling_mtaclip.visualization import _principal_components
from tests.tiny import tiny_model
from tests.training.conftest import draw_folder, options
from tests.training.distributed_steps import evaluation_example


class Page(HTMLParser):
    """Titles of sections, pictures by their text, and everything that names another resource."""

    def __init__(self, text):
        super().__init__()
        self.titles, self.pictures, self.links = [], {}, []
        self._in_title = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.links += [(tag, name, value) for name, value in attributes.items() if name in ("src", "href", "srcset")]
        self._in_title = tag == "h2"
        if tag == "img":
            self.pictures.setdefault(attributes["alt"], []).append(attributes["src"])

    def handle_data(self, text):
        if self._in_title:
            self.titles.append(text)
            self._in_title = False


def cells(text):
    """Rows of cells without markup of each table of a page, by id."""
    tables = {}
    for name, body in re.findall(r'<table id="(\w+)">(.*?)</table>', text, flags=re.DOTALL):
        rows = re.findall(r"<tr>(.*?)</tr>", body, flags=re.DOTALL)
        tables[name] = [
            [re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row, flags=re.DOTALL)]
            for row in rows
        ]
    return {name: [dict(zip(head, row, strict=True)) for row in rows] for name, (head, *rows) in tables.items()}


def svg_text(uri):
    """All text of an SVG in a data URI."""
    root = ElementTree.fromstring(base64.b64decode(uri.removeprefix("data:image/svg+xml;base64,")))
    return [element.text.strip() for element in root.iter("{http://www.w3.org/2000/svg}text") if element.text]


def execute(tmp_path, **overrides):
    """A run that is over: the run, metrics.json and report.html."""
    defaults = {"dataset_name": tmp_path / "data", "output_dir": tmp_path / "out", "check_data": "none"}
    arguments = options(**(defaults | overrides))
    run = prepare_run(*parse_run_arguments([*arguments, "--report_to", "none"]))
    run.execute()
    folder = tmp_path / "out"
    return run, json.loads((folder / "metrics.json").read_text()), (folder / "report.html").read_text()


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
    run, _, _ = finished
    trainer, examined = run.trainer, []
    for example in trainer.eval_dataset:
        with torch.no_grad():
            outputs = trainer.model(**trainer.processing_class(example["image"], return_tensors="pt"))
        truth = np.array(example["annotation"])
        prediction = trainer.processing_class.post_process_semantic_segmentation(outputs, [truth.shape])[0]
        examined.append((example["name"], truth, prediction.numpy(), outputs))
    return examined


def test_the_report_has_all_sections(finished):
    assert Page(finished[2]).titles == [
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


def test_the_report_needs_no_other_file(finished):
    page = Page(finished[2])
    assert {tag for tag, _, _ in page.links} == {"img"}
    assert all(value.startswith("data:image/") for _, _, value in page.links)
    assert not re.search(r"<(script|link|iframe|object|embed)|@import|url\(", finished[2])
    for sources in page.pictures.values():
        for uri in sources:
            kind, content = re.fullmatch(r"data:image/([\w+]+);base64,(.*)", uri).groups()
            if kind == "svg+xml":
                references = re.findall(rb'href="([^"]*)"', base64.b64decode(content))
                assert all(reference.startswith((b"#", b"data:")) for reference in references)


def test_key_figures_are_those_of_the_metrics(finished):
    _, metrics, text = finished
    figures = dict(map(reversed, re.findall(r"<div><b>(.*?)</b><span>(.*?)</span></div>", text)))
    for label, name in {
        "mean IoU": "eval_mean_iou",
        "mean IoU of the constant prediction": "eval_constant_mean_iou",
        "mean accuracy": "eval_mean_accuracy",
        "pixel accuracy": "eval_overall_accuracy",
    }.items():
        assert figures[label] == f"{metrics[name]:.4f}"
    low, high = metrics["eval_mean_iou_interval"]
    assert figures["95 % interval over images: from"] == f"{low:.4f}"
    assert figures["95 % interval over images: to"] == f"{high:.4f}"
    assert low <= metrics["eval_mean_iou"] <= high


def test_class_table_is_recomputed_and_sorted_by_gain_over_the_first_evaluation(finished, predicted):
    run, metrics, text = finished
    metric = MeanIoU(num_labels=len(SCENE_CLASSES), ignore_index=255)
    for _, truth, prediction, _ in predicted:
        metric.add(prediction=prediction, reference=truth)
    figures = metric.compute()
    first = next(entry for entry in run.trainer.state.log_history if "eval_mean_iou" in entry)
    assert first["step"] == 2
    assert "<b>first evaluation (step 2)</b>" in text
    rows = cells(text)["classes"]
    present = [name for name, each in metrics["classes"].items() if each["iou"] is not None]
    assert {row["class"] for row in rows} == set(present)
    for row in rows:
        label = SCENE_CLASSES.index(row["class"])
        assert float(row["IoU"]) == pytest.approx(figures["per_category_iou"][label], abs=1e-4)
        assert float(row["IoU of reference"]) == pytest.approx(first[f"eval_iou_{row['class']}"], abs=1e-4)
        gain = metrics["classes"][row["class"]]["iou"] - first[f"eval_iou_{row['class']}"]
        assert float(row["gain"]) == pytest.approx(gain, abs=1e-4)
    gains = [float(row["gain"]) for row in rows]
    assert gains == sorted(gains, reverse=True)


def test_confusions_are_recomputed(finished, predicted):
    counts = np.zeros((len(SCENE_CLASSES),) * 2)
    for _, truth, prediction, _ in predicted:
        for row, column in zip(truth[truth != 255], prediction[truth != 255], strict=True):
            counts[row, column] += 1
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    rows = cells(finished[2])["confusions"]
    assert len(rows) == min(15, np.count_nonzero(wrong))
    for row in rows:
        true, guessed = SCENE_CLASSES.index(row["ground truth"]), SCENE_CLASSES.index(row["predicted"])
        assert row["of all wrong pixels"] == f"{wrong[true, guessed] / wrong.sum():.1%}"
        assert row["of the class"] == f"{counts[true, guessed] / counts[true].sum():.1%}"
    (matrix,) = Page(finished[2]).pictures["Confusion matrix"]
    assert set(SCENE_CLASSES) - set(svg_text(matrix)) == set()


def test_best_and_worst_images_are_recomputed(finished, predicted):
    text, scores = finished[2], {}
    for name, truth, prediction, _ in predicted:
        ious = []
        for label in range(len(SCENE_CLASSES)):
            mine, theirs = (prediction == label) & (truth != 255), truth == label
            if (mine | theirs).any():
                ious.append((mine & theirs).sum() / (mine | theirs).sum())
        scores[name] = np.mean(ious)
    in_order = sorted(scores, key=scores.get)
    worst = in_order[:2]
    best = in_order[:1:-1]
    shown = re.findall(r"<b>([\w/.]+): mean IoU ([\d.]+)", text)
    assert [name for name, _ in shown] == [*best, *worst]
    for name, value in shown:
        assert float(value) == pytest.approx(scores[name], abs=1e-4)


def test_context_table_is_recomputed(finished, predicted):
    wins = {name: [0, 0] for name in SCENE_CLASSES}
    for _, _, _, outputs in predicted:
        for query, label in enumerate(outputs.class_queries_logits[0].argmax(dim=-1).tolist()):
            if label < len(SCENE_CLASSES):
                wins[SCENE_CLASSES[label]][int(outputs.mask_text_similarity[0, :, query, label].argmax())] += 1
    rows = cells(finished[2])["contexts"]
    assert {row["class"] for row in rows} == {name for name, counts in wins.items() if sum(counts)}
    for row in rows:
        counts = np.array(wins[row["class"]])
        assert int(row["masks"]) == counts.sum()
        shares = counts[counts > 0] / counts.sum()
        assert row["most often"] == f"{counts.argmax() + 1} ({counts.max() / counts.sum():.0%})"
        assert float(row["entropy (bits)"]) == pytest.approx(-(shares * np.log2(shares)).sum(), abs=1e-3)


def test_similarity_matrix_is_the_models(finished, predicted):
    (matrix,) = Page(finished[2]).pictures["Cosine of masks and class texts"]
    text = svg_text(matrix)
    masks_of = {name: outputs.class_queries_logits[0].argmax(dim=-1) for name, _, _, outputs in predicted}
    picked = max(masks_of, key=lambda name: len(set(masks_of[name].tolist()) - {len(SCENE_CLASSES)}))
    assert f"{picked}: of 5 images" in finished[2]
    outputs = next(outputs for name, _, _, outputs in predicted if name == picked)
    queries = (masks_of[picked] < len(SCENE_CLASSES)).nonzero()[:, 0]
    expected = outputs.mask_text_similarity[0, :, queries].amax(dim=0)
    order = outputs.class_queries_logits[0, queries].softmax(dim=-1).amax(dim=-1).argsort(descending=True)
    assert " ".join(f"{value:.2f}" for value in expected[order].flatten().tolist()) in " ".join(text)
    assert {"no object", *SCENE_CLASSES} <= set(text)
    assert sum(bool(re.fullmatch(r"\d+ [\w ]+", each)) for each in text) == len(queries)


def test_aligned_masks_and_texts_give_the_models_similarity():
    model = tiny_model()
    torch.nn.init.constant_(model.class_predictor.bias[-1], -3.0)
    processor = MTAClipImageProcessor(size={"shortest_edge": 64, "longest_edge": 128})
    example = evaluation_example(1)
    alignment = align_masks(model, processor, example["image"])
    with torch.no_grad():
        outputs = model(**processor(example["image"], return_tensors="pt"))
    probabilities, classes = outputs.class_queries_logits[0].softmax(dim=-1).max(dim=-1)
    queries = probabilities.argsort(descending=True)
    queries = queries[classes[queries] < 3]
    assert len(queries) > 1
    assert alignment.classes.tolist() == classes[queries].tolist()
    similarity = outputs.mask_text_similarity[0, :, queries].amax(dim=0)
    np.testing.assert_allclose(alignment.similarity, similarity, atol=1e-6)
    assert ((alignment.centers >= 0) & (alignment.centers <= 1)).all()
    assert not model.text_head._forward_hooks


def test_principal_components_are_those_of_the_covariance():
    points = np.random.default_rng(0).normal(size=(20, 5)) * [1, 4, 2, 0.5, 3]
    coordinates, shares = _principal_components(points)
    values, vectors = np.linalg.eigh(np.cov(points.T))
    expected = (points - points.mean(axis=0)) @ vectors[:, :-3:-1]
    np.testing.assert_allclose(np.abs(coordinates), np.abs(expected), atol=1e-10)
    assert shares == pytest.approx(values[:-3:-1] / values.sum())
    assert _principal_components(points[:1])[0].tolist() == [[0, 0]]


def test_curves_show_loss_terms_and_scores(finished):
    ((picture,),) = [uris for alt, uris in Page(finished[2]).pictures.items() if alt.startswith("Loss")]
    assert {"cross entropy", "mask", "dice", "contrastive", "mean IoU"} <= set(svg_text(picture))


def test_evaluation_alone_has_no_curves_and_gains_over_the_constant_prediction(finished, tmp_path):
    run, metrics, _ = finished
    run.trainer.save_model(tmp_path / "model")
    data = run.trainer.eval_dataset.data
    folder = tmp_path / "alone"
    arguments = ["--do_eval", "--model_name_or_path", str(tmp_path / "model"), "--output_dir", str(folder)]
    dataset = run.trainer.args.output_dir.removesuffix("out") + "data"
    alone = prepare_run(*parse_run_arguments([*arguments, "--dataset_name", dataset, "--cpu_threads", "1"]))
    assert alone.data.class_names == data.class_names
    alone.execute()
    text = (folder / "report.html").read_text()
    assert Page(text).titles[0] == "Classes"
    assert "<b>constant prediction</b>" in text
    assert not (folder / "README.md").exists()
    assert cells(text)["contexts"] == cells(finished[2])["contexts"]
    ious = {name: each["iou"] for name, each in metrics["classes"].items() if each["iou"] is not None}
    gains = {row["class"]: float(row["gain"]) + float(row["IoU of reference"]) for row in cells(text)["classes"]}
    assert gains == pytest.approx(ious, abs=2e-4)


def test_a_model_without_text_has_no_text_sections(tmp_path):
    draw_folder(tmp_path / "data")
    _, _, text = execute(tmp_path, text_branch=False, eval_strategy="no", load_best_model_at_end=False)
    assert Page(text).titles == ["Training", "Classes", "Confusion matrix", "Best images", "Worst images", "Options"]


def test_the_report_can_be_left_out(tmp_path):
    draw_folder(tmp_path / "data")
    arguments = options(dataset_name=tmp_path / "data", output_dir=tmp_path / "out", report=False, num_pictures=1)
    prepare_run(*parse_run_arguments([*arguments, "--report_to", "none", "--check_data", "none"])).execute()
    assert not (tmp_path / "out" / "report.html").exists()
    assert len(list((tmp_path / "out" / "pictures").iterdir())) == 1


def test_many_classes_with_unusual_names(tmp_path):
    names = [f"class <{index}> & more" for index in range(149)] + ["never seen"]
    scores = SegmentationScores(names, ignore_index=255)
    generator = torch.Generator().manual_seed(0)
    for index in range(3):
        truth, prediction = torch.randint(0, 149, (2, 40, 50), generator=generator)
        scores.add(prediction, truth, f"image {index}", Image.new("RGB", (50, 40)))
    scores.contexts.add(torch.randn(1, 400, 151), torch.randn(1, 3, 400, 151))
    scores.finish()
    metrics = {f"eval_{name}": value for name, value in scores.summary().items()}
    metrics |= {"eval_mean_iou_interval": (0.0, 1.0), "eval_samples_per_second": 1.0, "classes": scores.per_class()}
    write_report(tmp_path / "report.html", title="many", metrics=metrics, scores=scores, palette=[(0, 0, 0)] * 150)
    text = (tmp_path / "report.html").read_text()
    assert len(cells(text)["classes"]) == 149
    assert "Neither annotated nor predicted: never seen." in text
    assert "<0>" not in text
    assert "class &lt;0&gt; &amp; more" in text
    (matrix,) = Page(text).pictures["Confusion matrix"]
    assert len([each for each in svg_text(matrix) if each.startswith("class <")]) == 2 * 149


@pytest.mark.slow
def test_two_processes_report_what_one_does(run_seg, tmp_path):
    data = draw_folder(tmp_path / "data", num_validation=5)
    run_seg(*options(dataset_name=data, output_dir=tmp_path / "model", num_pictures=0))
    arguments = ("--dataset_name", data, "--do_eval", "--model_name_or_path", tmp_path / "model", "--use_cpu")
    pages = {}
    for number in (1, 2):
        run_seg(*arguments, "--output_dir", tmp_path / str(number), num_processes=number)
        pages[number] = (tmp_path / str(number) / "report.html").read_text()
    assert cells(pages[1]) == cells(pages[2])
    shown = [re.findall(r"([\w/.]+: mean IoU [\d.]+)", page) for page in pages.values()]
    assert shown[0] == shown[1]
    assert len(shown[0]) == 5
