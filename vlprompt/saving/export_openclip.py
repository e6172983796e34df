"""Export of a learnt context as a plain OpenCLIP model, in whose token embedding a few emoji have the learnt vectors.

A context before the class name consists of vectors in the place of word embeddings. So the export is a copy of the
model in which those vectors replace the embeddings of some signs that no class name contains, and a template made of
these signs. It computes exactly what the learner does, for any class names and in any program that loads OpenCLIP
models.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vlprompt.base.files import atomic_write
from vlprompt.clip.catalog import TINY
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.clip.loading import load_clip
from vlprompt.clip.naming import natural_name
from vlprompt.clip.openclip import SimpleTokenizer, get_model_config, list_models
from vlprompt.clip.tiny import tiny_config
from vlprompt.errors import VlpromptError
from vlprompt.evaluation.calibration import threshold_for
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.prompts import TextPrompt
from vlprompt.learner.recording import TextRecorder, extra_edits
from vlprompt.learner.teacher import filled
from vlprompt.saving.merging import merged_into

CONFIG, WEIGHTS, USE = "open_clip_config.json", "open_clip_model.safetensors", "classifier.json"
TOLERANCE = 1e-4
FIRST_SIGN = 0x2190  # arrows, symbols, emoji


def export_openclip(learner: PromptLearner, folder: Path) -> Path:
    """Write a folder for ``open_clip.create_model_and_transforms("local-dir:FOLDER")``.

    ``classifier.json`` in it has the template for class names, and the signs whose embeddings were replaced.

    Raises:
        VlpromptError: the learner is more than a learnt context of words before the class name.
    """
    with merged_into(learner):
        template, signs, state = _words_and_weights(learner)
    if learner.logit_scale != learner.clip.logit_scale:
        state["logit_scale"].fill_(math.log(learner.logit_scale))
    classifier = {
        "template": template,
        "class_names": [natural_name(name) for name in learner.class_names],
        "replaced": signs,
        "temperature": learner.temperature,
        "min_probability": threshold_for(learner),
        "backbone": learner.clip.identity(),
        "method": learner.method,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in ((CONFIG, _model_config(learner.clip)), (USE, classifier)):
        with atomic_write(folder / name) as temporary:
            temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    with atomic_write(folder / WEIGHTS) as temporary:
        save_file(state, temporary)
    _compare(learner, folder, template)
    return folder


def _words_and_weights(learner: PromptLearner) -> tuple[str, list[str], dict[str, Tensor]]:
    """The template, the signs in it whose embeddings are learnt vectors, and the weights with those embeddings."""
    state = {key: value.detach().clone().contiguous() for key, value in learner.clip.model.state_dict().items()}
    _check_towers(learner)
    if not any(isinstance(part, TextPrompt) for part in learner.modules()):
        return _template(learner), [], state
    context = _context(learner)  # (P, d_t)
    signs = _spare_signs(learner.clip, len(context), learner.class_names)
    tokenizer: Any = learner.clip.tokenizer
    (embedding,) = (value for key, value in state.items() if key.endswith("token_embedding.weight"))
    embedding[[tokenizer.encode(sign)[0] for sign in signs]] = context
    return " ".join([*signs, "{}."]), signs, state


def _check_towers(learner: PromptLearner) -> None:
    """Raise a ``VlpromptError`` unless the learner scores the model's image features with one text per class."""
    who, other = f"{learner.method} with these settings", "use to=torch or to=onnx"
    if learner.facts.classifier == "per_image":
        raise VlpromptError(f"{who} has another context for each image, which no words can replace: {other}")
    if learner.facts.head or learner.ensemble is not None:
        raise VlpromptError(f"{who} scores with more than class features: {other}")
    if not learner.facts.cacheable_images and not _same_images(learner, learner.clip):
        raise VlpromptError(f"{who} prompts the image tower, and OpenCLIP's has no learnt tokens: {other}")
    if learner.config.names:
        raise VlpromptError(f"{who} has classes with several names, and a template takes one: use to=matrix")
    if not learner.trainable_parameters():
        raise VlpromptError(f"{who} learns nothing: the original weights with its templates are the same classifier")


