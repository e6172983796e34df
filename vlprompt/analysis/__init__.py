"""Understand what was learnt: one function per question returns the data, another draws it.

| question | data | figure |
| --- | --- | --- |
| which words are the learnt vectors near? | ``nearest_words`` | ``plot_nearest_words`` |
| where do CLS and the learnt tokens look? | ``attention_maps`` | ``plot_attention``, ``plot_attention_heads`` |
| how far do prompts move the hidden states of both towers? | ``feature_shift`` | ``plot_feature_shift`` |
| where do images and class names go? | ``project_features`` | ``plot_projection`` |
| how much does the wording alone matter? | ``template_spread`` | ``plot_template_spread`` |
| which saved prompt could another task start from? | ``transferability`` | ``plot_transferability`` |
| which images are misclassified, and with what confidence? | ``Inspection`` | ``plot_mistakes`` |
| which labels look wrong, and which images occur twice? | ``inspect_data`` | the page of ``vlprompt inspect`` |

Figures are those of matplotlib, which is imported when one is drawn; ``figure.savefig("name.pdf")`` saves one.
An ``Inspection`` is made by ``PromptClassifier.report`` and by ``vlprompt.runs.inspect_run``; ``label_errors`` and
``near_duplicates`` take features that were computed before. ``sample_images`` returns a few test images of a dataset.
"""

from typing import TYPE_CHECKING

from vlprompt.base.wiring import lazy_exports

if TYPE_CHECKING:
    from vlprompt.analysis.attention import AttentionMaps, attention_maps, plot_attention, plot_attention_heads
    from vlprompt.analysis.data_findings import DataFindings, inspect_data
    from vlprompt.analysis.duplicates import NearDuplicates, near_duplicates
    from vlprompt.analysis.inspection import Inspection
    from vlprompt.analysis.mistakes import plot_mistakes
    from vlprompt.analysis.projection import FeatureProjection, plot_projection, project_features
    from vlprompt.analysis.samples import Samples, sample_images
    from vlprompt.analysis.shift import FeatureShift, feature_shift, plot_feature_shift
    from vlprompt.analysis.spread import TemplateSpread, plot_template_spread, template_spread
    from vlprompt.analysis.transfer import Transferability, plot_transferability, transferability
    from vlprompt.analysis.words import NearestWords, nearest_words, plot_nearest_words
    from vlprompt.analysis.wrong_labels import LabelErrors, label_errors

__all__ = [
    "AttentionMaps",
    "DataFindings",
    "FeatureProjection",
    "FeatureShift",
    "Inspection",
    "LabelErrors",
    "NearDuplicates",
    "NearestWords",
    "Samples",
    "TemplateSpread",
    "Transferability",
    "attention_maps",
    "feature_shift",
    "inspect_data",
    "label_errors",
    "near_duplicates",
    "nearest_words",
    "plot_attention",
    "plot_attention_heads",
    "plot_feature_shift",
    "plot_mistakes",
    "plot_nearest_words",
    "plot_projection",
    "plot_template_spread",
    "plot_transferability",
    "project_features",
    "sample_images",
    "template_spread",
    "transferability",
]

__getattr__, __dir__ = lazy_exports(__name__)
