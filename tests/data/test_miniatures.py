"""For every card a miniature in the true layout loads, samples and splits."""

from pathlib import Path

import open_clip
import pytest
from miniatures import IDS, make_miniature

from datasets_registry.card import card_names, load_card
from datasets_registry.check import check_dataset
from datasets_registry.readers.packaged import has_packaged
from vlprompt.data import check_items, few_shot_split, leave_domain_out, load_split
from vlprompt.errors import VlpromptError

ON_DISK = [name for name in card_names() if load_card(name).folder]
TARGETS = [name for name in ON_DISK if load_card(name).split == "test only"]
PUBLISHED = [name for name in ON_DISK if load_card(name).split == "published"]
# a miniature's split is none that was published, which is said where the package knows the published one
pytestmark = pytest.mark.filterwarnings("ignore:.*is not the published split")
DOMAIN_SETS = [name for name in ON_DISK if load_card(name).letters]


@pytest.mark.parametrize("name", ON_DISK)
def test_miniature_loads_samples_and_splits(name: str, tmp_path: Path):
    card = make_miniature(name, tmp_path)
    splits = load_split(name, tmp_path)
    assert len(splits.class_names) == card.classes
    assert not card.class_names or splits.class_names == tuple(card.class_names.values())
    assert {item.label for item in splits.test} == set(range(card.classes))
    assert splits.templates == tuple(card.templates)
    assert splits.open_image(splits.test[-1]).mode == "RGB"
    check_items(splits, [*splits.train, *splits.val, *splits.test])
    base, new = splits.select("base"), splits.select("new")
    assert len(base.class_names) == -(-card.classes // 2)
    assert base.class_names + new.class_names == splits.class_names
    assert len(base.test) + len(new.test) == len(splits.test)
    if name in TARGETS:
        with pytest.raises(VlpromptError, match=f"{name} has only test images"):
            few_shot_split(splits, 1, seed=1)
    else:
        drawn = few_shot_split(splits, 1, seed=1)
        assert sorted(item.label for item in drawn.train) == list(range(card.classes))


@pytest.mark.parametrize("name", PUBLISHED)
def test_without_the_published_split_one_is_generated_and_says_so(name: str, tmp_path: Path):
    card = make_miniature(name, tmp_path)
    published = load_split(name, tmp_path)
    for file in (tmp_path / card.folder).rglob("*split*.json"):
        file.unlink()
    if not has_packaged(name):
        with pytest.raises(VlpromptError, match=rf"{card.title}.* does not exist: get it from .*split=generated"):
            load_split(name, tmp_path)
    generated = load_split(name, tmp_path, split="generated")
    assert published.source == "own file" if has_packaged(name) else "published"
    assert generated.source == "generated"
    assert generated.class_names == published.class_names
    check_items(generated, [*generated.train, *generated.val, *generated.test])
    labels = {item.path: item.label for part in (published.train, published.val, published.test) for item in part}
    items = [*generated.train, *generated.val, *generated.test]
    assert {item.path: item.label for item in items} == labels
    train, test = ({item.path for item in part} for part in (generated.train, generated.test))
    assert not train & test
    if name in ("oxford_pets", "stanford_cars", "sun397", "ucf101"):  # their authors fix the test images
        assert test == {item.path for item in published.test}


def test_label_order_is_the_papers_and_not_the_names():
    names = list(load_card("caltech101").class_names.values())
    assert names[:5] == ["face", "leopard", "motorbike", "accordion", "airplane"]
    names = list(load_card("sun397").class_names.values())
    assert (names[0], names[8]) == ("abbey", "outdoor apartment building")
    assert load_card("stanford_cars").class_names["AM General Hummer SUV 2000"] == "2000 AM General Hummer SUV"
    assert load_card("ucf101").class_names["YoYo"] == "Yo Yo"
    assert next(iter(load_card("flowers102").class_names.values())) == "pink primrose"
    assert list(load_card("fgvc_aircraft").class_names)[:2] == ["707-320", "727-200"]
    assert list(load_card("food101").class_names)[16:18] == ["cheese_plate", "cheesecake"]


def test_imagenets_two_missiles_are_two_classes(tmp_path: Path):
    make_miniature("imagenet", tmp_path)
    splits = load_split("imagenet", tmp_path)
    missiles = [label for label, name in enumerate(splits.class_names) if name == "missile"]
    assert missiles == [657, 744]
    assert len(set(splits.class_names)) == 998
    assert sum(item.label == 744 for item in splits.test) == 1
    assert (len(splits.train), len(splits.val), len(splits.test)) == (2000, 0, 1000)
    assert splits.train[0].path < splits.train[1].path  # sorted, not as the disk lists them


def test_classes_of_imagenets_subsets_are_at_their_places_among_all(tmp_path: Path):
    make_miniature("imagenet_a", tmp_path)
    splits = load_split("imagenet_a", tmp_path)
    assert [IDS[place] for place in splits.class_places] == [path.name for path in _class_folders(splits)]
    half = splits.select("new")
    assert half.class_places == splits.class_places[100:]


def _class_folders(splits) -> list[Path]:
    """The folder of each class, in label order."""
    return [Path(next(item.path for item in splits.test if item.label == label)).parent for label in range(200)]


def test_missing_class_folder_of_imagenet_is_named(tmp_path: Path):
    make_miniature("imagenet", tmp_path)
    (tmp_path / "imagenet/images/train" / IDS[3]).rename(tmp_path / "elsewhere")
    with pytest.raises(VlpromptError, match=rf"999 of the 1000 .* first that is missing is .*images/train/{IDS[3]}/"):
        load_split("imagenet", tmp_path)


def test_numbered_folders_of_v2_are_labels_and_not_sorted_as_words(tmp_path: Path):
    make_miniature("imagenet_v2", tmp_path)
    splits = load_split("imagenet_v2", tmp_path)
    assert all(item.path == f"{item.label}/{item.label}.jpeg" for item in splits.test)


@pytest.mark.parametrize("name", ["imagenet_a", "imagenet_r"])
def test_subsets_of_imagenet_have_200_labels_of_their_own(name: str, tmp_path: Path):
    card = make_miniature(name, tmp_path)
    splits = load_split(name, tmp_path)
    assert splits.class_names[:2] == ("tiger shark", "hen")
    folder = tmp_path / card.folder / card.images / IDS[3]
    for image in folder.iterdir():
        image.unlink()
    folder.rmdir()
    with pytest.raises(VlpromptError, match=f"199 of the 200 class folders of {card.title}"):
        load_split(name, tmp_path)


def test_names_of_imagenet_are_known_and_a_file_that_differs_is_named(tmp_path: Path, recwarn):
    make_miniature("imagenet", tmp_path)
    make_miniature("imagenet_a", tmp_path)
    splits = load_split("imagenet", tmp_path)
    assert splits.class_names == tuple(open_clip.IMAGENET_CLASSNAMES)
    assert (splits.class_names[0], splits.class_names[134]) == ("tench", "crane bird")
    file = tmp_path / "imagenet/classnames.txt"
    lines = [f"{i} {name.replace(' ', '_')}\n" for i, name in zip(IDS, open_clip.IMAGENET_CLASSNAMES, strict=True)]
    file.write_text("".join(lines))  # as CoOp has it
    assert load_split("imagenet", tmp_path).class_names == splits.class_names
    assert not recwarn.list
    file.write_text("".join(lines).replace("n01491361 tiger_shark", "n01491361 tiger"))
    for name in ("imagenet", "imagenet_a"):  # the file in ImageNet's folder serves its variants
        with pytest.warns(
            UserWarning, match=r"imagenet/classnames.txt has 1 names other than .* n01491361 'tiger', .*"
        ):
            assert "tiger" in load_split(name, tmp_path).class_names
        assert any("classnames.txt has 1 names" in line for line in check_dataset(name, tmp_path).defects)


@pytest.mark.parametrize(
    ("name", "images"),
    [("imagenet", ""), ("imagenet", "ILSVRC/Data/CLS-LOC"), ("imagenet_sketch", "sketch"), ("imagenet_v2", "")],
)
def test_other_layouts_of_imagenet_are_read(name: str, images: str, tmp_path: Path):
    card = make_miniature(name, tmp_path)
    expected = load_split(name, tmp_path)
    folder = tmp_path / card.folder
    (folder / card.images).rename(tmp_path / "images")
    (folder / images).mkdir(parents=True, exist_ok=True)
    for entry in (tmp_path / "images").iterdir():
        entry.rename(folder / images / entry.name)
    assert load_split(name, tmp_path).fingerprint() == expected.fingerprint()
    assert all("the card says" in line for line in check_dataset(name, tmp_path).defects)


@pytest.mark.parametrize("images", ["images", "."])
def test_flat_val_of_imagenet_is_told_how_to_be_sorted(images: str, tmp_path: Path):
    (tmp_path / "imagenet" / images / "val").mkdir(parents=True)
    (tmp_path / "imagenet" / images / "val/ILSVRC2012_val_00000001.JPEG").touch()
    with pytest.raises(VlpromptError, match=r"side by side .* sort them into class folders, by running valprep\.sh"):
        load_split("imagenet", tmp_path)
    assert "valprep.sh" in check_dataset("imagenet", tmp_path).defects[0]
    (tmp_path / "imagenet" / images / "train").mkdir()
    (tmp_path / "imagenet" / images / "train/n01440764.tar").touch()
    with pytest.raises(VlpromptError, match=r"unpack each archive .* such as n01440764\.tar into n01440764/"):
        load_split("imagenet", tmp_path)


def test_imagenets_training_images_are_not_needed_to_test_on_it(tmp_path: Path):
    make_miniature("imagenet", tmp_path)
    (tmp_path / "imagenet/images/train").rename(tmp_path / "imagenet/images/elsewhere")
    assert (len(load_split("imagenet", tmp_path).train), len(load_split("imagenet", tmp_path).test)) == (0, 1000)


@pytest.mark.parametrize("name", DOMAIN_SETS)
def test_a_domain_is_left_out_as_published(name: str, tmp_path: Path):
    card = make_miniature(name, tmp_path)
    splits = load_split(name, tmp_path)
    assert splits.domains == tuple(card.letters)
    for held_out in splits.domains:
        split = leave_domain_out(splits, held_out)
        assert held_out not in {item.domain for item in [*split.train, *split.val]}
        assert {item.domain for item in split.test} == {held_out}
        # its train and val images, each once, though the published test part repeats val
        assert len(split.test) == len({item.path for item in split.test}) == 3 * card.classes
    assert load_split(f"{name}/to-{held_out}", tmp_path).fingerprint() == split.fingerprint()
    assert {item.domain for item in load_split(f"{name}/{held_out}", tmp_path).train} == {held_out}
    with pytest.raises(VlpromptError, match=f"{card.title} has no 'to-nowhere'"):
        load_split(f"{name}/to-nowhere", tmp_path)


def test_cifar_is_read_from_its_binary_files_or_from_class_folders(tmp_path: Path):
    card = make_miniature("cifar10", tmp_path)
    splits = load_split("cifar10", tmp_path)
    assert (len(splits.train), len(splits.test)) == (50, 10)
    record = (tmp_path / "cifar10/cifar-10-batches-bin/test_batch.bin").read_bytes()[3073:6146]  # the second one
    image = splits.open_image(splits.test[1])
    assert (splits.test[1].label, image.size) == (record[0], (32, 32))
    assert image.getpixel((1, 0)) == (record[2], record[2 + 1024], record[2 + 2048])
    (tmp_path / "cifar10/cifar-10-batches-bin/test_batch.bin").write_bytes(b"short")
    from datasets_registry.readers.official import _records

    _records.cache_clear()
    with pytest.raises(VlpromptError, match=r"test_batch\.bin is damaged"):
        load_split("cifar10", tmp_path)
    for part in ("train", "test"):
        for key in card.class_names:
            (tmp_path / "cifar10" / part / key).mkdir(parents=True)
            splits.open_image(splits.train[0]).save(tmp_path / "cifar10" / part / key / "0.png")
    assert load_split("cifar10", tmp_path).class_names == tuple(card.class_names.values())
