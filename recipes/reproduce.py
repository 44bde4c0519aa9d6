"""
Does it help, and by how much: every arm, budget and seed, pre-trained and judged. Without arguments: on the sample.

    python recipes/reproduce.py --config recipes/configs/polypgen_kvasir.yaml --pool polypgen/images \
        --downstream kvasir-seg --output_dir out
    accelerate launch recipes/reproduce.py ...      cells are shared out among processes
"""

from __future__ import annotations

import sys
from pathlib import Path

from optidel_hf.cli import main


SAMPLE = Path(__file__).parent / "configs" / "sample.yaml"

if __name__ == "__main__":
    sys.exit(main(["reproduce", *(sys.argv[1:] or ["--config", str(SAMPLE)])]))
