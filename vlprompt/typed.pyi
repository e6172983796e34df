# made by scripts/make_docs.py: do not edit
# fmt: off
# ruff: noqa
"""``create_learner`` and ``run`` with the settings of each method, for editors and type checkers; nothing imports it.

A call of a known method that its own overload does not fit gives ``SettingsDoNotFit``, which is an error to a type
checker as soon as it is used. Other names, those of plugins and those that only a run of the program knows, take any
setting.
"""

# mypy: disable-error-code="overload-overlap"
from collections.abc import Sequence
from os import PathLike
from typing import Any, Literal, TypedDict, overload

from typing_extensions import Unpack

from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.evaluation.results import Result
from vlprompt.learner.contract import PromptLearner
from vlprompt.methods.heads.clap import CLAP
from vlprompt.methods.heads.clip_adapter import CLIPAdapter
from vlprompt.methods.edits.clip_lora import CLIPLoRA
from vlprompt.methods.prompts.cocoop import CoCoOp
from vlprompt.methods.prompts.coop import CoOp
from vlprompt.methods.prompts.coprompt import CoPrompt
from vlprompt.methods.heads.cross_modal_lp import CrossModalLP
from vlprompt.methods.prompts.ctp_tft import CTPTFT
from vlprompt.methods.heads.cupl import CuPL
from vlprompt.methods.test_time.difftpt import DiffTPT
from vlprompt.methods.unlabelled.grip import FPL
from vlprompt.methods.heads.gda import GDA
from vlprompt.methods.unlabelled.grip import GRIP
from vlprompt.methods.unlabelled.grip import IFPL
from vlprompt.methods.prompts.ivlp import IVLP
from vlprompt.methods.prompts.kgcoop import KgCoOp
from vlprompt.methods.heads.linear_probe import LinearProbe
from vlprompt.methods.heads.lp_plus_plus import LPPlusPlus
from vlprompt.methods.prompts.maple import MaPLe
from vlprompt.methods.prompts.mask_prompt import MaskPrompt
from vlprompt.methods.edits.mma import MMA
from vlprompt.methods.prompts.mmrl import MMRL
from vlprompt.methods.prompts.mmrlpp import MMRLPP
from vlprompt.methods.prompts.mocoop import MoCoOp
from vlprompt.methods.prompts.mvlpt import MVLPT
from vlprompt.methods.prompts.panda import PANDA
from vlprompt.methods.unlabelled.pouf import POUF
from vlprompt.methods.prompts.pre import PRE
from vlprompt.methods.prompts.proda import ProDA
from vlprompt.methods.prompts.prograd import ProGrad
from vlprompt.methods.unlabelled.promptkd import PromptKD
from vlprompt.methods.prompts.promptsrc import PromptSRC
from vlprompt.methods.prompts.pvp import PVP
from vlprompt.methods.prompts.restore import RESTORE
from vlprompt.methods.prompts.spg import SPG
from vlprompt.methods.heads.taskres import TaskRes
from vlprompt.methods.prompts.tcp import TCP
from vlprompt.methods.test_time.tda import TDA
from vlprompt.methods.unlabelled.tfup import TFUP
from vlprompt.methods.unlabelled.tfup_t import TFUPT
from vlprompt.methods.heads.tip_adapter import TipAdapter
from vlprompt.methods.heads.tip_adapter_f import TipAdapterF
from vlprompt.methods.test_time.tpt import TPT
from vlprompt.methods.heads.transclip import TransCLIP
from vlprompt.methods.unlabelled.upl import UPL
from vlprompt.methods.prompts.vpt import VPT
from vlprompt.methods.zero_shot import ZeroShot
from vlprompt.methods.heads.zlap import ZLaP
from vlprompt.methods.heads.clap import ZSLP

StrPath = str | PathLike[str]
Known = Literal['clap', 'clip_adapter', 'clip_lora', 'cocoop', 'coop', 'coprompt', 'cross_modal_lp', 'ctp_tft', 'cupl', 'difftpt', 'fpl', 'gda', 'grip', 'ifpl', 'ivlp', 'kgcoop', 'linear_probe', 'lp_plus_plus', 'maple', 'mask_prompt', 'mma', 'mmrl', 'mmrlpp', 'mocoop', 'mvlpt', 'panda', 'pouf', 'pre', 'proda', 'prograd', 'promptkd', 'promptsrc', 'pvp', 'restore', 'spg', 'taskres', 'tcp', 'tda', 'tfup', 'tfup_t', 'tip_adapter', 'tip_adapter_f', 'tpt', 'transclip', 'upl', 'vpt', 'zero_shot', 'zlap', 'zs_lp']

class MethodSettings(TypedDict, total=False):
    objective: list[str]
    gradient_rule: str | None
    aggregator: str | None
    init_from: StrPath | None
    init_length: Literal['same', 'fit']
    text_chunk: int | Literal['auto'] | None
    descriptions: StrPath | None
    teacher: StrPath | None
    names: dict[str, list[str]] | str | None
    names_by: Literal['mean', 'best']
    context: str
    after_step: str | None
    edits: list[str]
    ensemble: str | None
    head: str | None

