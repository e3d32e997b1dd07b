"""A run is a folder; nothing else touches a run's files.

    config.yaml             options with derived values, architecture, command, versions
    metrics.jsonl           one record a line: some steps, every epoch
    checkpoint.safetensors  the state to resume from; removed when the run is finished
    model.safetensors       the weights of the best epoch
    predictions.csv         the prediction for each image of the test part
    report.html  audit.json  evaluation.json  panels/  tensorboard/  metrics.csv
    manifest.json           written last: sizes and SHA-256 of the files; a run without it is not finished

Files are written atomically, so a file is there whole or not at all. Nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from heedmap._version import __version__
from heedmap.config import TrainOptions, known_options
from heedmap.errors import RunError
from heedmap.files import as_utf8, disk, finite, read_mapping, refuse_pickle, sha256, what_file, write_whole
from heedmap.models.architecture import Architecture
from heedmap.models.classifier import AttentionClassifier
from heedmap.models.factory import build_classifier
from heedmap.types import as_html

SCHEMA = 1
CONFIG, METRICS, CHECKPOINT = "config.yaml", "metrics.jsonl", "checkpoint.safetensors"
MODEL, REPORT, MANIFEST = "model.safetensors", "report.html", "manifest.json"
AUDIT, EVALUATION, PREDICTIONS = "audit.json", "evaluation.json", "predictions.csv"


class Run:
    """One run folder, ``path``, and the content of its config.yaml. See :meth:`create` and :meth:`open`."""

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path, self.config = path, config

    def _repr_html_(self) -> str:
        return as_html(self)

    @classmethod
    def create(cls, path: str | Path) -> Run:
        """Create an empty run folder; RunError where something is there already, or it cannot be created."""
        cls.refuse_existing(path)
        folder = Path(path)
        with disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return cls(folder, {})

    @staticmethod
    def refuse_existing(path: str | Path) -> None:
        """Raise RunError where something is in the place of a new run already."""
        folder = Path(path)
        with disk(folder):
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                # Only an unfinished run can be resumed; a folder of images may be named by mistake.
                begun, finished = (folder / CONFIG).is_file(), (folder / MANIFEST).is_file()
                what = " as a finished run" if finished else ""
                way = f", or continue it with `{_resume_command(folder)}`" if begun > finished else ""
                raise RunError(f"{folder} exists already{what}; name another --out{way}.")

    @classmethod
    def open(cls, path: str | Path, *, finished: bool = True) -> Run:
        """Open a run folder; with ``finished`` it has to be finished, with files that are unchanged.

        Raises:
            RunError: no such folder, not a run, not finished, from a newer heedmap, or changed since.
        """
        folder = Path(path)
        if folder.is_file():
            raise RunError(f"{folder} is {what_file(folder)}")
        if not folder.is_dir():
            raise RunError(f"No run folder {folder}; `heedmap train DATA` makes one.")
        if not (folder / CONFIG).is_file():
            raise RunError(f"{folder} is not a run: it has no {CONFIG}.")
        run = cls(folder, read_mapping(folder / CONFIG))
        schema = run.config.get("schema")
        if not isinstance(schema, int):
            raise RunError(f"{folder / CONFIG} is damaged: it has no layout number (schema).")
        if schema > SCHEMA:
            writer = f"heedmap {run.config.get('heedmap')} with layout {schema}"
            raise RunError(f"{folder} was written by {writer}; up to {SCHEMA} can be read. Install a newer heedmap.")
        if finished:
            run._check_manifest()
        return run

    @property
    def options(self) -> TrainOptions:
        """The options of the run, with derived values; RunError where config.yaml lacks them."""
        return TrainOptions(**known_options(self._part("options"), where=f" in {self.path / CONFIG}"))

    @property
    def architecture(self) -> Architecture:
        """What the classifier is built from; RunError where config.yaml lacks it."""
        part = self._part("architecture")
        try:
            return Architecture.from_dict(part)
        except (TypeError, KeyError) as error:
            raise RunError(f"{self.path / CONFIG} does not describe an architecture: {error}.") from None

    @property
    def is_finished(self) -> bool:
        """Whether there is a manifest."""
        return (self.path / MANIFEST).is_file()

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a state to resume from."""
        return (self.path / CHECKPOINT).is_file()

    def classifier(self) -> AttentionClassifier:
        """Return the classifier with the weights of the best epoch, in eval mode; RunError where that cannot be."""
        classifier = build_classifier(self.architecture)
        tensors, _ = self._load(MODEL)
        shapes = [{name: value.shape for name, value in part.items()} for part in (classifier.state_dict(), tensors)]
        if odd := [name for part in shapes for name in part if shapes[0].get(name) != shapes[1].get(name)]:
            maker = f"another version of heedmap ({self.config.get('heedmap')})"
            where = f"does not fit this one (at {odd[0]!r})"
            raise RunError(f"{self.path / MODEL} was made by {maker} and {where}; train it again.")
        classifier.load_state_dict(tensors)
        return classifier.eval()

    def write_config(self, options: TrainOptions, architecture: Architecture, **more: Any) -> None:
        """Write config.yaml."""
        self.config = {"heedmap": __version__, "schema": SCHEMA, **more}
        self.config |= {"options": finite(asdict(options)), "architecture": finite(asdict(architecture))}
        self.write(CONFIG, yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True).encode())

    def write(self, name: str, content: bytes) -> Path:
        """Write a file of the run atomically; RunError where the disk is full or may not be written."""
        target = self.path / name
        with disk(target):
            target.parent.mkdir(exist_ok=True)
            write_whole(target, content)
        return target

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file of the run."""
        self.write(name, as_utf8(json.dumps(content, indent=1, ensure_ascii=False)))

    def read_json(self, name: str) -> Any:
        """Read a JSON file of the run, None if it does not exist; RunError where it is not JSON."""
        path = self.path / name
        if not path.is_file():
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunError(f"{path} is damaged: {error}.") from None

    def save_model(self, classifier: AttentionClassifier) -> None:
        """Write the weights."""
        self._save(MODEL, {name: value.cpu().contiguous() for name, value in classifier.state_dict().items()}, {})

    def save_checkpoint(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        """Write what :meth:`heedmap.training.trainer.Fitting.state` returned, replacing the last checkpoint."""
        self._save(CHECKPOINT, tensors, progress)

    def load_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Read the checkpoint, None if there is none yet; RunError where it is damaged, or a pickle."""
        return self._load(CHECKPOINT) if self.has_checkpoint else None

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl; numbers that are not finite become null."""
        path = self.path / METRICS
        with disk(path), path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(finite(record)) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """Read the lines of metrics.jsonl; one cut off by a sudden death is skipped."""
        path = self.path / METRICS
        records = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            with contextlib.suppress(ValueError):
                records.append(json.loads(line))
        return records

    def rewind_metrics(self, step: int, epochs: int) -> None:
        """Remove lines after ``step`` and epochs after the first ``epochs``: a resumed run writes them again."""
        records = [record for record in self.read_metrics() if record.get("step", 0) <= step]
        lines = (json.dumps(r) + "\n" for r in records if r.get("kind") != "epoch" or r["epoch"] <= epochs)
        self.write(METRICS, "".join(lines).encode())

    def clean(self) -> None:
        """Remove partial files that a sudden death may have left."""
        for left in self.path.rglob(".*.partial"):
            left.unlink(missing_ok=True)

    def finish(self) -> None:
        """Write the manifest, by which the run is finished, and remove the checkpoint."""
        paths = [self.path / name for name in (CONFIG, METRICS, MODEL, REPORT, AUDIT, EVALUATION, PREDICTIONS)]
        files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in paths if path.is_file()}
        self.write_json(MANIFEST, {"schema": SCHEMA, "heedmap": self.config.get("heedmap"), "files": files})
        with disk(self.path):  # last: before the manifest, the state to resume from is needed
            (self.path / CHECKPOINT).unlink(missing_ok=True)

    def _check_manifest(self) -> None:
        if not self.is_finished:
            raise RunError(f"{self.path} is not finished; continue it with `{_resume_command(self.path)}`.")
        try:
            sums = {name: file["sha256"] for name, file in self.read_json(MANIFEST)["files"].items()}
        except (TypeError, KeyError, AttributeError):
            raise RunError(f"{self.path / MANIFEST} is damaged; restore the file, or train the run again.") from None
        for name in (CONFIG, MODEL):
            path = self.path / name
            if not path.is_file():
                raise RunError(f"{self.path} is incomplete: {name} is missing. Train it again, or restore the file.")
            if sums.get(name) != sha256(path):
                what = f"was changed since the run was finished: its SHA-256 is not the one in {MANIFEST}"
                raise RunError(f"{path} {what}. Restore the file, or train the run again.")

    def _part(self, name: str) -> dict[str, Any]:
        part = self.config.get(name)
        if not isinstance(part, dict):
            raise RunError(f"{self.path / CONFIG} has no part {name!r}; the run is damaged.")
        return part

    def _save(self, name: str, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        # One entry only: safetensors writes several in any order, and equal weights have to make equal files.
        metadata = {"progress": json.dumps(progress)} if progress else {"format": "pt"}
        self.write(name, save(tensors, metadata))

    def _load(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        path = self.path / name
        refuse_pickle(path)
        try:
            with safe_open(path, framework="pt") as content:
                progress = json.loads((content.metadata() or {}).get("progress", "{}"))
                return {key: content.get_tensor(key) for key in content.keys()}, progress  # noqa: SIM118
        except (SafetensorError, ValueError, OSError) as error:
            raise RunError(f"{path} is damaged: {error}.") from None


def _resume_command(folder: Path) -> str:
    return f"heedmap train --resume {shlex.quote(str(folder))}"
