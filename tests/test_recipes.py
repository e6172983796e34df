"""Recipes and the merging of settings."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from vlprompt import VlpromptError, list_methods
from vlprompt.base.settings import RunConfig
from vlprompt.learner import METHODS
from vlprompt.runs.settings import describe_keys, resolve
from vlprompt.training.recipes import Recipe, load_recipe
from vlprompt.training.shipped_recipes import CONFIGS, list_recipes

# spec: lr, batch size and epochs of the released base-to-new code
PUBLISHED = {
    "coop": {"lr": 2e-3, "batch_size": 32, "epochs": 200, "n_ctx": 4, "ctx_init": "a photo of a"},
    "kgcoop": {"lr": 2e-3, "batch_size": 128, "epochs": 100, "objective": ["ce", "text_anchor(weight=8.0)"]},
    "vpt": {"lr": 2.5e-3, "batch_size": 4, "epochs": 5, "n_ctx": 8, "depth": 12},
    "ivlp": {"lr": 3.5e-3, "batch_size": 4, "epochs": 5, "n_ctx": 2, "vision_n_ctx": 2, "depth": 12},
    "maple": {"lr": 3.5e-3, "batch_size": 4, "epochs": 5, "n_ctx": 2, "depth": 9},
    "cocoop": {"lr": 2e-3, "batch_size": 1, "epochs": 10, "ctx_init": "a photo of a"},
    "promptsrc": {"lr": 2.5e-3, "batch_size": 4, "epochs": 20, "depth": 9, "aggregator": "gpa(mean=15, std=1)"},
    "coprompt": {"lr": 3.5e-3, "batch_size": 4, "epochs": 8, "depth": 9, "transform": "randaugment"},
    "prograd": {"lr": 2e-3, "batch_size": 32, "epochs": 100, "n_ctx": 16},
    "proda": {"lr": 1e-3, "batch_size": 4, "epochs": 100, "n_prompts": 32, "n_ctx": 16},
    "pre": {"lr": 2e-3, "batch_size": 32, "epochs": 50, "encoder": "lstm"},
    "restore": {"lr": 3.5e-3, "batch_size": 4, "epochs": 10, "depth": 9},
}


def anchored(weight: float) -> list[str]:
    """MMRL's loss with some λ."""
    anchors = [f"text_anchor(weight={weight})", f"image_anchor(weight={weight}, distance=cos)"]
    return ["ce(weight=0.7)", "part_ce(part=rep, weight=0.3)", *anchors]