class RunSettings(TypedDict, total=False):
    epochs: int
    steps: int | None
    lr: float
    batch_size: int
    optimizer: str
    momentum: float
    weight_decay: float
    schedule: str
    warmup_epochs: int
    warmup_lr: float
    clip_grad: float | None
    checkpoint_seconds: float
    shots: int | str
    seed: int
    views: int | str
    transform: str
    workers: int
    dataset: Any
    data_root: StrPath | None
    download: bool
    split: str
    templates: Any
    protocol: str
    unlabelled: str | None
    region: str | None
    pool_classes: Any
    class_split: int
    allow_fewer: bool
    backbone: str
    pretrained: str | None
    checkpoint: StrPath | None
    precision: str
    device: str
    threads: int | None
    on_unreadable: str
    follow_links: bool
    targets: Any
    held_out: str | None
    selection: str
    calibrate: str
    coverage: float | None
    format_spread: Any
    limit: int | None
    logger: Any
    output: StrPath
    name: str | None
    config: StrPath | None
    auto: str | None
    resume: bool
    restart: bool
    quiet: bool

class ClapSettings(MethodSettings, total=False):
    text: StrPath | None
    variant: Literal['zs_lp', 'cones']
    constraint: Literal['l2', 'l2_constant', 'l2_corrected', 'l2_balanced']
    fit_views: int

class ClapRun(RunSettings, ClapSettings, total=False): ...

class ClipAdapterSettings(MethodSettings, total=False):
    text: StrPath | None
    ratio: float
    reduction: int

class ClipAdapterRun(RunSettings, ClipAdapterSettings, total=False): ...

class ClipLoraSettings(MethodSettings, total=False):
    tower: Literal['text', 'vision', 'both']
    rank: int
    alpha: float
    maps: str
    dropout: float
    template: str | None

class ClipLoraRun(RunSettings, ClipLoraSettings, total=False): ...

class CocoopSettings(MethodSettings, total=False):
    attributes: list[str]
    n_att: int | None
    published_slicing: bool
    n_ctx: int | None
    ctx_init: str | None
    class_token_position: Literal['end', 'middle', 'front']
    class_specific: bool
    image_chunk: int | None

class CocoopRun(RunSettings, CocoopSettings, total=False): ...

class CoopSettings(MethodSettings, total=False):
    attributes: list[str]
    n_att: int | None
    published_slicing: bool
    n_ctx: int | None
    ctx_init: str | None
    class_token_position: Literal['end', 'middle', 'front']
    class_specific: bool

class CoopRun(RunSettings, CoopSettings, total=False): ...

class CopromptSettings(MethodSettings, total=False):
    attributes: list[str]
    n_att: int | None
    published_slicing: bool
    n_ctx: int
    ctx_init: str | None
    depth: int
    text_ratio: float
    image_ratio: float
    reduction: int

class CopromptRun(RunSettings, CopromptSettings, total=False): ...

class CrossModalLpSettings(MethodSettings, total=False):
    text: StrPath | None

class CrossModalLpRun(RunSettings, CrossModalLpSettings, total=False): ...

class CtpTftSettings(MethodSettings, total=False):
    attributes: list[str]
    n_att: int | None
    published_slicing: bool
    n_ctx: int | None
    ctx_init: str | None
    class_token_position: Literal['end', 'middle', 'front']
    class_specific: bool
    image_chunk: int | None

class CtpTftRun(RunSettings, CtpTftSettings, total=False): ...

class CuplSettings(MethodSettings, total=False):
    template: list[str] | None
    texts: Literal['sentences', 'both']

class CuplRun(RunSettings, CuplSettings, total=False): ...

class DifftptSettings(MethodSettings, total=False):
    attributes: list[str]
    n_att: int | None
    published_slicing: bool
    n_ctx: int | None
    ctx_init: str | None
    class_token_position: Literal['end', 'middle', 'front']
    class_specific: bool
    n_views: int
    fraction: float
    steps_per_image: int
    tuning_lr: float
    tuning_decay: float
    augmix: bool
    conditional: bool
    generated: str | None
    n_generated: int
    similar: float

class DifftptRun(RunSettings, DifftptSettings, total=False): ...

class FplSettings(MethodSettings, total=False):
    attributes: list[str]
    n_att: int | None
    published_slicing: bool
    prompts: Literal['text', 'visual', 'multimodal']
    n_ctx: int | None
    labeler: str
    rounds: int
    template: list[str] | None
    joint_width: int
    as_published: bool
    grid: dict[str, Any]

class FplRun(RunSettings, FplSettings, total=False): ...

class GdaSettings(MethodSettings, total=False):
    text: StrPath | None
    alpha: float
    fit_views: int
    unsupervised: bool
    max_iter: int
    synthesise: bool
    neighbours: int
    text_copies: int
    as_published: bool
    grid: dict[str, Any]

class GdaRun(RunSettings, GdaSettings, total=False): ...

class GripSettings(MethodSettings, total=False):
    attributes: list[str]
    n_att: int | None
    published_slicing: bool
    prompts: Literal['text', 'visual', 'multimodal']
    n_ctx: int | None
    labeler: str
    rounds: int
    template: list[str] | None
    joint_width: int
    as_published: bool
    grid: dict[str, Any]

