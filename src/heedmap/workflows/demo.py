"""The demonstration: the whole way from images to maps, with what the package carries itself."""

from pathlib import Path

from PIL import Image

from heedmap.config import TrainOptions
from heedmap.data.digit_scenes import digit_scenes
from heedmap.files import disk
from heedmap.progress import Progress
from heedmap.runs import Run
from heedmap.workflows.train.train import train
from heedmap.workflows.visualize import VisualizeOptions, visualize

EPOCHS = 8
BATCH = 64  # twice the steps of the default: the digit is found in the second epoch (experiments/LOG.md)
DRAWN = 24  # unseen scenes drawn


def demo(out: str | Path, *, seed: int = 0, progress: Progress | None = None) -> tuple[Run, Path]:
    """Train on digit scenes into OUT/run, and draw unseen scenes (OUT/scenes) with their maps into OUT/maps.

    Raises:
        RunError: OUT/run has something in it already, or the disk cannot be written.
        Stopped: SIGINT or SIGTERM came; the run can go on.
    """
    folder = Path(out)
    where = str(folder / "run")
    options = TrainOptions(data="digit-scenes", out=where, optimizer="muon", epochs=EPOCHS, batch_size=BATCH, seed=seed)
    run = train(options, progress=progress)
    scenes = digit_scenes("test", DRAWN, seed=seed + 1)
    files = []
    with disk(folder / "scenes"):
        for index, label in enumerate(scenes.labels.tolist()):
            path = folder / "scenes" / scenes.classes[label] / f"scene-{index:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(scenes.load(index, 64).permute(1, 2, 0).numpy()).save(path)
            files.append(path)
    return run, visualize(run.classifier(), files, folder / "maps", options=VisualizeOptions(overwrite=True)).index
