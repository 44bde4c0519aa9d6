"""What a model is trained on: each objective is one file, and a line here."""

from __future__ import annotations

from optidel_hf.pretraining.objectives.mae import MaskedAutoencoding
from optidel_hf.pretraining.objectives.objective import Objective
from optidel_hf.pretraining.objectives.simclr import SimCLR


OBJECTIVES: dict[str, type[Objective]] = {"mae": MaskedAutoencoding, "simclr": SimCLR}
