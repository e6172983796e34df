"""Converting checkpoints of the methods' published repositories to learners.

Those repositories share a trainer (Dassl), which saves ``{"state_dict": …, "epoch": …, "optimizer": …}`` of the prompt
learner only (CoOp and its successors) or of the whole model (MaPLe and its successors). Tensor names depend on the
module that has the prompts; they are mapped to the names in ``vlprompt.learner.publishing``, and sizes are read from
the shapes. Tensors of the classes or the frozen model are used to check both, and are then dropped.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.clip.tensor_files import read_tensor_file
from vlprompt.data.splits import DEFAULT_TEMPLATE
from vlprompt.errors import VlpromptError, warn
from vlprompt.learner import publishing
from vlprompt.learner.attributes import Attributes
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.creation import create_learner
from vlprompt.learner.fusion import HEADS
from vlprompt.learner.registration import METHODS

# patterns of the repositories' tensor names, and the names that replace them
RENAMED = (
    (r"(?:module\.|model\.(?!\d)|_orig_mod\.)*(?:prompt_learner\.|adapter_learner\.)?(.*)", r"\1"),
    (r"text_encoder\.transformer\.resblocks\.(\d+)\.VPT_shallow", r"text_prompts.\1"),
    (r"image_encoder\.transformer\.resblocks\.(\d+)\.VPT_shallow", r"visual_prompts.\1"),
    (r"image_encoder\.VPT", "visual_prompts.0"),
)
# settings that equal the length of an axis of a tensor
LENGTHS = {
    "coupling_width": ("mvlpt_proj_ctx_coop_pre.weight", 0),
    "meta_width": ("meta_net.linear1.weight", 0),
    "n_rep_tokens": ("representation_learner.compound_rep_tokens", 0),
    "rep_dim": ("representation_learner.compound_rep_tokens", 1),
    "residual_rank": ("representation_learner.srra_r2vproj.srra.0.A", 1),
    "projection_rank": ("image_encoder.A", 1),
    "n_att": ("ctx_att1", 0),
    "depth": ("visual.mask_embedding", 0),
}
BRANCH = re.compile(r"shared_adapter\.(\d+)\.0\.weight")
# tensors that are not learnt: buffers of the classes, the frozen model, a frozen teacher, settings
NOT_LEARNT = re.compile(
    r"token_(prefix|suffix|middle\d)|text_encoder\.|image_encoder\.|logit_scale|ZS_image_encoder\.|.*num_batches_tracked|model_distill|.*_cali_ratio"
)
SAME = 1e-2  # largest relative difference of tensors that differ only by half precision


def import_checkpoint(
    file: str | os.PathLike[str],
    method: str,
    clip: FrozenCLIP,
    class_names: Sequence[str],
    *,
    templates: Sequence[str] = (DEFAULT_TEMPLATE,),
    **settings: Any,
) -> PromptLearner:
    """Make a learner from a checkpoint of a published repository.

    Args:
        file: such as ``prompt_learner/model.pth.tar-50``. Only tensors are read; nothing in the file is executed or
            imported, whatever else it contains.
        method: the method that the checkpoint belongs to.
        clip: the backbone that it was trained on; checked as far as the file allows.
        class_names: the classes to score: those trained on, or others if the method can score new classes.
        templates: of the dataset.
        settings: settings of the method that tensor shapes do not show, such as ``class_token_position``. Numbers of
            tokens and layers are read from the shapes unless they are given.

    Raises:
        VlpromptError: the file is not a checkpoint of this method, contains NaN, or belongs to another backbone.
    """
    path = Path(file)
    tensors = published_names(_tensors(path))
    _check_backbone(tensors, clip, path)
    settings = _settings_by_shapes(method, tensors, clip, path, settings) | settings
    learner = create_learner(method, clip, class_names, templates=templates, **settings)
    try:
        learner.load_published(tensors)
    except VlpromptError as error:
        bound = "; its second head is bound to the classes that were trained on: give those, in their order"
        raise VlpromptError(f"{path}: {error}{bound if 'second_head' in str(error) else ''}") from error
    _check_words(tensors, learner, path)
    for name, tensor in learner.state_dict().items():
        if not tensor.isfinite().all():
            raise VlpromptError(f"{path} contains NaN or infinity in {name}: its training diverged")
    if unused := _unused(tensors, learner):
        more = f" and {len(unused) - 1} more" if len(unused) > 1 else ""
        warn(
            f"{path}: {method} has no use for {unused[0]}{more}; wrong if the file is another method's, right if its "
            "repository keeps parts that it does not train",
        )
    return learner.eval()


def _settings_by_shapes(
    method: str, tensors: Mapping[str, Tensor], clip: FrozenCLIP, path: Path, settings: dict[str, Any]
) -> dict[str, Any]:
    """The method's settings that the shapes and names of tensors show."""
    fields = {f.name for f in dataclasses.fields(METHODS.get(method).Config)}
    read = {key: value for key, value in sizes(tensors).items() if key in fields} | _second_head(tensors)
    if "attributes" in fields and "ctx_att1" in tensors:
        read["published_slicing"] = True
        if not settings.get("attributes"):
            raise VlpromptError(
                f"{path} has vectors before attribute words, but not the words: give them, as in attributes=[color]"
            )
    if "ctx_init" in fields and "ctx_init" not in settings:
        read["ctx_init"] = _phrase(method, tensors, clip, read | settings)
    return read


def _unused(tensors: Mapping[str, Tensor], learner: PromptLearner) -> list[str]:
    """The names of tensors that look learnt, and that the learner has no place for."""
    unused = sorted(tensors.keys() - set(publishing.published_names(learner).values()) - {"ctx", "text_prompts.0"})
    idle = "ctx_att" if "token_middle1" in tensors else "token_"  # saved for three attribute words, used or not
    return [name for name in unused if not NOT_LEARNT.match(name) and not name.startswith(idle)]


