"""Class names that no prompt can tell apart: refused, or named in a warning with the way out."""

import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image

from vlprompt import FrozenCLIP, PromptClassifier, create_learner, load_clip, load_learner
from vlprompt.cli.__main__ import main
from vlprompt.clip import tiny
from vlprompt.clip.loading import _loaded_once
from vlprompt.clip.name_checks import find_alike
from vlprompt.data import join_datasets, splits_from_pairs
from vlprompt.errors import VlpromptError

EVERYDAY = ["husky", "labrador", "poodle", "melanoma", "scratch", "dent", "kiwi"]  # most unknown to the small model


@pytest.fixture(scope="module")
def clip() -> FrozenCLIP:
    return load_clip("vlprompt-tiny", device="cpu")


def squares(names: Sequence[str], count: int = 4) -> list[tuple[Image.Image, int]]:
    return [(Image.new("RGB", (8, 8), (9 * i, 60 * y, 0)), y) for y in range(len(names)) for i in range(count)]


OTHER_SCRIPTS = [["キツネ", "タヌキ", "ネコ"], ["лиса", "волк", "енот", "дом"], ["狐狸", "老虎", "大象"]]


@pytest.mark.parametrize("names", [EVERYDAY, *OTHER_SCRIPTS])
def test_the_embedded_model_tells_all_names_apart(clip: FrozenCLIP, names: list[str]):
    # case: lists/everyday_names.txt as class names on vlprompt-tiny (also names in other scripts)
    assert find_alike(clip, names) == ([], [])


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the embedded model know few tokens: every other one has the mean of their rows, as small models have."""
    known = tiny.unpacked
    _, tokenizer = tiny.load_tiny()
    kept = torch.unique(tokenizer(["a photo of a cat.", "a photo of a dog."]))

    def forgotten(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        state = known(tensors)
        rows = state[tiny.EMBEDDING][kept].clone()
        state[tiny.EMBEDDING][:] = rows.mean(0)
        state[tiny.EMBEDDING][kept] = rows
        return state

    monkeypatch.setattr(tiny, "unpacked", forgotten)
    _loaded_once.cache_clear()
    yield
    _loaded_once.cache_clear()  # no later test is to be answered by it


@pytest.mark.parametrize("names", [EVERYDAY, *OTHER_SCRIPTS])
def test_names_that_a_small_model_does_not_know_are_named_with_the_cure(forgetful: None, names: list[str]):
    # case: refused or loudly named in create_learner where a model takes names for one
    clip = load_clip("vlprompt-tiny", device="cpu")
    features = clip.encode_text([f"a photo of a {name}." for name in names])
    rows = list(zip(names, features, strict=True))
    equal = {a for a, x in rows for b, y in rows if a != b and torch.allclose(x, y, atol=1e-6)}
    same, alike = find_alike(clip, names)
    assert not same
    assert {name for group in alike for name in group} == equal != set()
    with pytest.warns(UserWarning, match=rf"cannot tell {len(equal)} of {len(names)} class names apart") as told:
        learner = create_learner("coop", clip, names, n_ctx=2)
    assert "larger backbone, such as backbone=ViT-B-16" in str(told[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner.set_class_names(["cat", "dog"])
        learner.set_class_names(names)  # told once


def test_alike_names_are_told_by_every_way_in(forgetful: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    # case: refused or loudly named in create_learner, train, fit, predict, data check
    for i, name in enumerate(["husky", "kiwi", "rust"]):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for j in range(8):
            Image.new("RGB", (8, 8), (60 * i, 9 * j, 0)).save(tmp_path / "photos" / name / f"{j}.png")
    sentence = "cannot tell 3 of 3 class names apart, such as 'husky', 'kiwi', 'rust'"
    folder, own = f"folder:{tmp_path / 'photos'}", str(tmp_path / "photos/rust/0.png")
    options = ["protocol=few_shot", "shots=1", "epochs=1", "views=1", f"output={tmp_path / 'runs'}", "name=it"]
    assert main(["data", "check", folder]) == 0
    assert sentence in capsys.readouterr().out
    assert main(["train", f"dataset={folder}", *options]) == 0
    assert sentence in capsys.readouterr().err
    assert main(["predict", f"learner={tmp_path / 'runs/it'}", own]) == 0
    assert sentence in capsys.readouterr().err
    assert main(["predict", f"learner={tmp_path / 'runs/it'}", own, "classes=[Cat,cat]"]) == 2
    assert "no prompt can tell the classes 'Cat', 'cat' apart" in capsys.readouterr().err
    images, labels = zip(*squares(EVERYDAY), strict=True)
    with pytest.warns(UserWarning, match="class names apart, such as 'husky'"):
        PromptClassifier("zero_shot", class_names=EVERYDAY, device="cpu").fit(list(images), list(labels))


@pytest.mark.parametrize(
    "pair",
    [
        ("Cat", "cat"),
        ("red fox", "red  fox"),
        ("red fox", "red_fox"),
        ("cat", "cat "),
        ("cat", "ｃａｔ"),
        ("caf\u00e9", "cafe\u0301"),
        ("cat", "cat"),
        ("cat", "\ufeffcat"),
        ("cat", "ca\u200bt"),
    ],
)
def test_names_of_the_same_tokens_are_refused(clip: FrozenCLIP, pair: tuple[str, str]):
    # case: Cat and cat, red fox and red  fox, composed and decomposed é
    message = "no prompt can tell the classes .* apart, since they are the same tokens: rename or merge them"
    with pytest.raises(VlpromptError, match=message):
        create_learner("coop", clip, ["dog", *pair], n_ctx=2)
    learner = create_learner("coop", clip, ["dog", "owl"], n_ctx=2)
    with pytest.raises(VlpromptError, match=message):
        learner.set_class_names([*pair, "dog"])
    assert learner.class_names == ("dog", "owl")
    images, labels = zip(*squares(pair), strict=True)
    with pytest.raises(VlpromptError, match=message):
        PromptClassifier("zero_shot", class_names=list(pair), device="cpu").fit(list(images), list(labels))


@pytest.mark.parametrize("name", ["\u200b", "_", " ", ""])
def test_a_name_of_which_prompts_have_nothing_is_refused(clip: FrozenCLIP, name: str):
    # case: names_with_empty_line.txt, names that are empty once they stand in a prompt
    with pytest.raises(VlpromptError, match="class names must be non-empty"):
        create_learner("coop", clip, ["cat", name], n_ctx=2)


def test_accents_are_composed_whatever_the_tokenizer():
    # case: composed and decomposed é
    from vlprompt.clip import natural_name

    assert natural_name("cafe\u0301") == natural_name("caf\u00e9") == unicodedata.normalize("NFC", "cafe\u0301")


def test_published_names_that_two_classes_have_are_told_and_not_refused(clip: FrozenCLIP):
    # case: ImageNet has two names twice
    with pytest.warns(
        UserWarning, match=r"the classes 'missile', 'missile' apart.* \(and 1 more such groups\)"
    ) as told:
        learner = create_learner("coop", clip, open_clip.IMAGENET_CLASSNAMES, n_ctx=2)
    assert {each.filename for each in told} == {__file__}  # the line that a user can change
    with pytest.raises(VlpromptError, match="'Tench', 'tench' apart"):
        learner.set_class_names(["Tench", *open_clip.IMAGENET_CLASSNAMES])


def test_joined_datasets_and_saved_learners_may_have_one_name_twice(clip: FrozenCLIP, tmp_path: Path):
    # case: published sets must still run
    parts = [splits_from_pairs(squares(["cat", "dog"]), ["cat", "dog"], name=f"part{i}") for i in range(2)]
    joined = join_datasets(parts)
    with pytest.warns(UserWarning, match=r"the classes 'cat', 'cat' apart.* \(and 1 more such groups\)"):
        learner = create_learner("coop", clip, joined.class_names, shared_names=bool(joined.tasks), n_ctx=2)
    learner.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="the classes 'cat', 'cat' apart"):
        assert load_learner(tmp_path, device="cpu", clip=load_clip("vlprompt-tiny", device="cpu")).class_names
