import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from datasets_registry.card import card_names, load_card, read_card
from datasets_registry.check import check_dataset, datasets_below
from datasets_registry.listed import find_card
from datasets_registry.readers import readers
from vlprompt.base.archives import extract
from vlprompt.cli.__main__ import main
from vlprompt.data import dataset_info, few_shot_split, leave_domain_out, list_collections, list_datasets, load_split
from vlprompt.data.splits import PARTS
from vlprompt.errors import VlpromptError

# a made-up split is none that was published, which is said where the package knows the published one
pytestmark = pytest.mark.filterwarnings("ignore:.*is not the published split")
COOP = ["caltech101", "dtd", "eurosat", "flowers102", "food101", "oxford_pets", "stanford_cars", "sun397", "ucf101"]
SPLIT = {
    "train": [["a/0.jpg", 0, "red_fox"], ["b/0.jpg", 1, "dog"]],
    "val": [],
    "test": [["a/1.jpg", 0, "red_fox"], ["b/1.jpg", 1, "dog"]],
}


def make_eurosat(root: Path, split: Any) -> Path:
    (root / "eurosat/2750").mkdir(parents=True)
    text = split if isinstance(split, str) else json.dumps(split)
    (root / "eurosat/split_zhou_EuroSAT.json").write_text(text)
    return root


# Cards


@pytest.mark.parametrize("name", card_names())
def test_card_is_valid_and_its_reader_known(name: str):
    card = load_card(name)
    assert card.reader in readers
    assert card.title
    assert card.licence
    assert not card.class_names or len(card.class_names) == card.classes
    assert card.citation
    if card.folder:
        assert "test" in card.counts or "total" in card.counts
        assert card.counts.get("base", 0) + card.counts.get("new", 0) in (0, card.counts.get("test"))
        assert sum(card.domain_counts.values()) in (
            0,
            card.counts.get("total", card.counts.get("train", 0) + card.counts.get("val", 0)),
        )
        assert card.homepage.startswith("http")
        assert card.layout.startswith(f"{card.folder}/")
        assert card.templates
    if card.split == "published":
        assert card.lister
        assert card.split_page.startswith("https://")
    for archive in card.archives:
        assert archive.url.startswith("http")
        assert archive.into in ("", card.folder)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("name: toy\ntitel: Toy", r"toy\.yaml is not valid: it has the unknown field 'titel': did you mean title"),
        (
            "name: toy\narchives: [{urll: x}]",
            r"toy\.yaml is not valid, archives\[0\]: it has .* field 'urll': did you mean url",
        ),
        ("name: toy\ntitle: Toy", r"toy\.yaml is not valid: .*reader"),
        ("name: toy\ntitle: Toy\nreader: folder\nclasses: many", r"toy\.yaml is not valid: .*many"),
        ("name: [", r"toy\.yaml cannot be read as YAML"),
        ("name: tyo\ntitle: Toy\nreader: folder", "is named 'tyo'"),
        ("name: toy\ntitle: Toy\nreader: folder\ntemplates: [a photo]", "a template without exactly one {}: 'a photo'"),
    ],
)
def test_wrong_card_is_told_in_one_sentence(tmp_path: Path, lines: str, message: str):
    (tmp_path / "toy.yaml").write_text(lines)
    with pytest.raises(VlpromptError, match=message) as error:
        read_card(tmp_path / "toy.yaml")
    assert "\n" not in str(error.value)


def test_datasets_are_listed_by_pattern_and_described():
    assert set(COOP) < set(list_datasets())
    assert list_datasets("s*") == ["shapes", "stanford_cars", "sun397"]
    assert dataset_info("dtd")["templates"] == ["{} texture."]
    with pytest.raises(VlpromptError, match=r"unknown dataset 'eurosta': did you mean eurosat\?"):
        dataset_info("eurosta")
    with pytest.raises(VlpromptError, match="unknown dataset 'OfficeHome': its name here is office_home"):
        load_split("OfficeHome")