# spec: what the released code has for other protocols and certain data
ELSEWHERE = [
    ({"method": "coop", "dataset": "imagenet"}, {"epochs": 50}),
    ({"method": "maple", "protocol": "cross_dataset"}, {"lr": 2.6e-3, "epochs": 2, "depth": 3}),
    ({"method": "maple", "protocol": "few_shot"}, {"lr": 3.5e-3, "epochs": 50, "depth": 9}),
    ({"method": "vpt", "protocol": "domain_generalization"}, {"lr": 2.5e-3, "epochs": 5, "depth": 12}),
    ({"method": "ivlp", "protocol": "cross_dataset"}, {"lr": 3.5e-3, "epochs": 5, "n_ctx": 2}),
    ({"method": "kgcoop", "protocol": "few_shot"}, {"lr": 2e-3, "batch_size": 128, "epochs": 100}),
    ({"method": "prograd", "protocol": "domain_generalization"}, {"shots": 4, "epochs": 100}),
    ({"method": "prograd", "protocol": "few_shot", "dataset": "dtd"}, {"gradient_rule": "prograd(weight=0.8)"}),
    (
        {"method": "prograd", "protocol": "few_shot", "dataset": "dtd", "shots": 4},
        {"gradient_rule": "prograd(weight=1.0)", "epochs": 100},
    ),
    (
        {"method": "prograd", "protocol": "few_shot", "dataset": "dtd", "gradient_rule": None},
        {"gradient_rule": None},
    ),
    ({"method": "promptsrc", "protocol": "cross_dataset"}, {"depth": 3, "aggregator": "gpa(mean=6, std=10)"}),
    ({"method": "promptsrc", "protocol": "few_shot", "dataset": "dtd"}, {"aggregator": "gpa(mean=45, std=5)"}),
    ({"method": "coprompt", "dataset": "food101"}, {"epochs": 5, "n_ctx": 4, "depth": 9}),
    ({"method": "restore", "protocol": "cross_dataset"}, {"epochs": 2, "text_ratio": 0.05, "image_ratio": 0.05}),
    (
        {"method": "tcp", "dataset": "sun397"},
        {"lr": 2e-3, "batch_size": 32, "epochs": 25, "optimizer": "adam(eps=1e-3)", "prompt_template": "{}."},
    ),
    (
        {"method": "tcp", "dataset": "stanford_cars"},
        {"epochs": 50, "prompt_template": "{}, a type of car", "teacher_template": "a photo of a {}."},
    ),
    ({"method": "tcp", "dataset": "ucf101"}, {"prompt_template": "person doing {}."}),
    ({"method": "mma"}, {"lr": 1.5e-3, "batch_size": 16, "epochs": 5, "warmup_epochs": 0, "adapter_scale": 1e-3}),
    ({"method": "mma", "protocol": "cross_dataset", "dataset": "imagenet"}, {"batch_size": 128, "epochs": 5}),
    ({"method": "mmrl", "dataset": "eurosat"}, {"lr": 1e-3, "batch_size": 4, "epochs": 10, "rep_dim": 512}),
    ({"method": "mmrl", "dataset": "eurosat", "selection": "paper"}, {"rep_dim": 2048, "objective": anchored(0.01)}),
    ({"method": "mmrl", "dataset": "stanford_cars", "selection": "fixed"}, {"objective": anchored(0.5)}),
    (
        {"method": "mmrl", "dataset": "stanford_cars", "selection": "paper", "protocol": "few_shot"},
        {"objective": anchored(7.0), "batch_size": 32, "epochs": 50, "optimizer": "adamw", "transform": "rrc_half"},
    ),
    ({"method": "mmrl", "dataset": "imagenet"}, {"batch_size": 32, "epochs": 5, "objective": anchored(0.5)}),
    (
        {"method": "mmrl", "dataset": "imagenet", "protocol": "cross_dataset", "selection": "paper"},
        {"batch_size": 32, "epochs": 1, "warmup_epochs": 0, "objective": anchored(0.2)},
    ),
    ({"method": "mmrlpp", "dataset": "food101"}, {"beta": 0.9, "objective": anchored(0.2), "epochs": 10}),
    (
        {"method": "mmrlpp", "dataset": "food101", "selection": "paper", "protocol": "few_shot"},
        {"beta": 0.1, "objective": anchored(1.0), "lr": 2e-3, "epochs": 100},
    ),
    ({"method": "coop", "head": "dept"}, {"lr": 3.5e-3, "batch_size": 4, "epochs": 10, "n_ctx": 16, "ctx_init": None}),
    ({"method": "kgcoop", "head": "dept(weight=0.5)"}, {"epochs": 10, "objective": ["ce", "text_anchor(weight=2.0)"]}),
    (
        {"method": "kgcoop", "protocol": "cross_dataset", "head": "dept"},
        {"objective": ["ce", "text_anchor(weight=2.0)"], "lr": 3.5e-3, "batch_size": 4, "epochs": 10, "n_ctx": None},
    ),
    (
        {"method": "maple", "protocol": "domain_generalization", "head": "dept"},
        {"depth": 9, "n_ctx": 2, "lr": 3.5e-3, "batch_size": 4, "epochs": 10},
    ),
    (
        {"method": "coop", "dataset": "oxford_pets", "selection": "paper", "head": "dept"},
        {"attributes": ["playfulness", "energy"], "n_ctx": 2, "lr": 3.5e-3, "batch_size": 4, "epochs": 10},
    ),
    ({"method": "coop", "attributes": ["color"]}, {"epochs": 100, "n_ctx": 2, "ctx_init": None}),
    ({"method": "coop", "attributes": ["color"], "dataset": "imagenet"}, {"epochs": 10}),
    (
        {"method": "coop", "dataset": "dtd", "selection": "paper"},
        {"attributes": ["pattern", "color", "design"], "n_ctx": 4},
    ),
    (
        {"method": "maple", "dataset": "eurosat", "selection": "paper"},
        {"attributes": ["habitat"], "epochs": 10, "n_ctx": 4},
    ),
    ({"method": "promptkd", "dataset": "dtd"}, {"objective": ["logit_kl(weight=1000)"], "batch_size": 8, "depth": 9}),
    ({"method": "promptkd", "dataset": "dtd", "selection": "paper"}, {"objective": ["logit_kl(weight=200)"]}),
    ({"method": "promptkd", "protocol": "unsupervised"}, {"depth": 3, "lr": 5e-3, "epochs": 20}),
    ({"method": "restore", "dataset": "oxford_pets"}, {"image_ratio": 0.01, "text_ratio": 0.1}),
]
NEEDED = {"pvp": {"init_from": "RUN"}, "panda": {"teacher": "RUN"}}  # what a method cannot do without
SHARED_BY_ALL = {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 5e-4, "warmup_epochs": 1, "warmup_lr": 1e-5}


