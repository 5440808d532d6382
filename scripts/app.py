#!/usr/bin/env python
# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""A page in the browser to try models on: classes, confidence, errors, and which words a mask is close to.

python scripts/app.py --model_name_or_path outputs/scenes

Without a model it takes the one that `scripts/run_seg.py` trains by default. Photographs are deleted after an hour.
"""

import argparse
import os
import random
import re
import tempfile
import traceback
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
from PIL import Image

from modeling_mtaclip import MTAClipForSemanticSegmentation, MTAClipImageProcessor
from modeling_mtaclip.data import IGNORE_INDEX, generate_palette, palette_of
from modeling_mtaclip.data.image_files import is_image, open_image, open_label_map
from modeling_mtaclip.data.scenes import make_scene
from modeling_mtaclip.inference import ImageMasks, InferenceOptions, Segmenter, segment_phrases
from modeling_mtaclip.inference.predict import load_model
from modeling_mtaclip.inference.result_formats import FORMATS
from modeling_mtaclip.visualization import compare, confidence_map, error_map, highlight, legend_entries, overlay


DEFAULT_RUN = "outputs/scenes"
NO_MODEL = (
    f"There is no model in {DEFAULT_RUN} yet. `accelerate launch scripts/run_seg.py` trains a small one there, in a "
    "few minutes on a CPU and without any download; then reload this page. Or start the page with "
    "`--model_name_or_path`, or type the id of a model on the Hub."
)
ABOUT_PHRASES = (
    "Each mask of the trained classes gets the phrase that it is closest to. Phrases compete with each other only, "
    "and every pixel gets one of them. This shows other words for what was trained, as far as the text encoder knows "
    "them; things that were never trained are **not** found. A model whose text encoder began with random weights, "
    "like that of the default run, knows nothing but its class names."
)
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
# Photographs are shrunk to the first before they are predicted; pictures are shown between the other two.
MAX_SIDE, MIN_SHOWN, MAX_SHOWN = 2048, 640, 1280
MAX_FILE_SIZE, MAX_FILES, MAX_PHRASES, MAX_PHRASE_LENGTH = "50mb", 200, 20, 100
MAX_PIXELS = 50_000_000
# What the result shows, if not a class by its id.
ALL_CLASSES, CONFIDENCE, ERRORS = "all classes", "confidence", "errors"
# Of a new photograph: no mask, no text about it, no phrases.
NOTHING_YET = (None, "", None)
TOP = 5
# On a phone, a click into the result leads to what is said about it, and tables fit, with whole words.
SCROLL = "() => document.getElementById('alignment').scrollIntoView({block: 'nearest', behavior: 'smooth'})"
CSS = "#alignment :is(td, th) { padding: 0.4em; overflow-wrap: normal; word-break: normal }"


@dataclass
class Loaded:
    """A model, and the copy of it that predicts."""

    name: str
    model: MTAClipForSemanticSegmentation
    image_processor: MTAClipImageProcessor

    @cached_property
    def class_names(self) -> list[str]:
        return [self.model.config.id2label[index] for index in range(self.model.config.num_labels)]

    @cached_property
    def for_inference(self) -> MTAClipForSemanticSegmentation:
        return self.model.for_inference()

    def segmenter(self, options: InferenceOptions | None = None) -> Segmenter:
        return Segmenter(self.for_inference, self.image_processor, options, forward=self.for_inference)


@dataclass
class Result:
    """What one visitor sees: a photograph and what a model says about it."""

    loaded: Loaded
    options: InferenceOptions
    image: Image.Image
    truth: np.ndarray | None
    labels: np.ndarray
    confidence: np.ndarray

    @cached_property
    def masks(self) -> ImageMasks:
        return self.loaded.segmenter().masks(self.image)

    @property
    def zoom(self) -> float:
        """Small photographs are shown larger, by a whole number, and large ones smaller than they are."""
        longest = max(self.image.size)
        return MAX_SHOWN / longest if longest > MAX_SHOWN else max(1, MIN_SHOWN // longest)

    def shown(self, picture: Image.Image) -> Image.Image:
        size = [max(1, round(self.zoom * length)) for length in picture.size]
        return picture.resize(size, Image.Resampling.BOX if self.zoom < 1 else Image.Resampling.NEAREST)


@contextmanager
def in_sentences() -> Iterator[None]:
    """Shows what was wrong as a message on the page."""
    try:
        yield
    except ValueError as error:
        raise gr.Error(escape(str(error)), duration=30, print_exception=False) from error
    except Exception as error:
        traceback.print_exc()
        raise gr.Error("This went wrong, and not by your fault. The log of the page says why.") from error


class Demo:
    """What the page does: each method is what one button or click calls."""

    def __init__(self, names: Sequence[str], device: str = "cpu", max_pixels: int = MAX_PIXELS) -> None:
        self.names, self.device, self.max_pixels = list(names) or [DEFAULT_RUN], device, max_pixels
        self.load = lru_cache(maxsize=2)(self._load)

    def _load(self, name: str) -> Loaded:
        if name not in self.names and (Path(name).exists() or not HUB_ID.fullmatch(name)):
            raise ValueError(
                f"{name!r} is no model that this page may open: choose one, or type a Hub id (owner/name)."
            )
        if self._is_missing(name):
            raise ValueError(NO_MODEL)
        model, image_processor = load_model(name, torch.float32)
        return Loaded(name, model.to(self.device).eval(), image_processor)

    def _is_missing(self, name: str) -> bool:
        return name == DEFAULT_RUN and not Path(name).exists()

    def greet(self) -> str:
        """What a visitor must know before anything else."""
        if self._is_missing(self.names[0]):
            return NO_MODEL
        return "Drop a photograph, or take one. Then click into the result."

    def nothing(self) -> tuple:
        """What the page shows without a photograph, or after one that is refused."""
        return None, None, gr.Radio(visible=False), "", self.greet(), *NOTHING_YET

    def draw_scene(self) -> tuple[str, str]:
        """Files of a drawn street scene and its ground truth."""
        folder = Path(tempfile.mkdtemp(dir=os.environ["GRADIO_TEMP_DIR"]))
        for name, picture in zip(("scene", "truth"), make_scene(random.randrange(10**6, 10**9)), strict=True):
            picture.save(folder / f"{name}.png")
        return str(folder / "scene.png"), str(folder / "truth.png")

    @in_sentences()
    def segment(
        self, photo: dict | None, truth: dict | None, name: str, mode: str, window: int, tta: bool, opacity: float
    ) -> tuple:
        """Predicts; photo and truth are descriptions of uploaded files, which nobody has opened yet."""
        if photo is None:
            return self.nothing()
        loaded, image = self.load(name), self._open(photo["path"])
        if truth is not None:
            truth = self._open_truth(truth["path"], image.size, loaded.class_names)
        image.thumbnail((MAX_SIDE, MAX_SIDE))
        options = InferenceOptions.from_arguments(mode, [window], [window * 2 // 3], tta)
        segmenter = loaded.segmenter(options)
        labels, confidence = segmenter.predict_with_confidence(segmenter.prepare(image))
        result = Result(loaded, options, image, truth, labels.cpu().numpy(), confidence.cpu().numpy())
        return result, self.draw(result, ALL_CLASSES, opacity), *_legend(result), _summary(result), *NOTHING_YET

    def _open(self, path: str) -> Image.Image:
        return open_image(_content(path), self.max_pixels, _name(path))

    def _open_truth(self, path: str, size: tuple[int, int], class_names: Sequence[str]) -> np.ndarray:
        labels, name = open_label_map(_content(path), self.max_pixels, _name(path)), _name(path)
        if labels.shape[::-1] != size:
            raise ValueError(f"The ground truth {name} has {labels.shape[::-1]} pixels, the photograph {size}.")
        if wrong := sorted({*np.unique(labels).tolist()} - {*range(len(class_names)), IGNORE_INDEX}):
            raise ValueError(
                f"The ground truth {name} has the values {wrong[:5]}, which are no ids of classes or 255."
            )
        labels = Image.fromarray(labels.astype(np.uint8))
        labels.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.NEAREST)
        labels = np.asarray(labels)
        if (labels == IGNORE_INDEX).all():
            raise ValueError(f"The ground truth {name} has no pixel with a class: all are {IGNORE_INDEX}.")
        return labels

    @in_sentences()
    def draw(self, result: Result | None, chosen: str | int, opacity: float) -> Image.Image | None:
        """The picture that is shown: all classes, one of them, confidence or errors."""
        if result is None:
            return None
        image, labels, palette = result.image, result.labels, palette_of(result.loaded.class_names)
        if chosen == ALL_CLASSES:
            picture = overlay(image, labels, palette, opacity, ignore_index=-1)
        elif chosen == CONFIDENCE:
            picture = confidence_map(result.confidence)
        elif chosen == ERRORS:
            picture = error_map(labels, result.truth, image=image)
        else:
            picture = highlight(image, labels == chosen, palette[chosen], opacity)
        return result.shown(picture)

    @in_sentences()
    def click(self, result: Result | None, event: gr.SelectData) -> tuple:
        """Looks at the pixel of the photograph that was clicked in the picture."""
        zoom, places = _present(result).zoom, zip(event.index, result.image.size, strict=True)
        x, y = (min(int((place + 0.5) / zoom), length - 1) for place, length in places)
        return (x, y, *self.look_at(result, x, y))

    @in_sentences()
    def look_at(self, result: Result | None, x: float, y: float) -> tuple[Image.Image, str]:
        """The mask at a pixel of the photograph, and the classes and texts that it is close to."""
        masks, names = _present(result).masks, result.loaded.class_names
        index = masks.mask_at(int(x or 0), int(y or 0))
        mask, best = masks.mask(index).numpy(), int(masks.probabilities[index, :-1].argmax())
        picture = highlight(result.image, mask, palette_of(names)[best], 0.6)
        return result.shown(picture), _alignment(masks, index, (mask > 0.5).mean(), [*names, "no object"])

    @in_sentences()
    def fit_phrases(self, result: Result | None, text: str) -> Image.Image:
        """Where each of a visitor's own phrases, one a line, fits best."""
        loaded = _present(result).loaded
        phrases = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
        if not 2 <= len(phrases) <= MAX_PHRASES or max(map(len, phrases)) > MAX_PHRASE_LENGTH:
            raise ValueError(
                f"Type 2 to {MAX_PHRASES} phrases, each on a line of its own with at most {MAX_PHRASE_LENGTH} "
                "characters: they compete with each other."
            )
        model = (loaded.model, loaded.image_processor, loaded.name)
        labels = segment_phrases(result.image, phrases, *model, result.options).labels.cpu()
        palette = generate_palette(len(phrases))
        picture = result.shown(overlay(result.image, labels, palette, 0.6, ignore_index=-1))
        return compare([("", picture)], phrases, palette, [labels], show_shares=True, ignore_index=-1)

    def segment_folder(
        self, files: Sequence[str] | None, name: str, mode: str, window: int, tta: bool
    ) -> Iterator[tuple[str | None, str]]:
        """A ZIP file with class ids and overlay of each image, and what was left out; until then, how far it is."""
        with in_sentences():
            if not files or len(files) > MAX_FILES:
                raise ValueError(f"Choose a folder with 1 to {MAX_FILES} files, got {len(files or [])}.")
            yield None, "Loading the model."
            loaded, problems = self.load(name), []
            segmenter = loaded.segmenter(InferenceOptions.from_arguments(mode, [window], [window * 2 // 3], tta))
            archive = Path(tempfile.mkdtemp(dir=os.environ["GRADIO_TEMP_DIR"])) / "predictions.zip"
            with zipfile.ZipFile(archive, "w") as results:
                for number, path in enumerate(sorted(files, key=_name)):
                    yield None, f"Predicting image {number + 1} of {len(files)}."
                    try:
                        image = self._open(path)
                    except ValueError as error:
                        problems.append(_escape(str(error)))
                        continue
                    image.thumbnail((MAX_SIDE, MAX_SIDE))
                    (labels,) = segmenter.predict([segmenter.prepare(image)])
                    _add_results(results, f"{number:03}_{Path(path).stem}", image, labels.cpu().numpy(), loaded)
            report = f"Predicted: {len(files) - len(problems)} images. Left out: {len(problems)} files."
            yield str(archive) if len(problems) < len(files) else None, "\n- ".join([report, *problems])


def _present(result: Result | None) -> Result:
    if result is None:
        raise ValueError("Segment a photograph first.")
    return result


def _name(path: str) -> str:
    return Path(path).name


def _content(path: str) -> bytes:
    """The bytes of an uploaded file, if it is an image by its content; the formats of exotic decoders are none."""
    # A request that no browser sends can name any file of this computer.
    if not Path(path).resolve().is_relative_to(Path(os.environ["GRADIO_TEMP_DIR"]).resolve()):
        raise ValueError(f"{path!r} was not uploaded to this page.")
    if not is_image(Path(path)):
        raise ValueError(f"{_name(path)} is no image of a known format, whatever its name says.")
    return Path(path).read_bytes()


def _legend(result: Result) -> tuple[gr.Radio, str]:
    """What can be shown, the classes by area last, and the style sheet that puts their colors beside them."""
    names = result.loaded.class_names
    choices = [ALL_CLASSES, CONFIDENCE] + [ERRORS] * (result.truth is not None)
    rule = "#legend label:nth-of-type({}) span {{ border-left: 1em solid rgb{}; padding-left: 0.5em }}"
    entries, rules = legend_entries([result.labels], names, palette_of(names), ignore_index=-1), []
    for name, color, share in zip(*entries, strict=True):
        choices.append((f"{name}  {share:.1%}", names.index(name)))
        rules.append(rule.format(len(choices), tuple(color)))
    return gr.Radio(choices, value=ALL_CLASSES, visible=True), f"<style>{' '.join(rules)}</style>"


def _summary(result: Result) -> str:
    name, (width, height) = _escape(result.loaded.name), result.image.size
    text = f"{name}: {width} x {height} pixels, mean confidence {result.confidence.mean():.0%}."
    if result.truth is None:
        return text
    annotated = result.truth != IGNORE_INDEX
    right = (result.labels == result.truth)[annotated].mean()
    return f"{text} {right:.1%} of the annotated pixels are right."


def _alignment(masks: ImageMasks, index: int, area: float, names: Sequence[str]) -> str:
    """What the class head and the class texts say about a mask."""
    names, probabilities = [*map(_escape, names)], masks.probabilities[index]
    order = probabilities.argsort(descending=True).tolist()[:TOP]
    sentences = f"**Mask {index}** covers {area:.1%} of the image. Class head: **{names[order[0]]}**."
    columns = {"class": names, "class head": [f"{each:.1%}" for each in probabilities]}
    if masks.similarity is not None:
        similarity, contexts = masks.similarity[:, index].max(dim=0)
        closest = similarity.argsort(descending=True).tolist()[:TOP]
        best, won, number = names[closest[0]], int(contexts[closest[0]]) + 1, len(masks.similarity)
        sentences += f" Most similar text: **{best}**, in prompt context {won} of {number}."
        columns["similarity"] = [f"{round(each, 2) + 0:.2f}" for each in similarity.tolist()]
        columns["context"] = [str(each + 1) for each in contexts.tolist()]
        order = list(dict.fromkeys(order + closest))
    rows = [columns, ["---"] * len(columns), *([column[each] for column in columns.values()] for each in order)]
    return "\n".join([sentences, "", *(f"| {' | '.join(row)} |" for row in rows)])


def _escape(text: str) -> str:
    return re.sub(r"([^\w\s.,:;-])", r"\\\1", " ".join(text.split()))


def _add_results(results: zipfile.ZipFile, stem: str, image: Image.Image, labels: np.ndarray, loaded: Loaded) -> None:
    for kind, encoding in (("index", "PNG"), ("overlay", "JPEG")):
        content = FORMATS[kind].content(labels, loaded.class_names, image, stem)
        with results.open(stem + FORMATS[kind].ending, "w") as file:
            content.save(file, encoding)


def build_page(demo: Demo) -> gr.Blocks:
    """The page, and which of its parts calls which method."""
    with gr.Blocks(title="MTA-CLIP", analytics_enabled=False, delete_cache=(600, 3600), fill_width=True) as page:
        gr.Markdown("# MTA-CLIP\nSemantic segmentation that reads the names of its classes.")
        with gr.Row():
            with gr.Column(min_width=240):
                name = gr.Dropdown(demo.names, value=demo.names[0], label="Model", allow_custom_value=True)
            with gr.Column(min_width=240):
                mode = gr.Radio([("whole image", "whole"), ("sliding window", "slide")], value="whole", label="Mode")
                window = gr.Slider(64, 1024, 512, step=32, label="Side of a window", visible=False)
            with gr.Column(min_width=240):
                tta = gr.Checkbox(label="Test-time augmentation", info="six scales, each mirrored too: slow")
        mode.change(lambda chosen: gr.Slider(visible=chosen == "slide"), mode, window)
        options = [name, mode, window, tta]
        with gr.Tab("Photograph"):
            _photograph(demo, options)
        with gr.Tab("Folder"):
            files = gr.File(file_count="directory", label="Folder of images", height=240)
            with gr.Row():
                predict, stop = gr.Button("Segment the folder", variant="primary"), gr.Button("Stop")
            report, archive = gr.Markdown(), gr.File(label="Class ids and overlays", interactive=False, height=100)
            folder = {"inputs": [files, *options], "outputs": [archive, report], "concurrency_limit": 1}
            started = predict.click(demo.segment_folder, **folder, show_progress_on=report)
            stop.click(lambda: "Stopped.", None, report, cancels=started)
    return page


def _photograph(demo: Demo, options: list[gr.components.Component]) -> None:
    state = gr.State(time_to_live=3600)
    model = {"concurrency_id": "model", "concurrency_limit": 1}
    shown = {"format": "png", "interactive": False, "buttons": ["download", "fullscreen"]}
    with gr.Row():
        with gr.Column(scale=3, min_width=280):
            photo = gr.Image(
                type="filepath", label="Photograph", format="png", buttons=[], height=300, alt_text="The photograph"
            )
            truth = gr.File(label="Ground truth (optional)", height=150)
            run = gr.Button("Segment", variant="primary")
            scene = gr.Button("A drawn street scene", visible=DEFAULT_RUN in demo.names)
        with gr.Column(scale=4):
            picture = gr.Image(label="Result", **shown, alt_text="The result")
            note = gr.Markdown(demo.greet)
            opacity = gr.Slider(0, 1, 0.5, step=0.05, label="Opacity of classes")
            legend = gr.Radio(label="Show", info="each class with its area", visible=False, elem_id="legend")
            style = gr.HTML()
        with gr.Column(scale=4):
            mask = gr.Image(label="Mask at a pixel: click into the result", **shown, alt_text="The mask at the pixel")
            with gr.Row():
                x, y = (gr.Number(0, precision=0, minimum=0, label=label, min_width=80) for label in ("Column", "Row"))
                look = gr.Button("Look at this pixel", min_width=120)
            alignment = gr.Markdown(elem_id="alignment")
    with gr.Row():
        with gr.Column():
            gr.Markdown(f"## Your own phrases\n{ABOUT_PHRASES}")
            phrases = gr.Textbox(label="Phrases, one a line", lines=4)
            fit = gr.Button("Where do they fit best?")
        with gr.Column():
            fits = gr.Image(label="Best phrase at each pixel", **shown, alt_text="The best phrase at each pixel")
    outputs = [state, picture, legend, style, note, mask, alignment, fits]
    segment = {"fn": demo.segment, "inputs": [photo, truth, *options, opacity], "outputs": outputs}
    segment |= {"preprocess": False, "show_progress_on": picture, **model}
    segmented = gr.on([run.click, photo.input, truth.upload, truth.clear], **segment)
    for event in (segmented, scene.click(demo.draw_scene, None, [photo, truth]).then(**segment)):
        event.failure(demo.nothing, None, outputs)
    drawn = {"fn": demo.draw, "inputs": [state, legend, opacity], "outputs": picture, "show_progress": "hidden"}
    gr.on([legend.input, opacity.change], **drawn, trigger_mode="always_last")
    picture.select(demo.click, state, [x, y, mask, alignment], **model).then(js=SCROLL)
    look.click(demo.look_at, [state, x, y], [mask, alignment], **model)
    fit.click(demo.fit_phrases, [state, phrases], fits, **model)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = os.environ.get("MODEL_NAME_OR_PATH", DEFAULT_RUN).split()
    parser.add_argument(
        "--model_name_or_path",
        nargs="+",
        default=names,
        help="folders or Hub ids of trained models, the first of which is chosen; default: $MODEL_NAME_OR_PATH, or "
        f"{DEFAULT_RUN}",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...; default: %(default)s")
    parser.add_argument("--server_port", type=int, help="default: the first free one from 7860")
    parser.add_argument(
        "--max_pixels", type=int, default=MAX_PIXELS, help="larger images are refused; default: %(default)s"
    )
    return parser.parse_args(arguments)


def serve(arguments: argparse.Namespace, **options: Any) -> gr.Blocks:
    """Starts the server, whose address is `local_url` of what is returned."""
    os.environ.setdefault("GRADIO_RUN_HISTORY", "False")
    page = build_page(Demo(arguments.model_name_or_path, arguments.device, arguments.max_pixels))
    page.queue(max_size=20, default_concurrency_limit=4)
    page.launch(
        server_port=arguments.server_port,
        max_file_size=MAX_FILE_SIZE,
        state_session_capacity=100,
        enable_monitoring=False,
        ssr_mode=False,
        footer_links=["settings"],
        css=CSS,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        **options,
    )
    return page


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="mtaclip_page_") as folder:
        # All that is uploaded or made lies here, and nothing else can be read from outside.
        os.environ["GRADIO_TEMP_DIR"] = folder
        serve(parse_arguments())


if __name__ == "__main__":
    main()
