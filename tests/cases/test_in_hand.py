"""Datasets in memory as other libraries make them: Hugging Face's, torch's wrappers, arrays of every kind."""

import pickle
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset, random_split

from vlprompt import PromptClassifier, create_learner, evaluate_learner, load_clip, predict_images, run
from vlprompt.data import as_rgb, as_splits, join_datasets, splits_from_hf, splits_from_pairs
from vlprompt.data.loading import ImageItems
from vlprompt.errors import VlpromptError
from vlprompt.estimator.inputs import training_set

NAMES = ["cat", "dog"]


def square(i: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (10 * i, 200 * (i % 2), 40))


class FakeRows:
    """What a Hugging Face ``Dataset`` shows of itself."""

    def __init__(self, count: int, label: str = "label", names: list[str] | None = NAMES, image: str = "image"):
        self.features = {image: type("Image", (), {})(), label: type("ClassLabel", (), {"names": names})()}
        self.label, self.image, self.count, self.opened, self.names = label, image, count, 0, names

    def __len__(self) -> int:
        return self.count

    def with_format(self, kind: None) -> "FakeRows":
        return self

    def __getitem__(self, key: int | str) -> Any:
        if isinstance(key, str):
            return [i % 2 for i in range(self.count)]
        self.opened += 1
        return {self.image: square(key), self.label: key % 2}


def real_rows(count: int) -> Any:
    hub = pytest.importorskip("datasets")
    features = hub.Features({"picture": hub.Image(), "kind": hub.ClassLabel(names=NAMES)})
    return hub.Dataset.from_dict(
        {"picture": [square(i) for i in range(count)], "kind": [i % 2 for i in range(count)]}, features=features
    )


@pytest.mark.parametrize("rows", [FakeRows, real_rows], ids=["stand-in", "datasets"])
def test_a_hub_dataset_is_taken_everywhere(rows: Any, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: Any):
    # case: a Hugging Face Dataset with a ClassLabel as dataset=
    whole, tested = rows(16), rows(6)
    expected = splits_from_hf(whole)
    splits = as_splits(whole)
    assert (splits.class_names, splits.train, splits.test) == (expected.class_names, expected.train, expected.test)
    assert splits.class_names == ("cat", "dog")
    parts = as_splits({"train": whole, "test": tested})
    assert (len(parts.train), len(parts.val), len(parts.test), parts.source) == (16, 0, 6, "official")
    assert parts.open_image(parts.test[3]).getpixel((0, 0)) == (30, 200, 40)

    options = {"protocol": "few_shot", "shots": 2, "epochs": 1, "views": 1, "device": "cpu", "quiet": True}
    result = run(dataset=whole, output=str(tmp_path_factory.mktemp("runs")), **options)
    assert (result.rows[0].n_classes, result.rows[0].n_images) == (2, len(expected.test))
    result = run(dataset={"train": whole, "test": tested}, output=str(tmp_path_factory.mktemp("runs")), **options)
    assert result.rows[0].n_images == 6

    clip = load_clip("vlprompt-tiny", device="cpu")
    learner = create_learner("zero_shot", clip, NAMES)
    everything = evaluate_learner(learner, whole)
    assert everything == evaluate_learner(learner, [(square(i), i % 2) for i in range(16)])
    assert evaluate_learner(learner, {"train": whole, "test": tested}) == evaluate_learner(learner, tested)
    fitted = PromptClassifier("zero_shot", clip).fit(whole)
    assert list(fitted.learner_.class_names) == NAMES
    assert fitted.predict(whole).tolist() == fitted.predict([square(i) for i in range(16)]).tolist()
    assert fitted.score(whole, [i % 2 for i in range(16)]) == everything
    assert PromptClassifier("zero_shot", clip).fit({"train": whole, "test": tested}).classes_.tolist() == [0, 1]
    assert [p.classes for p in predict_images(learner, whole)] == [
        p.classes for p in predict_images(learner, [square(i) for i in range(16)])
    ]


