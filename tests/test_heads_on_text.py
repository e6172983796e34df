"""ZLaP, CuPL and heads that stand on a saved learner."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from test_joint import features

from vlprompt import FrozenCLIP, PromptClassifier, VlpromptError, load_clip, load_learner
from vlprompt.data import FeatureBank
from vlprompt.demo.emoji import emoji_index, emoji_sentences
from vlprompt.learner import PromptLearner
from vlprompt.methods.heads.neighbours import most_similar
from vlprompt.runs.settings import resolve
from vlprompt.testing import NAMES, make, small_clip

CLASSES = len(NAMES)


@pytest.fixture(scope="module")
def tiny() -> FrozenCLIP:
    return load_clip("vlprompt-tiny", device="cpu")


def inductive(n: int = 60, **settings) -> PromptLearner:
    learner = make("zlap", **{"mode": "inductive", **settings}).eval()
    pool = FeatureBank(features(n, 5)[None], None)
    learner.learn(SimpleNamespace(bank=lambda source: {"pool": pool}[source]), None)
    return learner


# ZLaP


@pytest.mark.parametrize("mode", ["inductive", "sparse"])
def test_an_inductive_prediction_is_made_alone(mode: str) -> None:
    learner, x = inductive(mode=mode), features(20)
    assert learner.facts.predicts == "alone"
    whole = learner.classify(x)
    torch.testing.assert_close(torch.cat([learner.classify(row[None]) for row in x]), whole)
    order = [3, 0, 4, 1, 2]
    permuted = make("zlap", names=tuple(NAMES[i] for i in order), mode=mode).eval()
    permuted.pool = learner.pool
    torch.testing.assert_close(permuted.classify(x), whole[:, order], rtol=1e-4, atol=1e-4)


def test_a_column_a_class_says_what_a_system_an_image_does() -> None:
    learner, x = inductive(), features(12)
    t = learner.text_features()
    ties, least = learner.ties(learner.pool, learner.pool, t, own=0)
    rows, _ = learner.ties(x, learner.pool, t, least=least)
    dense = torch.from_numpy(ties.toarray())
    graph = torch.cat([torch.zeros(CLASSES, dense.shape[1], dtype=dense.dtype), dense])
    graph = graph + graph.T
    root = graph.sum(dim=0).rsqrt()
    system = torch.eye(len(graph), dtype=dense.dtype) - learner.config.alpha * root[:, None] * graph * root
    an_image = torch.linalg.solve(system, torch.from_numpy(rows.toarray()).T)[:CLASSES].T
    torch.testing.assert_close(learner.scores(x, t), an_image.float(), rtol=1e-4, atol=1e-6)


def test_labels_that_hardly_flow_leave_the_direct_edges() -> None:
    learner, x = make("zlap", alpha=1e-4).eval(), features(30)
    t = learner.text_features()
    ties, _ = learner.ties(x, x, t, own=0)
    direct = torch.from_numpy(ties.toarray()[:, :CLASSES])
    degree = torch.from_numpy(ties.sum(axis=0))[:CLASSES].sqrt()
    assert torch.equal(learner.classify(x).argmax(dim=1), (direct / degree).argmax(dim=1))


def test_a_pool_is_saved_and_new_classes_are_scored_on_it(tmp_path: Path) -> None:
    learner, x = inductive(), features(9)
    learner.save_pretrained(tmp_path)
    again = load_learner(tmp_path, small_clip())
    assert torch.equal(again.classify(x), learner.classify(x))
    again.set_class_names(["okapi", "tapir", "tench"])
    assert again.classify(x).shape == (9, 3)
    with pytest.raises(VlpromptError, match="needs a pool"):
        make("zlap", mode="inductive").classify(x)


def test_labels_that_still_flow_are_an_error() -> None:
    with pytest.raises(VlpromptError, match="still flow after 1 iterations"):
        make("zlap", iterations=1, alpha=0.9).classify(features(30))


@pytest.mark.parametrize("settings", [{"k": 0}, {"alpha": 1.0}, {"alpha": -0.1}])
def test_zlap_names_settings_that_mean_nothing(settings: dict) -> None:
    with pytest.raises(VlpromptError, match="zlap needs k"):
        make("zlap", **settings)


def test_the_estimator_propagates_labels_over_what_it_is_given() -> None:
    x = features(25).numpy()
    for mode in ("transductive", "inductive"):
        fitted = PromptClassifier("zlap", small_clip(), class_names=dict(enumerate(NAMES)), options={"mode": mode})
        probabilities = fitted.fit(x, torch.arange(25).numpy() % CLASSES).predict_proba(x)
        assert probabilities.sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_similar_rows_come_in_parts_and_leave_themselves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    x = features(23)
    whole = most_similar(x, x, 4, own=0)
    monkeypatch.setattr("vlprompt.methods.heads.neighbours.BUDGET", 100)
    parts = most_similar(x, x, 4, own=0)
    assert torch.equal(parts.index, whole.index)
    assert not (whole.index == torch.arange(23)[:, None]).any()
    expected = (x @ x.T).fill_diagonal_(-2).topk(4, dim=1)
    assert torch.equal(whole.index, expected.indices)


# CuPL


def test_sentences_come_with_the_embedded_emoji_and_name_no_test_emoji() -> None:
    told = {sentence for sentences in emoji_sentences().values() for sentence in sentences}
    assert all(emoji_sentences().values())
    known = {emoji["name"] for emoji in emoji_index()["emoji"] if emoji["split"] == "train"}
    assert told == {f"an emoji of a {name}." for name in known}


def test_a_run_of_cupl_without_sentences_is_refused() -> None:
    assert resolve({"method": "cupl"}).config.descriptions == "emoji"
    with pytest.raises(VlpromptError, match="classifies by sentences about each class: say descriptions=FILE"):
        resolve({"method": "cupl", "dataset": "digits"})


def test_a_set_of_the_packages_own_is_read_by_a_loaded_learner_too(tmp_path: Path, tiny: FrozenCLIP) -> None:
    names = list(emoji_sentences())
    learner = make("cupl", tiny, tuple(names), descriptions="emoji").eval()
    learner.save_pretrained(tmp_path)
    again = load_learner(tmp_path, tiny)
    assert torch.equal(again.classifier_matrix(), learner.classifier_matrix())
    again.set_class_names([names[0], "okapi"])
    with pytest.raises(VlpromptError, match="emoji has no sentences for 1 of 2 classes, first 'okapi'"):
        again.classifier_matrix()


def test_every_sentence_counts_alike_and_a_long_one_is_cut(tmp_path: Path) -> None:
    clip, file = small_clip(), tmp_path / "sentences.json"
    long = "a long tale of a dog " * 40
    file.write_text(json.dumps({"cat": ["a small cat.", "a cat that sleeps.", "a tabby."], "dog": [long]}))
    settings = {"descriptions": str(file), "template": ["a photo of a {}."]}
    both = make("cupl", clip, ("cat", "dog"), texts="both", **settings).classifier_matrix()
    texts = ["a photo of a cat.", "a small cat.", "a cat that sleeps.", "a tabby."]
    cat = F.normalize(F.normalize(clip.encode_text(texts), dim=1).mean(dim=0), dim=0)
    torch.testing.assert_close(both[0], cat)
    with pytest.raises(VlpromptError, match=r"takes 2\d\d tokens"):
        clip.encode_text([long])
    assert clip.tokenize([long], cut=True)[0, -1] == clip.tokenize(["a dog"]).max(), "it ends as a text does"
