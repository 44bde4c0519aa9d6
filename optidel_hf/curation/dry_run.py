"""What a curation will take, from the key patches of a few of its images: time, device-hours, disk."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset

from optidel_hf.curation.curated import to_arrow
from optidel_hf.curation.inputs import InputConfig, open_sources
from optidel_hf.curation.patch_config import PatchConfig
from optidel_hf.curation.patches import PATCH_FEATURES, SamPatchExtractor
from optidel_hf.devices import resolve_device
from optidel_hf.errors import UserError


BATCH = 32


@dataclass(frozen=True)
class DryRunConfig:
    """Whether to look ahead instead of curating."""

    dry_run: int | None = field(
        default=None, metadata={"help": "Cut key patches of N images, print what those of all take, write nothing."}
    )

    def __post_init__(self) -> None:
        if self.dry_run is not None and self.dry_run < 1:
            raise UserError(f"dry_run is {self.dry_run}: project from at least one image.")


@dataclass(frozen=True)
class Projection:
    """
    What was measured on some images, and what it means for all.

    Args:
        images (`int`): in the whole set.
        sampled (`int`): on which was measured.
        patches (`int`), seconds (`float`), stored (`int`, bytes of parquet): for these.
        reasons (`Counter`): why some of them gave no patch.
        device (`str`): on which.
        processes (`int`, *optional*, defaults to 1): that will share the work, a device each.
    """

    images: int
    sampled: int
    patches: int
    seconds: float
    stored: int
    reasons: Counter[str]
    device: str
    processes: int = 1

    def whole(self, measured: float) -> float:
        """A sum over the sampled images, for all of them."""
        return measured * self.images / self.sampled

    def __str__(self) -> str:
        device_seconds = self.whole(self.seconds)
        lines = [
            f"measured          {self.sampled} of {self.images:,} images, evenly spaced, on {self.device}",
            f"patches an image  {self.patches / self.sampled:.2f}",
            f"images/s          {self.sampled / self.seconds:.2f}",
            *(f"rejected          {count} of {self.sampled}: {why}" for why, count in self.reasons.most_common(3)),
            f"all key patches   {self.whole(self.patches):,.0f}",
            f"time              {_duration(device_seconds / self.processes)} on {self.processes} x {self.device}",
            f"cost              {device_seconds / 3600:.2f} device-hours",
            f"disk              {self.whole(self.stored) / 1e6:,.1f} MB in patches/",
            "Reading the inputs, fitting the reference models, scores and mosaics come on top. Nothing was written.",
        ]
        return "\n".join(lines)


def project(inputs: InputConfig, patches: PatchConfig, count: int, device: str, processes: int = 1) -> Projection:
    """
    Cut the key patches of `count` images, evenly spaced over the set, in memory.

    Args:
        inputs ([`InputConfig`]).
        patches ([`PatchConfig`]).
        count (`int`): images, at most as many as there are.
        device (`str`).
        processes (`int`, *optional*, defaults to 1): that will share the work.
    """
    sources = open_sources(inputs)
    count = min(count, len(sources))
    sample = sources.select([i * len(sources) // count for i in range(count)])
    extractor = SamPatchExtractor(patches, device)
    extractor(sample[:1])  # loads and warms the model, which counts for little in a whole set
    began = time.perf_counter()
    parts = [to_arrow(_cut(extractor, sample[start : start + BATCH])) for start in range(0, count, BATCH)]
    seconds = time.perf_counter() - began
    rows = pa.concat_tables(parts)
    reasons = Counter(why for why in rows["rejected"].to_pylist() if why is not None)
    cut = rows.filter(pc.is_null(rows["rejected"])).drop_columns("rejected")
    kind = resolve_device(device).type
    return Projection(len(sources), count, len(cut), seconds, _stored(cut), reasons, kind, processes)


def _cut(extractor: SamPatchExtractor, batch: dict[str, list]) -> Dataset:
    return Dataset.from_dict(extractor(batch), features=PATCH_FEATURES)


def _stored(table: pa.Table) -> int:
    """Bytes of a table as shards are written."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().size


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"