def test_a_hub_dataset_in_other_forms():
    # case: a Hugging Face Dataset with a ClassLabel, its siblings
    hub = pytest.importorskip("datasets")
    rows = real_rows(8)
    named = hub.Dataset.from_dict({"img": [square(i) for i in range(8)], "label": ["owl", "bee"] * 4})
    named = named.cast_column("img", hub.Image())
    assert as_splits(named).class_names == ("bee", "owl")
    arrays = as_splits(rows.with_format("torch"))
    assert arrays.open_image(arrays.train[0]).getpixel((0, 0)) == as_splits(rows).open_image(arrays.train[0]).getpixel(
        (0, 0)
    )
    plain = rows.rename_column("kind", "label").cast_column("label", hub.Value("int64"))
    assert as_splits(plain, class_names=["a", "b"]).class_names == ("a", "b")
    with pytest.raises(VlpromptError, match="has no class"):
        as_splits(plain)
    with pytest.raises(VlpromptError, match="label column is needed in train, among picture"):
        as_splits(rows.remove_columns("kind"))
    for streamed in (rows.to_iterable_dataset(), {"train": rows.to_iterable_dataset()}):
        with pytest.raises(VlpromptError, match="load it without streaming=True"):
            as_splits(streamed)
    with pytest.raises(VlpromptError, match="no split called test or validation"):
        as_splits(hub.DatasetDict({"train": rows}), "test")


class Squares(Dataset):
    """A torch dataset as torchvision's are: classes, targets and a transform."""

    classes = NAMES

    def __init__(self, count: int = 12, transform: Any = None, target_transform: Any = None):
        self.targets = [i % 2 for i in range(count)]
        self.transform, self.target_transform, self.opened = transform, target_transform, 0

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        self.opened += 1
        label = self.target_transform(self.targets[i]) if self.target_transform else self.targets[i]
        return (self.transform(square(i)) if self.transform else square(i)), label