def _same_images(learner: PromptLearner, clip: FrozenCLIP) -> bool:
    """Whether a learner's image features equal a model's."""
    images = torch.randn(2, 3, clip.image_size, clip.image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = torch.nn.functional.normalize(clip.encode_image(images), dim=-1)
        return torch.allclose(learner.image_features(images), expected, atol=TOLERANCE)


def _template(learner: PromptLearner) -> str:
    """The template that gives the class features of a learner without learnt words.

    Raises:
        VlpromptError: there is none.
    """
    if not learner.facts.new_classes:  # untrained, they may equal a template's, but other classes' would not
        raise VlpromptError(
            f"{learner.method} with these settings learns weights of its own classes, which no template can give to "
            "others: use to=matrix"
        )
    with torch.no_grad():
        features = learner.text_features()
    own = getattr(learner.config, "template", None)
    for template in [own, *learner.templates] if isinstance(own, str) else learner.templates:
        text = learner.clip.encode_text(filled(learner.class_names, [template]))
        if torch.allclose(torch.nn.functional.normalize(text, dim=-1), features, atol=TOLERANCE):
            return template
    raise VlpromptError(
        f"{learner.method} with these settings has a classifier that is a mean over texts: use to=matrix"
    )


def _context(learner: PromptLearner) -> Tensor:
    """The vectors (P, d_t) between start-of-text and the class name.

    Raises:
        VlpromptError: the class features cannot be computed from such vectors and the class name alone.
    """
    who, other = f"{learner.method} with these settings", "use to=torch or to=onnx"
    recorder = TextRecorder()
    with torch.no_grad(), extra_edits(learner, recorder):
        features = learner.text_features()
    calls = recorder.calls
    if len(calls) != 1 or len(calls[0].prefix) != 1:
        raise VlpromptError(f"{who} has a classifier that is a mean over prompts: use to=matrix, or {other}")
    prompts = calls[0]
    if prompts.deep:
        raise VlpromptError(f"{who} learns vectors of deeper blocks, which words cannot replace: {other}, or to=matrix")
    tokens = learner.clip.class_tokens(learner.class_names)
    plain = learner.clip.text.embed(tokens.ids)
    if not torch.equal(prompts.lengths, tokens.lengths) or not _same(prompts.suffix, plain, tokens.lengths):
        raise VlpromptError(f"{who} has context not only before the class name: {other}, or to=matrix")
    text = torch.nn.functional.normalize(learner.clip.encode_prompts(prompts)[0], dim=-1)
    if not torch.allclose(text, features, atol=TOLERANCE):
        raise VlpromptError(f"{who} changes text features in the tower or after it: {other}, or to=matrix")
    return prompts.prefix[0, 1:]


def _same(a: Tensor, b: Tensor, lengths: Tensor) -> bool:
    """Whether two padded tensors (C, S, d) are equal up to the length (C,) of each row."""
    size = int(lengths.max())
    inside = torch.arange(size) < lengths[:, None]
    return a.dim() == 3 and torch.equal(a[:, :size][inside], b[:, :size][inside])


def _spare_signs(clip: FrozenCLIP, count: int, class_names: Sequence[str]) -> list[str]:
    """Signs, such as emoji, that are one token in CLIP's vocabulary and occur in no class name, rarest first."""
    tokenizer = clip.tokenizer
    if not isinstance(tokenizer, SimpleTokenizer):
        raise VlpromptError(f"{clip.name} has a tokenizer other than CLIP's own: use to=matrix, torch or onnx")
    used, end, spare = "".join(class_names), tokenizer.eot_token_id, []
    for token in sorted(tokenizer.decoder, reverse=True):  # rarer tokens have higher numbers
        sign = tokenizer.decode([token]).strip()
        if len(sign) != 1 or sign.isalnum() or ord(sign) < FIRST_SIGN or sign in used:
            continue
        if tokenizer([sign])[0, 1:3].tolist() == [token, end]:
            spare.append(sign)
        if len(spare) == count:
            return spare
    raise VlpromptError(f"{clip.name}'s vocabulary does not have {count} signs that no class name contains")


def _model_config(clip: FrozenCLIP) -> dict[str, Any]:
    """OpenCLIP's configuration of the backbone, with its actual activation and transform."""
    name = (clip.source or {}).get("name", "")
    if name == TINY:
        model = tiny_config()["model_cfg"]
    elif name.startswith("local-dir:"):
        model = json.loads(Path(name.removeprefix("local-dir:"), CONFIG).read_text(encoding="utf-8"))["model_cfg"]
    elif name in list_models():
        model = get_model_config(name)
    else:
        raise VlpromptError(f"OpenCLIP's configuration of {clip.name} is unknown: use to=matrix, torch or onnx")
    preprocess = {
        "mean": list(clip.image_mean),
        "std": list(clip.image_std),
        "interpolation": clip.interpolation,
        "resize_mode": clip.resize_mode,
    }
    return {"model_cfg": model | {"quick_gelu": clip.activation() == "QuickGELU"}, "preprocess_cfg": preprocess}


def _compare(learner: PromptLearner, folder: Path, template: str) -> None:
    """Raise a ``VlpromptError`` unless the folder, loaded with open_clip, gives the learner's features."""
    clip = load_clip(f"local-dir:{folder}", device="cpu")
    texts = [template.replace("{}", natural_name(name)) for name in learner.class_names]
    actual = torch.nn.functional.normalize(clip.encode_text(texts), dim=-1)
    difference = float((actual - learner.classifier_matrix()).abs().max())
    if difference > TOLERANCE:
        raise VlpromptError(f"the model in {folder} is not the learner: its class features differ by {difference:.2g}")
    if not _same_images(learner, clip):
        raise VlpromptError(f"the model in {folder} is not the learner: its image features differ")
