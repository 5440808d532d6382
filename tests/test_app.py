# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""scripts/app.py in a browser: what a visitor uploads, clicks and sees, and what the page refuses."""

import io
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import urllib.request
import zipfile
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_mtaclip import MTAClipImageProcessor
from modeling_mtaclip.conversion import make_tokenizer
from modeling_mtaclip.data import generate_palette
from modeling_mtaclip.data.scenes import SCENE_CLASSES
from modeling_mtaclip.inference import InferenceOptions, Segmenter, segment_phrases
from modeling_mtaclip.visualization import colorize, compare, confidence_map, error_map, highlight, overlay
from tests.tiny import CLASS_NAMES, text_fields, varied_model


pytest.importorskip("gradio", reason='needs Gradio: pip install -e ".[demo]"')
playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
if (CHROMIUM := shutil.which("chromium")) is None:
    pytest.skip("needs a browser: the program `chromium`", allow_module_level=True)

from scripts import app  # noqa: E402 - needs Gradio


PALETTE = generate_palette(3)
BROWSER_OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
BROWSER_OPTIONS += ["--disable-background-networking", "--disable-component-update"]
# Seconds: only failures take so long.
PATIENCE = 60
playwright.expect.set_options(timeout=PATIENCE * 1000)


def save_model(folder, class_names):
    """A saved model with clear masks, its folder and its image processor."""
    tokenizer = make_tokenizer([*class_names, "none"])
    model = varied_model(6, **text_fields(class_names, tokenizer))
    model.model.decoder.mask_embedder[-1].weight.data.mul_(40)
    processor = MTAClipImageProcessor(size={"shortest_edge": 64, "longest_edge": 256})
    for part in (model, processor, tokenizer):
        part.save_pretrained(folder)
    return SimpleNamespace(folder=folder, model=model, processor=processor)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), CLASS_NAMES)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts pages for command lines, and gives their addresses."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        pages = []

        def start(*arguments):
            page = app.serve(app.parse_arguments([*map(str, arguments)]), prevent_thread_lock=True, quiet=True)
            pages.append(page)
            return page.local_url

        yield start
        for page in pages:
            page.close()


