"""Every registered method keeps the promises of ``vlprompt.testing``."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlprompt import VlpromptError, create_learner, list_methods, load_learner
from vlprompt.testing import CHECKS, NAMES, NEW_NAMES, Check, close, logits_of, make, small_clip

VARIANTS = [(m, {}) for m in list_methods()] + [
    ("coop", {"class_specific": True, "n_ctx": 3}),
    ("coop", {"class_token_position": "middle", "n_ctx": 5}),
    ("coop", {"class_token_position": "front", "n_ctx": 2}),
    ("vpt", {"depth": 1, "place": "post_ln"}),
    ("ivlp", {"vision_depth": 0}),
    ("ivlp", {"gradient_rule": "prograd(scope='all')", "objective": ["ce", "distillation(weight=0)"]}),
    ("maple", {"objective": ["ce", "text_anchor(weight=25, distance='l1')", "image_anchor(weight=10)", "logit_kl"]}),
    ("ivlp", {"objective": ["ce", "text_anchor(weight=8)"]}),
    ("coop", {"gradient_rule": "prograd", "objective": ["ce", "distillation(weight=0)"], "aggregator": "ema"}),
    pytest.param(("cocoop", {"image_chunk": 3}), marks=pytest.mark.nightly),  # below with a head and with attributes
    ("mocoop", {"tune_vit_ln": True}),
    ("mocoop", {"groups": {"one": ["a {} in a video game."], "two": ["{}, seen from afar"]}, "image_chunk": 3}),
    ("pre", {"encoder": "mlp", "shared": False}),
    ("pre", {"class_specific": True, "shared": False}),
    ("mvlpt", {"variant": "mcoop"}),
    ("mvlpt", {"variant": "mvpt"}),
    ("mvlpt", {"mixing": True}),
    ("coop", {"context": "lowrank"}),
    ("ivlp", {"context": "factored(rank=3)"}),
    ("coop", {"edits": ["lora(tower=text)", "approx(tower=text)"]}),
    ("ivlp", {"edits": ["layer_norms(tower=both)", "surgery"]}),
    ("ctp_tft", {"image_chunk": 3}),
    ("spg", {"noise": "averaged", "draws": 3}),
    ("upl", {"members": 2}),
    ("grip", {"prompts": "visual"}),
    ("grip", {"prompts": "multimodal"}),
    ("grip", {"prompts": "multimodal", "as_published": True}),
    ("coop", {"head": "dept", "n_ctx": 3}),
    ("cocoop", {"head": "dept", "image_chunk": 3}),
    ("maple", {"head": "dept(weight=0.5)"}),
    ("coop", {"attributes": ["color", "playfulness"], "n_ctx": 2, "class_specific": True}),
    ("cocoop", {"attributes": ["color"], "n_att": 1, "image_chunk": 3}),
    ("promptsrc", {"attributes": ["playfulness", "energy"], "published_slicing": True, "ctx_init": None}),
    ("tcp", {"class_layer": 1, "class_weight": 0.5, "edits": ["lora(tower=text)"]}),
    ("tcp", {"head": "dept"}),
    ("mma", {"edits": ["layer_norms"], "adapter_start": 1, "adapter_end": 2}),
    ("mmrl", {"rep_end": 2, "edits": ["lora"]}),
    ("zero_shot", {"template": ["a photo of a {}.", "itap of a {}."]}),
]


def variant_id(value: object) -> str:
    if isinstance(value, tuple):
        return value[0] + "".join(f"-{k}={v}" for k, v in value[1].items() if not isinstance(v, list))
    return value.__name__.removeprefix("check_")


@pytest.mark.parametrize("check", CHECKS, ids=variant_id)
@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_method_keeps_its_promises(variant: tuple[str, dict], check: Check, tmp_path: Path) -> None:
    method, settings = variant
    check(method, tmp_path, **settings)


@pytest.mark.parametrize("method", ["coop", "kgcoop", "maple", "ivlp"])
def test_words_init_equals_zero_shot_text(method: str) -> None:
    clip = small_clip()
    learner = make(method, clip, ctx_init="a photo of a", **({"depth": 1} if method in ("maple", "ivlp") else {}))
    assert close(learner.classifier_matrix(), make("zero_shot", clip).classifier_matrix())


def test_anchor_is_zero_at_the_words_it_starts_from() -> None:
    learner = make("kgcoop")
    parts = learner.loss(
        {"image_features": learner.clip.encode_text(NAMES[:2]), "label": make("coop").tokens.lengths[:2] * 0}
    )
    assert abs(parts["text_anchor"].item()) < 1e-6


@pytest.mark.parametrize(
    ("method", "settings", "count"),
    [
        ("coop", {"ctx_init": "a photo of a"}, 2_048),
        ("coop", {}, 8_192),
        ("kgcoop", {}, 2_048),
        ("vpt", {}, 73_728),
        ("ivlp", {}, 30_720),
        ("ivlp", {"n_ctx": 4, "vision_n_ctx": 4, "depth": 9, "vision_depth": 9}, 46_080),
        ("ivlp", {"n_ctx": 4, "vision_depth": 0}, 24_576),
        ("maple", {}, 3_555_072),
        ("maple", {"depth": 3}, 1_185_024),
    ],
)
def test_parameter_counts_on_vit_b_16(method: str, settings: dict, count: int, vit_b_16) -> None:
    learner = create_learner(method, vit_b_16, ["cat", "dog"], **settings)
    assert sum(p.numel() for p in learner.trainable_parameters()) == count


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make("coop", n_cxt=3), "coop: unknown key 'n_cxt': did you mean n_ctx?"),
        (lambda: make("coop", n_ctx="many"), "coop: n_ctx must be a whole number or null, not 'many'"),
        (lambda: make("coop", n_ctx=0), "n_ctx=0 leaves nothing to learn"),
        (lambda: make("coop", ctx_init="a photo", n_ctx=4), "has 2 tokens, fewer than n_ctx=4"),
        (lambda: make("mapel"), "unknown method 'mapel': did you mean maple?"),
        (lambda: make("maple", depth=9), "prompts were asked for in 9 layers, but its text tower has 3"),
        (lambda: make("coop", names=("cat",)), "at least two class names"),
        (lambda: make("coop", names=("cat", " ")), "non-empty strings"),
        (lambda: make("coop", names=("cat", "very " * 80 + "long dog")), "shorten the class name or the context"),
        (
            lambda: make("coop", objective=["ce", "text_ancor"]),
            "unknown objective 'text_ancor': did you mean text_anchor",
        ),
        (
            lambda: make("coop", objective=["ce(weight"]),
            "cannot read objective 'ce(weight': put quotes around",
        ),
        (lambda: make("zero_shot", template=["a photo."]).text_features(), "must hold {} once"),
        (lambda: load_learner("/nowhere"), "no saved learner in /nowhere"),
    ],
)
def test_bad_input_is_answered_in_one_sentence(call, message: str) -> None:
    with pytest.raises(VlpromptError) as error:
        call()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_refused_class_list_leaves_the_learner_as_it_was() -> None:
    learner = make("coop")
    before = logits_of(learner)
    with pytest.raises(VlpromptError):
        learner.set_class_names([*NEW_NAMES, "very " * 80])
    assert learner.class_names == NAMES
    assert close(logits_of(learner), before, 0)
