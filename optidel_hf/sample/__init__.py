"""The embedded sample: colonoscopy-like frames with masks from a seed, so that everything runs with no network."""

from __future__ import annotations

from optidel_hf.sample.folder import write_sample
from optidel_hf.sample.frames import FrameConfig, generate_sequence


__all__ = ["FrameConfig", "generate_sequence", "write_sample"]
