"""The scripts that pretrain `vlprompt-tiny`, on a few made-up images and phrases."""

import io
import json
import random
import zipfile

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import vlprompt
from scripts.measure_tiny import linear_probe, of_zip
from scripts.pretrain.__main__ import read_config
from scripts.pretrain.align import ALIGN_DEFAULTS, contrastive_loss, run_align
from scripts.pretrain.augment import MOVES, draw_images
from scripts.pretrain.loop import curve, decaying, forget_after
from scripts.pretrain.phrases import all_templates, into, wordnet_nouns
from scripts.pretrain.sources import (
    CHOICE_CLASSES,
    REPORT_CLASSES,
    clipart_caption,
    hypernyms,
    prepare,
    pretraining_identities,
)
from scripts.pretrain.student import MODEL_CONFIG, build_clip, drop_patches, pooled, text_features
from scripts.pretrain.text import TEXT_DEFAULTS, Texts, run_text, text_loss
from scripts.pretrain.trunk import DEFAULTS, Material, begin_from, run_trunk
from vlprompt.clip import tiny
from vlprompt.demo import emoji
from vlprompt.errors import VlpromptError

CHANNELS = {"emoji": 4, "clipart": 4, "cifar": 3, "glyphs": 1, "natural": 3, "each": 3, "choice": 3}
CONCEPTS = ["fox", "cat", "mammal", "animal", "circle", "dog"]


@pytest.fixture
def data(tmp_path):
    """A folder as `collect`, `phrases` and `teacher` leave it, of eight images a source and a dozen phrases."""
    draw = torch.Generator().manual_seed(0)
    tensors = {}
    for source, channels in CHANNELS.items():
        tensors[f"{source}.pixels"] = torch.randint(256, (8, channels, 64, 64), generator=draw, dtype=torch.uint8)
        tensors[f"{source}.weight"] = torch.ones(8)
        named = torch.arange(8) % 4 if source != "choice" else torch.arange(8) % 2 + 4
        tensors[f"{source}.names"] = torch.stack([named, torch.full((8,), -1), torch.full((8,), -1)], 1)
        tensors[f"{source}.kinds"] = torch.tensor([[3, -1, -1]] * 8)
    save_file(tensors, tmp_path / "corpus.safetensors", metadata={"concepts": json.dumps(CONCEPTS)})
    seen = {s: torch.randn(8, 1280, generator=draw).half() for s in ("emoji", "clipart", "each", "natural", "choice")}
    save_file(seen, tmp_path / "teacher.safetensors")
    plain = [*CONCEPTS, *emoji.emoji_index()["classes"], "a definition of something rather long"]
    plain = list(dict.fromkeys(plain))
    written = {
        "plain": torch.randn(len(plain), 384, generator=draw).half(),
        "templates": torch.randn(len(all_templates()), 384, generator=draw).half(),
        "framed": torch.tensor([[number, number] for number in range(8)]),
    }
    save_file(written, tmp_path / "phrases.safetensors", metadata={"plain": json.dumps(plain)})
    joint = {"mean": torch.zeros(384), "basis": torch.randn(384, 192, generator=draw)}
    joint["concepts"] = into(written["plain"][: len(CONCEPTS)], joint["mean"], joint["basis"])
    joint["other"] = torch.nn.functional.normalize(torch.randn(22, 192, generator=draw), dim=1)
    save_file(joint, tmp_path / "joint.safetensors")
    return tmp_path


SMALL = [f"batch.{source}=2" for source in DEFAULTS["batch"]] + ["keep=4", "log_every=1", "probe_every=1000"]


def test_pretraining_sees_no_val_or_test_emoji():
    entries = emoji.emoji_index()["emoji"]
    held_out = {e["code"] for e in entries if e["split"] != "train"}
    allowed = pretraining_identities(e["code"].upper() for e in entries)
    assert allowed == {e["code"].upper() for e in entries if e["split"] == "train"}
    joined = [f"{code}-200d-2b1b" for code in held_out]
    assert not pretraining_identities(joined)
    assert pretraining_identities(["1f600"]) == {"1f600"}  # a face, outside the dataset


def test_clipart_names_lose_artists_and_numbers():
    assert clipart_caption("animals/birds/gull_marcelo_staudt_01.png") == ("gull", ["bird", "animal"])
    assert clipart_caption("recreation/games/cards/simple/simple_h_10.png")[0] == "ten of hearts"
    assert clipart_caption("food/fruit/prune.png") == ("prune", ["fruit", "food"])


