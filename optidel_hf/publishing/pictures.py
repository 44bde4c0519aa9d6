"""A card's pictures, as PNG: a contact sheet of curated images, and the scores of the chosen over those of all."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from optidel_hf.images import encode_png, open_image
from optidel_hf.publishing.figures import ticks
from optidel_hf.publishing.measures import chosen_rows
from optidel_hf.publishing.records import SCORES, CurationRecord, list_rows, read_rows


INK, PAPER, ALL, CHOSEN = "#22262e", "#ffffff", "#c3c8d0", "#c8401c"
SHEET_COLUMNS, SHEET_IMAGES, SHEET_SIDE, GAP = 6, 18, 160, 8
"""A contact sheet: images across, images at most, pixels of an image's side, pixels between two."""
WIDTH, HEIGHT, MARGIN, HEAD, BINS = 420, 240, 24, 40, 40
"""A histogram panel in pixels, its margin, the height over it, and its bars."""


def contact_sheet(record: CurationRecord) -> bytes:
    """Curated images as PNG, evenly spaced over all of them, in rows of six."""
    folder = record.folder / "curated"
    everywhere = list_rows(folder)
    spaced = np.linspace(0, len(everywhere) - 1, min(SHEET_IMAGES, len(everywhere))).round().astype(int)
    images = [open_image(row["image"]) for row in read_rows(folder, [everywhere[i] for i in spaced], ["image"])]
    rows, step = -(-len(images) // SHEET_COLUMNS), SHEET_SIDE + GAP
    sheet = Image.new("RGB", (min(len(images), SHEET_COLUMNS) * step + GAP, rows * step + GAP), PAPER)
    for number, image in enumerate(images):
        place = (GAP + number % SHEET_COLUMNS * step, GAP + number // SHEET_COLUMNS * step)
        sheet.paste(image.resize((SHEET_SIDE, SHEET_SIDE), Image.Resampling.LANCZOS), place)
    return encode_png(sheet)


def score_histograms(record: CurationRecord) -> bytes:
    """Every score's distribution as PNG, two panels a row: all key patches filled, the chosen as a line."""
    names = [name for name in SCORES if name in record.columns and np.isfinite(record.columns[name]).any()]
    sheet = Image.new("RGB", (2 * WIDTH, -(-len(names) // 2) * HEIGHT), PAPER)
    draw, rows = ImageDraw.Draw(sheet), chosen_rows(record)
    for number, name in enumerate(names):
        corner, values = (number % 2 * WIDTH, number // 2 * HEIGHT), record.columns[name]
        _panel(draw, corner, f"{name}, {SCORES[name]}", values, values[rows])
    return encode_png(sheet)


def _panel(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], title: str, everything: np.ndarray, chosen: np.ndarray
) -> None:
    """One histogram, each distribution as shares of its own sum; what lies outside counts in the end bins."""
    everything, chosen = everything[np.isfinite(everything)], chosen[np.isfinite(chosen)]
    low, high = np.quantile(everything, [0.001, 0.999])
    high = high if high > low else low + 1.0
    edges = np.linspace(low, high, BINS + 1)
    shares = [np.histogram(np.clip(part, low, high), edges)[0] / max(1, len(part)) for part in (everything, chosen)]
    left, right = corner[0] + MARGIN, corner[0] + WIDTH - MARGIN
    top, bottom = corner[1] + HEAD, corner[1] + HEIGHT - MARGIN
    across = left + (edges - low) / (high - low) * (right - left)
    up = [bottom - share / max(part.max() for part in shares) * (bottom - top) for share in shares]
    for i in range(BINS):
        draw.rectangle((across[i], up[0][i], across[i + 1], bottom), fill=ALL)
    outline = np.stack([np.repeat(across, 2)[1:-1], np.repeat(up[1], 2)], axis=1)
    draw.line([tuple(point) for point in outline], CHOSEN, 2)
    draw.line((left, bottom, right, bottom), INK, 1)
    for tick in ticks(low, high, count=5):
        x = left + (tick - low) / (high - low) * (right - left)
        _text(draw, (x, bottom + 5), f"{tick:g}", 12, INK, "ma")
    _text(draw, (left, corner[1] + 8), title, 15, INK, "la")
    _text(draw, (right, corner[1] + 10), f"chosen ({len(chosen):,})", 12, CHOSEN, "ra")
    _text(draw, (right, corner[1] + 24), f"all ({len(everything):,})", 12, "#7d8088", "ra")


def _text(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, ink: str, anchor: str) -> None:
    draw.text(at, text, ink, ImageFont.load_default(size), anchor)
