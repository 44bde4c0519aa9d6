"""The selection stage's configuration: what is kept, of what, and by which rule."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from optidel_hf.curation.mosaic import grid_side
from optidel_hf.curation.scoring import LEARNABILITY, SCORES
from optidel_hf.curation.selection import DISTANCES, STRATEGIES, Options, mosaics_in_budget
from optidel_hf.errors import UserError


AUTO = "auto"


@dataclass(frozen=True)
class SelectionConfig:
    """What is kept."""

    budget: float = field(default=0.05, metadata={"help": "Fraction of usable source images, as mosaics."})
    strategy: str = field(
        default="optidel", metadata={"help": f"One of: {', '.join(STRATEGIES)}; or auto, by a pilot on the pool."}
    )
    score: str | None = field(default=None, metadata={"help": "Column to rank by (else the strategy's own)."})
    tiles_per_mosaic: int = field(default=4, metadata={"help": "M: patches in a curated image; 1 for none tiled."})
    trim: float | None = field(
        default=None, metadata={"help": "Share of the hardest that optidel and ccs cut (else estimated)."}
    )
    max_upscale: float = field(default=2.0, metadata={"help": "Patches enlarged by more are left out, if few."})
    keep: str = field(
        default="far",
        metadata={"help": "far from or near their cluster's centre: what prototypes, semdedup and meddel keep."},
    )
    max_distance: float = field(default=0.9, metadata={"help": "Distance to that centre that meddel allows."})
    distance: str = field(
        default="cosine", metadata={"help": f"Which distance to that centre, one of: {', '.join(DISTANCES)}."}
    )
    diversity: str = field(
        default="coverage", metadata={"help": "What optidel maximises beside hardness: coverage or logdet (ablation)."}
    )
    hardness_weight: float = field(
        default=1.0, metadata={"help": "How much hardness counts in optidel: 1 as much as diversity, 0 not at all."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the selection."})

    def __post_init__(self) -> None:
        if self.strategy not in (*STRATEGIES, AUTO):
            raise UserError(f"strategy is '{self.strategy}': choose one of {', '.join((*STRATEGIES, AUTO))}.")
        if self.score is not None and self.score not in (*SCORES, LEARNABILITY):
            raise UserError(f"score is '{self.score}': choose one of {', '.join((*SCORES, LEARNABILITY))}.")
        Options(**{name.name: getattr(self, name.name) for name in fields(Options)})
        if not self.max_upscale > 0:
            raise UserError(f"max_upscale is {self.max_upscale}: it is above 0; inf leaves none out.")
        grid_side(self.tiles_per_mosaic)
        mosaics_in_budget(self.budget, 10**9)

    @property
    def scored(self) -> bool:
        """Whether the strategy needs any column that scoring adds."""
        return self.strategy == AUTO or STRATEGIES[self.strategy].scored

    @property
    def ignored(self) -> list[str]:
        """Fields that were given and change nothing of what the strategy chooses."""
        if self.strategy == AUTO:
            return []
        strategy = STRATEGIES[self.strategy]
        read = {*strategy.options, *(["score"] if strategy.score else [])}
        asked = [option.name for option in fields(Options) if option.name != "seed"]
        return [
            name for name in ("score", *asked) if name not in read and getattr(self, name) != getattr(type(self), name)
        ]

    @property
    def embedding(self) -> bool:
        """Whether it reads embeddings."""
        return self.strategy == AUTO or STRATEGIES[self.strategy].embedding
