"""How often does a map's hottest cell lie in the digit's *box*? For attributions as well as for learned attention.

    python experiments/digit_boxes.py RUN ... [--method grad-cam layer-cam saliency] [--count 2000]

`heedmap evaluate --suite localization` holds maps against the strokes of the digit, and the demonstration's pointing
into the box is of learned attention alone. This prints the missing column, with its 95 % interval (Wilson), for runs on
digit scenes.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from heedmap.data.annotations.annotations import annotations_of
from heedmap.data.decoding import plain
from heedmap.data.digit_scenes import digit_scenes
from heedmap.metrics.localization.evaluation import LocalizationOptions, evaluate_localization
from heedmap.metrics.maps import MapFunction, all_maps, explained, learned_map, learned_map_at
from heedmap.modules import evaluation_mode
from heedmap.runs import Run

BATCH = 100


def main() -> None:
    """Print a table over all runs and maps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--method", nargs="*", default=["grad-cam", "layer-cam", "saliency"])
    parser.add_argument("--count", type=int, default=2000)
    arguments = parser.parse_args()
    print("| run | map | hottest cell in the digit's box, per cent |\n| --- | --- | ---: |")
    baselines: dict[str, str] = {}
    for folder in arguments.runs:
        run = Run.open(folder)
        classifier = run.classifier().eval()
        scenes = digit_scenes("test", arguments.count, run.options.seed)
        annotations = annotations_of(scenes)
        boxes = replace(annotations, masks=(None,) * len(annotations))
        functions: dict[str, MapFunction] = {}
        if run.options.attention != "none":
            functions = {f"attention {tap}": learned_map_at(tap) for tap in classifier.taps}
            functions["attention combined"] = learned_map
        functions |= {name: explained(name) for name in arguments.method}
        images, side = plain(scenes.images), scenes.images.shape[-1]
        with evaluation_mode(classifier, gradients=True, full_precision=True) as network:
            maps = {
                name: all_maps(name, function, network, images, scenes.labels, BATCH)[:, None]
                for name, function in functions.items()
            }
        report = evaluate_localization(maps, boxes, LocalizationOptions(size=side))
        for name, scores in report.scores.items():
            score = scores["pointing"]
            cell = f"{100 * score.value:.1f} ({100 * score.low:.1f} - {100 * score.high:.1f})"
            if name in maps:
                print(f"| {folder} | {name} | {cell} |")
            else:
                baselines[name] = cell
    for name, cell in baselines.items():
        print(f"| - | {name} | {cell} |")


if __name__ == "__main__":
    main()