@pytest.mark.parametrize("name", list_recipes())
def test_a_shipped_recipe_loads_and_tells_where_it_comes_from(name: str) -> None:
    method, protocol = name.split("/")
    recipe = load_recipe(method, protocol)
    assert recipe.name == name
    assert recipe.source.startswith(("released code", "paper", "third party", "ours"))
    assert recipe.published
    header = (CONFIGS / f"{name}.yaml").read_text().splitlines()
    assert any(line.startswith(f"#   python -m vlprompt.train method={method}") for line in header)
    config = resolve({"method": method, "protocol": protocol, **NEEDED.get(method, {})}).config
    of_backbone = recipe.by.get("backbone", {}).get(config.backbone, {})
    for key, value in (recipe.values | of_backbone).items():
        assert getattr(config, key) == value or key == "epochs"


@pytest.mark.parametrize("method", PUBLISHED)
def test_a_base_to_new_recipe_has_the_published_values(method: str) -> None:
    config = resolve({"method": method}).config
    expected = PUBLISHED[method] | SHARED_BY_ALL
    assert {key: getattr(config, key) for key in expected} == expected


@pytest.mark.parametrize(("settings", "expected"), ELSEWHERE)
def test_other_protocols_and_data_have_the_published_values_too(settings: dict, expected: dict) -> None:
    config = resolve(settings).config
    assert {key: getattr(config, key) for key in expected} == expected


@pytest.mark.parametrize("method", list_methods())
def test_no_setting_of_a_method_hides_one_of_the_run(method: str) -> None:
    own = {f.name for f in fields(METHODS.get(method).Config)}
    assert not own & {f.name for f in fields(RunConfig)}


@pytest.mark.parametrize("method", list_methods())
def test_every_key_has_a_meaning(method: str) -> None:
    described = describe_keys(resolve({"method": method, **NEEDED.get(method, {})}))
    assert [key for key, _, meaning in described if not meaning] == []


@pytest.mark.parametrize(("shots", "epochs"), [(1, 50), (2, 100), (4, 100), (8, 200), (16, 200)])
def test_few_shot_coop_trains_longer_with_more_shots(shots: int, epochs: int) -> None:
    assert resolve({"protocol": "few_shot", "shots": shots}).config.epochs == epochs
    assert resolve({"protocol": "few_shot", "shots": shots, "epochs": 7}).config.epochs == 7


def test_a_protocol_without_a_recipe_takes_the_base_to_new_one() -> None:
    assert resolve({"method": "pre", "protocol": "few_shot"}).recipe.name == "pre/base_to_new"


def test_what_the_user_says_goes_above_the_recipe_and_that_above_the_defaults() -> None:
    resolved = resolve({"method": "kgcoop", "lr": 1, "shots": 4})
    assert (resolved.config.lr, resolved.config.batch_size, resolved.config.shots) == (1.0, 128, 4)
    assert resolved.config.dataset == "emoji"
    assert resolved.method_settings.keys() == {f.name for f in fields(METHODS.get("kgcoop").Config)}


