"""Several names of a class: averaged or the best, for learnt and frozen text, exact where prefixes are shared."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from datasets_registry.synonyms import card_synonyms, read_synonyms
from vlprompt import (
    PromptClassifier,
    PromptLearner,
    VlpromptError,
    create_learner,
    list_methods,
    load_learner,
    method_info,
    run,
)
from vlprompt.clip.edits import FullLength
from vlprompt.clip.naming import ClassNames
from vlprompt.learner.names import nearest_names
from vlprompt.learner.recording import extra_edits
from vlprompt.testing import (
    NAMES,
    NEW_NAMES,
    close,
    fit,
    logits_of,
    loss_of,
    make,
    make_ready,
    small_clip,
    toy_batch,
    toy_feed,
)
from vlprompt.training.trainer import Log

OTHERS = {"Tench": ["a green fish", "tinca", "TENCH "], "highway or road": ["highway", "road"], "okapi": ["giraffe"]}
LABELS = {"tench": 0, "a green fish": 0, "tinca": 0, "highway or road": 1, "highway": 1, "road": 1}
EVERY = [*LABELS, *NAMES[2:]]
OWNERS = torch.tensor([*LABELS.values(), 2, 3, 4])
BY_NAME = ["coop", "cocoop", "maple", "promptsrc", "pre", "clip_lora", "mma", "zero_shot"]


def called(method: str, **settings: object) -> PromptLearner:
    """A learner on the small model with other names, which ``make`` takes for those of its classes."""
    fitting = {key: 2 for key in ("depth", "vision_depth") if key in method_info(method)["config"]}
    learner = create_learner(method, small_clip(), NAMES, **(fitting | settings))
    if learner.facts.head and learner.facts.labels == "needed":
        learner.learn(toy_feed(learner), lambda *_, **__: [])
    return learner


def averaged(features: torch.Tensor) -> torch.Tensor:
    """Normalised means (…, C, D) of features (…, M, D) of EVERY."""
    parts = [F.normalize(features, dim=-1)[..., c == OWNERS, :].mean(dim=-2) for c in range(5)]
    return F.normalize(torch.stack(parts, dim=-2), dim=-1)


def test_a_class_is_called_by_its_own_name_first_and_by_each_once() -> None:
    names = ClassNames(NAMES, OTHERS)
    assert names == NAMES
    assert list(names.every) == EVERY
    assert list(names.owners) == OWNERS.tolist()
    again = pickle.loads(pickle.dumps(names))
    assert (again, again.every, again.owners) == (names, names.every, names.owners)


@pytest.mark.parametrize("method", BY_NAME)
def test_a_class_feature_is_the_mean_of_its_names(method: str) -> None:
    """Against a learner whose classes are the names, on the fast path, in chunks and at full length."""
    several, single = called(method, names=OTHERS).eval(), make(method, names=tuple(EVERY)).eval()
    single.load_state_dict(several.state_dict())
    v = F.normalize(torch.randn(2, several.clip.embed_dim), dim=-1)
    with torch.no_grad():
        expected = averaged(single.encode_text(v))
        for chunk in (None, 2):
            several.config.text_chunk = chunk
            assert close(several.text_features(v), expected, 2e-5)
        with extra_edits(several, FullLength()):
            assert close(several.text_features(v), expected, 2e-5)
    assert logits_of(several).shape == (10, 5)


def test_a_class_specific_context_is_each_of_its_names() -> None:
    several, single = (called("coop", class_specific=True, names=names) for names in (OTHERS, None))
    single.load_state_dict(several.state_dict())
    differ = (several.text_features() - single.text_features()).norm(dim=1) > 1e-3
    assert differ.tolist() == [True, True, False, False, False]


@pytest.mark.parametrize("method", ["coop", "maple", "tcp"])
def test_gradients_are_those_of_the_names_at_full_length(method: str) -> None:
    found = []
    for ways in ((), (FullLength(),)):
        learner = called(method, names=OTHERS)
        with extra_edits(learner, *ways):
            learner.backward(loss_of(learner))
        found.append({name: p.grad for name, p in learner.named_parameters()})
    fast, plain = found
    assert all(close(fast[name], gradient, 1e-3) for name, gradient in plain.items())


@pytest.mark.parametrize("method", ["coop", "cocoop", "maple", "vpt", "clip_lora", "mask_prompt", "zero_shot"])
def test_the_best_name_gives_the_largest_logit(method: str) -> None:
    several = called(method, names=OTHERS, names_by="best").eval()
    single = make(method, names=tuple(EVERY)).eval()
    assert several.facts.classifier == "per_image"
    single.load_state_dict(several.state_dict())
    of_names = logits_of(single)
    expected = torch.stack([of_names[:, c == OWNERS].amax(dim=1) for c in range(5)], dim=1)
    assert close(logits_of(several), expected)
    if several.trainable_parameters():
        history = fit(several, 4)
        assert history[-1] < history[0]


@pytest.mark.parametrize("method", list_methods())
def test_every_method_hears_the_names_or_refuses_them(method: str) -> None:
    said = ""
    try:
        learner = called(method, names=OTHERS)
    except VlpromptError as error:
        said = str(error)
    if said:
        assert "names" in said
        assert "\n" not in said
        return
    plain = make_ready(method)
    if method != "linear_probe":  # which looks at no text
        if "head" not in learner.facts.trains and not learner.facts.head:  # which may start from text
            learner.load_state_dict(plain.state_dict())
        assert not close(logits_of(learner), logits_of(plain), 1e-4)


@pytest.mark.parametrize("method", list_methods())
def test_the_best_name_is_looked_for_or_refused_before_any_work(method: str) -> None:
    said = ""
    try:
        learner = called(method, names=OTHERS, names_by="best")
    except VlpromptError as error:
        said = str(error)
    if said:
        assert re.fullmatch("names_by=best is not possible.*: take names_by=mean", said)
        return
    assert logits_of(learner).shape == (10, 5)
    assert loss_of(learner)["loss"].isfinite()


def test_a_method_that_forgot_to_say_so_is_told() -> None:
    with pytest.raises(VlpromptError, match="a feature of each of the 3 names, and there are 2: take names_by=mean"):
        nearest_names(torch.ones(2, 4), torch.ones(1, 4), (0, 0, 1))


def test_names_are_kept_and_other_classes_have_theirs(tmp_path: Path) -> None:
    file = tmp_path / "names.json"
    file.write_text(json.dumps(OTHERS | {"vending machine": "a machine"}))
    learner = called("coop", names=str(file))
    fit(learner, 1)
    learner.save_pretrained(tmp_path / "learner")
    file.unlink()
    other = load_learner(tmp_path / "learner", clip=learner.clip)
    assert torch.equal(logits_of(other), logits_of(learner))
    other.set_class_names(NEW_NAMES)
    plain = make("coop", names=NEW_NAMES)
    plain.load_state_dict(other.state_dict())
    differs = (other.classifier_matrix() - plain.classifier_matrix()).norm(dim=1) > 1e-3
    assert differs.tolist() == [False, True, True]


def test_frozen_text_that_objectives_compare_with_is_averaged_too() -> None:
    learner = called("kgcoop", names=OTHERS)
    features = small_clip().encode_text([f"a photo of a {name.replace('_', ' ')}." for name in EVERY])
    assert close(learner.frozen_text(), averaged(features))
    parts = learner.loss(toy_batch())
    assert parts["text_anchor"].abs() < 1e-5  # at the words that the context starts from


@pytest.mark.parametrize(
    ("method", "settings", "said"),
    [
        ("coop", {"names_by": "best"}, "there are none: give names too"),
        ("gda", {"names": OTHERS, "names_by": "best"}, "does not score by the cosines of class features alone"),
        ("proda", {"names": OTHERS, "names_by": "best"}, "take names_by=mean"),
        ("coop", {"names": {"tench": ["Pilatus PC-12"]}}, "no prompt can tell"),
        ("coop", {"names": "card"}, "is for runs on a dataset with a card"),
        ("coop", {"names": "absent.json"}, "no names at absent.json: give a JSON file"),
        ("zero_shot", {"names": OTHERS, "descriptions": "emoji"}, "give names or descriptions"),
        ("coop", {"names": {"tench": "tinca"}}, "names must be a group of lists of texts or a text or null"),
        ("taskres", {"names": OTHERS, "text": "somewhere"}, "takes its texts from names or from text"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(method: str, settings: dict, said: str) -> None:
    with pytest.raises(VlpromptError, match=said) as error:
        called(method, **settings)
    assert "\n" not in str(error.value)


def test_a_run_takes_the_names_of_its_datasets_card(tmp_path: Path) -> None:
    settings = {"dataset": "digits", "protocol": "few_shot", "shots": 1, "quiet": True, "output": str(tmp_path)}
    found = run(method="zero_shot", names="card", **settings)
    (folder,) = tmp_path.glob("**/learner")
    assert found.config["names"] == "card"
    assert load_learner(folder).config.names["zero"] == ["0"]
    assert card_synonyms(["digits", "eurosat"])["Sea or Lake"] == ["sea", "lake"]
    with pytest.raises(VlpromptError, match="no card of emoji has other names"):
        card_synonyms(["emoji"])
    with pytest.raises(VlpromptError, match="is for runs"):
        read_synonyms("card")


def test_a_misspelt_class_is_told(tmp_path: Path) -> None:
    how = {"dataset": "digits", "shots": 1, "epochs": 1, "views": 1, "limit": 8, "n_ctx": 2, "quiet": True}
    how |= {"output": str(tmp_path)}
    with pytest.raises(VlpromptError, match=r"names has no key that is a class here; .*'fvie': did .* five\?"):
        run(method="coop", names={"fvie": ["5"]}, **how)
    with pytest.warns(UserWarning, match=r"names has 1 of 2 keys that are not classes here, the first is 'fvie'"):
        run(method="coop", names={"fvie": ["5"], "nine": ["9"]}, **how)  # a class of the tests alone
    features, labels = torch.randn(4, small_clip().embed_dim).numpy(), ["cat", "dog"] * 2
    with pytest.raises(VlpromptError, match="names has no key that is a class here"):
        PromptClassifier("coop", small_clip(), options={"names": {"catt": ["kitty"]}}).fit(features, labels)


def test_what_a_mixture_and_a_label_are_held_to_goes_by_all_names() -> None:
    learner = called("mocoop", names=OTHERS)
    learner.see_names(NEW_NAMES)
    asked = []
    learner.prototypes = lambda names: asked.append(names) or type(learner).prototypes(learner, names)
    learner.loss(toy_batch())
    assert [len(names.every) for names in asked] == [len(EVERY) + len(NEW_NAMES) + 1, len(EVERY)]
    spg, labels = called("spg", names=OTHERS, n_ctx=2, ctx_init=None), []
    spg.learn(toy_feed(spg), lambda module, *_, **__: labels.append(module))
    assert list(labels[0].class_names.every) == EVERY


def test_a_run_that_was_stopped_goes_on_with_the_names_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "names.json"
    file.write_text('{"zero": ["nought"]}')
    how = {"dataset": "digits", "shots": 1, "epochs": 2, "views": 1, "limit": 8, "n_ctx": 2, "quiet": True}
    how |= {"method": "coop", "names": str(file), "checkpoint_seconds": 0, "output": str(tmp_path)}

    def stopped(log: Log, record: dict) -> None:
        if record["epoch"]:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Log, "write", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(**how)
    file.write_text('{"zero": ["nil"]}')
    with pytest.raises(VlpromptError, match="other settings"):
        run(resume=True, **how)
    file.write_text('{"zero": ["nought"]}')
    assert run(resume=True, **how).rows
