# Copyright 2026 The MTA-CLIP for Hugging Face authors.
# SPDX-License-Identifier: Apache-2.0
"""Models from CLIP, Mask2Former and backbones: their numbers, and the report of where each tensor came from."""

import json
import shutil
from copy import deepcopy

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSemanticSegmentation,
    AutoTokenizer,
    CLIPTextModelWithProjection,
    ResNetConfig,
    ResNetForImageClassification,
)
from transformers.image_utils import OPENAI_CLIP_MEAN

from modeling_mtaclip.classes_mtaclip import match_classes
from modeling_mtaclip.conversion import (
    LoadingReport,
    from_pretrained_parts,
    load_tokenizer,
    make_tokenizer,
    small_text_config,
)
from modeling_mtaclip.conversion.backbones import CLIP_BACKBONES
from modeling_mtaclip.conversion.weights import LoadedTensor
from tests.conversion.sources import (
    NAMES,
    NUM_POSITIONS,
    TOKENIZER,
    assert_complete,
    assert_same_maps,
    make_open_clip,
    openai_state_dict,
    save_clip_folder,
    save_mask2former_folder,
    save_mmengine,
    vit_maps,
)
from tests.reference import CLASS_NAMES, ReferenceTokenizer
from tests.tiny import assert_same_weights


TINY = {"hidden_size": 32, "encoder_feedforward_dim": 32, "decoder_feedforward_dim": 32, "mask_feature_size": 16}
TINY |= {"encoder_layers": 1, "decoder_layers": 2, "num_queries": 5, "prompt_length": 4, "num_prompt_contexts": 2}
TINY_BACKBONE = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "layer_type": "basic"}
RANDOM_RESNET = {"backbone": "resnet", "backbone_config": TINY_BACKBONE}
IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """CLIP by transformers' and by OpenAI's names: model, path, and tensors."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(1)
    model = save_clip_folder(folder / "folder")
    clips = {"folder": (model, str(folder / "folder"), model.state_dict())}
    for kind in ("resnet", "vit"):
        model, path = make_open_clip(kind), str(folder / f"{kind}.pt")
        tensors = openai_state_dict(model)
        torch.save(tensors, path)
        model.load_state_dict({name: tensors[name].float() for name in model.state_dict()})
        clips[kind] = (model, path, tensors)
    return clips


@pytest.fixture(scope="module")
def mask2former(tmp_path_factory):
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("mask2former")
    return save_mask2former_folder(folder, ["wall", "Sky", "road, route"]), str(folder)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    torch.manual_seed(4)
    folder = tmp_path_factory.mktemp("resnet")
    model = ResNetForImageClassification(ResNetConfig(**TINY_BACKBONE)).eval()
    model.save_pretrained(folder)
    return model, folder


def clip_maps(kind, model, images):
    """Feature maps as CLIP's image encoder computes them."""
    if kind == "vit":
        return vit_maps(model.visual, images)
    if kind == "folder":
        states = model.vision_model(images, output_hidden_states=True, interpolate_pos_encoding=True).hidden_states
        return [states[index][:, 1:].transpose(1, 2).unflatten(2, (4, -1)) for index in (4, 6, 8, 12)]
    maps = [model.visual.stem(images)]
    for stage in (model.visual.layer1, model.visual.layer2, model.visual.layer3, model.visual.layer4):
        maps.append(stage(maps[-1]))
    return maps[1:]


def assert_same_text_embeddings(bundle, model):
    ids = [TOKENIZER(name.replace("_", " "))["input_ids"] for name in NAMES]
    tokens = torch.tensor([[*each, *[0] * (NUM_POSITIONS - len(each))] for each in ids])
    text_encoder = bundle.model.model.text_model.text_encoder
    with torch.no_grad():
        expected = model.encode_text(tokens) if hasattr(model, "encode_text") else model.get_text_features(tokens)
        expected = getattr(expected, "pooler_output", expected)
        torch.testing.assert_close(text_encoder(tokens).text_embeds, expected, rtol=0, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in text_encoder.parameters())
    assert bundle.model.config.class_token_ids["swimming_pool"] == TOKENIZER("swimming pool")["input_ids"][1:-1]


