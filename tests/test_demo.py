"""The embedded default: the emoji archive, the drawn glyphs, and the tiny pretrained model."""

import hashlib
import json
import random
import zipfile
from pathlib import Path

import new_processes
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

import vlprompt
from vlprompt.clip import tiny
from vlprompt.clip.name_checks import describe_unseen
from vlprompt.data.splits import without_labels
from vlprompt.demo import emoji, glyphs
from vlprompt.errors import VlpromptError

CLASS_COUNTS = {
    "symbols": 211,
    "arrows": 61,
    "cards": 52,
    "chess": 12,
    "cyrillic": 32,
    "dominoes": 49,
    "faces": 63,
    "georgian": 33,
    "greek": 24,
    "hexagrams": 64,
    "zodiac": 12,
}


@pytest.fixture(scope="module")
def emoji_splits():
    return emoji.read_emoji()


@pytest.fixture(scope="module")
def tiny_model():
    return tiny.load_tiny()


def identity(item):
    return item.path.split("/")[1].removesuffix(".webp").split("-200d-")[0].replace("-fe0f", "")


def digest(splits, items):
    return hashlib.sha256(b"".join(splits.open_image(item).tobytes() for item in items)).hexdigest()


def zero_shot_accuracy(model, tokenizer, splits, items):
    preprocessing = model.visual.preprocess_cfg
    resize = v2.Resize(preprocessing["size"], v2.InterpolationMode.BICUBIC)
    normalise = v2.Normalize(preprocessing["mean"], preprocessing["std"])
    transform = v2.Compose([resize, v2.ToImage(), v2.ToDtype(torch.float32, scale=True), normalise])
    with torch.no_grad():
        texts = model.encode_text(tokenizer([splits.templates[0].format(name) for name in splits.class_names]), True)
        images = model.encode_image(torch.stack([transform(splits.open_image(item)) for item in items]), True)
    labels = torch.tensor([item.label for item in items])
    return ((images @ texts.T).argmax(1) == labels).float().mean().item()


def test_emoji_archive_is_small_stored_and_says_its_licences():
    assert emoji.ARCHIVE.stat().st_size <= 4e6
    with zipfile.ZipFile(emoji.ARCHIVE) as archive:
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert archive.testzip() is None
    licences = emoji.emoji_index()["licenses"]
    assert set(licences) == set(emoji.STYLES)
    assert "Apache-2.0" in licences["noto"]
    assert "CC-BY-4.0" in licences["twemoji"]
    assert "MIT" in licences["fluent"]


def test_a_test_emoji_is_unseen_in_every_style(emoji_splits):
    train, val, test = (
        {identity(i) for i in part} for part in (emoji_splits.train, emoji_splits.val, emoji_splits.test)
    )
    assert not train & test
    assert not train & val
    assert not val & test
    assert {item.domain for item in emoji_splits.test} == set(emoji.STYLES)


def test_emoji_classes_allow_sixteen_shots(emoji_splits):
    assert 16 <= len(emoji_splits.class_names) <= 24
    assert list(emoji_splits.class_names) == sorted(set(emoji_splits.class_names))
    for label in range(len(emoji_splits.class_names)):
        assert sum(item.label == label for item in emoji_splits.train) >= 16
        assert sum(item.label == label for item in emoji_splits.val) >= 4
        assert sum(item.label == label for item in emoji_splits.test) >= 12


def test_emoji_have_no_flags_and_no_skin_tones():
    tones = range(0x1F3FB, 0x1F400)
    flags = [*range(0x1F1E6, 0x1F200), 0x1F3F3, 0x1F3F4]  # regional letters, white and black flag
    codes = {int(part, 16) for entry in emoji.emoji_index()["emoji"] for part in entry["code"].split("-")}
    assert codes.isdisjoint([*tones, *flags])


def test_emoji_images_open_as_rgb_in_any_thread_or_process(emoji_splits):
    items = emoji_splits.test[:4]
    assert emoji_splits.open_image(items[0]).size == (64, 64)
    assert emoji_splits.open_image(items[0]).mode == "RGB"
    with torch.multiprocessing.get_context("fork").Pool(2) as pool:
        forked = pool.map(emoji.open_emoji, items)
    assert [image.tobytes() for image in forked] == [emoji_splits.open_image(item).tobytes() for item in items]


