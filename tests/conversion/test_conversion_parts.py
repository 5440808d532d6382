# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Models from CLIP, Mask2Former and the authors' checkpoints: their numbers, and the account of tensors."""

import itertools
import json
import re
import shutil
from copy import deepcopy

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSemanticSegmentation,
    CLIPTextModelWithProjection,
    ResNetConfig,
    ResNetForImageClassification,
)
from transformers.image_utils import OPENAI_CLIP_MEAN

from modeling_mtaclip.classes_mtaclip import match_classes
from modeling_mtaclip.conversion import from_pretrained_parts, load_checkpoint
from modeling_mtaclip.conversion.backbones import CLIP_BACKBONES
from tests.conversion.sources import (
    NAMES,
    NUM_POSITIONS,
    TOKENIZER,
    make_open_clip,
    openai_state_dict,
    save_clip_folder,
    save_mask2former_folder,
    save_mmengine,
    save_torchscript,
)
from tests.reference import CLASS_NAMES, ReferenceTokenizer


TINY = {"hidden_size": 32, "encoder_feedforward_dim": 32, "decoder_feedforward_dim": 32, "mask_feature_size": 16}
TINY |= {"encoder_layers": 1, "decoder_layers": 2, "num_queries": 5, "prompt_length": 4, "num_prompt_contexts": 2}
TINY_BACKBONE = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "layer_type": "basic"}
RANDOM_RESNET = {"backbone": "resnet", "backbone_config": TINY_BACKBONE}
TEXT_ENCODER = "model.text_model.text_encoder."


def expand(name):
    """All names that a line of the account stands for."""
    pieces = re.split(r"(\{[^}]*\})", name)
    choices = []
    for piece in pieces:
        numbers = re.fullmatch(r"\{(\d+)-(\d+)\}", piece)
        if numbers:
            choices.append([str(number) for number in range(int(numbers[1]), int(numbers[2]) + 1)])
        else:
            choices.append(piece.strip("{}").split(",") if piece.startswith("{") else [piece])
    return ["".join(choice) for choice in itertools.product(*choices)]


def read_account(text):
    """The names of an account by section, as printed."""
    sections, section = {}, None
    for line in text.splitlines()[1:]:
        if not line.startswith("  "):
            section = sections.setdefault(line.rstrip(":"), [])
        else:
            section += expand(re.split(r" <- |: ", line.strip())[0])
    return sections


def assert_complete(parts, sources):
    """Every tensor of the model and of the sources is in the printed account, once."""
    printed = read_account(str(parts.loading_report))
    ours = [names for title, names in printed.items() if title == "New" or title.startswith("From ")]
    assert sorted(itertools.chain(*ours)) == sorted(parts.model.state_dict())
    for source, names in sources.items():
        used = [name for each in parts.loading_report.loaded.values() if each.source == source for name in each.names]
        assert set(used).isdisjoint(printed.get(f"Left out of {source}", []))
        assert sorted({*used, *printed.get(f"Left out of {source}", [])}) == sorted(names)