class GripRun(RunSettings, GripSettings, total=False): ...

class IfplSettings(MethodSettings, total=False):
    attributes: list[str]
    n_att: int | None
    published_slicing: bool
    prompts: Literal['text', 'visual', 'multimodal']
    n_ctx: int | None
    labeler: str
    rounds: int
    template: list[str] | None
    joint_width: int
    as_published: bool
    grid: dict[str, Any]

class IfplRun(RunSettings, IfplSettings, total=False): ...

class IvlpSettings(MethodSettings, total=False):
    attributes: list[str]
    n_att: int | None
    published_slicing: bool
    n_ctx: int
    ctx_init: str | None
    depth: int
    vision_n_ctx: int
    vision_depth: int

class IvlpRun(RunSettings, IvlpSettings, total=False): ...

class KgcoopSettings(MethodSettings, total=False):
    attributes: list[str]
    n_att: int | None
    published_slicing: bool
    n_ctx: int | None
    ctx_init: str | None
    class_token_position: Literal['end', 'middle', 'front']
    class_specific: bool

class KgcoopRun(RunSettings, KgcoopSettings, total=False): ...

class LinearProbeSettings(MethodSettings, total=False):
    inverse_strength: float
    fit_views: int
    max_iter: int
    grid: dict[str, Any]

class LinearProbeRun(RunSettings, LinearProbeSettings, total=False): ...

class LpPlusPlusSettings(MethodSettings, total=False):
    text: StrPath | None
    full_steps: int
    heavy_ball: float
    alpha_every: int
    fit_views: int
    as_published: bool

class LpPlusPlusRun(RunSettings, LpPlusPlusSettings, total=False): ...

class MapleSettings(MethodSettings, total=False):
    attributes: list[str]
    n_att: int | None
    published_slicing: bool
    n_ctx: int
    ctx_init: str | None
    depth: int

class MapleRun(RunSettings, MapleSettings, total=False): ...

class MaskPromptSettings(MethodSettings, total=False):
    depth: int
    blank: bool

class MaskPromptRun(RunSettings, MaskPromptSettings, total=False): ...

class MmaSettings(MethodSettings, total=False):
    adapter_start: int | None
    adapter_end: int | None
    adapter_dim: int
    adapter_scale: float
    template: str

class MmaRun(RunSettings, MmaSettings, total=False): ...

class MmrlSettings(MethodSettings, total=False):
    n_rep_tokens: int
    rep_dim: int
    rep_start: int | None
    rep_end: int | None
    alpha: float
    scale: float | None
    template: str | None

class MmrlRun(RunSettings, MmrlSettings, total=False): ...

class MmrlppSettings(MethodSettings, total=False):
    n_rep_tokens: int
    rep_dim: int
    rep_start: int | None
    rep_end: int | None
    alpha: float
    scale: float | None
    template: str | None
    residual_rank: int
    projection_rank: int
    beta: float

class MmrlppRun(RunSettings, MmrlppSettings, total=False): ...

class MocoopSettings(MethodSettings, total=False):
    groups: dict[str, list[str]] | None
    active: int
    image_chunk: int | None
    tune_vit_ln: bool
    new_class_names_in_text_loss: bool

class MocoopRun(RunSettings, MocoopSettings, total=False): ...

class MvlptSettings(MethodSettings, total=False):
    attributes: list[str]
    n_att: int | None
    published_slicing: bool
    variant: Literal['mcoop', 'mvpt', 'upt']
    n_ctx: int
    class_token_position: Literal['end', 'middle', 'front']
    coupling_width: int
    mixing: bool

class MvlptRun(RunSettings, MvlptSettings, total=False): ...

class PandaSettings(MethodSettings, total=False):
    attributes: list[str]
    n_att: int | None
    published_slicing: bool
    n_ctx: int | None
    ctx_init: str | None
    class_token_position: Literal['end', 'middle', 'front']
    class_specific: bool

class PandaRun(RunSettings, PandaSettings, total=False): ...

class PoufSettings(MethodSettings, total=False):
    attributes: list[str]
    n_att: int | None
    published_slicing: bool
    n_ctx: int | None
    ctx_init: str | None
    class_token_position: Literal['end', 'middle', 'front']
    class_specific: bool
    scale_lr: float

class PoufRun(RunSettings, PoufSettings, total=False): ...

class PreSettings(MethodSettings, total=False):
    attributes: list[str]
    n_att: int | None
    published_slicing: bool
    n_ctx: int | None
    ctx_init: str | None
    class_token_position: Literal['end', 'middle', 'front']
    class_specific: bool
    encoder: Literal['lstm', 'mlp']
    shared: bool

class PreRun(RunSettings, PreSettings, total=False): ...

class ProdaSettings(MethodSettings, total=False):
    attributes: list[str]
    n_att: int | None
    published_slicing: bool
    n_prompts: int
    n_ctx: int
    prompts_per_step: int

class ProdaRun(RunSettings, ProdaSettings, total=False): ...

class ProgradSettings(MethodSettings, total=False):
    attributes: list[str]
    n_att: int | None
    published_slicing: bool
    n_ctx: int | None
    ctx_init: str | None
    class_token_position: Literal['end', 'middle', 'front']
    class_specific: bool

