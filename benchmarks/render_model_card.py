"""
Render MODEL_CARD.md from the demo's OptiDEL model, with the template that `recipes/pretrain.py` fills.

    python benchmarks/render_model_card.py
"""

from __future__ import annotations

import json
from pathlib import Path

from optidel_hf.publishing.cards import render_model_card
from optidel_hf.publishing.provenance import FILE, write_provenance


DEMO = Path("runs/demo")


def main() -> None:
    model = DEMO / "models" / "optidel-5"
    said = {"name": "the embedded sample's curated subset (generated frames, no medical data)", "command": "make demo"}
    write_provenance(model, json.loads((model / FILE).read_text(encoding="utf-8")) | said)
    card = render_model_card(
        model,
        DEMO / "evaluation" / "results.json",
        model_id=str(model),
        arm="optidel-5%",
        license="apache-2.0",
    )
    Path("MODEL_CARD.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