@pytest.mark.parametrize(
    ("others", "name"),
    [
        # CoOp's class, configuration and folder; torchvision's class and folder; what people say
        ("Caltech101 caltech-101 caltech", "caltech101"),
        ("DescribableTextures DTD describable_textures textures", "dtd"),
        ("EuroSAT Eurosat", "eurosat"),
        ("FGVCAircraft fgvc-aircraft fgvc-aircraft-2013b aircraft FGVC", "fgvc_aircraft"),
        ("OxfordFlowers oxford_flowers Flowers102 flowers-102 flowers Oxford-Flowers", "flowers102"),
        ("Food101 food-101 food_101", "food101"),
        ("OxfordPets OxfordIIITPet oxford-iiit-pet pets", "oxford_pets"),
        ("StanfordCars stanford-cars cars Cars", "stanford_cars"),
        ("SUN397 SUN-397", "sun397"),
        ("UCF101 UCF-101", "ucf101"),
        ("ImageNet ILSVRC2012 imagenet-1k", "imagenet"),
        ("ImageNetV2 imagenetv2", "imagenet_v2"),
        ("ImageNetSketch imagenet-sketch", "imagenet_sketch"),
        ("ImageNetA imagenet-a imagenet-adversarial", "imagenet_a"),
        ("ImageNetR imagenet-r imagenet-rendition", "imagenet_r"),
        ("PACS", "pacs"),
        ("VLCS", "vlcs"),
        ("OfficeHome office_home_dg office-home", "office_home"),
        ("TerraIncognita terra", "terra_incognita"),
        ("DomainNet domain_net", "domainnet"),
        ("CIFAR10 cifar-10", "cifar10"),
        ("CIFAR100 cifar-100", "cifar100"),
    ],
)
def test_other_names_of_a_dataset_hint_at_its_own(others: str, name: str, tmp_path: Path):
    for other in others.split():
        with pytest.raises(VlpromptError, match=rf"unknown dataset '{other}': its name here is {name}$"):
            load_split(other, tmp_path)
    assert load_card(name).name == name


def test_hint_keeps_the_domain_and_serves_the_commands(capsys: pytest.CaptureFixture):
    with pytest.raises(VlpromptError, match=r"its name here is pacs/to-sketch$"):
        load_split("PACS/to-sketch")
    for argv in (
        ["data", "list", "cars"],
        ["data", "info", "cars"],
        ["train", "dataset=cars"],
        ["data", "check", "cars"],
    ):
        assert main(argv) == 2
        assert "its name here is stanford_cars" in capsys.readouterr().err


def test_collections_are_the_papers():
    known, named = set(list_datasets()), list_collections()
    assert all(set(members) <= known for members in named.values())
    assert {name: len(members) for name, members in named.items()} == {
        "coop11": 11,
        "cross_dataset10": 10,
        "dg4": 4,
        "dg5": 5,
        "mini11": 11,
        "mini_dg4": 4,
    }
    assert ["imagenet", *named["cross_dataset10"]] == list(named["coop11"])
    assert list_datasets("dg4") == ["imagenet_v2", "imagenet_sketch", "imagenet_a", "imagenet_r"]


# Published splits


def test_split_file_keeps_item_and_label_order(tmp_path: Path):
    splits = load_split("eurosat", make_eurosat(tmp_path, SPLIT))
    assert splits.class_names == ("red fox", "dog")
    assert [item.path for item in splits.test] == ["a/1.jpg", "b/1.jpg"]
    assert (splits.root, splits.image_dir) == (tmp_path / "eurosat", tmp_path / "eurosat/2750")


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "a/../../b.jpg", "..\\b.jpg", "C:\\b.jpg"])
def test_split_file_that_leads_out_of_the_folder_is_refused(tmp_path: Path, path: str):
    root = make_eurosat(tmp_path, {**SPLIT, "test": [["a/1.jpg", 0, "red_fox"], [path, 1, "dog"]]})
    with pytest.raises(VlpromptError, match=r"entry 1 of 'test' in .* leads out of the image folder: ") as error:
        load_split("eurosat", root)
    assert f"'{path}'" in str(error.value)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("{", "is not JSON"),
        ([], "must have the keys train, val and test, not list"),
        ({"train": [], "test": []}, "must have the keys train, val and test, not the keys train, test"),
        ({**SPLIT, "val": {}}, "content of 'val' .* must be a list, not dict"),
        (
            {**SPLIT, "val": [["a.jpg", 0]]},
            r"entry 0 of 'val' .* must be \[path, label, class name\], not \['a.jpg'",
        ),
        ({**SPLIT, "val": [["a.jpg", "0", "dog"]]}, r"must be \[path, label, class name\]"),
        ({**SPLIT, "val": [["a.jpg", True, "dog"]]}, r"must be \[path, label, class name\]"),
        ({**SPLIT, "val": [["a.jpg", -1, "dog"]]}, r"must be \[path, label, class name\]"),
        ({**SPLIT, "val": [["a.jpg", 4, "cat"]]}, "labels .* must run from 0 without gaps; missing: 2, 3"),
        ({**SPLIT, "val": [["a.jpg", 1, "cat"]]}, "calls label 1 'cat', others 'dog'"),
        ({**SPLIT, "val": [["a.jpg", 2, "cat"]]}, "class 'cat' of dataset 'eurosat' has no training images"),
        ({**SPLIT, "test": []}, "dataset 'eurosat' has no test images"),
        ({"train": [], "val": [], "test": []}, "must run from 0 without gaps; missing: all"),
        ({"train": [["a.jpg", 0, "dog"]], "val": [], "test": []}, r"has one class \('dog'\): at least two"),
        (
            {"train": [["a.jpg", 0, "red_fox"], ["b.jpg", 1, "red fox"]], "val": [], "test": []},
            r"has the class name 'red fox' for the labels \[0, 1\]",
        ),
    ],
)
def test_malformed_split_file_is_told_in_one_sentence(tmp_path: Path, split: Any, message: str):
    with pytest.raises(VlpromptError, match=message):
        load_split("eurosat", make_eurosat(tmp_path, split))


