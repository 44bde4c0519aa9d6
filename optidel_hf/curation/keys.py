"""The columns that a patch has from its cut to its mosaic: what it is told by, and how it lies in its source."""

from __future__ import annotations

from datasets import Features, List, Value


KEY_FEATURES = Features(
    {
        "source": Value("string"),
        "group": Value("string"),
        "bbox": List(Value("float32"), length=4),
        "crop": List(Value("int32"), length=3),
        "upscale": Value("float32"),
        "area": Value("float32"),
    }
)