def _tensors(path: Path) -> dict[str, Tensor]:
    """Read a checkpoint's state dict in fp32; nothing in the file is run (see ``vlprompt.clip.tensor_files``)."""
    tensors, _ = read_tensor_file(path)
    return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}


def published_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under the names of ``vlprompt.learner.publishing``."""
    out = {}
    for name, tensor in tensors.items():
        for pattern, replacement in RENAMED:
            match = re.fullmatch(pattern, name)
            name = match.expand(replacement) if match else name
        out[name] = tensor
    if "ctx" in out:  # the first layer of independent deep prompts is saved as a context
        out.setdefault("text_prompts.0", out["ctx"])
    return out


def sizes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read settings from the shapes of tensors under their published names."""
    out = _prompt_sizes(tensors)
    out |= {key: tensors[name].shape[axis] for key, (name, axis) in LENGTHS.items() if name in tensors}
    branches = {int(match[1]): tensors[name] for name in tensors if (match := BRANCH.fullmatch(name))}
    if branches:
        first, last = min(branches), max(branches)
        out |= {"adapter_start": first, "adapter_end": last, "adapter_dim": len(branches[first])}
    for setting, theirs in (("text_ratio", "text_cali_ratio"), ("image_ratio", "vis_cali_ratio")):
        if theirs in tensors:
            out[setting] = float(tensors[theirs])
    return out


def _prompt_sizes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The numbers of tokens and of prompted layers."""
    context, visual = tensors.get("ctx", tensors.get("text_prompts.0")), tensors.get("visual_prompts.0")
    generated = tensors.get("vpt_embeddings")
    first = next((t for t in (context, visual, generated) if t is not None), None)
    if first is None:
        return {}
    text_depth = max(_layers(tensors, "text_prompts"), 1 + _layers(tensors, "compound_prompts_text"))
    vision_depth = _layers(tensors, "visual_prompts")
    variant = "upt" if context is not None else "mvpt"
    out = {
        "n_ctx": first.shape[-2],
        "class_specific": context is not None and context.dim() == 3,
        "depth": vision_depth if context is None else text_depth,
        "vision_depth": vision_depth,
        "variant": "mcoop" if generated is None else variant,
    }
    return out if visual is None else out | {"vision_n_ctx": visual.shape[-2]}


def _layers(tensors: Mapping[str, Tensor], kind: str) -> int:
    """The number of tensors called ``KIND.0``, ``KIND.1`` and so on."""
    return sum(re.fullmatch(rf"{kind}\.\d+", name) is not None for name in tensors)


def _second_head(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The setting ``head`` of the second head whose tensors are present; empty if there is none."""
    for name in HEADS.names():
        if all(any(each.startswith(theirs) for each in tensors) for theirs in HEADS.get(name).published.values()):
            return {"head": name}
    return {}


def _check_words(tensors: Mapping[str, Tensor], learner: PromptLearner, path: Path) -> None:
    """Raise a ``VlpromptError`` unless the given attribute words have the embeddings that were saved."""
    saved = [tensors[name][0, 0] for i in range(1, 10) if (name := f"token_middle{i}") in tensors]
    attributes = next((each for each in learner.modules() if isinstance(each, Attributes)), None)
    if not saved or attributes is None:
        return
    words = attributes.get_buffer("words")
    if len(words) != len(saved) or not all(map(_alike, saved, words)):
        raise VlpromptError(f"{path} was trained with {len(saved)} attribute words that are not those given")


def _phrase(method: str, tensors: Mapping[str, Tensor], clip: FrozenCLIP, settings: Mapping[str, Any]) -> str | None:
    """The setting ``ctx_init``: the method's phrase if its last words follow the learnt tokens, else None.

    The saved embeddings after the context show it. Without them, deep prompts keep the rest of the phrase and shallow
    ones do not, as in the repositories.
    """
    phrase: str | None = getattr(METHODS.get(method).Config(), "ctx_init", None)
    n = settings.get("n_ctx")
    words = clip.word_embeddings(phrase) if phrase else ()
    if n is None:  # no context is saved, and its length is the method's, as of SPG's generator
        return phrase
    if n >= len(words):
        return None
    suffix = tensors.get("token_suffix")
    if suffix is None:
        return phrase if settings.get("depth") else None
    return phrase if _alike(suffix[:, 0], words[n].expand_as(suffix[:, 0])) else None


def _check_backbone(tensors: Mapping[str, Tensor], clip: FrozenCLIP, path: Path) -> None:
    """Raise a ``VlpromptError`` if tensors of the frozen model that were saved differ from this backbone's."""
    start, patches = tensors.get("token_prefix"), tensors.get("image_encoder.conv1.weight")
    convolution = getattr(clip.visual.module, "conv1", None)
    pairs = [
        (None if start is None else start[0], clip.start_embedding(), "start-of-text embedding"),
        (patches, None if convolution is None else convolution.weight, "patch embedding"),
    ]
    for saved, actual, what in pairs:
        if saved is not None and actual is not None and not _alike(saved, actual):
            tag = f" ({clip.pretrained})" if clip.pretrained else ""
            raise VlpromptError(f"{path} was trained on another backbone than {clip.name}{tag}: its {what} differs")


def _alike(a: Tensor, b: Tensor) -> bool:
    """Whether tensors are equal up to half precision."""
    a, b = a.float().cpu(), b.detach().float().cpu()
    return a.shape == b.shape and bool((a - b).norm() <= SAME * b.norm())