def test_what_is_not_there_is_named_with_its_place_and_source(tmp_path: Path):
    with pytest.raises(VlpromptError, match="'eurosat' needs data_root, the folder that contains eurosat/"):
        load_split("eurosat")
    with pytest.raises(VlpromptError, match=r"expected in .*eurosat/2750.*download=true.*github.com/phelber"):
        load_split("eurosat", tmp_path)
    (tmp_path / "food-101/images").mkdir(parents=True)
    with pytest.raises(VlpromptError, match=r"split_zhou_Food101\.json, which does not exist: .*DATASETS\.md"):
        load_split("food101", tmp_path)
    with pytest.raises(VlpromptError, match=r"unknown dataset 'folde:x'.*folder:PATH"):
        load_split("folde:x")


# Real data


@pytest.fixture(scope="module")
def real_data(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with EuroSAT and PACS, unpacked from the archives that lie beside the repository."""
    root = tmp_path_factory.mktemp("data")
    for archive, folder, splits in (
        ("eurosat.zip", "eurosat", {"split_zhou_EuroSAT.json": "split_zhou_EuroSAT.json"}),
        (
            "pacs96.zip",
            "PACS",
            {f"PACS_{x}_train_val_split.json": f"spg_coop_splits/{x}_train_val_split.json" for x in "acps"},
        ),
    ):
        if not (shared / "data" / archive).exists():
            pytest.skip(f"no real data: {shared / 'data' / archive} is absent")
        extract(shared / "data" / archive, root / folder)
        for source, target in splits.items():
            (root / folder / target).parent.mkdir(exist_ok=True)
            shutil.copy(shared / "data/splits" / source, root / folder / target)
    return root


def test_real_eurosat_and_pacs_are_what_their_cards_say(real_data: Path):
    assert datasets_below(real_data) == ["eurosat", "pacs"]
    for name, images in (("eurosat", 27_000), ("pacs", 9_991)):
        report = check_dataset(name, real_data)
        assert not report.defects
        splits = load_split(name, real_data)
        assert len({item.path for part in (splits.train, splits.val, splits.test) for item in part}) == images
        assert splits.open_image(splits.test[-1]).mode == "RGB"


def test_real_pacs_leaves_each_domain_out_as_published(real_data: Path):
    splits = load_split("pacs", real_data)
    for held_out, size in load_card("pacs").domain_counts.items():
        split = leave_domain_out(splits, held_out)
        assert len(split.test) == size
        assert len(split.train) + len(split.val) == 9991 - size
    drawn = few_shot_split(load_split("pacs/to-sketch", real_data), 16, seed=1)
    assert (len(drawn.train), len(drawn.test)) == (7 * 16, 3929)


# Folders


def test_folder_is_split_the_same_wherever_it_lies(make_images: Callable[..., Path], tmp_path: Path):
    first = make_images({"red_fox": 20, "dog": 10})
    (first / "dog/notes.txt").touch()
    (first / ".hidden").mkdir()
    copy = tmp_path / "elsewhere"
    for path in sorted(first.rglob("*.jpg"), reverse=True):  # another creation order, another listing
        target = copy / path.relative_to(first)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    here, there = load_split(f"folder:{first}"), load_split(f"folder:{copy}")
    assert here.class_names == ("dog", "red fox")
    assert (len(here.train), len(here.val), len(here.test)) == (15, 6, 9)
    assert here.fingerprint() == there.fingerprint()
    assert len({item.path for items in (here.train, here.val, here.test) for item in items}) == 30
    assert here.source == "generated"
    assert here.open_image(here.test[0]).size == (32, 24)


def test_folder_with_train_and_test_folders_is_taken_as_it_is(make_images: Callable[..., Path]):
    root = make_images({"train/cat": 3, "train/dog": 2, "test/cat": 1, "test/dog": 1})
    splits = load_split(f"folder:{root}")
    assert [item.path for item in splits.train] == [
        "train/cat/000.jpg",
        "train/cat/001.jpg",
        "train/cat/002.jpg",
        "train/dog/000.jpg",
        "train/dog/001.jpg",
    ]
    assert (len(splits.val), len(splits.test), splits.source) == (0, 2, "official")
    Image.new("RGB", (4, 4)).save((root / "test").joinpath("stray.png"))
    make_images({"test/cow": 1}, root=root.name)
    with pytest.raises(VlpromptError, match="has a class folder 'cow' that the training images lack"):
        load_split(f"folder:{root}")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({}, "no class folders with images were found in the folder .*: it needs one sub-folder of images per class"),
        ({"cat": 0, "dog": 0}, "no class folders with images were found in the folder"),
        ({"cat": 4, "dog": 0}, r"class folder .*/dog holds no images: add some, or delete the folder"),
        ({"cat": 4, "dog": 1}, r"class folder .*/dog holds one image: a split needs at least two"),
        ({"cat": 4}, r"has one class \('cat'\): at least two are needed"),
        ({"red fox": 4, "red_fox": 4}, r"has the class name 'red fox' for the labels \[0, 1\]: rename"),
    ],
)
def test_folder_that_is_no_dataset(make_images: Callable[..., Path], tmp_path: Path, sizes: dict, message: str):
    (tmp_path / "images").mkdir()
    with pytest.raises(VlpromptError, match=message):
        load_split(f"folder:{make_images(sizes)}")


def test_absent_folder_and_class_folder_linked_from_outside(make_images: Callable[..., Path], tmp_path: Path):
    with pytest.raises(VlpromptError, match="/absent does not exist"):
        load_split(f"folder:{tmp_path}/absent")
    root = make_images({"cat": 4, "dog": 4})
    (root / "link").symlink_to(make_images({"cow": 4}, root="outside") / "cow")
    with pytest.raises(VlpromptError, match="refused the path 'link'"):
        load_split(f"folder:{root}")


def test_class_names_come_from_a_file_or_an_argument(make_images: Callable[..., Path]):
    root = make_images({"n01": 4, "n02": 4})
    assert load_split(f"folder:{root}", class_names=["tench", "goldfish"]).class_names == ("tench", "goldfish")
    splits = load_split(f"folder:{root}", class_names={"n02": "goldfish"})
    assert splits.class_names == ("n01", "goldfish")
    assert {item.class_name for item in splits.test if item.label == 1} == {"goldfish"}
    with pytest.raises(VlpromptError, match=r"has no class 'n03': did you mean"):
        load_split(f"folder:{root}", class_names={"n03": "shark"})
    with pytest.raises(VlpromptError, match="has 2 classes, and 1 names were given"):
        load_split(f"folder:{root}", class_names=["tench"])
    (root / "classnames.txt").write_text("n01 great white shark\nn02\ttench\n")
    assert load_split(f"folder:{root}").class_names == ("great white shark", "tench")
    (root / "classnames.txt").write_text("n03 shark\n")
    with pytest.raises(VlpromptError, match=r"a line of .*classnames\.txt must be a class folder and its class name"):
        load_split(f"folder:{root}")


# Embedded


def test_variants_are_as_their_card_counts_them():
    for variant, counts in load_card("glyphs").variant_counts.items():
        splits = load_split(f"glyphs/{variant}")
        found = {"classes": len(splits.class_names)} | {part: len(getattr(splits, part)) for part in PARTS}
        assert found == counts, variant
        assert find_card(f"glyphs/{variant}")[0].classes == counts["classes"]
    assert list(load_card("glyphs").variant_counts) == load_card("glyphs").variants


def test_digits_need_no_files():
    splits = load_split("digits")
    card = load_card("digits")
    assert splits.class_names[:2] == ("zero", "one")
    counted = {"train": splits.train, "val": splits.val, "test": splits.test}
    counted |= {half: splits.select(half).test for half in ("base", "new")}
    assert {part: len(items) for part, items in counted.items()} == card.counts
    assert (splits.mirror, splits.source) == (False, "embedded")
    image = splits.open_image(splits.test[0])
    assert (image.size, image.mode) == ((64, 64), "RGB")
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert splits.fingerprint() == load_split("digits").fingerprint()