def assert_trainable(bundle):
    bundle.model.train()(IMAGES, labels=torch.randint(0, 3, (2, 64, 96))).loss.backward()
    assert all(parameter.grad is not None for parameter in bundle.model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("kind", ["folder", "resnet", "vit"])
def test_both_halves_of_clip(clips, tmp_path, kind):
    model, source, tensors = clips[kind]
    tokenizer = None if kind == "folder" else TOKENIZER
    bundle = from_pretrained_parts(NAMES, text_encoder=source, backbone=source, tokenizer=tokenizer, **TINY)
    assert_same_text_embeddings(bundle, model)
    images = IMAGES[..., :64]
    with torch.no_grad():
        assert_same_maps(bundle.model.model.backbone(images).feature_maps, clip_maps(kind, model, images))
    assert_complete(bundle, {source: tensors})
    assert any(name.startswith("model.feature_pyramid.") for name in bundle.loading_report.new) == (kind != "resnet")
    assert list(bundle.image_processor.image_mean) == OPENAI_CLIP_MEAN
    bundle.save_pretrained(tmp_path)
    assert_same_weights(AutoModelForSemanticSegmentation.from_pretrained(tmp_path), bundle.model)
    assert_trainable(bundle)


@pytest.mark.parametrize("kind", ["folder", "resnet", "text half"])
def test_text_half_of_clip(clips, tmp_path, kind):
    model, source, tensors = clips["folder" if kind == "text half" else kind]
    if kind == "text half":
        half, source = CLIPTextModelWithProjection.from_pretrained(source), str(tmp_path)
        half.save_pretrained(source)
        tensors = half.state_dict()
    bundle = from_pretrained_parts(NAMES, text_encoder=source, tokenizer=TOKENIZER, **RANDOM_RESNET, **TINY)
    assert_same_text_embeddings(bundle, model)
    assert_complete(bundle, {source: tensors})


def test_weights_of_a_named_clip_backbone(clips, monkeypatch):
    model, source, tensors = clips["resnet"]
    options = {"text_branch": False, "backbone": "clip_rn50", "backbone_weights": source, **TINY}
    monkeypatch.setitem(CLIP_BACKBONES, "clip_rn50", {"width": 16, "layers": [1, 2, 1, 1]})
    bundle = from_pretrained_parts(NAMES, **options)
    with torch.no_grad():
        assert_same_maps(bundle.model.model.backbone(IMAGES).feature_maps, clip_maps("resnet", model, IMAGES))
    assert_complete(bundle, {source: tensors})
    monkeypatch.setitem(CLIP_BACKBONES, "clip_rn50", {"width": 16, "layers": [1, 1, 1, 1]})
    with pytest.raises(ValueError, match=r"the tensor visual.layer2.1.* has no place in the model"):
        from_pretrained_parts(NAMES, **options)


def test_whole_mask2former_without_text_computes_the_same(mask2former):
    model, source = mask2former
    bundle = from_pretrained_parts(mask2former=source, text_branch=False)
    assert list(bundle.model.config.id2label.values()) == ["wall", "Sky", "road, route"]
    assert bundle.tokenizer is None
    with torch.no_grad():
        expected, actual = model(IMAGES), bundle.model(IMAGES)
    for name in ("class_queries_logits", "masks_queries_logits"):
        torch.testing.assert_close(actual[name], expected[name], rtol=0, atol=1e-4)
    assert_complete(bundle, {source: model.state_dict()})
    assert not bundle.loading_report.new
    assert [*bundle.loading_report.left_out[source]] == ["criterion.empty_weight"]


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
    with torch.no_grad():
        torch.testing.assert_close(older.model(IMAGES).logits, newer.model(IMAGES).logits, rtol=0, atol=1e-5)


def test_mask2former_with_text_and_other_classes(mask2former, clips):
    (model, source), (clip, clip_source, _) = mask2former, clips["folder"]
    bundle = from_pretrained_parts(NAMES, mask2former=source, text_encoder=clip_source, prompt_length=4)
    weights, theirs, report = bundle.model.state_dict(), model.state_dict(), bundle.loading_report
    for ours, other in ((0, 2), (1, 1), (3, 3)):
        for name in ("class_predictor.bias", "class_predictor.weight"):
            assert torch.equal(weights[name][ours], theirs[name][other])
    note = "no object and 2 classes by name; new: swimming_pool; not used: wall"
    assert report.loaded["class_predictor.bias"].note == note
    assert report.new_classes == ["swimming_pool"]
    queries = theirs["model.transformer_module.queries_features.weight"]
    assert torch.equal(weights["model.decoder.mask_queries"], queries)
    assert_complete(bundle, {source: theirs, clip_source: clip.state_dict()})
    new = {name.removeprefix("model.").removeprefix("decoder.").split(".")[0] for name in report.new}
    assert new == {"text_model", "text_query_positions", "text_projection", "query_layer_norm", "text_head"}
    assert_trainable(bundle)


def test_mask2former_with_another_backbone(mask2former):
    model, source = mask2former
    bundle = from_pretrained_parts(NAMES, mask2former=source, text_branch=False, **RANDOM_RESNET)
    assert_complete(bundle, {source: model.state_dict()})
    new = {name.split(".")[2] for name in bundle.loading_report.new if "pixel_decoder" in name}
    assert new == {"input_projections", "lateral_projection"}
    assert bundle.model(IMAGES).logits.shape == (2, 3, 16, 24)


@pytest.mark.parametrize("weights", [None, "pretrained", "model.safetensors"])
def test_backbone_of_a_folder_of_transformers_has_its_weights(resnet, weights):
    model, folder = resnet
    weights = str(folder / weights) if weights and "." in weights else weights
    bundle = from_pretrained_parts(NAMES, text_branch=False, backbone=str(folder), backbone_weights=weights, **TINY)
    with torch.no_grad():
        expected = model.resnet(IMAGES, output_hidden_states=True).hidden_states[1:]
        assert_same_maps(bundle.model.model.backbone(IMAGES).feature_maps, expected)
    assert not [name for name in bundle.loading_report.new if name.startswith("model.backbone.")]
    (left_out,) = bundle.loading_report.left_out.values()
    assert sorted(left_out) == ["classifier.1.bias", "classifier.1.weight"]


def test_sources_in_half_precision_give_models_in_float32(clips, mask2former, resnet, tmp_path):
    for name, model in {"clip": clips["folder"][0], "mask2former": mask2former[0], "resnet": resnet[0]}.items():
        deepcopy(model).half().save_pretrained(tmp_path / name)
    clip, mask2former, resnet = (str(tmp_path / name) for name in ("clip", "mask2former", "resnet"))
    for options in (
        {"text_encoder": clip, "tokenizer": TOKENIZER, "backbone": clip, **TINY},
        {"text_branch": False, "mask2former": mask2former, "backbone": resnet},
    ):
        model = from_pretrained_parts(NAMES, **options).model
        assert {value.dtype for value in model.state_dict().values() if value.is_floating_point()} == {torch.float32}


def test_printed_report():
    """Rows that differ only in the numbers of layers share a line."""
    loaded = {f"ours.{index}.bias": LoadedTensor("clip", [f"theirs.{index}.b", "c"], "a part") for index in range(2)}
    report = LoadingReport(loaded, {"text_head.gamma": "learned"}, {"clip": {"pool.3.bias": "pools"}})
    assert str(report).splitlines() == [
        *("From clip: 2 tensors", "  ours.*.bias <- theirs.*.b + c (a part) [2]"),
        *("New: 1 tensors", "  text_head.gamma: learned", "Left out of clip: 1 tensors", "  pool.*.bias: pools"),
    ]


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


def change_config(folder, **fields):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(
        json.dumps(
            config | {name: fields[name] if name != "text_config" else config[name] | fields[name] for name in fields}
        )
    )


@pytest.fixture(scope="module")
def sources(clips, mask2former, resnet, shared_dir, tmp_path_factory):
    """A folder with good sources, and others with one fault each."""
    folder = tmp_path_factory.mktemp("sources")
    clip, clip_source, _ = clips["folder"]
    original = load_file(shared_dir / "reference" / "mtaclip_tiny" / "weights.safetensors")
    for name, source in {"clip": clip_source, "mask2former": mask2former[1], "resnet": resnet[1]}.items():
        (folder / name).symlink_to(source)
    for name in ("truncated", "wider", "without_vocabulary"):
        shutil.copytree(clip_source, folder / name)
    for name in ("gaps", "maskformer"):
        shutil.copytree(mask2former[1], folder / name)
    content = (folder / "truncated" / "model.safetensors").read_bytes()
    (folder / "truncated" / "model.safetensors").write_bytes(content[: len(content) // 2])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "without_vocabulary" / name).unlink()
    change_config(folder / "wider", text_config={"intermediate_size": 64})
    change_config(folder / "gaps", id2label={"0": "a", "2": "b", "5": "c"})
    change_config(folder / "maskformer", model_type="maskformer")
    tensors, surprise = clips["resnet"][2], {"surprise": torch.zeros(2)}
    clip.save_pretrained(folder / "clip_more", state_dict=clip.state_dict() | surprise)
    less = {name: value for name, value in mask2former[0].state_dict().items() if name != "class_predictor.bias"}
    mask2former[0].save_pretrained(folder / "mask2former_less", state_dict=less)
    for name, content in {
        "more.pt": tensors | surprise,
        "less.pt": {name: value for name, value in tensors.items() if name != "ln_final.bias"},
        "visual.pt": {name: value for name, value in tensors.items() if name.startswith("visual.")},
        "other.pt": surprise,
        "plain.pth": original,
    }.items():
        torch.save(content, folder / name)
    save_mmengine(original, folder / "original.pth", CLASS_NAMES)
    save_mmengine(original | {"decode_head.surprise": torch.zeros(2)}, folder / "more.pth", CLASS_NAMES)
    save_mmengine(original, folder / "few.pth", CLASS_NAMES[:2])
    return folder


class SmallTokenizer(ReferenceTokenizer):
    def __len__(self):
        return 3


WITH_TEXT = {"class_names": NAMES, "tokenizer": TOKENIZER, **RANDOM_RESNET, **TINY}
WITHOUT_TEXT = {"class_names": NAMES, "text_branch": False, **TINY}
ORIGINAL = {"tokenizer": ReferenceTokenizer()}
MASK2FORMER = {"text_branch": False}
DEEPER = {"backbone": "resnet", "backbone_config": {"depths": [2, 1, 1, 2]}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        # Tensors that nobody knows, that are missing, or of other shapes.
        (WITH_TEXT | {"text_encoder": "more.pt"}, r"the tensor surprise \(2,\) has no place in the model"),
        (WITH_TEXT | {"text_encoder": "less.pt"}, r"less.pt lacks 1 tensors .*\['model.*final_layer_norm.bias'\]"),
        (WITH_TEXT | {"text_encoder": "clip_more"}, r"no complete CLIPModel: 1 unexpected .* \['surprise'\]"),
        (WITH_TEXT | {"text_encoder": "wider"}, r"6 mismatched tensors, e.g. .*encoder.layers.0.mlp.fc1.bias'"),
        (MASK2FORMER | {"mask2former": "mask2former_less"}, r"1 missing tensors, e.g. \['class_predictor.bias'\]"),
        (MASK2FORMER | {"mask2former": "mask2former", "num_queries": 9}, r"\(7, 32\) .*_positions has \(9, 32\)"),
        (ORIGINAL | {"original": "more.pth"}, r"the tensor decode_head.surprise \(2,\) has no place"),
        (ORIGINAL | {"original": "original.pth", "num_queries": 9}, "_decoder.weight is not for 9 mask queries"),
        (WITHOUT_TEXT | DEEPER, r"no complete ResNetBackbone: \d+ missing tensors, e.g. \['encoder"),
        # Sources that are not there, can't be read, or are something else.
        (WITH_TEXT | {"text_encoder": "nobody/nothing"}, "'nobody/nothing' is no file, and no model of transformers"),
        (WITH_TEXT | {"text_encoder": __file__}, "can't be read safely as safetensors, TorchScript or pickled"),
        (WITH_TEXT | {"text_encoder": "other.pt"}, "no text half of a CLIP model .* e.g. .'surprise"),
        (WITH_TEXT | {"text_encoder": "visual.pt"}, "no text half of a CLIP model"),
        (ORIGINAL | {"original": "other.pt"}, "no checkpoint of the authors' MTA-CLIP code: .* no tensor 'contexts'"),
        (WITH_TEXT | {"text_encoder": "truncated"}, "No CLIPModel could be loaded"),
        (MASK2FORMER | {"mask2former": "maskformer"}, "type 'maskformer', but one of"),
        # Class names and tokenizers.
        ({"class_names": NAMES}, "give `text_encoder`"),
        ({"class_names": "road", "text_encoder": "clip"}, "list of names, got the name 'road'"),
        ({"text_encoder": "clip"}, "`class_names` is missing"),
        (ORIGINAL | {"original": "plain.pth", "class_names": NAMES}, "does not name its classes: give the 6 `class"),
        (ORIGINAL | {"original": "few.pth"}, "has weights for 6 classes, but names 2: give the 6 `class_names`"),
        (MASK2FORMER | {"mask2former": "gaps"}, r"class ids with gaps, \[0, 2, 5\]"),
        ({"class_names": NAMES, "text_encoder": "without_vocabulary"}, "no vocabulary for plain English words"),
        (WITH_TEXT | {"text_encoder": "clip", "tokenizer": SmallTokenizer()}, f"has 3 .* knows {len(TOKENIZER)}"),
        # Options that don't fit each other.
        (WITH_TEXT | {"text_encoder": "clip", "prompt_length": 17}, "at most 1 fit"),
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


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_made_tokenizer_knows_words_as_one_token_and_any_text_and_is_saved(tmp_path):
    tokenizer = make_tokenizer(["traffic_light", "Straße", "none"])
    assert [len(ids(tokenizer, text)) for text in ("traffic light", "Straße", "none", "light traffic")] == [2, 1, 1, 2]
    for text in ("traffic light", "zebra crossing", "道路", "straße 7 & äöü"):
        assert tokenizer.decode(ids(tokenizer, text)).replace(" ", "") == text.replace(" ", "")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (len(tokenizer) - 2, len(tokenizer) - 1)
    assert tokenizer("none")["input_ids"] == [tokenizer.bos_token_id, *ids(tokenizer, "none"), tokenizer.eos_token_id]
    config = small_text_config(tokenizer, hidden_size=64, num_layers=1)
    assert config.vocab_size == len(tokenizer)
    assert CLIPTextModelWithProjection(config).text_projection.weight.shape == (64, 64)
    tokenizer.save_pretrained(tmp_path)
    for _ in ("alone", "beside a model"):
        loaded = AutoTokenizer.from_pretrained(tmp_path)
        assert type(loaded).__name__ == "CLIPTokenizer"
        assert ids(loaded, "a traffic light!") == ids(tokenizer, "a traffic light!")
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "mtaclip"}))


def test_folders_without_a_tokenizer_are_refused(tmp_path):
    with pytest.raises(ValueError, match="No tokenizer could be loaded from"):
        load_tokenizer(str(tmp_path))
