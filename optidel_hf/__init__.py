"""Curate 5 % of your images by SAM and V-information, pre-train a ViT on them, judge it by segmentation (OptiDEL)."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from optidel_hf.curation.contrastive_scoring import ContrastiveScorer, calibrate_contrastive
    from optidel_hf.curation.curated import MosaicConfig, curated_dataset
    from optidel_hf.curation.curation_config import CurationConfig
    from optidel_hf.curation.inputs import InputConfig
    from optidel_hf.curation.patch_config import PatchConfig
    from optidel_hf.curation.patches import SamPatchExtractor
    from optidel_hf.curation.pilot import PilotConfig
    from optidel_hf.curation.pipeline import curate
    from optidel_hf.curation.rebuild import RebuildConfig, rebuild
    from optidel_hf.curation.reference import ReferenceConfig, calibrate_checkpoint, fit_scorer
    from optidel_hf.curation.scoring import ScoreConfig, VInformationScorer
    from optidel_hf.curation.selection import Selection, select
    from optidel_hf.curation.selection_config import SelectionConfig
    from optidel_hf.errors import UserError
    from optidel_hf.evaluation.segmentation import EvaluateConfig, evaluate_segmentation
    from optidel_hf.pretraining.config import PretrainConfig
    from optidel_hf.pretraining.trainer import Pretrainer
    from optidel_hf.publishing.hub import push_dataset, push_metric, push_model
    from optidel_hf.publishing.report import build_report

_MODULES = {
    "ContrastiveScorer": "curation.contrastive_scoring",
    "CurationConfig": "curation.curation_config",
    "EvaluateConfig": "evaluation.segmentation",
    "InputConfig": "curation.inputs",
    "MosaicConfig": "curation.curated",
    "PatchConfig": "curation.patch_config",
    "PilotConfig": "curation.pilot",
    "PretrainConfig": "pretraining.config",
    "Pretrainer": "pretraining.trainer",
    "RebuildConfig": "curation.rebuild",
    "ReferenceConfig": "curation.reference",
    "SamPatchExtractor": "curation.patches",
    "ScoreConfig": "curation.scoring",
    "Selection": "curation.selection",
    "SelectionConfig": "curation.selection_config",
    "UserError": "errors",
    "VInformationScorer": "curation.scoring",
    "build_report": "publishing.report",
    "calibrate_checkpoint": "curation.reference",
    "calibrate_contrastive": "curation.contrastive_scoring",
    "curate": "curation.pipeline",
    "curated_dataset": "curation.curated",
    "evaluate_segmentation": "evaluation.segmentation",
    "fit_scorer": "curation.reference",
    "push_dataset": "publishing.hub",
    "push_metric": "publishing.hub",
    "push_model": "publishing.hub",
    "rebuild": "curation.rebuild",
    "select": "curation.selection",
}
__all__ = sorted(_MODULES)


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import optidel_hf` alone loads neither torch nor transformers."""
    if name == "__version__":
        return version("optidel_hf")
    if name not in _MODULES:
        raise AttributeError(f"module 'optidel_hf' has no attribute '{name}'")
    return getattr(import_module(f"optidel_hf.{_MODULES[name]}"), name)