@pytest.mark.parametrize("name", CLASS_COUNTS)
def test_glyph_sets_have_distinct_natural_names(name):
    splits = glyphs.read_glyphs(name)
    assert len(splits.class_names) == CLASS_COUNTS[name] == len(set(splits.class_names))
    assert all(word == word.lower() and "-" not in word for word in splits.class_names)
    per_class = {part: len(getattr(splits, part)) // len(splits.class_names) for part in ("train", "val", "test")}
    assert per_class["train"] >= 16
    assert per_class["val"] >= 4
    assert 32 <= per_class["test"] <= 64


def test_natural_names():
    assert "white chess king" in glyphs.read_glyphs("chess").class_names
    assert "aquarius" in glyphs.read_glyphs("zodiac").class_names
    assert "snowman" in glyphs.read_glyphs("symbols").class_names
    assert glyphs.read_glyphs("cards").class_names[0] == "ace of spades"
    assert glyphs.read_glyphs("hexagrams").class_names[0] == "hexagram for the creative heaven"


def test_source_and_targets_share_no_class():
    names = [set(glyphs.read_glyphs(name).class_names) for name in glyphs.MINI11]
    assert all(not names[0] & target for target in names[1:])


def test_collections_load_and_shifts_are_test_only():
    assert len(glyphs.MINI11) == 11
    assert len(glyphs.MINI_DG4) == 4
    source = glyphs.read_glyphs("glyphs/symbols")
    for name in glyphs.MINI_DG4:
        shift = glyphs.read_glyphs(name)
        assert shift.class_names == source.class_names
        assert not shift.train
        assert not shift.val
        assert shift.open_image(shift.test[0]).size == (64, 64)


def print_glyphs(names: list[str]) -> None:
    for name in names:
        splits = glyphs.read_glyphs(name)
        print(digest(splits, splits.test[::97]))


def test_glyphs_do_not_depend_on_order_or_process(tmp_path):
    names = ["symbols", "greek", *glyphs.MINI_DG4]
    said = new_processes.finish(print_glyphs, [names], tmp_path / "said.txt")
    for name, elsewhere in zip(names, said.split(), strict=True):
        splits = glyphs.read_glyphs(name)
        items = splits.test[::97]
        shuffled = random.Random(0).sample(range(len(items)), len(items))
        drawn = {number: splits.open_image(items[number]).tobytes() for number in shuffled}
        assert hashlib.sha256(b"".join(drawn[n] for n in range(len(items)))).hexdigest() == elsewhere
        assert digest(splits, items) == elsewhere


@pytest.mark.parametrize("name", ["chess", "symbols-v2"])
def test_glyphs_of_a_pool_are_drawn_without_a_class_name(name):
    splits = glyphs.read_glyphs(name)
    items = (splits.train or splits.test)[::97]
    for item, unlabelled in zip(items, without_labels(items), strict=True):
        assert splits.open_image(unlabelled).tobytes() == splits.open_image(item).tobytes()


def test_glyphs_of_one_class_vary():
    splits = glyphs.read_glyphs("zodiac")
    images = [np.asarray(splits.open_image(item), dtype=float) for item in splits.train[:16]]
    differences = [np.abs(a - b).mean() for i, a in enumerate(images) for b in images[:i]]
    assert min(differences) > 5


def test_unknown_glyph_set_names_the_nearest():
    with pytest.raises(VlpromptError, match="did you mean chess"):
        glyphs.read_glyphs("ches")


def test_tiny_is_a_standard_openclip_model_in_little_space(tiny_model):
    model, tokenizer = tiny_model
    assert (tiny.FOLDER / tiny.WEIGHTS).stat().st_size <= 25e6
    assert len(model.visual.transformer.resblocks) >= 4
    assert len(model.transformer.resblocks) >= 3
    assert tokenizer.context_length == model.context_length == 77
    assert model.token_embedding.weight.shape[0] == tokenizer.vocab_size
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_the_file_packs_token_rows_in_eight_bits_and_gives_them_back(tmp_path, tiny_model):
    state = tiny_model[0].state_dict()
    tiny.save_tiny(state, tiny.tiny_config(), tmp_path)
    model, _ = tiny.load_tiny(tmp_path)
    rows, again = state[tiny.EMBEDDING], model.token_embedding.weight
    largest = rows.abs().amax(1, keepdim=True)
    assert (rows - again).abs().le(largest * (0.5 / 127 + 1e-3)).all()
    assert (tmp_path / tiny.WEIGHTS).stat().st_size <= 25e6


def test_a_file_of_another_shape_is_refused_in_a_sentence(tmp_path, tiny_model):
    config = tiny.tiny_config()
    tiny.save_tiny(tiny_model[0].state_dict(), config, tmp_path)
    config["model_cfg"]["vision_cfg"]["layers"] += 1
    (tmp_path / tiny.CONFIG).write_text(json.dumps(config))
    with pytest.raises(VlpromptError, match=r"does not hold the model of open_clip_config.json"):
        tiny.load_tiny(tmp_path)
    (tmp_path / tiny.WEIGHTS).write_bytes(b"cut short")
    with pytest.raises(VlpromptError, match=r"does not hold the model of open_clip_config.json"):
        tiny.load_tiny(tmp_path)


def test_names_without_a_word_of_any_caption_are_unseen():
    assert tiny.unseen_names(["red fox", "Dogs", "okapi", "7", "ATR-72"]) == ["okapi", "ATR-72"]


def test_class_names_far_from_the_captions_are_told_once():
    clip = vlprompt.load_clip("vlprompt-tiny")
    near, far = ("cat", "dog", "horse", "okapi", "tapir"), ("husky cat", "monkshood", "fritillary")
    assert not describe_unseen(clip, (*near[:4], "cow"))
    (said,) = describe_unseen(clip, far)
    assert "any word of 2 of 3 class names, such as 'monkshood', 'fritillary'" in said


def test_loading_tiny_leaves_the_seed_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    tiny.load_tiny()
    assert torch.equal(torch.rand(3), expected)


def test_zero_shot_on_unseen_emoji_is_far_above_chance_and_not_saturated(tiny_model, emoji_splits):
    base = emoji_splits.select("base")
    assert 3 / len(base.class_names) < zero_shot_accuracy(*tiny_model, base, base.test) < 0.85


@pytest.mark.parametrize("name", ["chess", "symbols", "zodiac"])
def test_zero_shot_on_glyphs_is_three_times_chance(tiny_model, name):
    splits = glyphs.read_glyphs(name)
    items = random.Random(0).sample(splits.test, 250)
    assert 3 / len(splits.class_names) < zero_shot_accuracy(*tiny_model, splits, items) < 0.85


def test_packing_emoji_gives_the_same_bytes_twice(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "scripts"))
    from pack_emoji import pack

    styles = {style: tmp_path / style for style in emoji.STYLES}
    folders = {"noto": "img/google/64", "twemoji": "img/twitter/64", "fluent": "assets"}
    codes = [f"1f{number:03x}" for number in range(0x400, 0x40E)]
    for number, (style, folder) in enumerate(folders.items()):
        (styles[style] / folder).mkdir(parents=True)
        for code in codes:
            suffix = "webp" if style == "fluent" else "png"
            Image.new("RGBA", (72, 72), (number * 90, 60, 90, 128)).save(styles[style] / folder / f"{code}.{suffix}")
    entries = [
        {"unified": c.upper(), "name": c.upper(), "subcategory": "animal-bird", "sort_order": i}
        for i, c in enumerate(codes)
    ]
    (styles["noto"] / "emoji.json").write_text(json.dumps(entries))
    for name in ("first.zip", "second.zip"):
        pack(styles, tmp_path / name)
    assert (tmp_path / "first.zip").read_bytes() == (tmp_path / "second.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "first.zip") as archive:
        splits = [e["split"] for e in json.loads(archive.read("index.json"))["emoji"]]
    assert (splits.count("train"), splits.count("val"), splits.count("test")) == (6, 2, 6)
