"""Fidelity of heads that need no gradient to their authors' own code, on the fixtures of ``golden/new``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from golden_files import NEW, Case, case_names, read_case, read_config
from golden_learned import learnt_cases
from test_golden_more import clip_of, close
from torch import Tensor

from vlprompt import FrozenCLIP, create_learner
from vlprompt.data import FeatureBank
from vlprompt.learner import PromptLearner
from vlprompt.learner.held_out import Selection
from vlprompt.methods.test_time.tda import Stream


@dataclass
class Given:
    """What a check works with: the case, the golden CLIP, pytest's patches and a folder to write to."""

    case: Case
    clip: FrozenCLIP
    patch: pytest.MonkeyPatch
    folder: Path

    def learner(self, method: str, text: str = "text_weights", **settings) -> PromptLearner:
        """A learner on features of the case's width, with the text features of the case in place of a CLIP's."""
        facts = self.case.facts
        clip = clip_of(facts["width"], facts.get("logit_scale", 100.0))
        learner = create_learner(method, clip, [f"class {i}" for i in range(facts["n_classes"])], **settings).eval()
        self.patch.setattr(learner, "encode_text", lambda v=None: self.case.tensors[text])
        return learner


Check = Callable[[Given], None]
CHECKS: dict[str, Check] = {}  # by the beginning of a case's name


def check(function: Check) -> Check:
    CHECKS[function.__name__] = function
    return function


def transclip_settings(case: Case, **settings) -> dict:
    facts = case.facts
    assert facts["init_variance"] == pytest.approx(1 / facts["width"])
    return {
        "rounds": facts["outer_iterations"],
        "sweeps": facts["inner_iterations"],
        "neighbours": facts["neighbours"],
        "confident": facts["confident_per_class"],
        "temperature": facts["temperature_inside_z"],
        "text_weight": facts["lambda"],
        **settings,
    }


def z_of(log_z: Tensor) -> Tensor:
    return log_z.softmax(dim=1)


@check
def transclip_zs(given: Given) -> None:
    t = given.case.tensors
    settings, x = transclip_settings(given.case), t["query_features"]
    close(z_of(given.learner("transclip", **settings).classify(x)), t["z"], "z", atol=1e-4)
    once = given.learner("transclip", **settings | {"rounds": 1})
    close(z_of(once.classify(x)), t["z_after_first_update"], "z after the first round", atol=1e-4)


@check
def transclip_on_top_prototypes(given: Given) -> None:
    t = given.case.tensors
    settings, x = transclip_settings(given.case), t["query_features"]
    learner = given.learner("transclip", "initial_prototypes", **settings)
    close(z_of(learner.classify(x)), t["z"], "z", atol=1e-4)
    once = given.learner("transclip", "initial_prototypes", **settings | {"rounds": 1})
    close(z_of(once.classify(x)), t["z_after_first_update"], "z after the first round", atol=1e-4)


@check
def transclip_on_top_probabilities(given: Given) -> None:
    t = given.case.tensors
    x, log_y = t["query_features"], t["initial_predictions"].log()
    for rounds, expected in ((given.case.facts["outer_iterations"], "z"), (1, "z_after_first_update")):
        settings = transclip_settings(given.case, rounds=rounds, as_published=True)
        learner = given.learner("transclip", **settings)
        close(z_of(learner.assign(x, log_y, of_a_learner=True)), t[expected], expected, atol=1e-4)
    kept = given.learner("transclip", **transclip_settings(given.case)).assign(x, log_y, of_a_learner=True)
    assert (z_of(kept) - t["z"]).abs().max() > 0.1, "the text's anchor is kept by default"


@check
def transclip_fs(given: Given) -> None:
    t, facts = given.case.tensors, given.case.facts
    x, gammas = t["query_features"], facts["gammas"]
    banks = {
        "labelled": FeatureBank(t["support_features"][None], t["support_labels"]),
        "val": FeatureBank(t["val_features"][None], t["val_labels"]),
    }
    feed = SimpleNamespace(bank=lambda source="labelled", **_: banks[source], selection=Selection("val"))
    settings = transclip_settings(given.case, support=True, grid={"gamma": gammas}, as_published=True)
    learner = given.learner("transclip", **settings)
    learner.learn(feed, None)
    log_y = learner.log_y({"image_features": x})
    found = dict(zip(gammas, learner.solve(x, log_y, gammas), strict=True))
    for gamma, log_z in found.items():
        close(z_of(log_z), t[f"z_gamma_{gamma:g}"], f"z with gamma={gamma:g}", atol=1e-4)
    close(z_of(found[gammas[-1]]), t["z"], "z", atol=1e-4)
    right = (learner.classify(x).argmax(dim=1) == t["query_labels"]).double().mean()
    assert 100 * right == pytest.approx(facts["accuracy_at_best_val"])
    once = given.learner("transclip", **settings | {"rounds": 1})
    once.learn(feed, None)
    close(z_of(once.solve(x, log_y, gammas)[0]), t["z_after_first_update"], "z after the first round", atol=1e-4)
    ours = given.learner("transclip", **settings | {"as_published": False})
    ours.learn(feed, None)
    assert (z_of(ours.solve(x, log_y, gammas[:1])[0]) - t[f"z_gamma_{gammas[0]:g}"]).abs().max() > 0.05, "right rows"
    assert len(feed.selection.searches[0].points) == len(gammas)


