# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""What evaluation keeps for the report, what loggers get, and what the progress bar shows."""

import math
import os
import random
import re
import sys

import numpy as np
import pytest
import torch
from accelerate import PartialState
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import distributed, multiprocessing

from modeling_mtaclip import MTAClipImageProcessor
from modeling_mtaclip.training.callbacks import BriefProgressCallback
from modeling_mtaclip.training.evaluated_images import (
    BestAndWorstImages,
    ContextUsage,
    EvaluatedImage,
    align_masks,
    save_pictures,
)
from tests.tiny import CLASS_NAMES, tiny_model
from tests.training.distributed_steps import evaluation_example, example
from tests.training.test_trainer import trainer


@pytest.mark.parametrize("num_images", [1, 2, 5, 8, 40])
def test_the_best_and_worst_images_are_kept(num_images):
    """Of equal scores, the first names are the worst."""
    in_order = [(f"image {index:02}", index // 3 / 20) for index in range(num_images)]
    scores = [*in_order, ("nothing annotated", math.nan)]
    random.Random(num_images).shuffle(scores)
    kept = BestAndWorstImages(number=3)
    labels = torch.zeros(4, 6, dtype=torch.long)
    for score in scores:
        kept.add(*score, Image.new("RGB", (6, 4)), labels, labels)
    kept.gather()
    num_worst = min(3, num_images // 2)
    assert [(image.name, image.mean_iou) for image in kept.worst] == in_order[:num_worst]
    assert [(image.name, image.mean_iou) for image in kept.best] == in_order[num_worst:][::-1][:3]


def gather_in_process(rank, folder):
    """Two processes: both have an image of one name and score, in another color."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    PartialState._reset_state()
    PartialState(cpu=True)
    kept, usage, labels = BestAndWorstImages(number=2), ContextUsage(2), torch.full((4, 6), rank)
    for name, score, color in (("1.png", 0.5, ("red", "blue")[rank]), (f"own {rank}", 0.1 + rank, "black")):
        kept.add(name, score, Image.new("RGB", (6, 4), color), labels, labels)
    usage.add(torch.eye(3)[None, :2], torch.eye(3)[:2].repeat(1, 2, 1, 1))
    kept.gather()
    usage.gather()
    torch.save((kept.worst, kept.best, usage.counts, usage.agreeing), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_bring_their_images_and_counts_together(tmp_path):
    multiprocessing.start_processes(
        gather_in_process, (str(tmp_path),), 2, start_method="fork" if sys.platform == "linux" else "spawn"
    )
    for rank in range(2):
        worst, best, counts, agreeing = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert [image.name for image in (*worst, *best)] == ["own 0", "1.png", "own 1", "1.png"]
        colors = [image.image.getpixel((0, 0)) for image in (worst[1], best[1])]
        assert sorted(colors) == [(0, 0, 255), (255, 0, 0)]
        assert [image.prediction[0, 0] for image in (worst[0], best[0])] == [0, 1]
        assert counts.tolist() == [[2, 0], [2, 0]]
        assert agreeing.tolist() == [2, 2]


def test_kept_images_are_upright_thumbnails_and_have_the_labels_at_the_centers():
    labels = np.arange(40).reshape(4, 10) % 256
    assert np.array_equal(EvaluatedImage("", Image.new("L", (10, 4)), labels, labels).ground_truth, labels)
    large = np.zeros((1440, 960), dtype=np.uint8)
    large[1::3, 1::3] = 255
    photo = Image.new("RGB", (1440, 960))
    photo.paste("red", (0, 0, 300, 300))
    photo.getexif()[0x0112] = 6
    kept = EvaluatedImage("", photo, large, large)
    assert kept.image.size == (320, 480)
    assert kept.image.getpixel((319, 0)) == (255, 0, 0)
    assert (kept.prediction == 255).all()


def test_winning_contexts_are_counted_as_written_out():
    class_logits, similarity = torch.randn(5, 7, 5), torch.randn(5, 3, 7, 5)
    usage = ContextUsage(4)
    for part in range(5):
        usage.add(class_logits[part : part + 1], similarity[part : part + 1])
    usage.gather()
    counts, agreeing = np.zeros((4, 3)), np.zeros(4)
    for image, query in np.ndindex(5, 7):
        label = int(class_logits[image, query].argmax())
        if label < 4:
            counts[label, int(similarity[image, :, query, label].argmax())] += 1
            agreeing[label] += int(similarity[image, :, query].argmax()) % 5 == label
    assert np.array_equal(usage.counts, counts)
    assert np.array_equal(usage.agreeing, agreeing)


def test_evaluation_finds_images_and_contexts(tmp_path):
    examples = [evaluation_example(index) | {"name": f"number {index}"} for index in range(5)]
    run = trainer(tmp_path, eval_dataset=examples)
    run.evaluate()
    names = {image.name for image in (*run.scores.best_and_worst.best, *run.scores.best_and_worst.worst)}
    assert names == {example["name"] for example in examples}
    assert len(run.scores.per_image) == 5
    best = run.scores.best_and_worst.best[0]
    index = int(best.name.split()[1])
    assert np.array_equal(best.ground_truth, np.array(examples[index]["annotation"]))
    assert np.array_equal(best.image, np.array(examples[index]["image"]))
    assert np.array_equal(best.prediction, run.evaluated_image(examples[index]).prediction)
    assert run.scores.contexts.counts.shape == (len(CLASS_NAMES), 3)


def test_aligned_masks_and_texts_give_the_models_similarity():
    model = tiny_model()
    torch.nn.init.constant_(model.class_predictor.bias[-1], -3.0)
    processor = MTAClipImageProcessor(size={"shortest_edge": 64, "longest_edge": 128})
    image = evaluation_example(1)["image"]
    alignment = align_masks(model, processor, image)
    with torch.no_grad():
        outputs = model(**processor(image, return_tensors="pt"))
    probabilities, classes = outputs.class_queries_logits[0].softmax(dim=-1).max(dim=-1)
    queries = probabilities.argsort(descending=True)
    queries = queries[classes[queries] < 3]
    assert len(queries) > 1
    assert alignment.classes.tolist() == classes[queries].tolist()
    similarity = outputs.mask_text_similarity[0, :, queries].amax(dim=0)
    np.testing.assert_allclose(alignment.similarity, similarity, atol=1e-6)
    assert ((alignment.centers >= 0) & (alignment.centers <= 1)).all()
    assert not model.text_head._forward_hooks
    assert align_masks(tiny_model(text_branch=False, class_token_ids=None), processor, image) is None


def test_every_picture_has_its_own_file_and_none_is_left_of_an_earlier_run(tmp_path):
    labels = np.array([[0, 1, 255]])
    names = ["a/1.png", "b/1.png", "1.jpg", "", "x y/\u00e4?:|*.png", "n" * 300]
    images = [EvaluatedImage(name, Image.new("RGB", (3, 1)), labels, labels) for name in names]
    save_pictures(tmp_path / "pictures", images, ["road", "sky"], [(1, 2, 3), (4, 5, 6)])
    files = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert files == ["000_1.png", "001_1.png", "002_1.png", "003_.png", "004_\u00e4_.png", f"005_{'n' * 80}.png"]
    own = tmp_path / "pictures" / "mine.png"
    own.write_bytes(b"")
    save_pictures(tmp_path / "pictures", images[3:4], ["road", "sky"], [(1, 2, 3), (4, 5, 6)])
    assert sorted(path.name for path in own.parent.iterdir()) == ["000_.png", "mine.png"]


def test_tensorboard_gets_every_loss_term_and_the_iou_of_each_class(tmp_path):
    examples = [example(index) for index in range(4)]
    run = trainer(
        tmp_path,
        train_dataset=examples,
        eval_dataset=[evaluation_example(0)],
        report_to="tensorboard",
        do_train=True,
        do_eval=True,
    )
    run.train()
    run.evaluate()
    (folder,) = tmp_path.glob("runs/*")
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    tags = set(accumulator.Tags()["scalars"])
    layers = ["", *(f"_{index}" for index in range(4))]
    terms = [f"{term}{layer}" for term in ("cross_entropy", "mask", "dice", "contrastive") for layer in layers]
    assert {f"train/loss_{term}" for term in terms} | {"train/loss", "train/learning_rate"} <= tags
    present = [name for name, figures in run.scores.per_class().items() if figures["iou"] is not None]
    assert {f"eval/iou_{name}" for name in present} | {"eval/mean_iou"} <= tags
    history = {f"train/{key}": entry[key] for entry in run.state.log_history[:2] for key in entry}
    for term in terms:
        logged = accumulator.Scalars(f"train/loss_{term}")
        assert [scalar.step for scalar in logged] == [1, 2]
        assert logged[-1].value == pytest.approx(history[f"train/loss_{term}"])


def test_evaluation_alone_leaves_no_log_in_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = trainer(tmp_path, eval_dataset=[evaluation_example(0)], report_to="tensorboard", do_eval=True)
    run.evaluate()
    assert not (tmp_path / "runs").exists()


def test_the_progress_bar_shows_loss_miou_speed_and_remaining_time(tmp_path, capsys):
    run = trainer(
        tmp_path,
        train_dataset=[example(index) for index in range(4)],
        eval_dataset=[evaluation_example(0)],
        max_steps=3,
        eval_strategy="steps",
        eval_steps=1,
        disable_tqdm=False,
    )
    assert any(isinstance(each, BriefProgressCallback) for each in run.callback_handler.callbacks)
    run.train()
    bars = capsys.readouterr().err
    assert re.search(r"3/3 \[\d+:\d\d<00:00, .*loss \d.*, mIoU \d.*, [\d.]+ images/s", bars)