@pytest.fixture(scope="module")
def openai(tmp_path_factory):
    """An OpenAI model with a ResNet, its tensors, and its two files."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("openai")
    model = make_open_clip("resnet")
    state_dict = openai_state_dict(model)
    torch.save(state_dict, folder / "state_dict.pt")
    save_torchscript(state_dict, folder / "RN50.pt")
    model.load_state_dict({name: state_dict[name].float() for name in model.state_dict()})
    return model, state_dict, folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("clip")
    return save_clip_folder(folder), str(folder)


@pytest.fixture(scope="module")
def mask2former(tmp_path_factory):
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("mask2former")
    return save_mask2former_folder(folder, ["wall", "Sky", "road, route"]), str(folder)


def prompts():
    """Token ids of the names as a whole CLIP text encoder reads them."""
    return torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(TOKENIZER(name.replace("_", " "))["input_ids"]) for name in NAMES], batch_first=True
    )


@pytest.mark.parametrize("whole", [True, False])
def test_text_encoder_of_a_clip_folder(clip, tmp_path, whole):
    model, source = clip
    if not whole:
        source = str(tmp_path)
        half = CLIPTextModelWithProjection.from_pretrained(clip[1])
        half.save_pretrained(source)
        TOKENIZER.save_pretrained(source)
    parts = from_pretrained_parts(NAMES, text_encoder=source, **RANDOM_RESNET, **TINY)
    with torch.no_grad():
        actual = parts.model.model.text_model.text_encoder(prompts()).text_embeds
        expected = model.get_text_features(prompts())
    torch.testing.assert_close(actual, getattr(expected, "pooler_output", expected), rtol=0, atol=1e-6)
    assert parts.model.config.class_token_ids["swimming_pool"] == TOKENIZER("swimming pool")["input_ids"][1:-1]
    assert_complete(parts, {source: half.state_dict() if not whole else model.state_dict()})


def test_position_table_is_cut(clip):
    model, source = clip
    parts = from_pretrained_parts(NAMES, text_encoder=source, text_positions=14, **RANDOM_RESNET, **TINY)
    table = model.text_model.embeddings.position_embedding.weight
    name = f"{TEXT_ENCODER}text_model.embeddings.position_embedding.weight"
    assert torch.equal(parts.model.state_dict()[name], table[:14])
    assert f"(the first 14 of {NUM_POSITIONS} positions)" in str(parts.loading_report)
    whole = from_pretrained_parts(NAMES, text_encoder=source, **RANDOM_RESNET, **TINY).model.model.text_model
    whole.contexts.data = parts.model.model.text_model.contexts.data
    with torch.no_grad():
        torch.testing.assert_close(parts.model.encode_class_names(), whole())


def resnet_maps(visual, images):
    maps = [visual.stem(images)]
    for stage in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        maps.append(stage(maps[-1]))
    return maps[1:]


def vit_maps(visual, images, layers=(3, 5, 7, 11), class_token_twice=False):
    """Plainly: patches, class token, positions, layers; maps after some of them."""
    patches = visual.conv1(images)
    grid = patches.shape[-2:]
    positions = visual.positional_embedding
    side = round((len(positions) - 1) ** 0.5)
    table = positions[1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    table = torch.nn.functional.interpolate(table, grid, mode="bilinear").flatten(2).transpose(1, 2)
    token = visual.class_embedding * (2 if class_token_twice else 1) + positions[0]
    states = torch.cat([token.expand(len(images), 1, -1), patches.flatten(2).transpose(1, 2) + table], dim=1)
    states, maps = visual.ln_pre(states), []
    for index, block in enumerate(visual.transformer.resblocks):
        states = block(states)
        if index in layers:
            maps.append(states[:, 1:].transpose(1, 2).unflatten(2, grid))
    return maps


def assert_same_maps(actual, expected):
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def assert_same_text_embeddings(bundle, model):
    tokens = torch.nn.functional.pad(prompts(), (0, NUM_POSITIONS - prompts().shape[1]))
    text_encoder = bundle.model.model.text_model.text_encoder
    with torch.no_grad():
        torch.testing.assert_close(text_encoder(tokens).text_embeds, model.encode_text(tokens), rtol=0, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in text_encoder.parameters())


def test_text_half_of_openais_files(openai):
    model, state_dict, folder = openai
    source = str(folder / "state_dict.pt")
    parts = from_pretrained_parts(NAMES, text_encoder=source, tokenizer=TOKENIZER, **RANDOM_RESNET, **TINY)
    assert_same_text_embeddings(parts, model)
    assert_complete(parts, {source: state_dict})


@pytest.mark.parametrize("visual", ["resnet", "vit"])
def test_both_halves_of_openais_files(tmp_path, visual):
    model = make_open_clip(visual)
    state_dict = openai_state_dict(model)
    source = str(save_torchscript(state_dict, tmp_path / "clip.pt"))
    model.load_state_dict({name: state_dict[name].float() for name in model.state_dict()})
    parts = from_pretrained_parts(NAMES, text_encoder=source, backbone=source, tokenizer=TOKENIZER, **TINY)
    assert_same_text_embeddings(parts, model)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = {"resnet": resnet_maps, "vit": vit_maps}[visual](model.visual, images)
        assert_same_maps(parts.model.model.backbone(images).feature_maps, expected)
    assert_complete(parts, {source: state_dict})
    assert any(name.startswith("model.feature_pyramid.") for name in parts.loading_report.new) == (visual == "vit")
    assert list(parts.image_processor.image_mean) == OPENAI_CLIP_MEAN
    parts.model.train()(images, labels=torch.randint(0, 3, (2, 64, 96))).loss.backward()
    assert all(parameter.grad is not None for parameter in parts.model.parameters() if parameter.requires_grad)


def test_both_halves_of_a_clip_folder_survive_saving(clip, tmp_path):
    model, source = clip
    parts = from_pretrained_parts(NAMES, text_encoder=source, backbone=source, **TINY)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        states = model.vision_model(images, output_hidden_states=True).hidden_states
        expected = [states[index][:, 1:].transpose(1, 2).unflatten(2, (4, 4)) for index in (4, 6, 8, 12)]
        assert_same_maps(parts.model.model.backbone(images).feature_maps, expected)
    assert_complete(parts, {source: model.state_dict()})
    parts.save_pretrained(tmp_path)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    for name, value in parts.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_weights_of_a_named_clip_backbone(openai, monkeypatch):
    model, state_dict, folder = openai
    source = str(folder / "RN50.pt")
    options = {"text_branch": False, "backbone": "clip_rn50", "backbone_weights": source, **TINY}
    monkeypatch.setitem(CLIP_BACKBONES, "clip_rn50", {"width": 16, "layers": [1, 2, 1, 1]})
    parts = from_pretrained_parts(NAMES, **options)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert_same_maps(parts.model.model.backbone(images).feature_maps, resnet_maps(model.visual, images))
    assert_complete(parts, {source: state_dict})
    monkeypatch.setitem(CLIP_BACKBONES, "clip_rn50", {"width": 16, "layers": [1, 1, 1, 1]})
    with pytest.raises(ValueError, match=r"the tensor visual.layer2.1.* has no place in the model"):
        from_pretrained_parts(NAMES, **options)


def test_whole_mask2former_without_text_computes_the_same(mask2former):
    model, source = mask2former
    parts = from_pretrained_parts(mask2former=source, text_branch=False)
    assert list(parts.model.config.id2label.values()) == ["wall", "Sky", "road, route"]
    assert parts.tokenizer is None
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected, actual = model(images), parts.model(images)
    torch.testing.assert_close(actual.class_queries_logits, expected.class_queries_logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(actual.masks_queries_logits, expected.masks_queries_logits, rtol=0, atol=1e-4)
    assert_complete(parts, {source: model.state_dict()})
    assert not parts.loading_report.new
    assert parts.loading_report.left_out == {
        source: {"criterion.empty_weight": "class weights of the loss, which the config holds"}
    }


def test_mask2former_as_older_versions_of_transformers_saved_it(mask2former, tmp_path):
    """Swin had no norm behind all feature maps, and its indices of positions were saved."""
    folder = shutil.copytree(mask2former[1], tmp_path / "older")
    tensors = {
        name.replace(".encoder.swin.", ".encoder."): value
        for name, value in load_file(folder / "model.safetensors").items()
        if ".swin.layernorm." not in name
    }
    for name in [name for name in tensors if name.endswith("relative_position_bias_table")]:
        tensors[name.replace("bias_table", "index")] = torch.zeros(16, 16, dtype=torch.int64)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    older, newer = (
        from_pretrained_parts(mask2former=str(source), text_branch=False) for source in (folder, mask2former[1])
    )
    assert not older.loading_report.new
    assert older.loading_report.loaded["model.backbone.swin.layernorm.bias"].names == []
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(older.model(images).logits, newer.model(images).logits, rtol=0, atol=1e-5)


def test_mask2former_with_text_and_other_classes(mask2former, clip):
    model, source = mask2former
    parts = from_pretrained_parts(NAMES, mask2former=source, text_encoder=clip[1], prompt_length=4)
    weights, theirs = parts.model.state_dict(), model.state_dict()
    for ours, other in ((0, 2), (1, 1), (3, 3)):
        assert torch.equal(weights["class_predictor.bias"][ours], theirs["class_predictor.bias"][other])
        assert torch.equal(weights["class_predictor.weight"][ours], theirs["class_predictor.weight"][other])
    note = "no object and 2 classes by name; new: swimming_pool; not used: wall"
    assert parts.loading_report.loaded["class_predictor.bias"].note == note
    assert torch.equal(
        weights["model.decoder.mask_queries"], theirs["model.transformer_module.queries_features.weight"]
    )
    assert_complete(parts, {source: theirs, clip[1]: clip[0].state_dict()})
    new = {
        name.split(".")[0] if name.startswith("text_head") else name.split(".")[2] for name in parts.loading_report.new
    }
    assert new == {"contexts", "text_query_positions", "text_projection", "query_layer_norm", "text_head"}
    outputs = parts.model.train()(torch.randn(1, 3, 64, 64), labels=torch.randint(0, 3, (1, 64, 64)))
    outputs.loss.backward()


def test_mask2former_with_another_backbone(mask2former):
    model, source = mask2former
    parts = from_pretrained_parts(NAMES, mask2former=source, text_branch=False, **RANDOM_RESNET)
    assert_complete(parts, {source: model.state_dict()})
    new = {name.split(".", 3)[2] for name in parts.loading_report.new if "pixel_decoder" in name}
    assert new == {"input_projections", "lateral_projection"}
    assert parts.model(torch.randn(1, 3, 64, 64)).logits.shape == (1, 3, 16, 16)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    torch.manual_seed(4)
    folder = tmp_path_factory.mktemp("resnet")
    model = ResNetForImageClassification(ResNetConfig(**TINY_BACKBONE)).eval()
    model.save_pretrained(folder)
    return model, folder


@pytest.mark.parametrize("weights", [None, "pretrained", "model.safetensors"])
def test_backbone_of_a_folder_of_transformers_has_its_weights(resnet, weights):
    model, folder = resnet
    weights = str(folder / weights) if weights and "." in weights else weights
    bundle = from_pretrained_parts(NAMES, text_branch=False, backbone=str(folder), backbone_weights=weights, **TINY)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model.resnet(images, output_hidden_states=True).hidden_states[1:]
        assert_same_maps(bundle.model.model.backbone(images).feature_maps, expected)
    assert not [name for name in bundle.loading_report.new if name.startswith("model.backbone.")]
    (left_out,) = bundle.loading_report.left_out.values()
    assert sorted(left_out) == ["classifier.1.bias", "classifier.1.weight"]


def test_sources_in_half_precision_give_models_in_float32(clip, mask2former, resnet, tmp_path):
    for name, (model, _) in {"clip": clip, "mask2former": mask2former, "resnet": resnet}.items():
        deepcopy(model).half().save_pretrained(tmp_path / name)
    TOKENIZER.save_pretrained(tmp_path / "clip")
    paths = {name: str(tmp_path / name) for name in ("clip", "mask2former", "resnet")}
    for options in (
        {"text_encoder": paths["clip"], "backbone": paths["clip"], **TINY},
        {"text_encoder": paths["clip"], "mask2former": paths["mask2former"], "prompt_length": 4},
        {"text_branch": False, "backbone": paths["resnet"], **TINY},
    ):
        model = from_pretrained_parts(NAMES, **options).model
        assert {value.dtype for value in model.state_dict().values() if value.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize(
    ("names", "source_names", "expected"),
    [
        (["sky", "Road"], ["road", "sky"], {0: 1, 1: 0}),
        (["screen", "crt_screen", "screen"], ["screen", "door", "screen"], {0: 0, 2: 2}),
        (["route", "road"], ["road, route", "path"], {0: 0}),
        (["door", "double door"], ["door, double door", "double door"], {0: 0, 1: 1}),
        (["door"], ["doorframe"], {}),
    ],
)
def test_classes_are_matched_by_name_then_by_synonym(names, source_names, expected):
    assert match_classes(names, source_names) == expected


@pytest.fixture(scope="module")
def original(shared_dir, tmp_path_factory):
    """The reference model in the form in which mmengine saves it, and what it computes."""
    folder = shared_dir / "reference" / "mtaclip_tiny"
    weights = load_file(folder / "weights.safetensors")
    path = save_mmengine(weights, tmp_path_factory.mktemp("original") / "iter_160000.pth", CLASS_NAMES)
    return path, weights, CLASS_NAMES, load_file(folder / "io.safetensors")


def test_checkpoints_of_mmengine_are_read_without_running_code(original):
    path, weights, names, _ = original
    with pytest.raises(Exception, match=r"Weights only load failed"):
        torch.load(path, weights_only=True)
    checkpoint = load_checkpoint(path)
    assert checkpoint.class_names == names
    assert checkpoint.run_config["model"]["decode_head"]["query_loss_type"] == 1
    assert checkpoint.tensors.keys() == weights.keys()


def test_original_checkpoint(original):
    path, weights, names, expected = original
    parts = from_pretrained_parts(original=path, tokenizer=ReferenceTokenizer(), encoder_norm_groups=32)
    config = parts.model.config
    assert list(config.id2label.values()) == names
    losses = (config.class_weight, config.no_object_weight, config.dice_weight, config.train_num_points)
    assert losses == (1.5, 0.2, 4.0, 100)
    assert (config.match_class_weight, config.match_mask_weight, config.match_dice_weight) == (3.0, 5.0, 6.0)
    assert config.contrastive_negatives == "separate"
    with torch.no_grad():
        outputs = parts.model(pixel_values=expected["pixel_values"])
    torch.testing.assert_close(outputs.text_embeddings[0], expected["text_embeddings"], rtol=0, atol=1e-4)
    torch.testing.assert_close(outputs.class_queries_logits, expected["layer3.cls_pred"], rtol=0, atol=1e-4)
    torch.testing.assert_close(outputs.masks_queries_logits, expected["layer3.mask_pred"], rtol=0, atol=1e-4)
    assert_complete(parts, {str(path): weights})
    assert not parts.loading_report.new


def test_original_checkpoint_with_a_vision_transformer(original, tmp_path):
    _, weights, names, _ = original
    visual = make_open_clip("vit").visual
    norms = [torch.nn.GroupNorm(1, 64) for _ in range(4)]
    up = [torch.nn.ConvTranspose2d(64, 64, kernel_size=2, stride=2) for _ in range(3)]
    pyramid = torch.nn.ModuleDict(
        {
            "fpn1": torch.nn.Sequential(norms[0], up[0], torch.nn.BatchNorm2d(64), torch.nn.GELU(), up[1]),
            "fpn2": torch.nn.Sequential(norms[1], up[2]),
            "fpn3": norms[2],
            "fpn4": torch.nn.Sequential(norms[3], torch.nn.MaxPool2d(2)),
        }
    ).eval()
    for parameter in pyramid.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    tensors = {name: value for name, value in weights.items() if not name.startswith("backbone.")}
    backbone = visual.state_dict() | pyramid.state_dict()
    tensors |= {f"backbone.{name}": value for name, value in backbone.items()}
    for index, channels in enumerate((64, 64, 64)):
        tensors[f"decode_head.pixel_decoder.input_convs.{index}.conv.weight"] = torch.randn(64, channels, 1, 1)
    path = save_mmengine(tensors, tmp_path / "vit.pth", names)
    parts = from_pretrained_parts(original=path, tokenizer=ReferenceTokenizer())
    assert_complete(parts, {str(path): tensors})
    assert not parts.loading_report.new
    images = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        maps = vit_maps(visual, images, class_token_twice=True)
        expected = [pyramid[f"fpn{index + 1}"](each) for index, each in enumerate(maps)]
        assert_same_maps(parts.model.model._backbone_maps(images), expected)


def test_original_checkpoint_with_other_classes(original):
    path, weights, _, _ = original
    parts = from_pretrained_parts(["Sky", "pool", "wall"], original=path, tokenizer=ReferenceTokenizer())
    ours, theirs = (
        parts.model.state_dict(),
        weights["decode_head.query_embed_decoder.weight"][10:].unflatten(0, (3, 7)),
    )
    positions = ours["model.decoder.text_query_positions"]
    for index, other in ((0, 2), (2, 0), (3, 6)):
        assert torch.equal(positions[:, index], theirs[:, other])
        assert torch.equal(ours["class_predictor.bias"][index], weights["decode_head.cls_embed.bias"][other])
    assert not torch.equal(positions[:, 1], theirs[:, 5])


class SmallTokenizer(ReferenceTokenizer):
    def __len__(self):
        return 3


def without(state_dict, name):
    return {key: value for key, value in state_dict.items() if key != name}


def change_config(folder, change):
    path = folder / "config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


@pytest.fixture(scope="module")
def sources(openai, clip, mask2former, original, resnet, tmp_path_factory):
    """A folder with good sources, and others with one fault each."""
    folder = tmp_path_factory.mktemp("sources")
    for name, source in {"clip": clip[1], "mask2former": mask2former[1], "resnet": resnet[1]}.items():
        (folder / name).symlink_to(source)
        shutil.copytree(source, folder / f"{name}_truncated")
        content = (folder / name / "model.safetensors").read_bytes()
        (folder / f"{name}_truncated" / "model.safetensors").write_bytes(content[: len(content) // 2])
    (folder / "original.pth").symlink_to(original[0])
    surprise, tensors = {"surprise": torch.zeros(2)}, openai[1]
    for name, content in {
        "more.pt": tensors | surprise,
        "less.pt": without(tensors, "ln_final.bias"),
        "visual.pt": {name: value for name, value in tensors.items() if name.startswith("visual.")},
        "other.pt": surprise,
        "plain.pth": original[1],
    }.items():
        torch.save(content, folder / name)
    save_mmengine(original[1] | {"decode_head.surprise": torch.zeros(2)}, folder / "more.pth", CLASS_NAMES)
    save_mmengine(original[1], folder / "few.pth", CLASS_NAMES[:2])
    clip[0].save_pretrained(folder / "clip_more", state_dict=clip[0].state_dict() | surprise)
    less = without(mask2former[0].state_dict(), "class_predictor.bias")
    mask2former[0].save_pretrained(folder / "mask2former_less", state_dict=less)
    clip_without_vocabulary = shutil.copytree(clip[1], folder / "clip_without_vocabulary")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (clip_without_vocabulary / name).unlink()
    for name, source, change in (
        (
            "clip_wider",
            clip,
            lambda config: config | {"text_config": config["text_config"] | {"intermediate_size": 64}},
        ),
        ("mask2former_gaps", mask2former, lambda config: config | {"id2label": {"0": "a", "2": "b", "5": "c"}}),
        ("maskformer", mask2former, lambda config: config | {"model_type": "maskformer"}),
    ):
        change_config(shutil.copytree(source[1], folder / name), change)
    return folder


WITH_TEXT = {"class_names": NAMES, "tokenizer": TOKENIZER, **RANDOM_RESNET, **TINY}
WITHOUT_TEXT = {"class_names": NAMES, "text_branch": False, **TINY}
ORIGINAL = {"tokenizer": ReferenceTokenizer()}
MASK2FORMER = {"text_branch": False}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        # Tensors that nobody knows, that are missing, or of other shapes.
        (WITH_TEXT | {"text_encoder": "more.pt"}, r"the tensor surprise \(2,\) has no place in the model"),
        (WITH_TEXT | {"text_encoder": "less.pt"}, r"less.pt lacks 1 tensors .*\['model.*final_layer_norm.bias'\]"),
        (
            WITH_TEXT | {"text_encoder": "clip_more"},
            r"no complete CLIPModel: 1 unexpected tensors, e.g. \['surprise'\]",
        ),
        (WITH_TEXT | {"text_encoder": "clip_wider"}, r"6 mismatched tensors, e.g. .*encoder.layers.0.mlp.fc1.bias'"),
        (MASK2FORMER | {"mask2former": "mask2former_less"}, r"1 missing tensors, e.g. \['class_predictor.bias'\]"),
        (
            MASK2FORMER | {"mask2former": "mask2former", "num_queries": 9},
            r"queries_embedder.weight \(7, 32\) .*mask_query_positions has \(9, 32\)",
        ),
        (ORIGINAL | {"original": "more.pth"}, r"the tensor decode_head.surprise \(2,\) has no place"),
        (
            ORIGINAL | {"original": "original.pth", "num_queries": 9},
            "query_embed_decoder.weight is not for 9 mask queri",
        ),
        (
            WITHOUT_TEXT | {"backbone": "resnet", "backbone_config": {"depths": [2, 1, 1, 2]}},
            r"no complete ResNetBackbone: \d+ missing tensors, e.g. \['encoder",
        ),
        (
            WITHOUT_TEXT | {"backbone": "resnet", "backbone_config": {"hidden_sizes": [8, 8, 16, 32]}},
            "mismatched tensors, e.g. .*'encoder.stages.3",
        ),
        # Sources that are not there, can't be read, or are something else.
        (WITH_TEXT | {"text_encoder": "nobody/nothing"}, "'nobody/nothing' is no file, and no model of transformers"),
        (MASK2FORMER | {"mask2former": "nobody/nothing"}, "'nobody/nothing' is no file, and no model of transformers"),
        (WITHOUT_TEXT | {"backbone": "nobody/nothing"}, "'nobody/nothing' is no file, and no model of transformers"),
        (WITH_TEXT | {"text_encoder": __file__}, "can't be read safely as safetensors, TorchScript or pickled"),
        (WITH_TEXT | {"text_encoder": "other.pt"}, "no CLIP model by OpenAI's names"),
        (WITH_TEXT | {"text_encoder": "visual.pt"}, "without text half"),
        (
            ORIGINAL | {"original": "other.pt"},
            "no checkpoint of the authors' MTA-CLIP code: it has no tensor 'contexts'",
        ),
        (WITH_TEXT | {"text_encoder": "clip_truncated"}, "No CLIPModel could be loaded"),
        (
            MASK2FORMER | {"mask2former": "mask2former_truncated"},
            "No Mask2FormerForUniversalSegmentation could be loa",
        ),
        (MASK2FORMER | {"mask2former": "maskformer"}, "type 'maskformer', but one of"),
        # Class names and tokenizers.
        ({"class_names": NAMES}, "give `text_encoder`"),
        ({"class_names": "road", "text_encoder": "clip"}, "list of names, got the name 'road'"),
        ({"text_encoder": "clip"}, "`class_names` is missing"),
        (
            ORIGINAL | {"original": "plain.pth", "class_names": NAMES},
            "does not name its classes: give the 6 `class_names`",
        ),
        (ORIGINAL | {"original": "few.pth"}, "has weights for 6 classes, but names 2: give the 6 `class_names`"),
        (MASK2FORMER | {"mask2former": "mask2former_gaps"}, r"class ids with gaps, \[0, 2, 5\]"),
        ({"class_names": NAMES, "text_encoder": "clip_without_vocabulary"}, "no vocabulary for plain English words"),
        (
            WITH_TEXT | {"text_encoder": "clip", "tokenizer": SmallTokenizer()},
            f"has 3 tokens, but the text encoder of .* knows {len(TOKENIZER)}",
        ),
        # Options that don't fit each other.
        (WITH_TEXT | {"text_encoder": "clip", "text_positions": 21}, f"is 21, but .* has {NUM_POSITIONS}"),
        (WITH_TEXT | {"text_encoder": "clip", "text_positions": 7}, "at most 1 fit"),
        (WITHOUT_TEXT | {"backbone_weights": "pretrained"}, "needs the name of a `backbone`"),
        ({"original": "original.pth", "text_encoder": "clip"}, r"gives a whole model, but \['text_encoder'\]"),
    ],
)
def test_what_does_not_fit_is_refused(sources, options, message):
    paths = {
        name: str(sources / value)
        for name, value in options.items()
        if isinstance(value, str) and (sources / value).exists()
    }
    with pytest.raises(ValueError, match=message):
        from_pretrained_parts(**options | paths)


def test_names_of_a_checkpoint_that_are_too_few_are_replaced_by_given_ones(sources):
    bundle = from_pretrained_parts(CLASS_NAMES, original=sources / "few.pth", tokenizer=ReferenceTokenizer())
    assert not bundle.loading_report.new_classes
