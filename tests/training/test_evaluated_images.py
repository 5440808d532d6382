# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Single images that report and pictures show."""

import random

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from modeling_mtaclip import MTAClipImageProcessor
from modeling_mtaclip.training.evaluated_images import (
    EvaluatedImage,
    align_masks,
    save_pictures,
    winning_contexts,
)
from modeling_mtaclip.training.evaluation import SegmentationScores
from modeling_mtaclip.training.report import best_and_worst
from modeling_mtaclip.training.run import _choose
from tests.tiny import CLASS_NAMES, tiny_model
from tests.training.distributed_steps import evaluation_example, trainer


@pytest.mark.parametrize("num_images", [1, 2, 5, 8, 40])
def test_the_best_and_worst_images_are_shown(num_images):
    """Of equal scores, the first names are the worst."""
    in_order = [f"image {index:02}" for index in range(num_images)]
    scores, truth = SegmentationScores(["a", "b"], 255), torch.zeros(1, 40, dtype=torch.long)
    scores.add(truth, truth + 255, "nothing annotated")
    for index in random.Random(num_images).sample(range(num_images), num_images):
        scores.add((torch.arange(40) >= index // 3)[None].long(), truth, in_order[index])
    scores.finish()
    best, worst = ([score.name for score in shown] for shown in best_and_worst(scores))
    num_worst = min(4, num_images // 2)
    assert (worst, best) == (in_order[:num_worst], in_order[num_worst:][::-1][:4])


class Named(torch.utils.data.Dataset):
    """Thirty examples, of which the sixth can't be used."""

    def __init__(self, has_column):
        names = [{"name": f"image {index}"} for index in range(30)]
        rows = datasets.Dataset.from_list(names)
        if not has_column:
            rows = datasets.Dataset.from_dict({"i": range(30)}).with_transform(
                lambda batch: {"name": [names[i]["name"] for i in batch["i"]]}
            )
        self.dataset = rows

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        if index == 5:
            raise ValueError
        return self.dataset[index]


@pytest.mark.parametrize("has_column", [True, False])
def test_examples_are_chosen_by_name_and_from_all_over(has_column):
    shares = [list(_choose(Named(has_column), 4, {"image 5", "image 7"}, rank, 2)) for rank in range(2)]
    chosen = [[int(example["name"].split()[1]) for example in share] for share in shares]
    assert chosen == [[0, 7, 19], [9, 29]]


def test_the_first_examples_of_a_stream_are_chosen_and_those_with_names():
    stream = ({"name": str(index)} for index in range(30))
    assert [example["name"] for example in _choose(stream, 4, {"7", "elsewhere"}, 0, 2)] == ["0", "1", "7"]
    assert len(list(_choose(iter([{"name": "a"}, {"name": "b"}]), 1, set(), 0, 1))) == 1


def test_shown_images_are_upright_thumbnails_and_have_the_labels_at_the_centers():
    labels = np.arange(40).reshape(4, 10) % 256
    assert np.array_equal(EvaluatedImage("", Image.new("L", (10, 4)), labels, labels).ground_truth, labels)
    large = np.zeros((1440, 960), dtype=np.uint8)
    large[1::3, 1::3] = 255
    photo = Image.new("RGB", (1440, 960))
    photo.paste("red", (0, 0, 300, 300))
    photo.getexif()[0x0112] = 6
    shown = EvaluatedImage("", photo, large, large)
    assert shown.image.size == (320, 480)
    assert shown.image.getpixel((319, 0)) == (255, 0, 0)
    assert (shown.prediction == 255).all()


def test_winning_contexts_are_counted_as_written_out():
    class_logits, similarity = torch.randn(5, 7, 5), torch.randn(5, 3, 7, 5)
    table = np.zeros((4, 4))
    for image, query in np.ndindex(5, 7):
        label = int(class_logits[image, query].argmax())
        if label < 4:
            table[label, int(similarity[image, :, query, label].argmax())] += 1
            table[label, -1] += int(similarity[image, :, query].argmax()) % 5 == label
    assert np.array_equal(winning_contexts(class_logits, similarity), table)


def test_shown_images_are_predicted_as_in_the_evaluation(tmp_path):
    examples = [evaluation_example(index) for index in range(5)]
    run = trainer(tmp_path, eval_dataset=examples)
    run.evaluate()
    assert sorted(score.name for score in run.scores.images()) == [each["name"] for each in examples]
    again = SegmentationScores(CLASS_NAMES, 255)
    for each in examples:
        image = run.evaluated_image(each)
        assert np.array_equal(image.image, np.array(each["image"]))
        again.add(torch.from_numpy(image.prediction), torch.from_numpy(image.ground_truth), image.name)
    again.finish()
    assert torch.equal(again.matrix, run.scores.matrix)
    assert run.scores.contexts.shape == (len(CLASS_NAMES), 4)


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
    similarity = np.einsum("me,cke->cmk", alignment.masks, alignment.texts)
    np.testing.assert_allclose(similarity, outputs.mask_text_similarity[0, :, queries], atol=1e-6)
    assert not model.text_head._forward_hooks
    assert align_masks(tiny_model(text_branch=False, class_token_ids=None), processor, image) is None


def test_every_picture_has_its_own_file_and_none_is_left_of_an_earlier_run(tmp_path):
    labels = np.array([[0, 1, 255]])
    names = ["a/1.png", "b/1.png", "1.jpg", "", "x y/\u00e4?:|*.png", "n" * 300]
    images = [EvaluatedImage(name, Image.new("RGB", (3, 1)), labels, labels) for name in names]
    save_pictures(tmp_path, images, ["road", "sky"], [(1, 2, 3), (4, 5, 6)])
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["000_1.png", "001_1.png", "002_1.png", "003_.png", "004_\u00e4_.png", f"005_{'n' * 80}.png"]
    (tmp_path / "mine.png").write_bytes(b"")
    save_pictures(tmp_path, images[3:4], ["road", "sky"], [(1, 2, 3), (4, 5, 6)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000_.png", "mine.png"]