@check
def zlap(given: Given) -> None:
    t, facts = given.case.tensors, given.case.facts
    settings = {"k": facts["k"], "gamma": facts["gamma"], "alpha": facts["alpha"], "iterations": facts["cg_maxiter"]}
    pool = FeatureBank(t["unlabeled_features"][None], None)
    modes = {"transductive": {}, "transductive_scaled": {"scaled": True}, "inductive": {}, "sparse_inductive": {}}
    for name, more in modes.items():
        mode = name.removesuffix("_scaled").removesuffix("_inductive")
        learner = given.learner("zlap", mode=mode, tolerance=facts["cg_tol"], **settings | more)
        learner.learn(SimpleNamespace(bank=lambda source: {"pool": pool}[source]), None)
        close(learner.scores(t["test_features"], learner.text_features()), t[name], name, rtol=0, atol=1e-5)
        right = (learner.classify(t["test_features"]).argmax(dim=1) == t["labels"]).double().mean()
        assert 100 * right == pytest.approx(facts["accuracy"][name])


@check
def cupl(given: Given) -> None:
    t, facts = given.case.tensors, given.case.facts
    names = read_config()["class_names"]
    file = given.folder / "sentences.json"
    file.write_text(json.dumps(dict(zip(names, facts["descriptions"], strict=True))))
    texts = {"descriptions": {"descriptions": str(file)}, "both": {"descriptions": str(file), "texts": "both"}}
    for variant, settings in (texts | {"templates": {}}).items():
        method = "cupl" if settings else "zero_shot"
        learner = create_learner(method, given.clip, names, templates=facts["templates"], **settings).eval()
        close(learner.classifier_matrix(), t[f"text_weights/{variant}"], variant)
        v = F.normalize(t["image_features"], dim=1)
        close(v @ learner.classifier_matrix().T, t[f"cosine/{variant}"], f"cosine/{variant}")
        close(learner.classify(v), given.clip.similarity(v, t[f"text_weights/{variant}"]), variant, atol=1e-4)


@check
def tda(given: Given) -> None:
    t, facts = given.case.tensors, given.case.facts
    kinds = {kind: facts[kind] for kind in ("positive", "negative")}
    assert all(each["enabled"] for each in kinds.values())
    assert facts["entropy_normaliser"] == "natural-log entropy divided by log2(number of classes)"
    settings = {name: kinds["positive"][name] for name in ("alpha", "beta")}
    settings |= {f"negative_{name}": kinds["negative"][name] for name in ("alpha", "beta")}
    settings |= {f"{kind}_shots": each["shot_capacity"] for kind, each in kinds.items()}
    for ours, theirs in (("unsure", "entropy_threshold"), ("possible", "mask_threshold")):
        settings[ours] = [kinds["negative"][theirs][end] for end in ("lower", "upper")]
    learner = given.learner("tda", fraction=facts["view_fraction"], n_views=facts["views"], **settings)
    text, x = learner.text_features(), F.normalize(t["features"], dim=-1)
    seen = [learner.see(image, text) for image in (x[:, None] if x.dim() == 2 else x)]
    stream = Stream(learner.config, text)
    close(torch.stack([each.z for each in seen]), t["clip_logits"], "clip_logits", atol=1e-4)
    close(torch.stack([each.p for each in seen]), t["probability"], "probability")
    close(torch.tensor([each.entropy for each in seen]), t["entropy"], "entropy")
    assert [int(each.z.argmax()) for each in seen] == t["prediction"].tolist()
    final = torch.stack([stream.logits(each) for each in seen])
    close(final, t["final_logits"], "final_logits", atol=1e-4)
    assert (final.argmax(1) != t["clip_logits"].argmax(1)).sum() == facts["predictions_changed_by_the_cache"]
    for cache, prefix in ((stream.positive, "pos"), (stream.negative, "neg")):
        order = cache.entropy.argsort(dim=1)
        held = cache.entropy.isfinite().gather(1, order)
        assert held.nonzero()[:, 0].tolist() == t[f"{prefix}_class"].tolist()
        close(cache.entropy.gather(1, order)[held], t[f"{prefix}_entropy"], f"{prefix}_entropy")
        close(cache.keys.take_along_dim(order[..., None], 1)[held], t[f"{prefix}_keys"], f"{prefix}_keys")
        if prefix == "neg":
            low, high = settings["possible"]
            votes = (t["neg_probability"] > low) & (t["neg_probability"] < high)
            assert torch.equal(cache.votes.take_along_dim(order[..., None], 1)[held], votes.float())
    if learner.n_views is None:
        close(learner.classify(t["features"]), t["final_logits"], "logits", atol=1e-4)


@pytest.mark.parametrize("name", sorted({*case_names(NEW)} - {*learnt_cases()}))
def test_what_a_head_computes_equals_its_authors_code(
    name: str, golden_clip: FrozenCLIP, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    case = read_case(NEW, name)
    known = [prefix for prefix in CHECKS if name.startswith(prefix)]
    if not known:
        pytest.skip(f"no method here is compared with {name}")
    CHECKS[max(known, key=len)](Given(case, golden_clip, monkeypatch, tmp_path))