class Wrapper(Dataset):
    """A wrapper of a user's own, around another dataset."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> Any:
        return self.dataset[i]


def test_subsets_and_joined_datasets_have_the_classes_of_what_they_wrap():
    # case: torch Subset and ConcatDataset find the classes of what they wrap
    base = Squares()
    train, rest = random_split(base, [8, 4], torch.Generator().manual_seed(0))
    nested = ConcatDataset([Subset(train, [0, 1, 2, 3]), Wrapper(rest)])
    for dataset in (train, nested, Wrapper(Subset(base, range(8)))):
        splits = as_splits(dataset)
        assert splits.class_names == ("cat", "dog")
        item = splits.train[0]
        position = int(item.path.partition("/")[2])
        assert (splits.open_image(item).getpixel((0, 0)), item.label) == (
            dataset[position][0].getpixel((0, 0)),
            dataset[position][1],
        )
    base.opened = 0
    as_splits(ConcatDataset([train, rest]))
    assert base.opened == 0  # labels come from the targets
    flipped = as_splits(Subset(Squares(target_transform=lambda label: 1 - label), range(8)))
    assert all(item.label == 1 - int(item.path.partition("/")[2]) % 2 for item in flipped.train)
    fitted = PromptClassifier("zero_shot", device="cpu").fit(nested)
    assert list(fitted.learner_.class_names) == NAMES
    other = Squares()
    other.classes = ["owl", "bee"]
    with pytest.raises(VlpromptError, match="have different classes"):
        as_splits(ConcatDataset([base, other]))


class Stream(IterableDataset):
    classes = NAMES

    def __iter__(self) -> Iterator[tuple[Image.Image, int]]:
        return ((square(i), i % 2) for i in range(8))


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Stream(), r"an IterableDataset has no length .*: give list\(dataset\)"),
        (DataLoader(Squares()), r"a DataLoader gives batches: give its dataset \(loader\.dataset\)"),
        (TensorDataset(torch.zeros(4, 3, 8, 8), torch.tensor([0, 1, 0, 1])), "has no classes: give splits_from_pairs"),
    ],
)
def test_what_cannot_be_taken_says_what_to_give(dataset: Any, message: str):
    # case: an IterableDataset, TypeError
    with pytest.raises(VlpromptError, match=message):
        as_splits(dataset)
    if isinstance(dataset, DataLoader):
        with pytest.raises(VlpromptError, match=message):
            list(predict_images(create_learner("zero_shot", load_clip("vlprompt-tiny"), NAMES), dataset))
    if "classes" not in message:
        with pytest.raises(VlpromptError, match=message):
            PromptClassifier("zero_shot", device="cpu").fit(dataset)


def test_iterables_and_odd_labels_of_pairs_are_taken():
    # case: labels as tensors
    assert len(splits_from_pairs(Stream(), NAMES).train) == 4
    tensors = TensorDataset(torch.zeros(8, 3, 8, 8, dtype=torch.uint8), torch.arange(8) % 2)
    for labelled in (
        tensors,
        [(square(i), torch.tensor([i % 2])) for i in range(8)],
        [(square(i), np.array([i % 2])) for i in range(8)],
        [(square(i), np.int32(i % 2)) for i in range(8)],
        [{"image": square(i), "label": i % 2} for i in range(8)],
    ):
        assert [item.label for item in as_splits(labelled, "test", NAMES).test] == [0, 1] * 4


def test_float_images_of_a_transform_are_the_bytes_that_they_were():
    # case: a dataset whose transform gives float tensors ("Cannot handle this data type")
    transforms = pytest.importorskip("torchvision.transforms")
    bytes_of = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    picture = Image.fromarray(bytes_of)
    for image in (
        transforms.ToTensor()(picture),
        transforms.ToTensor()(picture).half(),
        torch.from_numpy(bytes_of).permute(2, 0, 1),
        torch.from_numpy(bytes_of),  # its axes as an array's
        bytes_of,
        bytes_of.astype(np.float64) / 255,
        bytes_of.astype(np.float32),
        bytes_of.astype(np.int64),
        bytes_of.transpose(2, 0, 1),
    ):
        assert np.array_equal(np.asarray(as_rgb(image)), bytes_of)
    splits = as_splits(Squares(transform=transforms.ToTensor()))
    assert splits.open_image(splits.train[0]).mode == "RGB"
    usual = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)])
    splits = as_splits(Squares(transform=usual))
    with pytest.raises(VlpromptError, match=r"numbers from -.* give images as they are, before Normalize"):
        splits.open_image(splits.train[0])
    for odd in (torch.full((3, 8, 8), float("nan")), np.zeros((0, 0, 3), np.float32), np.array(["a"])):
        with pytest.raises(VlpromptError):
            as_rgb(odd)


def test_datasets_in_memory_can_be_handed_to_a_new_process():
    # case: PromptClassifier(workers=1).fit(PIL images) under spawn or forkserver, can't pickle local object
    pairs = [(square(i), i % 2) for i in range(8)]
    parts = [splits_from_pairs(pairs, NAMES, name=f"handed{i}") for i in range(2)]
    for splits in (*parts, join_datasets(parts), training_set([p[0] for p in pairs], [p[1] for p in pairs], NAMES)):
        items = ImageItems(splits, splits.train, np.asarray)
        handed = pickle.loads(pickle.dumps(items))
        assert np.array_equal(handed.load(0)["image"], items.load(0)["image"])


@pytest.mark.nightly
@pytest.mark.parametrize("way", ["spawn", "forkserver"])
def test_workers_that_are_started_anew_give_the_same_learner(way: str, tmp_path: Any):
    # case: PromptClassifier(workers=1).fit(PIL images) under spawn or forkserver
    script = f"""
import multiprocessing
from PIL import Image
from vlprompt import PromptClassifier
if __name__ == "__main__":
    multiprocessing.set_start_method("{way}")
    images, labels = [Image.new("RGB", (8, 8), (30 * i, 0, 0)) for i in range(8)], ["cat", "dog"] * 4
    found = [
        PromptClassifier(epochs=1, workers=n, device="cpu", views=views).fit(images, labels).predict_proba(images[:1])
        for n in (0, 1) for views in ("fresh", 1)
    ]
    assert (found[0] == found[2]).all() and (found[1] == found[3]).all()
    print("same")
"""
    (tmp_path / "script.py").write_text(script)
    done = subprocess.run([sys.executable, str(tmp_path / "script.py")], capture_output=True, text=True, check=False)
    assert done.stdout == "same\n", done.stderr