def test_a_file_takes_the_recipes_place_and_a_runs_own_file_repeats_it(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("method: vpt\ndepth: 3\nlr: 0.5\n")
    mine = resolve({"config": tmp_path / "mine.yaml", "lr": 0.25})
    assert (mine.config.method, mine.config.depth, mine.config.lr, mine.config.epochs) == ("vpt", 3, 0.25, 50)
    (tmp_path / "config.yaml").write_text(mine.to_yaml())
    again = resolve({"config": tmp_path / "config.yaml"})
    assert again.id == mine.id


def test_the_id_tells_settings_that_bear_on_the_result_and_no_others() -> None:
    plain = resolve({})
    assert plain.id == resolve({"resume": True, "output": "elsewhere", "workers": 2, "device": "cpu"}).id
    assert len({plain.id, resolve({"seed": 2}).id, resolve({"n_ctx": 5}).id, resolve({"views": "fresh"}).id}) == 4


def test_the_folder_tells_the_run(tmp_path: Path) -> None:
    resolved = resolve({"output": tmp_path, "dataset": "folder:/some/My Pets", "shots": 2})
    expected = tmp_path / "folder-some-My-Pets" / "coop" / f"base_to_new-2shot-seed1-{resolved.id[:8]}"
    assert resolved.folder == expected
    assert resolve({"output": tmp_path, "name": "mine"}).folder == tmp_path / "mine"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"n_cxt": 4}, "unknown key 'n_cxt' for method=coop: did you mean n_ctx"),
        ({"method": "maple", "dept": 4}, "unknown key 'dept' for method=maple: did you mean depth"),
        ({"method": "mapel"}, "unknown method 'mapel': did you mean maple"),
        ({"protocol": "base2new"}, "unknown protocol 'base2new': did you mean base_to_new"),
        ({"lr": "fast"}, "lr must be a number, not 'fast'"),
        ({"lr": 0}, "lr must be above 0"),
        ({"lr": float("nan")}, "lr must be a number, not nan"),
        ({"epochs": 1.5}, "epochs must be a whole number, not 1.5"),
        ({"epochs": 0}, "epochs must be at least 1, not 0"),
        ({"momentum": 1}, "momentum must be below 1, not 1"),
        ({"n_ctx": "many"}, "n_ctx must be a whole number or null, not 'many'"),
        ({"class_token_position": "start"}, "class_token_position must be one of end, middle, front, not 'start'"),
        ({"resume": "maybe"}, "resume must be true or false, not 'maybe'"),
        ({"dataset": None}, "dataset must be a text, not None"),
        ({"shots": 0}, "shots must be a number of at least 1, or all, not 0"),
        ({"views": "some"}, "views must be a number of at least 1, or fresh, not 'some'"),
        ({"limit": 0}, "limit must be at least 1, not 0"),
        ({"optimizer": "sdg"}, "unknown optimizer 'sdg': did you mean sgd"),
        ({"transform": "rcc"}, "unknown transform 'rcc': did you mean rrc"),
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
        ({"config": "no/such.yaml"}, "no such file: no/such.yaml"),
    ],
)
def test_a_wrong_key_or_value_is_one_sentence(settings: dict, sentence: str) -> None:
    with pytest.raises(VlpromptError, match=sentence) as raised:
        resolve(settings)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("lr: [", "cannot be read as YAML"),
        ("- lr", "must hold settings"),
        ("epoch: 1", r"mine\.yaml: unknown key 'epoch' for method=coop: did you mean epochs"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(VlpromptError, match=sentence) as raised:
        resolve({"config": tmp_path / "mine.yaml"})
    assert "mine.yaml" in str(raised.value)


def test_a_recipe_may_be_read_by_path(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("source: ours, a test\nepochs: 3\nby: {shots: {4: {epochs: 9}}}\n")
    recipe = Recipe.read(tmp_path / "r.yaml", "r")
    assert (recipe.source, recipe.values, recipe.by) == ("ours, a test", {"epochs": 3}, {"shots": {4: {"epochs": 9}}})


def test_a_recipe_extends_another_and_never_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: promptsrc/few_shot\nmethod: promptsrc\nepochs: 7\nby: {dataset: {dtd: {lr: 0.5}}}\n")
    recipe, base = Recipe.read(mine, "mine"), load_recipe("promptsrc", "few_shot")
    assert (recipe.values["epochs"], recipe.values["depth"], recipe.source) == (7, 9, base.source)
    assert recipe.by["dataset"]["dtd"] == base.by["dataset"]["dtd"] | {"lr": 0.5}
    assert recipe.by["backbone"] == base.by["backbone"] == load_recipe("promptsrc", "base_to_new").by["backbone"]
    assert not recipe.published
    wrong = {"coop/bas_to_new": "did you mean coop/base_to_new", "../x": "x", "[1]": "1"}
    for text, message in wrong.items():
        mine.write_text(f"extends: {text}\n")
        with pytest.raises(VlpromptError, match=f"extends the unknown recipe .*{message}"):
            resolve({"config": mine})
    (tmp_path / "m").mkdir()
    (tmp_path / "m/a.yaml").write_text("extends: m/b\n")
    (tmp_path / "m/b.yaml").write_text("extends: m/a\n")
    for module in ("shipped", "recipes"):  # what is listed, and what is read
        monkeypatch.setattr(f"vlprompt.training.{module}.CONFIGS", tmp_path)
    with pytest.raises(VlpromptError, match="extends itself: m/a extends m/b extends m/a"):
        load_recipe("m", "a")


def test_a_whole_number_is_a_name() -> None:
    assert resolve({"name": 2024}).config.name == "2024"
    with pytest.raises(VlpromptError, match="name must be a text or null, not True"):
        resolve({"name": True})