class ProgradRun(RunSettings, ProgradSettings, total=False): ...

class PromptkdSettings(MethodSettings, total=False):
    n_ctx: int
    depth: int

class PromptkdRun(RunSettings, PromptkdSettings, total=False): ...

class PromptsrcSettings(MethodSettings, total=False):
    attributes: list[str]
    n_att: int | None
    published_slicing: bool
    n_ctx: int
    ctx_init: str | None
    depth: int
    vision_n_ctx: int
    vision_depth: int

class PromptsrcRun(RunSettings, PromptsrcSettings, total=False): ...

class PvpSettings(MethodSettings, total=False):
    n_ctx: int
    depth: int
    place: Literal['pre_ln', 'post_ln']
    template: str

class PvpRun(RunSettings, PvpSettings, total=False): ...

class RestoreSettings(MethodSettings, total=False):
    attributes: list[str]
    n_att: int | None
    published_slicing: bool
    n_ctx: int
    ctx_init: str | None
    depth: int
    text_ratio: float
    image_ratio: float
    grow_ratios: bool

class RestoreRun(RunSettings, RestoreSettings, total=False): ...

class SpgSettings(MethodSettings, total=False):
    n_ctx: int | None
    ctx_init: str | None
    label_epochs: int | None
    label_lr: float
    noise: Literal['fixed', 'drawn', 'averaged']
    draws: int
    test_draws: int
    noise_width: int
    generator_width: int
    discriminator_width: int
    clipping: dict[str, float]
    image_chunk: int | None

class SpgRun(RunSettings, SpgSettings, total=False): ...

class TaskresSettings(MethodSettings, total=False):
    text: StrPath | None
    alpha: float

class TaskresRun(RunSettings, TaskresSettings, total=False): ...

class TcpSettings(MethodSettings, total=False):
    attributes: list[str]
    n_att: int | None
    published_slicing: bool
    n_ctx: int
    prompt_template: str
    teacher_template: str | None
    class_layer: int | None
    class_weight: float
    meta_width: int | None

class TcpRun(RunSettings, TcpSettings, total=False): ...

class TdaSettings(MethodSettings, total=False):
    template: list[str] | None
    text: StrPath | None
    alpha: float
    beta: float
    positive_shots: int
    negative_alpha: float
    negative_beta: float
    negative_shots: int
    unsure: list[float]
    possible: list[float]
    n_views: int
    fraction: float
    augmix: bool

class TdaRun(RunSettings, TdaSettings, total=False): ...

class TfupSettings(MethodSettings, total=False):
    text: StrPath | None
    labeler: str
    alpha: float
    beta: float
    template: list[str] | None

class TfupRun(RunSettings, TfupSettings, total=False): ...

class TfupTSettings(MethodSettings, total=False):
    text: StrPath | None
    ratio: float
    reduction: int
    text_ratio: float
    labeler: str
    first_labeler: str
    first_epochs: int
    alpha: float
    beta: float
    threshold: float
    marginal_weight: float
    template: list[str] | None

class TfupTRun(RunSettings, TfupTSettings, total=False): ...

class TipAdapterSettings(MethodSettings, total=False):
    text: StrPath | None
    alpha: float
    beta: float
    fit_views: int
    grid: dict[str, Any]

class TipAdapterRun(RunSettings, TipAdapterSettings, total=False): ...

class TipAdapterFSettings(MethodSettings, total=False):
    text: StrPath | None
    alpha: float
    beta: float
    fit_views: int
    grid: dict[str, Any]

class TipAdapterFRun(RunSettings, TipAdapterFSettings, total=False): ...

class TptSettings(MethodSettings, total=False):
    attributes: list[str]
    n_att: int | None
    published_slicing: bool
    n_ctx: int | None
    ctx_init: str | None
    class_token_position: Literal['end', 'middle', 'front']
    class_specific: bool
    n_views: int
    fraction: float
    steps_per_image: int
    tuning_lr: float
    tuning_decay: float
    augmix: bool
    conditional: bool

class TptRun(RunSettings, TptSettings, total=False): ...

class TransclipSettings(MethodSettings, total=False):
    template: list[str] | None
    text: StrPath | None
    support: bool
    text_weight: float
    gamma: float
    neighbours: int
    temperature: float
    confident: int
    rounds: int
    sweeps: int
    grid: dict[str, Any]
    as_published: bool

class TransclipRun(RunSettings, TransclipSettings, total=False): ...

class UplSettings(MethodSettings, total=False):
    attributes: list[str]
    n_att: int | None
    published_slicing: bool
    n_ctx: int | None
    ctx_init: str | None
    class_token_position: Literal['end', 'middle', 'front']
    class_specific: bool
    labeler: str
    template: list[str] | None
    members: int
    labelled_by: list[str]

class UplRun(RunSettings, UplSettings, total=False): ...

class VptSettings(MethodSettings, total=False):
    n_ctx: int
    depth: int
    place: Literal['pre_ln', 'post_ln']
    template: str

class VptRun(RunSettings, VptSettings, total=False): ...

class ZeroShotSettings(MethodSettings, total=False):
    template: list[str] | None