def test_missing_sources_are_one_clear_sentence(tmp_path):
    names = ("noto", "twemoji", "fluent", "clipart", "cifar", "tiny_imagenet", "imagenet_one_each", "wordnet")
    with pytest.raises(VlpromptError, match=r"emoji-datasource-google 16.0.0.*set noto=PATH"):
        prepare(tmp_path / "corpus.safetensors", dict.fromkeys(names, tmp_path / "absent"))


def test_choices_and_reports_share_no_class():
    assert len(CHOICE_CLASSES) == len(REPORT_CLASSES) == 10
    assert not set(CHOICE_CLASSES) & set(REPORT_CLASSES)


def test_hypernyms_are_common_words_and_skip_empty_ones(tmp_path):
    (tmp_path / "data.noun").write_text(
        "  1 a licence line\n"
        "00000001 03 n 01 entity 0 000 | what is\n"
        '00000002 05 n 02 animal 0 beast 0 001 @ 00000001 n 0000 | a living thing; "a beast"\n'
        "00000003 05 n 01 canine 0 001 @ 00000002 n 0000 | of the dog family\n"
        "00000004 05 n 02 red_fox 0 Vulpes_vulpes 0 001 @ 00000003 n 0000 | a fox\n"
    )
    assert hypernyms(tmp_path / "data.noun")["n00000004"] == ["animal", "canine"]
    nouns, definitions = wordnet_nouns(tmp_path / "data.noun")
    assert nouns == ["entity", "animal", "beast", "canine", "red fox"]
    assert definitions[1] == "a living thing"


def test_unknown_keys_are_refused_with_the_nearest():
    with pytest.raises(VlpromptError, match="did you mean seed"):
        read_config(DEFAULTS, ["sed=3"])


def test_the_rate_warms_up_and_falls_to_zero():
    config = read_config(TEXT_DEFAULTS, ["lr=0.001", "warmup=100"])
    rate = decaying(config, 1100)
    assert rate(0) == pytest.approx(1e-5)
    assert rate(100) == pytest.approx(1e-3)
    assert rate(600) == pytest.approx(5e-4)
    assert rate(1100) == 0


@pytest.mark.parametrize("source", MOVES)
def test_images_are_drawn_within_bounds_and_by_their_generator(source):
    pixels = torch.randint(256, (3, CHANNELS[source], 48, 48), dtype=torch.uint8)
    first, second = (draw_images(source, pixels, 64, torch.Generator().manual_seed(2)) for _ in range(2))
    assert first.shape == (3, 3, 64, 64)
    assert first.min() >= 0
    assert first.max() <= 1
    assert torch.equal(first, second)


