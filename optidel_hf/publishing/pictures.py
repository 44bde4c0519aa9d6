"""A card's pictures, as PNG: a contact sheet of curated images, and the scores of the chosen over those of all."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from PIL import Image

from optidel_hf.drawing import PAPER, encode_figure, hide_frame, in_style, new_figure
from optidel_hf.embeddings import spaced
from optidel_hf.images import encode_png, open_image
from optidel_hf.publishing.figures import binned_shares
from optidel_hf.publishing.measures import chosen_rows
from optidel_hf.publishing.records import SCORES, CurationRecord, list_rows, read_rows


ALL, CHOSEN = "#c3c8d0", "#c8401c"
SHEET_COLUMNS, SHEET_IMAGES, SHEET_SIDE, GAP = 6, 18, 160, 8
"""A contact sheet: images across, images at most, pixels of an image's side, pixels between two."""
WIDTH, HEIGHT = 3.6, 2.0
"""A histogram's panel in inches."""


def contact_sheet(record: CurationRecord) -> bytes:
    """Curated images as PNG, evenly spaced over all of them, in rows of six."""
    folder = record.folder / "curated"
    everywhere = list_rows(folder)
    shown = [everywhere[number] for number in spaced(len(everywhere), SHEET_IMAGES)]
    images = [open_image(row["image"]) for row in read_rows(folder, shown, ["image"])]
    rows, step = -(-len(images) // SHEET_COLUMNS), SHEET_SIDE + GAP
    sheet = Image.new("RGB", (min(len(images), SHEET_COLUMNS) * step + GAP, rows * step + GAP), PAPER)
    for number, image in enumerate(images):
        place = (GAP + number % SHEET_COLUMNS * step, GAP + number // SHEET_COLUMNS * step)
        sheet.paste(image.resize((SHEET_SIDE, SHEET_SIDE), Image.Resampling.LANCZOS), place)
    return encode_png(sheet)


@in_style
def score_histograms(record: CurationRecord) -> bytes:
    """Every score's distribution as PNG, two panels a row: all key patches filled, the chosen as a line."""
    names = [name for name in SCORES if name in record.columns and np.isfinite(record.columns[name]).any()]
    rows, chosen = -(-len(names) // 2), chosen_rows(record)
    figure = new_figure(2 * WIDTH, rows * HEIGHT, "")
    panels = figure.subplots(rows, 2, squeeze=False).flat
    for axes, name in zip(panels, names):
        _draw_shares(axes, record.columns[name], record.columns[name][chosen])
        axes.set_title(f"{name}, {SCORES[name]}")
    for unused in panels[len(names) :]:
        unused.remove()
    return encode_figure(figure)


def _draw_shares(axes: Axes, everything: np.ndarray, chosen: np.ndarray) -> None:
    """Both distributions, each as shares of its own sum."""
    edges, shares = binned_shares(everything, chosen)
    axes.stairs(shares[0], edges, fill=True, color=ALL, label=f"all ({np.isfinite(everything).sum():,})")
    axes.stairs(shares[1], edges, color=CHOSEN, linewidth=1.2, label=f"chosen ({np.isfinite(chosen).sum():,})")
    hide_frame(axes, "left")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.legend()