@pytest.fixture(scope="module")
def address(tiny, start):
    return start("--model_name_or_path", tiny.folder)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=BROWSER_OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Opens pages, each as another visitor; none of them may reach any other host."""
    visitors, addresses, hosts = [], [], set()

    def visit(address, **options):
        visitor = browser.new_context(**options)
        visitor.set_default_timeout(PATIENCE * 1000)
        page = visitor.new_page()
        page.on("request", lambda request: hosts.update(re.findall(r"^(?:http|ws)s?://[^/]+", request.url)))
        page.goto(address)
        page.get_by_role("button", name="Segment", exact=True).wait_for()
        visitors.append(visitor)
        addresses.append(address)
        return page

    yield visit
    for visitor in visitors:
        visitor.close()
    assert hosts == {address.rstrip("/") for address in addresses}


@pytest.fixture
def page(visit, address):
    return visit(address)


def random_image(seed=0, height=70, width=90):
    blocks = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(np.kron(blocks, np.ones((8, 8, 1), dtype=np.uint8))[:height, :width])


def content_of(image, kind="PNG", **options):
    image.save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def upload(page, content, name="photo.png", place=0):
    file = {"name": name, "mimeType": "image/png", "buffer": content}
    page.locator("input[type=file]").nth(place).set_input_files(file)


def assert_shows(page, alt_text, expected):
    """Waits until the page has a picture, enlarged as small ones are; few pixels may differ."""
    expected, deadline = np.asarray(expected, dtype=int), time.monotonic() + PATIENCE
    share = 1
    while share > 0.01 and time.monotonic() < deadline:
        page.wait_for_timeout(50)
        pictures = page.get_by_alt_text(alt_text, exact=True)
        if pictures.count():
            content = page.request.get(pictures.first.get_attribute("src")).body()
            actual = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), dtype=int)
            share = (abs(actual - expected).max(-1) > 2).mean() if actual.shape == expected.shape else 1
    assert share <= 0.01, f"{share:.1%} of {alt_text} differ"


def enlarged(picture):
    return picture.resize([640 // max(picture.size) * length for length in picture.size], Image.Resampling.NEAREST)


def predict(tiny, image, **options):
    segmenter = Segmenter(tiny.model, tiny.processor, InferenceOptions(**options))
    return [each.numpy() for each in segmenter.predict_with_confidence(segmenter.prepare(image))]


def test_a_photograph_and_all_its_pictures(page, tiny):
    image = random_image()
    labels, confidence = predict(tiny, image)
    upload(page, content_of(image))
    assert_shows(page, "The result", enlarged(overlay(image, labels, PALETTE)))
    *views, _, _ = entries = page.locator("#legend label").all_inner_texts()
    assert views == ["all classes", "confidence"]
    entries = entries[2:]
    classes = np.unique(labels)
    assert len(entries) == len(classes) == 2
    for index in classes:
        (text,) = [each for each in entries if each.startswith(CLASS_NAMES[index])]
        assert float(text.split()[-1].strip("%")) == pytest.approx(100 * (labels == index).mean(), abs=1)
    page.get_by_label(CLASS_NAMES[classes[0]]).check()
    assert_shows(page, "The result", enlarged(highlight(image, labels == classes[0], PALETTE[classes[0]])))
    page.get_by_label("all classes").check()
    page.get_by_label("number input for Opacity of classes").fill("1")
    assert_shows(page, "The result", enlarged(colorize(labels, PALETTE)))
    page.get_by_label("confidence").check()
    assert_shows(page, "The result", enlarged(confidence_map(confidence)))
    assert page.get_by_label("errors").count() == 0

    truth = labels.astype(np.uint8).copy()
    truth[:20], truth[20:30] = 255, 1
    upload(page, content_of(Image.fromarray(truth)), "truth.png", place=-1)
    page.get_by_label("errors").check()
    assert_shows(page, "The result", enlarged(error_map(labels, truth, image=image)))
    assert page.get_by_text(f"{(labels == truth)[20:].mean():.1%} of the annotated pixels are right").is_visible()


def test_windows_and_test_time_augmentation(page, tiny):
    image = random_image(1, 70, 180)
    page.get_by_label("sliding window").check()
    page.get_by_label("number input for Side of a window").fill("64")
    page.get_by_label("number input for Side of a window").blur()
    upload(page, content_of(image))
    windows = {"mode": "slide", "window": (64, 64), "stride": (42, 42)}
    assert_shows(page, "The result", enlarged(overlay(image, predict(tiny, image, **windows)[0], PALETTE)))
    page.get_by_label("whole image").check()
    page.get_by_label("Test-time augmentation").check()
    page.get_by_role("button", name="Segment", exact=True).click()
    augmented = predict(tiny, image, scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), flip=True)[0]
    assert_shows(page, "The result", enlarged(overlay(image, augmented, PALETTE)))


@pytest.mark.parametrize("scale", [1, 20])
def test_a_click_finds_the_mask_of_a_turned_photograph(page, tiny, scale):
    exif = Image.Exif()
    exif[0x0112] = 6
    drawn = random_image()
    drawn = drawn.resize([scale * length for length in drawn.size], Image.Resampling.NEAREST)
    upload(page, content_of(drawn, "JPEG", exif=exif), "phone.jpg")
    image = Image.open(io.BytesIO(content_of(drawn, "JPEG"))).transpose(Image.Transpose.ROTATE_270)
    page.get_by_alt_text("The result").wait_for()
    masks = Segmenter(tiny.model, tiny.processor).masks(image)
    places = {masks.mask_at(x, y): (x, y) for x in range(5, image.width, 15) for y in range(5, image.height, 15)}
    assert len(places) > 1
    for place in places.values():
        picture = page.get_by_alt_text("The result")
        box = picture.bounding_box()
        sides = zip(place, image.size, (box["width"], box["height"]), strict=True)
        x, y = ((pixel + 0.5) / length * shown for pixel, length, shown in sides)
        picture.click(position={"x": x, "y": y})
        # A pixel of the screen is several of a large photograph.
        for label, pixel in zip(("Column", "Row"), place, strict=True):
            near = "|".join(str(each) for each in range(pixel - scale // 5, pixel + scale // 5 + 1))
            playwright.expect(page.get_by_label(label)).to_have_value(re.compile(f"^({near})$"))
        index = masks.mask_at(*(int(page.get_by_label(label).input_value()) for label in ("Column", "Row")))
        page.get_by_text(f"Mask {index} ").wait_for()
        best = masks.probabilities[index, :-1].argmax()
        if scale == 1:
            expected = enlarged(highlight(image, masks.mask(index), PALETTE[best], 0.6))
            assert_shows(page, "The mask at the pixel", expected)
        similarity, contexts = masks.similarity[:, index].max(0)
        row = page.locator("table tr").nth(1).inner_text().split("\t")
        top = masks.probabilities[index].argmax()
        numbers = f"{masks.probabilities[index, top]:.1%}", f"{similarity[top]:.2f}", str(int(contexts[top]) + 1)
        assert row == [[*CLASS_NAMES, "no object"][top], *numbers]


def test_own_phrases(page, tiny):
    image, phrases = random_image(2), ["road", "swimming pool"]
    assert page.get_by_text("things that were never trained are not found").is_visible()
    upload(page, content_of(image))
    page.get_by_alt_text("The result").wait_for()
    page.get_by_label("Phrases, one a line").fill("\n".join([*phrases, "", "road"]))
    page.get_by_role("button", name="Where do they fit best?").click()
    fits = segment_phrases(image, phrases, tiny.model, tiny.processor, str(tiny.folder)).labels
    colors = generate_palette(2)
    picture = enlarged(overlay(image, fits, colors, 0.6))
    assert_shows(page, "The best phrase at each pixel", compare([("", picture)], phrases, colors, [fits], True))
    page.get_by_label("Phrases, one a line").fill("road")
    page.get_by_role("button", name="Where do they fit best?").click()
    page.get_by_text("Type 2 to 20 phrases, each on a line of its own with at most 100 characters").wait_for()


@pytest.mark.parametrize("text", ["", "road", "road\n" + "b" * 101, "\n".join(map(str, range(21)))])
def test_too_few_too_many_and_too_long_phrases_are_refused(text):
    with pytest.raises(app.gr.Error, match="2 to 20 phrases, each on a line of its own with at most 100 characters"):
        app.Demo([]).fit_phrases(SimpleNamespace(loaded=None), text)


def test_a_similarity_near_zero_has_no_sign():
    masks = SimpleNamespace(probabilities=torch.tensor([[0.7, 0.3]]), similarity=torch.tensor([[[-0.001, -0.2]]]))
    assert "| road | 70.0% | 0.00 | 1 |" in app._alignment(masks, 0, 0.5, ["road", "no object"])


def huge_png(side=30_000):
    """A PNG file of few bytes, which would need a gigabyte in memory."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)]
    chunks += [b"IDAT" + zlib.compress(bytes((side // 8 + 1) * side), 1), b"IEND"]
    parts = [struct.pack(">I", len(each) - 4) + each + struct.pack(">I", zlib.crc32(each)) for each in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.jpg", lambda: b"no picture", "text.jpg is no image of a known format, whatever its name says."),
        ("huge.png", huge_png, "its 30000 x 30000 pixels are more than the limit of 50,000,000"),
        ("deep.png", lambda: content_of(Image.new("I;16", (9, 9))), "16 bits per channel: expected 8 bits"),
        ("half.png", lambda: content_of(random_image())[:500], "The file half.png can't be read"),
    ],
)
def test_bad_photographs_are_refused_in_a_sentence(page, name, content, message):
    upload(page, content_of(random_image()))
    page.get_by_alt_text("The result").wait_for()
    upload(page, content(), name)
    page.get_by_text(message).wait_for()
    # Nothing is left of the photograph before.
    page.get_by_text("Drop a photograph").wait_for()
    assert page.get_by_alt_text("The result").count() == 0


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        (Image.new("L", (90, 71)), "has (90, 71) pixels, the photograph (90, 70)"),
        (Image.new("L", (90, 70), 7), "has the values [7], which are no ids of classes or 255"),
        (Image.new("L", (90, 70), 255), "has no pixel with a class: all are 255"),
        (random_image(), "expected one label id per pixel"),
    ],
)
def test_bad_ground_truth_is_refused_in_a_sentence(page, truth, message):
    upload(page, content_of(random_image()))
    page.get_by_alt_text("The result").wait_for()
    upload(page, content_of(truth), "truth.png", place=-1)
    page.get_by_text(message).wait_for()


def test_large_photographs_are_shrunk_with_their_ground_truth(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    truth = Image.new("L", (2600, 300), 2)
    truth.paste(255, (0, 0, 1300, 300))
    for name, image in (("photo", random_image().resize(truth.size)), ("truth", truth)):
        image.save(tmp_path / f"{name}.png")
    files = [{"path": str(tmp_path / f"{name}.png")} for name in ("photo", "truth")]
    result, *_ = app.Demo([str(tiny.folder)]).segment(*files, str(tiny.folder), "whole", 512, False, 0.5)
    assert result.image.size == (2048, 236)
    assert result.labels.shape == result.truth.shape == (236, 2048)
    assert (result.truth[:, :1024] == 255).all()
    assert (result.truth[:, 1024:] == 2).all()


def test_two_visitors_at_once(visit, address, tiny):
    pages = [visit(address), visit(address, viewport={"width": 390, "height": 844}, color_scheme="dark")]
    images = [random_image(seed) for seed in (3, 4)]
    for page, image in zip(pages, images, strict=True):
        upload(page, content_of(image))
    for page, image in zip(pages, images, strict=True):
        assert_shows(page, "The result", enlarged(overlay(image, predict(tiny, image)[0], PALETTE)))
        page.get_by_label("confidence").check()
    for page, image in zip(pages, images, strict=True):
        assert_shows(page, "The result", enlarged(confidence_map(predict(tiny, image)[1])))
    width = pages[1].evaluate("document.documentElement.scrollWidth")
    assert width <= 390, "the page is wider than a phone"


def test_all_can_be_done_by_keyboard(page):
    file = {"name": "photo.png", "mimeType": "image/png", "buffer": content_of(random_image())}
    page.on("filechooser", lambda chooser: chooser.set_files(file))

    def go_to(text):
        for _ in range(60):
            page.keyboard.press("Tab")
            focused = page.locator("*:focus:not(body)").evaluate_all(
                "all => all.map(each => each.innerText + each.labels?.[0]?.innerText).join()"
            )
            if text in focused:
                return
        pytest.fail(f"{text} can't be reached")

    go_to("Click to Upload")
    page.keyboard.press("Enter")
    page.get_by_alt_text("The result").wait_for()
    before = page.get_by_alt_text("The result").get_attribute("src")
    go_to("%")
    page.keyboard.press("Space")
    page.wait_for_function("before => document.querySelector('[alt=\"The result\"]').src != before", arg=before)
    go_to("Column")
    page.keyboard.type("40")
    go_to("Look at this pixel")
    page.keyboard.press("Enter")
    page.get_by_text("Class head:").wait_for()


def test_a_folder(page, tiny, tmp_path):
    images = {"b.jpg": random_image(5), "a.png": random_image(6)}
    for name, image in images.items():
        image.save(tmp_path / name)
    (tmp_path / "c.png").write_text("no picture")
    page.get_by_role("tab", name="Folder").click()
    page.locator("input[webkitdirectory]").set_input_files(tmp_path)
    page.get_by_text("c.png").or_(page.get_by_text("c", exact=True)).first.wait_for()
    page.get_by_role("button", name="Segment the folder").click()
    page.get_by_text("Predicted: 2 images. Left out: 1 files.").wait_for()
    assert page.get_by_text("c.png is no image of a known format").is_visible()
    link = page.locator("a[href*='predictions.zip']").first.get_attribute("href")
    with zipfile.ZipFile(io.BytesIO(page.request.get(link).body())) as results:
        assert results.namelist() == [
            f"{stem}{end}" for stem in ("000_a", "001_b") for end in (".png", "_overlay.jpg")
        ]
        labels = np.asarray(Image.open(results.open("000_a.png")))
    assert (labels == predict(tiny, images["a.png"])[0]).mean() > 0.99


def test_nothing_outside_the_temporary_folder_can_be_read(page, address, tiny, tmp_path):
    random_image().save(tmp_path / "secret.png")
    for path in ("/etc/passwd", Path(app.__file__), tmp_path / "secret.png", tiny.folder / "config.json"):
        assert page.request.get(f"{address}gradio_api/file={path}").status in (403, 404)

    def ask(function, *data):
        call = f"{address}gradio_api/call/{function}"
        event = page.request.post(call, data={"data": data}).json()["event_id"]
        return page.request.get(f"{call}/{event}").text()

    # Gradio looks at files that are described by its browser only.
    plain, options = {"path": str(tmp_path / "secret.png")}, [str(tiny.folder), "whole", 512, False]
    for file in (plain, plain | {"meta": {"_type": "gradio.FileData"}}):
        for answer in (ask("segment", file, None, *options, 0.5), ask("segment_folder", [file], *options)):
            assert "event: error" in answer
    assert "was not uploaded to this page" in ask("segment", plain, None, *options, 0.5)


def test_a_folder_can_be_stopped(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    random_image().save(tmp_path / "a.png")
    opened = []
    monkeypatch.setattr(app, "open_image", lambda *arguments: opened.append(arguments) or random_image())
    arguments = [str(tmp_path / "a.png")] * 3, str(tiny.folder), "whole", 512, False
    states = app.Demo([str(tiny.folder)]).segment_folder(*arguments)
    texts = [next(states)[1] for _ in range(3)]
    assert texts[1:] == ["Predicting image 1 of 3.", "Predicting image 2 of 3."]
    states.close()
    assert len(opened) == 1


def test_of_a_folder_without_images_there_is_no_archive(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    (tmp_path / "a_b.txt").write_text("no picture")
    *_, last = app.Demo([str(tiny.folder)]).segment_folder(
        [str(tmp_path / "a_b.txt")], str(tiny.folder), "whole", 512, False
    )
    assert last[0] is None
    assert last[1].startswith("Predicted: 0 images. Left out: 1 files.\n- a_b.txt is no image")


@pytest.mark.parametrize("name", ["tests", "../other", "scripts/app.py", "/etc", "owner/name/more", ""])
def test_only_folders_that_the_page_was_started_with_are_opened(name, repository_dir, monkeypatch):
    monkeypatch.chdir(repository_dir)
    with pytest.raises(ValueError, match=r"is no model that this page may open: choose one, or type a Hub id"):
        app.Demo(["outputs/mine"]).load(name)


def test_models_of_other_kinds_are_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    with pytest.raises(ValueError, match=r"No MTA-CLIP model could be loaded from .*: its `model_type` is 'resnet'"):
        app.Demo([str(tmp_path)]).load(str(tmp_path))


def test_without_a_model_the_page_says_how_to_get_one(visit, start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = visit(start())
    advice = page.get_by_text("There is no model in outputs/scenes yet").inner_text()
    assert "accelerate launch scripts/run_seg.py" in advice
    page.get_by_role("button", name="A drawn street scene").click()
    page.locator(".toast-body", has_text=advice[:40]).wait_for()
    save_model(tmp_path / "outputs" / "scenes", SCENE_CLASSES)
    page.reload()
    page.get_by_text("Drop a photograph").wait_for()
    page.get_by_role("button", name="A drawn street scene").click()
    page.get_by_label("errors").wait_for()


@pytest.mark.slow
def test_the_command_starts_a_page_and_leaves_nothing_behind(tiny, tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    command = [sys.executable, app.__file__, "--model_name_or_path", str(tiny.folder)]
    environment = os.environ | {"TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = str(Path(app.__file__).parent.parent)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        line = next(each for each in process.stdout if "local URL" in each)
        assert b"MTA-CLIP" in urllib.request.urlopen(line.split()[-1]).read()
        assert len(list(temporary.glob("mtaclip_page_*"))) == 1
        process.send_signal(signal.SIGINT)
    assert not list(temporary.glob("mtaclip_page_*"))