def test_the_towers_equal_openclips():
    clip = build_clip(1).eval()
    images, tokens = torch.randn(2, 3, 64, 64), torch.zeros(2, 77, dtype=torch.int64)
    tokens[0, :4], tokens[1, :3] = torch.tensor([49406, 320, 1929, 49407]), torch.tensor([49406, 2368, 49407])
    with torch.no_grad():
        ours = pooled(clip.visual, images, 0, None) @ clip.visual.proj
        torch.testing.assert_close(ours, clip.encode_image(images), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(text_features(clip, tokens[:, :4]), clip.encode_text(tokens), atol=1e-5, rtol=1e-4)


def test_dropped_patches_leave_cls_and_distinct_ones():
    x = torch.arange(10.0).expand(2, 10)[:, :, None]
    kept = drop_patches(x, 4, torch.Generator().manual_seed(0))[:, :, 0]
    assert kept.shape == (2, 5)
    assert (kept[:, 0] == 0).all()
    assert all(len(set(row.tolist())) == 5 for row in kept)


def test_a_pair_that_does_not_count_changes_no_loss():
    truth = torch.eye(3, dtype=torch.bool)
    counts = torch.ones(3, 3, dtype=torch.bool)
    counts[0, 1] = False
    logits = torch.randn(3, 3)
    other = logits.clone()
    other[0, 1] = 50.0
    assert torch.equal(contrastive_loss(logits, truth, counts), contrastive_loss(other, truth, counts))
    assert contrastive_loss(other, truth, torch.ones_like(counts)) > contrastive_loss(logits, truth, counts)


def test_text_loss_is_least_at_the_target():
    wanted = torch.nn.functional.normalize(torch.randn(6, 8), dim=1)
    assert sum(text_loss(3 * wanted, wanted, 20.0).values()).item() == pytest.approx(0, abs=1e-5)
    assert sum(text_loss(wanted.roll(1, 0), wanted, 20.0).values()) > 1


def test_an_emoji_is_never_told_a_class_of_the_dataset(data):
    material = Material(data)
    mammal = CONCEPTS.index("mammal")
    assert mammal in material.forbidden
    assert material.targets("emoji", torch.arange(8), 0.75)[:, mammal].sum() == 0
    assert material.targets("natural", torch.arange(8), 0.75)[:, mammal].sum() > 0


def test_each_epoch_of_texts_holds_each_text_once(data):
    texts = Texts(data, 0.3)
    size = 6
    steps = len(texts.tokens) // size
    seen = torch.cat([texts.batch(step, size, 1)[1] for step in range(steps)])
    assert len(seen.unique(dim=0)) == steps * size


def test_phrases_of_a_concept_follow_its_vector(data):
    texts = Texts(data, 0.3)
    before, moved = texts.targets.clone(), torch.nn.functional.normalize(torch.randn(1, 192), dim=1)
    texts.follow(["cat"], 2 * moved)
    changed = (texts.targets != before).any(1)
    assert [text for text, c in zip(texts.texts, changed, strict=True) if c] == [
        "cat",
        all_templates()[1].format("cat"),
    ]
    assert torch.allclose(texts.targets[1], moved[0])


@pytest.mark.nightly
def test_a_killed_trunk_goes_on_as_if_it_had_not_been(data, tmp_path):
    config = read_config(DEFAULTS, SMALL)
    run_trunk(data, tmp_path / "whole", config, 4)
    run_trunk(data, tmp_path / "broken", config, 2)
    run_trunk(data, tmp_path / "broken", config, 4)
    first, second = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "broken"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_trunk_text_and_alignment_make_a_file_that_loads(data, tmp_path):
    run_trunk(data, tmp_path / "run", read_config(DEFAULTS, SMALL), 1)
    run_text(data, tmp_path / "text", read_config(TEXT_DEFAULTS, ["steps=1", "batch=6", "warmup=0"]))
    folders = [f"trunk={tmp_path / 'run'}", f"text={tmp_path / 'text'}", f"target={tmp_path / 'made'}"]
    settings = [*SMALL, *folders, "steps=2", "phrases=4", "warmup=1"]
    run_align(data, tmp_path / "align", read_config(ALIGN_DEFAULTS, settings))
    assert [json.loads(line)["step"] for line in (tmp_path / "align" / "log.jsonl").read_text().splitlines()] == [1, 2]
    model, _ = tiny.load_tiny(tmp_path / "made")
    assert model.encode_image(torch.zeros(1, 3, 64, 64)).shape == (1, MODEL_CONFIG["embed_dim"])
    assert len(model.token_embedding.weight.unique(dim=0)) > 49_000
    assert (tmp_path / "made" / tiny.WORDS).read_text().split() == ["animal", "cat", "fox", "mammal"]


def test_another_files_tower_is_begun_from_but_for_its_projection(tmp_path):
    given = build_clip(2)
    save_file({n: t.contiguous() for n, t in given.state_dict().items()}, tmp_path / "start.safetensors")
    ours = build_clip(3).visual
    begun_proj = ours.proj.clone()
    begin_from(ours, tmp_path / "start.safetensors")
    torch.testing.assert_close(ours.positional_embedding, given.visual.positional_embedding)
    assert torch.equal(ours.conv1.weight, given.visual.conv1.weight)
    assert torch.equal(ours.proj, begun_proj)


def test_the_log_forgets_steps_that_will_be_taken_again(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3)))
    forget_after(log, 2)
    assert log.read_text().splitlines() == ['{"step": 1}', '{"step": 2}']


def test_the_curve_shows_the_lines_that_watched(tmp_path):
    lines = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0, "val": 50.0}, {"step": 3, "loss": 1.5}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert curve(tmp_path / "log.jsonl").splitlines()[2:] == ["| 2 | 2.0 | 50.0 |"]


def test_templates_are_the_ones_of_clip_and_ours():
    templates = all_templates()
    assert len(templates) > 90
    assert all(template.count("{}") == 1 for template in random.Random(0).sample(templates, 20))


def test_a_zips_folders_are_labels_in_the_given_order(tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for name, shade in (("b/1.png", 0), ("b/2.png", 0), ("a/1.png", 255)):
            buffer = io.BytesIO()
            Image.new("L", (20, 30), shade).save(buffer, "png")
            archive.writestr(name, buffer.getvalue())
    clip = vlprompt.load_clip("vlprompt-tiny")
    found = of_zip(clip, tmp_path / "photos.zip", ["b", "a"], every=1)
    assert found.labels.tolist() == [0, 0, 1]
    assert torch.equal(found.features[0], found.features[1])
    assert linear_probe(found, found) == 100
