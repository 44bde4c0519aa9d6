"""
Draw what a perceptron predicts about keeping hard or easy samples. Without arguments: the published study.

    python recipes/theory.py                                             # runs/theory/theory.png and theory.json
    python recipes/theory.py --probe_angle 20 --draws 400 --output_dir angle20
    python recipes/theory.py --copies 10 --output_dir redundant          # each point of the pool ten times
"""

from __future__ import annotations

import sys

from optidel_hf.cli import main


if __name__ == "__main__":
    sys.exit(main(["theory", *sys.argv[1:]]))
