"""Sentences about classes: keys of published files find their classes, and no two classes share one silently."""

import json
from pathlib import Path

import open_clip
import pytest

from datasets_registry.card import load_card
from datasets_registry.descriptions import match_keys
from vlprompt.data import read_descriptions
from vlprompt.errors import VlpromptError

# the keys of CuPL's files, which are sorted, by dataset
PUBLISHED = json.loads(Path(__file__).with_name("description_keys.json").read_text("utf-8"))


def class_names(dataset: str) -> list[str]:
    return list(load_card(dataset).class_names.values()) or list(open_clip.IMAGENET_CLASSNAMES)


@pytest.mark.parametrize("dataset", PUBLISHED)
def test_every_class_finds_its_key_in_the_published_files(dataset: str):
    names, keys = class_names(dataset), dict.fromkeys(PUBLISHED[dataset], "a sentence")
    found = match_keys(names, {key: key for key in keys})
    assert set(found) == set(names)
    unused = {"background", "centered face"} if dataset == "caltech101" else set()  # classes that CoOp leaves out
    assert set(keys) - set(found.values()) == unused


def test_keys_with_other_words_are_the_right_ones():
    assert (
        match_keys(class_names("caltech101"), {key: key for key in PUBLISHED["caltech101"]})["face"]
        == "off-center face"
    )
    cars = match_keys(class_names("stanford_cars"), {key: key for key in PUBLISHED["stanford_cars"]})
    assert cars["2000 AM General Hummer SUV"] == "AM General Hummer SUV 2000"
    assert cars["2012 Ram C/V Cargo Van Minivan"] == "Ram CV Cargo Van Minivan 2012"
    places = match_keys(class_names("sun397"), {key: key for key in PUBLISHED["sun397"]})
    assert places["outdoor apartment building"] == "apartment building (outdoor)"
    flowers = match_keys(class_names("flowers102"), {key: key for key in PUBLISHED["flowers102"]})
    assert flowers["ball moss"] == "air plant"
    assert flowers["globe-flower"] == "globe flower"
    assert match_keys(["Handstand Pushups"], {"Hand Stand Pushups": 1}) == {"Handstand Pushups": "Hand Stand Pushups"}


@pytest.mark.parametrize("dataset", ["caltech101", "eurosat", "flowers102", "stanford_cars"])
def test_aliases_of_the_cards_are_of_their_classes_and_the_own_name_comes_first(dataset: str):
    card = load_card(dataset)
    assert set(card.description_keys) <= set(card.class_names.values())
    both = dict.fromkeys(card.class_names.values(), "own") | dict.fromkeys(card.description_keys.values(), "alias")
    assert match_keys(class_names(dataset), both) == {name: name for name in class_names(dataset)}


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("red_fox", "Red  Fox"),
        ("apartment building/outdoor", "apartment building (outdoor)"),
        ("colt's foot", "Colt’s-Foot"),
        ("crème brûlée", "creme brulee"),
        ("cre\u0300me", "crème"),
        ("macaroni & cheese", "macaroni and cheese"),
        ("ice cream", "icecream"),
        ("狐", "狐"),
        ("★", "★"),
    ],
)
def test_spellings_of_one_name_match(name: str, key: str):
    assert match_keys([name, "dog"], {"dog": 1, key: 2}) == {name: key, "dog": "dog"}


def test_what_could_be_two_is_refused_by_both_names(tmp_path: Path):
    path = tmp_path / "d.json"
    path.write_text(json.dumps({"boat house": ["a"], "dog": ["b"]}))
    with pytest.raises(VlpromptError, match="has 'boat house' for both 'boat house' and 'house boat': give each class"):
        read_descriptions(path, ["boat house", "house boat"])
    with pytest.raises(VlpromptError, match="has 'boat house' for both 'house-boat' and 'boathouse'"):
        read_descriptions(path, ["house-boat", "boathouse"])
    path.write_text(json.dumps({"fox red": ["a"], "fox (red)": ["b"]}))
    with pytest.raises(
        VlpromptError, match=r"two lists of sentences for 'red fox', 'fox red' and 'fox \(red\)': keep one"
    ):
        read_descriptions(path, ["red fox", "red-fox"])
    path.write_text(json.dumps({"fox red": ["a"], "red fox": ["b"]}))
    assert read_descriptions(path, ["red_fox"]) == [["b"]]  # its own spelling comes before other orders
    path.write_text('{"cat": ["a"], "cat": ["b"]}')
    with pytest.raises(VlpromptError, match="has the key 'cat' twice: keep one"):
        read_descriptions(path, ["cat"])
    path.write_text(json.dumps({"missile": ["a"]}))
    assert read_descriptions(path, ["missile", "missile"]) == [["a"], ["a"]]  # ImageNet's two of one name


def test_descriptions_are_found_however_keys_are_written(tmp_path: Path):
    path = tmp_path / "descriptions.json"
    path.write_text(
        json.dumps({"Yin_Yang": ["a circle"], "sea  horse ": ["a fish", "it is upright"], "watch": "a clock"})
    )
    assert read_descriptions(path, ["sea_horse", "yin yang"]) == [["a fish", "it is upright"], ["a circle"]]
    assert read_descriptions(path, ["wristwatch"], {"wristwatch": "watch"}) == [["a clock"]]
    with pytest.raises(
        VlpromptError, match="no sentences for 1 of 2 classes, first 'sea horses': did you mean sea horse"
    ):
        read_descriptions(path, ["watch", "sea horses"])
    path.write_text(json.dumps({"a_b": ["x"], "a b": ["y"]}))
    with pytest.raises(VlpromptError, match="two lists of sentences for 'a b'"):
        read_descriptions(path, ["a b"])
    path.write_text(json.dumps({"a": []}))
    with pytest.raises(VlpromptError, match="must have a list of sentences for 'a'"):
        read_descriptions(path, ["a"])
