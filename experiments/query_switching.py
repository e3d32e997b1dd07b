"""Does the map follow the query? One image, seen with the global features of others, for several runs.

    python experiments/query_switching.py RUN ... --image BOTH.jpg --queries CAT.png CUP.png --out query.png

A line for each run: the combined map with the image's own query, then with each of the others, and how much of the
attention moved (total variation, 0 to 1). Two images joined by + are put side by side.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from heedmap.data.decoding import square
from heedmap.models.classifier import AttentionClassifier, combined_map
from heedmap.runs import Run
from heedmap.visualization.heatmap import overlay, scale_of

TILE, EDGE = 224, 12


def read(word: str) -> Image.Image:
    """The square view of an image, or of two side by side."""
    halves = [square(Image.open(name).convert("RGB"), 2 * TILE) for name in word.split("+")]
    sheet = Image.new("RGB", (2 * TILE * len(halves), 2 * TILE))
    for place, half in enumerate(halves):
        sheet.paste(half, (2 * TILE * place, 0))
    return sheet.resize((2 * TILE, 2 * TILE), Image.Resampling.LANCZOS)


def view(image: Image.Image, classifier: AttentionClassifier) -> Tensor:
    """(1, 3, S, S) in [0, 1]."""
    side = classifier.image_size
    small = image.resize((side, side), Image.Resampling.BILINEAR)
    return (
        torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).view(1, side, side, 3).permute(0, 3, 1, 2) / 255
    )


def combined(classifier: AttentionClassifier, seen: Tensor, query: Tensor | None) -> Tensor:
    """(h, w), all taps joined."""
    output = classifier(seen, query)
    return combined_map(output.attention, output.shares)[0, 0]


@torch.no_grad()
def main() -> None:
    """Draw, and print how far each map moved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--image", required=True)
    parser.add_argument("--queries", nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    told = parser.parse_args()
    image, queries = read(told.image), [read(word) for word in told.queries]
    columns = 2 + len(queries)
    sheet = Image.new("RGB", (columns * (TILE + EDGE) + EDGE, len(told.runs) * (TILE + 24) + TILE // 2 + 40), "white")
    pen = ImageDraw.Draw(sheet)
    for column, small in enumerate(queries, 2):
        left = EDGE + column * (TILE + EDGE)
        pen.text((left + TILE // 2 + 6, 10), "query", fill="black")
        sheet.paste(small.resize((TILE // 2, TILE // 2)), (left, 10))
    pen.text((EDGE + TILE + EDGE, 10), "its own query", fill="black")
    for row, path in enumerate(told.runs):
        classifier = Run.open(path).classifier().eval()
        seen, top = view(image, classifier), TILE // 2 + 30 + row * (TILE + 24)
        asked = [None, *(classifier.query(view(other, classifier)) for other in queries)]
        maps = [combined(classifier, seen, query) for query in asked]
        maps = [values / values.sum() for values in maps]
        high = max(scale_of(values)[1] for values in maps)  # one scale for the line, or a difference could hide
        sheet.paste(image.resize((TILE, TILE)), (EDGE, top))
        pen.text((EDGE, top + TILE + 4), f"{classifier.attention_name}, {classifier.attention_weights}", fill="black")
        for column, values in enumerate(maps, 1):
            left = EDGE + column * (TILE + EDGE)
            moved = float((values - maps[0]).abs().sum() / 2)
            sheet.paste(overlay(image.resize((TILE, TILE)), values, 0.0, high), (left, top))
            pen.text((left, top + TILE + 4), f"moved: {moved:.1%}" if column > 1 else "", fill="black")
            print(f"{path}: map {column - 1} moved by {moved:.2e}")
    sheet.save(told.out)


if __name__ == "__main__":
    main()