class ZeroShotRun(RunSettings, ZeroShotSettings, total=False): ...

class ZlapSettings(MethodSettings, total=False):
    template: list[str] | None
    text: StrPath | None
    mode: Literal['transductive', 'inductive', 'sparse']
    k: int
    gamma: float
    alpha: float
    scaled: bool
    tolerance: float
    iterations: int

class ZlapRun(RunSettings, ZlapSettings, total=False): ...

class ZsLpSettings(MethodSettings, total=False):
    text: StrPath | None
    variant: Literal['zs_lp', 'cones']

class ZsLpRun(RunSettings, ZsLpSettings, total=False): ...

class SettingsDoNotFit:
    """Nothing: the call raises, since a setting is not the method's or is of another type.

    A dictionary that is handed in with ``**`` may be right all the same: annotate it as one of these classes, or as
    ``dict[str, Any]``.
    """

@overload
def create_learner(method: Literal['clap'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[ClapSettings]) -> CLAP:
    """A linear probe that stays close to the zero-shot classifier on classes where that is right."""

@overload
def create_learner(method: Literal['clip_adapter'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[ClipAdapterSettings]) -> CLIPAdapter:
    """A bottleneck adapter on the image feature, mixed into it."""

@overload
def create_learner(method: Literal['clip_lora'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[ClipLoraSettings]) -> CLIPLoRA:
    """Low-rank updates of the attention maps in both towers."""

@overload
def create_learner(method: Literal['cocoop'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[CocoopSettings]) -> CoCoOp:
    """CoOp with a context conditioned on the image."""

@overload
def create_learner(method: Literal['coop'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[CoopSettings]) -> CoOp:
    """Context optimization: learnt vectors in place of the words around the class name."""

@overload
def create_learner(method: Literal['coprompt'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[CopromptSettings]) -> CoPrompt:
    """Coupled deep prompts and adapters, kept consistent with the frozen model on other inputs."""

@overload
def create_learner(method: Literal['cross_modal_lp'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[CrossModalLpSettings]) -> CrossModalLP:
    """A linear probe trained on image and text features alike."""

@overload
def create_learner(method: Literal['ctp_tft'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[CtpTftSettings]) -> CTPTFT:
    """Contexts for each image and class, from the patches that show the class, and text-guided image features."""

@overload
def create_learner(method: Literal['cupl'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[CuplSettings]) -> CuPL:
    """Zero-shot with sentences that describe each class."""

@overload
def create_learner(method: Literal['difftpt'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[DifftptSettings]) -> DiffTPT:
    """TPT with additional, generated views."""

@overload
def create_learner(method: Literal['fpl'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[FplSettings]) -> FPL:
    """Few pseudo-labels: given by zero-shot CLIP, for a single training."""

@overload
def create_learner(method: Literal['gda'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[GdaSettings]) -> GDA:
    """Gaussian discriminant analysis on image features, added to zero-shot CLIP."""

@overload
def create_learner(method: Literal['grip'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[GripSettings]) -> GRIP:
    """Grow and refine iteratively pseudo-labels: more in each round, given by the previous round's prompt."""

@overload
def create_learner(method: Literal['ifpl'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[IfplSettings]) -> IFPL:
    """Iterative few pseudo-labels: equally many in each round, given by the previous round's prompt."""

@overload
def create_learner(method: Literal['ivlp'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[IvlpSettings]) -> IVLP:
    """Deep prompts in both towers, learnt independently."""

@overload
def create_learner(method: Literal['kgcoop'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[KgcoopSettings]) -> KgCoOp:
    """CoOp kept close to the hand-written prompts."""

@overload
def create_learner(method: Literal['linear_probe'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[LinearProbeSettings]) -> LinearProbe:
    """Logistic regression on image features."""

@overload
def create_learner(method: Literal['lp_plus_plus'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[LpPlusPlusSettings]) -> LPPlusPlus:
    """A linear probe on image features, plus the text classifier with a learnt weight per class."""

@overload
def create_learner(method: Literal['maple'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[MapleSettings]) -> MaPLe:
    """Deep text prompts, and visual prompts coupled to them by linear maps."""

@overload
def create_learner(method: Literal['mask_prompt'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[MaskPromptSettings]) -> MaskPrompt:
    """Learnt tokens in place of the patches outside an image's region."""

@overload
def create_learner(method: Literal['mma'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[MmaSettings]) -> MMA:
    """Adapters beside the upper blocks of both towers, which share their middle layer."""

@overload
def create_learner(method: Literal['mmrl'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[MmrlSettings]) -> MMRL:
    """Representation tokens in the upper blocks of both towers, which give a second image feature."""

@overload
def create_learner(method: Literal['mmrlpp'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[MmrlppSettings]) -> MMRLPP:
    """MMRL with one map per tower, low-rank residuals, and tokens blended with those already present."""

@overload
def create_learner(method: Literal['mocoop'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[MocoopSettings]) -> MoCoOp:
    """Contexts initialized from groups of templates, and a router that mixes two of them for each image."""

@overload
def create_learner(method: Literal['mvlpt'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[MvlptSettings]) -> MVLPT:
    """Prompts trained on several tasks at once, to initialize other tasks with."""

@overload
def create_learner(method: Literal['panda'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[PandaSettings]) -> PANDA:
    """CoOp taught by a prompt that was transferred from a source task."""

@overload
def create_learner(method: Literal['pouf'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[PoufSettings]) -> POUF:
    """A context and a logit scale that align unlabelled images with the classes."""

@overload
def create_learner(method: Literal['pre'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[PreSettings]) -> PRE:
    """CoOp with a context that is reparameterized by an encoder in training."""

@overload
def create_learner(method: Literal['proda'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[ProdaSettings]) -> ProDA:
    """A distribution over prompts."""

@overload
def create_learner(method: Literal['prograd'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[ProgradSettings]) -> ProGrad:
    """CoOp without the gradient components that conflict with the zero-shot model."""

@overload
def create_learner(method: Literal['promptkd'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[PromptkdSettings]) -> PromptKD:
    """A student that is distilled from a larger learner on unlabelled images."""

@overload
def create_learner(method: Literal['promptsrc'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[PromptsrcSettings]) -> PromptSRC:
    """Independent deep prompts, kept close to the frozen model in features and logits, and averaged over epochs."""

@overload
def create_learner(method: Literal['pvp'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[PvpSettings]) -> PVP:
    """Visual prompt tuning initialized with tokens from a source task."""

@overload
def create_learner(method: Literal['restore'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[RestoreSettings]) -> RESTORE:
    """Coupled deep prompts whose shift is kept equal in both modalities."""

@overload
def create_learner(method: Literal['spg'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[SpgSettings]) -> SPG:
    """Contexts made for each image by a generator, which is trained on contexts learnt in several domains."""

@overload
def create_learner(method: Literal['taskres'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[TaskresSettings]) -> TaskRes:
    """A learnt residual on each class feature."""

@overload
def create_learner(method: Literal['tcp'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[TcpSettings]) -> TCP:
    """A context that is replaced, midway, by tokens made from each class's frozen text feature."""

@overload
def create_learner(method: Literal['tda'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[TdaSettings]) -> TDA:
    """Zero-shot CLIP plus two caches of the test images seen so far."""

@overload
def create_learner(method: Literal['tfup'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[TfupSettings]) -> TFUP:
    """A cache of unlabelled images, the most central per class, added to zero-shot CLIP."""

@overload
def create_learner(method: Literal['tfup_t'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[TfupTSettings]) -> TFUPT:
    """Class residuals and a bottleneck, trained on pseudo-labels from TFUP's cache."""

@overload
def create_learner(method: Literal['tip_adapter'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[TipAdapterSettings]) -> TipAdapter:
    """A cache of the labelled images, added to zero-shot CLIP."""

@overload
def create_learner(method: Literal['tip_adapter_f'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[TipAdapterFSettings]) -> TipAdapterF:
    """Tip-Adapter's cache of the labelled images, with trained keys."""

@overload
def create_learner(method: Literal['tpt'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[TptSettings]) -> TPT:
    """A context tuned on each test image separately."""

@overload
def create_learner(method: Literal['transclip'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[TransclipSettings]) -> TransCLIP:
    """Assigns all test images to classes jointly, from text, Gaussians and neighbouring images."""

@overload
def create_learner(method: Literal['upl'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[UplSettings]) -> UPL:
    """CoOp on pseudo-labels of the images on which zero-shot CLIP is most confident."""

@overload
def create_learner(method: Literal['vpt'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[VptSettings]) -> VPT:
    """Visual prompt tuning: learnt tokens next to the image patches."""

@overload
def create_learner(method: Literal['zero_shot'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[ZeroShotSettings]) -> ZeroShot:
    """CLIP's zero-shot classifier, with one template or an ensemble of them."""

@overload
def create_learner(method: Literal['zlap'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[ZlapSettings]) -> ZLaP:
    """Label propagation from class texts over a graph of images."""

@overload
def create_learner(method: Literal['zs_lp'], clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Unpack[ZsLpSettings]) -> ZSLP:
    """A linear probe initialized with the zero-shot classifier."""

@overload
def create_learner(method: Known, clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Any) -> SettingsDoNotFit: ...

@overload
def create_learner(method: str, clip: FrozenCLIP, class_names: Sequence[str], *, templates: Sequence[str] = ..., seed: int = ..., shared_names: bool = ..., **settings: Any) -> PromptLearner: ...

@overload
def run(*, method: Literal['clap'], clip: FrozenCLIP | None = ..., **settings: Unpack[ClapRun]) -> Result:
    """A linear probe that stays close to the zero-shot classifier on classes where that is right."""

@overload
def run(*, method: Literal['clip_adapter'], clip: FrozenCLIP | None = ..., **settings: Unpack[ClipAdapterRun]) -> Result:
    """A bottleneck adapter on the image feature, mixed into it."""

@overload
def run(*, method: Literal['clip_lora'], clip: FrozenCLIP | None = ..., **settings: Unpack[ClipLoraRun]) -> Result:
    """Low-rank updates of the attention maps in both towers."""

@overload
def run(*, method: Literal['cocoop'], clip: FrozenCLIP | None = ..., **settings: Unpack[CocoopRun]) -> Result:
    """CoOp with a context conditioned on the image."""

@overload
def run(*, method: Literal['coop'] = ..., clip: FrozenCLIP | None = ..., **settings: Unpack[CoopRun]) -> Result:
    """Context optimization: learnt vectors in place of the words around the class name."""

@overload
def run(*, method: Literal['coprompt'], clip: FrozenCLIP | None = ..., **settings: Unpack[CopromptRun]) -> Result:
    """Coupled deep prompts and adapters, kept consistent with the frozen model on other inputs."""

@overload
def run(*, method: Literal['cross_modal_lp'], clip: FrozenCLIP | None = ..., **settings: Unpack[CrossModalLpRun]) -> Result:
    """A linear probe trained on image and text features alike."""

@overload
def run(*, method: Literal['ctp_tft'], clip: FrozenCLIP | None = ..., **settings: Unpack[CtpTftRun]) -> Result:
    """Contexts for each image and class, from the patches that show the class, and text-guided image features."""

@overload
def run(*, method: Literal['cupl'], clip: FrozenCLIP | None = ..., **settings: Unpack[CuplRun]) -> Result:
    """Zero-shot with sentences that describe each class."""

@overload
def run(*, method: Literal['difftpt'], clip: FrozenCLIP | None = ..., **settings: Unpack[DifftptRun]) -> Result:
    """TPT with additional, generated views."""

@overload
def run(*, method: Literal['fpl'], clip: FrozenCLIP | None = ..., **settings: Unpack[FplRun]) -> Result:
    """Few pseudo-labels: given by zero-shot CLIP, for a single training."""

@overload
def run(*, method: Literal['gda'], clip: FrozenCLIP | None = ..., **settings: Unpack[GdaRun]) -> Result:
    """Gaussian discriminant analysis on image features, added to zero-shot CLIP."""

@overload
def run(*, method: Literal['grip'], clip: FrozenCLIP | None = ..., **settings: Unpack[GripRun]) -> Result:
    """Grow and refine iteratively pseudo-labels: more in each round, given by the previous round's prompt."""

@overload
def run(*, method: Literal['ifpl'], clip: FrozenCLIP | None = ..., **settings: Unpack[IfplRun]) -> Result:
    """Iterative few pseudo-labels: equally many in each round, given by the previous round's prompt."""

@overload
def run(*, method: Literal['ivlp'], clip: FrozenCLIP | None = ..., **settings: Unpack[IvlpRun]) -> Result:
    """Deep prompts in both towers, learnt independently."""

@overload
def run(*, method: Literal['kgcoop'], clip: FrozenCLIP | None = ..., **settings: Unpack[KgcoopRun]) -> Result:
    """CoOp kept close to the hand-written prompts."""

@overload
def run(*, method: Literal['linear_probe'], clip: FrozenCLIP | None = ..., **settings: Unpack[LinearProbeRun]) -> Result:
    """Logistic regression on image features."""

@overload
def run(*, method: Literal['lp_plus_plus'], clip: FrozenCLIP | None = ..., **settings: Unpack[LpPlusPlusRun]) -> Result:
    """A linear probe on image features, plus the text classifier with a learnt weight per class."""

@overload
def run(*, method: Literal['maple'], clip: FrozenCLIP | None = ..., **settings: Unpack[MapleRun]) -> Result:
    """Deep text prompts, and visual prompts coupled to them by linear maps."""

@overload
def run(*, method: Literal['mask_prompt'], clip: FrozenCLIP | None = ..., **settings: Unpack[MaskPromptRun]) -> Result:
    """Learnt tokens in place of the patches outside an image's region."""

@overload
def run(*, method: Literal['mma'], clip: FrozenCLIP | None = ..., **settings: Unpack[MmaRun]) -> Result:
    """Adapters beside the upper blocks of both towers, which share their middle layer."""

@overload
def run(*, method: Literal['mmrl'], clip: FrozenCLIP | None = ..., **settings: Unpack[MmrlRun]) -> Result:
    """Representation tokens in the upper blocks of both towers, which give a second image feature."""

@overload
def run(*, method: Literal['mmrlpp'], clip: FrozenCLIP | None = ..., **settings: Unpack[MmrlppRun]) -> Result:
    """MMRL with one map per tower, low-rank residuals, and tokens blended with those already present."""

@overload
def run(*, method: Literal['mocoop'], clip: FrozenCLIP | None = ..., **settings: Unpack[MocoopRun]) -> Result:
    """Contexts initialized from groups of templates, and a router that mixes two of them for each image."""

@overload
def run(*, method: Literal['mvlpt'], clip: FrozenCLIP | None = ..., **settings: Unpack[MvlptRun]) -> Result:
    """Prompts trained on several tasks at once, to initialize other tasks with."""

@overload
def run(*, method: Literal['panda'], clip: FrozenCLIP | None = ..., **settings: Unpack[PandaRun]) -> Result:
    """CoOp taught by a prompt that was transferred from a source task."""

@overload
def run(*, method: Literal['pouf'], clip: FrozenCLIP | None = ..., **settings: Unpack[PoufRun]) -> Result:
    """A context and a logit scale that align unlabelled images with the classes."""

@overload
def run(*, method: Literal['pre'], clip: FrozenCLIP | None = ..., **settings: Unpack[PreRun]) -> Result:
    """CoOp with a context that is reparameterized by an encoder in training."""

@overload
def run(*, method: Literal['proda'], clip: FrozenCLIP | None = ..., **settings: Unpack[ProdaRun]) -> Result:
    """A distribution over prompts."""

@overload
def run(*, method: Literal['prograd'], clip: FrozenCLIP | None = ..., **settings: Unpack[ProgradRun]) -> Result:
    """CoOp without the gradient components that conflict with the zero-shot model."""

@overload
def run(*, method: Literal['promptkd'], clip: FrozenCLIP | None = ..., **settings: Unpack[PromptkdRun]) -> Result:
    """A student that is distilled from a larger learner on unlabelled images."""

@overload
def run(*, method: Literal['promptsrc'], clip: FrozenCLIP | None = ..., **settings: Unpack[PromptsrcRun]) -> Result:
    """Independent deep prompts, kept close to the frozen model in features and logits, and averaged over epochs."""

@overload
def run(*, method: Literal['pvp'], clip: FrozenCLIP | None = ..., **settings: Unpack[PvpRun]) -> Result:
    """Visual prompt tuning initialized with tokens from a source task."""

@overload
def run(*, method: Literal['restore'], clip: FrozenCLIP | None = ..., **settings: Unpack[RestoreRun]) -> Result:
    """Coupled deep prompts whose shift is kept equal in both modalities."""

@overload
def run(*, method: Literal['spg'], clip: FrozenCLIP | None = ..., **settings: Unpack[SpgRun]) -> Result:
    """Contexts made for each image by a generator, which is trained on contexts learnt in several domains."""

@overload
def run(*, method: Literal['taskres'], clip: FrozenCLIP | None = ..., **settings: Unpack[TaskresRun]) -> Result:
    """A learnt residual on each class feature."""

@overload
def run(*, method: Literal['tcp'], clip: FrozenCLIP | None = ..., **settings: Unpack[TcpRun]) -> Result:
    """A context that is replaced, midway, by tokens made from each class's frozen text feature."""

@overload
def run(*, method: Literal['tda'], clip: FrozenCLIP | None = ..., **settings: Unpack[TdaRun]) -> Result:
    """Zero-shot CLIP plus two caches of the test images seen so far."""

@overload
def run(*, method: Literal['tfup'], clip: FrozenCLIP | None = ..., **settings: Unpack[TfupRun]) -> Result:
    """A cache of unlabelled images, the most central per class, added to zero-shot CLIP."""

@overload
def run(*, method: Literal['tfup_t'], clip: FrozenCLIP | None = ..., **settings: Unpack[TfupTRun]) -> Result:
    """Class residuals and a bottleneck, trained on pseudo-labels from TFUP's cache."""

@overload
def run(*, method: Literal['tip_adapter'], clip: FrozenCLIP | None = ..., **settings: Unpack[TipAdapterRun]) -> Result:
    """A cache of the labelled images, added to zero-shot CLIP."""

@overload
def run(*, method: Literal['tip_adapter_f'], clip: FrozenCLIP | None = ..., **settings: Unpack[TipAdapterFRun]) -> Result:
    """Tip-Adapter's cache of the labelled images, with trained keys."""

@overload
def run(*, method: Literal['tpt'], clip: FrozenCLIP | None = ..., **settings: Unpack[TptRun]) -> Result:
    """A context tuned on each test image separately."""

@overload
def run(*, method: Literal['transclip'], clip: FrozenCLIP | None = ..., **settings: Unpack[TransclipRun]) -> Result:
    """Assigns all test images to classes jointly, from text, Gaussians and neighbouring images."""

@overload
def run(*, method: Literal['upl'], clip: FrozenCLIP | None = ..., **settings: Unpack[UplRun]) -> Result:
    """CoOp on pseudo-labels of the images on which zero-shot CLIP is most confident."""

@overload
def run(*, method: Literal['vpt'], clip: FrozenCLIP | None = ..., **settings: Unpack[VptRun]) -> Result:
    """Visual prompt tuning: learnt tokens next to the image patches."""

@overload
def run(*, method: Literal['zero_shot'], clip: FrozenCLIP | None = ..., **settings: Unpack[ZeroShotRun]) -> Result:
    """CLIP's zero-shot classifier, with one template or an ensemble of them."""

@overload
def run(*, method: Literal['zlap'], clip: FrozenCLIP | None = ..., **settings: Unpack[ZlapRun]) -> Result:
    """Label propagation from class texts over a graph of images."""

@overload
def run(*, method: Literal['zs_lp'], clip: FrozenCLIP | None = ..., **settings: Unpack[ZsLpRun]) -> Result:
    """A linear probe initialized with the zero-shot classifier."""

@overload
def run(*, method: Known, clip: FrozenCLIP | None = ..., **settings: Any) -> SettingsDoNotFit: ...

@overload
def run(*, method: str, clip: FrozenCLIP | None = ..., **settings: Any) -> Result: ...

@overload
def run(*, config: StrPath, clip: FrozenCLIP | None = ..., **settings: Any) -> Result: ...
