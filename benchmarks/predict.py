"""Many images through ``heedmap predict``: killed and gone on with, one process against two, memory.

    python benchmarks/predict.py --images 20000 --kills 5 --out /tmp/predict

Draws handwritten digits among noise (half of them as files, half in tar shards), trains a tiny run on some of them, and
then

1. answers all with two processes under torchrun, killed with SIGKILL at random moments, until it is done; every
   image must be in the tables exactly once;
2. answers all with one process and with two, uninterrupted, for the rate;
3. compares the peak memory of a tenth of the images with that of all.

Needs no network. What it measured is printed and written to OUT/predict.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE = 64
SHARD = 1000


def main() -> None:
    """Draw, kill, time, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("predict-benchmark"))
    asked = parser.parse_args()
    files, shards = draw(asked.out / "images", asked.images, asked.seed)
    run = trained(asked.out)
    expected = Counter(expected_names(asked.images))
    sources = [str(files), f"{shards}/*.tar"]
    killed = kill_and_go_on(run, sources, asked.out / "killed", asked.kills, asked.seed)
    found = {"images": asked.images, "kills": killed, **exactness(asked.out / "killed", expected)}
    for world in (1, 2):
        seconds, peak = timed(run, sources, asked.out / f"world-{world}", world)
        found[f"images_per_second_{world}"] = asked.images / seconds
        found[f"peak_mib_{world}"] = peak
        found[f"exact_{world}"] = exactness(asked.out / f"world-{world}", expected)["exactly_once"]
    few = sorted(files.glob("*.png"))[: asked.images // 10]
    (asked.out / "few.txt").write_text("".join(f"{path}\n" for path in few))
    found["peak_mib_tenth"] = timed(run, [f"@{asked.out / 'few.txt'}"], asked.out / "few", 1)[1]
    (asked.out / "predict.json").write_text(json.dumps(found, indent=1))
    print(json.dumps(found, indent=1))


def draw(folder: Path, count: int, seed: int) -> tuple[Path, Path]:
    """Draw images 0 .. count - 1: the first half as files, the others in shards; what is there already stays."""
    files, shards = folder / "files", folder / "shards"
    if (folder / "done").is_file():
        return files, shards
    from sklearn.datasets import load_digits

    digits = load_digits()
    chance = np.random.default_rng(seed)
    for place in (files, shards, folder / "train"):
        place.mkdir(parents=True, exist_ok=True)
    tar: tarfile.TarFile | None = None
    for number in range(count):
        pixels = chance.integers(0, 90, (SIDE, SIDE), dtype=np.uint8)
        left, top = chance.integers(0, SIDE - 32, 2)
        digit = np.kron(digits.images[number % len(digits.images)] * 15, np.ones((4, 4))).astype(np.uint8)
        pixels[top : top + 32, left : left + 32] |= digit
        target = files / f"{number:06d}.png"
        Image.fromarray(pixels).save(target, compress_level=1)
        if number < 600:
            copy = folder / "train" / str(digits.target[number]) / target.name
            copy.parent.mkdir(exist_ok=True)
            shutil.copy(target, copy)
        if number >= count // 2:
            if tar is None or number % SHARD == 0:
                if tar is not None:
                    tar.close()
                tar = tarfile.open(shards / f"{number // SHARD:06d}.tar", "w")  # noqa: SIM115  closed when it is full
            tar.add(target, target.name)
            target.unlink()
    if tar is not None:
        tar.close()
    (folder / "done").touch()
    return files, shards


def expected_names(count: int) -> list[str]:
    """What each image is called in the tables, without its folder."""
    return [f"{number:06d}.png" for number in range(count)]


def trained(out: Path) -> Path:
    """A tiny run; what it answers does not matter here."""
    run = out / "run"
    if not (run / "manifest.json").is_file():
        words = ["train", str(out / "images" / "train"), "--out", str(run), "--image-size", "32", "--epochs", "2"]
        subprocess.run([sys.executable, "-m", "heedmap", *words], check=True)
    return run


def command(run: Path, sources: list[str], out: Path, world: int) -> list[str]:
    """The words that start it, in one process or in several under torchrun."""
    words = ["-m", "heedmap", "predict", str(run), *sources, "--out", str(out), "--part-size", "256", "--workers", "2"]
    if world == 1:
        return [sys.executable, *words]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    return [sys.executable, *launcher, *words]


def kill_and_go_on(run: Path, sources: list[str], out: Path, kills: int, seed: int) -> int:
    """Start with two processes, kill all of them at a random moment while they write, and so on; then let it finish."""
    shutil.rmtree(out, ignore_errors=True)
    chance, done = random.Random(seed), 0
    while done < kills:
        before = len(list(out.glob("predictions/part-*")))
        goal = before + chance.randrange(3, 10)
        group = subprocess.Popen(command(run, sources, out, 2), start_new_session=True, stdout=subprocess.DEVNULL)
        while len(list(out.glob("predictions/part-*"))) < goal and group.poll() is None:
            time.sleep(chance.random() * 0.05)
        if group.poll() is None:
            os.killpg(group.pid, signal.SIGKILL)  # torchrun and its processes share the new session
            done += 1
        group.wait()
        # torchrun gives each worker a session of its own, which outlives it; they must be dead before the next start.
        stop_orphans(out)
        print(f"killed {done} of {kills}, {len(list(out.glob('predictions/part-*')))} parts there", flush=True)
        if (out / "manifest.json").is_file():
            return done
    subprocess.run(command(run, sources, out, 2), check=True)
    return done


def stop_orphans(out: Path) -> None:
    """Kill the workers of this very command that torchrun left behind."""
    import psutil

    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "predict" in words and str(out) in words and process.pid != os.getpid():
            process.kill()
            process.wait(10)


def exactness(out: Path, expected: Counter[str]) -> dict[str, Any]:
    """Compare the names in the tables with the images that there are."""
    import pyarrow.parquet as pq

    names: Counter[str] = Counter()
    for part in sorted((out / "predictions").glob("part-*.parquet")):
        for row in pq.read_table(part, columns=["path", "member"]).to_pylist():
            names[Path(row["member"] or row["path"]).name] += 1
    manifest = json.loads((out / "manifest.json").read_text())
    return {
        "exactly_once": names == expected,
        "twice": sum(count > 1 for count in names.values()),
        "lost": len(expected - names),
        "parts": manifest["parts"],
        "rows": manifest["images"],
    }


def timed(run: Path, sources: list[str], out: Path, world: int) -> tuple[float, float]:
    """Wall seconds, start of Python included, and the largest resident memory of a process in MiB."""
    import psutil

    shutil.rmtree(out, ignore_errors=True)
    began = time.perf_counter()
    group = subprocess.Popen(command(run, sources, out, world), stdout=subprocess.DEVNULL)
    peak = 0
    watched = psutil.Process(group.pid)
    while group.poll() is None:
        try:
            family = [watched, *watched.children(recursive=True)]
            peak = max(peak, *(process.memory_info().rss for process in family))
        except psutil.NoSuchProcess:
            pass
        time.sleep(0.1)
    if group.returncode:
        raise SystemExit(f"heedmap predict failed with status {group.returncode}")
    return time.perf_counter() - began, peak / 2**20


if __name__ == "__main__":
    main()
