"""A run is a folder; nothing else touches a run's files.

    config.yaml             options as given and as derived, architecture, command, versions
    metrics.jsonl           one line a record: steps now and then, every epoch
    checkpoint.safetensors  all that is needed to go on; removed when the run is finished
    audit.json  evaluation.json  panels/  tensorboard/
    answers.csv             the answer to each image of the test part
    model.safetensors       the chosen weights
    report.html             the page to look at
    manifest.json           written last: sizes and SHA-256 of the files; a run without it is not finished

Every file is written beside its place and renamed into it, so a file is there whole or not at all. Nothing is ever
unpickled.
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
from heedmap.files import _read_mapping, _sha256, as_utf8, disk, finite, refuse_pickle, what_file, write_whole
from heedmap.models.architecture import Architecture
from heedmap.models.classifier import AttentionClassifier
from heedmap.models.factory import build_classifier
from heedmap.types import as_html

SCHEMA = 1
CONFIG, METRICS, CHECKPOINT = "config.yaml", "metrics.jsonl", "checkpoint.safetensors"
MODEL, REPORT, MANIFEST = "model.safetensors", "report.html", "manifest.json"
AUDIT, EVALUATION, PREDICTIONS = "audit.json", "evaluation.json", "answers.csv"


class Run:
    """One run folder. Make one with :meth:`create`, open one with :meth:`open`.

    Attributes:
        path: the folder.
        config: what config.yaml holds.
    """

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path, self.config = path, config

    def _repr_html_(self) -> str:
        return as_html(self)

    @classmethod
    def create(cls, path: str | Path) -> Run:
        """Make an empty run folder.

        Raises:
            RunError: something is there already, or the folder cannot be made.
        """
        cls.refuse_existing(path)
        folder = Path(path)
        with disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return cls(folder, {})

    @staticmethod
    def refuse_existing(path: str | Path) -> None:
        """Check that a new run may be put there.

        Raises:
            RunError: something is there already.
        """
        folder = Path(path)
        with disk(folder):
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                # Only an unfinished run can go on; a folder of images may stand there by mistake.
                begun, ended = (folder / CONFIG).is_file(), (folder / MANIFEST).is_file()
                what = " as a finished run" if ended else ""
                way = f", or go on with `heedmap train --resume {shlex.quote(str(folder))}`" if begun > ended else ""
                raise RunError(f"{folder} exists already{what}; name another --out{way}.")

    @classmethod
    def open(cls, path: str | Path, *, finished: bool = True) -> Run:
        """Open a run folder.

        Args:
            path: the folder.
            finished: insist on a finished run whose files are as they were written.

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
        run = cls(folder, _read_mapping(folder / CONFIG))
        schema = run.config.get("schema")
        if not isinstance(schema, int):
            raise RunError(f"{folder / CONFIG} is damaged: it does not say which layout the run has (schema).")
        if schema > SCHEMA:
            raise RunError(
                f"{folder} was written by heedmap {run.config.get('heedmap')} with layout {schema}; "
                f"this one reads up to layout {SCHEMA}. Install a newer heedmap."
            )
        if finished:
            run._check_manifest()
        return run

    @property
    def options(self) -> TrainOptions:
        """The options of the run, derived values filled in.

        Raises:
            RunError: config.yaml lacks them.
        """
        return TrainOptions(**known_options(self._part("options"), where=f" in {self.path / CONFIG}"))

    @property
    def architecture(self) -> Architecture:
        """What the classifier is made of.

        Raises:
            RunError: config.yaml lacks it.
        """
        part = self._part("architecture")
        try:
            taps = tuple(part["taps"]) if part["taps"] else None
            return Architecture(**{**part, "taps": taps, "classes": tuple(str(name) for name in part["classes"])})
        except (TypeError, KeyError) as error:
            raise RunError(f"{self.path / CONFIG} does not describe an architecture: {error}.") from None

    @property
    def is_finished(self) -> bool:
        """Whether the manifest is there."""
        return (self.path / MANIFEST).is_file()

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a state to go on from."""
        return (self.path / CHECKPOINT).is_file()

    def classifier(self) -> AttentionClassifier:
        """Build the classifier and load the chosen weights; it is in eval mode.

        Raises:
            RunError: the weights are missing, damaged, or do not fit.
        """
        classifier = build_classifier(self.architecture)
        tensors, _ = self._load(MODEL)
        shapes, found = (
            {name: each.shape for name, each in part.items()} for part in (classifier.state_dict(), tensors)
        )
        odd = [name for name in (*shapes, *found) if shapes.get(name) != found.get(name)]
        if odd:
            raise RunError(
                f"{self.path / MODEL} was made by another version of heedmap ({self.config.get('heedmap')}) and does "
                f"not fit this one (at {odd[0]!r}); train it again."
            )
        classifier.load_state_dict(tensors)
        return classifier.eval()

    def write_config(self, options: TrainOptions, architecture: Architecture, **more: Any) -> None:
        """Write config.yaml."""
        self.config = {"heedmap": __version__, "schema": SCHEMA, **more}
        self.config |= {"options": _plain(asdict(options)), "architecture": _plain(asdict(architecture))}
        self.write(CONFIG, yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True).encode())

    def write(self, name: str, content: bytes) -> Path:
        """Write a file of the run, whole or not at all.

        Raises:
            RunError: the disk is full or the folder may not be written.
        """
        target = self.path / name
        with disk(target):
            target.parent.mkdir(exist_ok=True)
            write_whole(target, content)
        return target

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file of the run."""
        self.write(name, as_utf8(json.dumps(content, indent=1, ensure_ascii=False)))

    def read_json(self, name: str) -> Any:
        """Read a JSON file of the run, or None where there is none.

        Raises:
            RunError: it is not JSON.
        """
        path = self.path / name
        if not path.is_file():
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunError(f"{path} is damaged: {error}.") from None

    def save_model(self, classifier: AttentionClassifier) -> None:
        """Write the chosen weights."""
        self._save(MODEL, {name: value.cpu().contiguous() for name, value in classifier.state_dict().items()}, {})

    def save_checkpoint(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        """Write what :meth:`heedmap.training.trainer.Fitting.state` gave, replacing the last one."""
        self._save(CHECKPOINT, tensors, progress)

    def load_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Read the checkpoint, or None where training had not come to one.

        Raises:
            RunError: it is damaged, or a pickle.
        """
        return self._load(CHECKPOINT) if self.has_checkpoint else None

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl; numbers that are not finite become null."""
        path = self.path / METRICS
        with disk(path), path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(finite(record)) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; one cut off by a sudden death is passed over."""
        path = self.path / METRICS
        if not path.is_file():
            return []
        records = []
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                records.append(json.loads(line))
        return records

    def rewind_metrics(self, step: int, epochs: int) -> None:
        """Drop the lines after ``step``, and the epochs after the first ``epochs``: a resumed run writes them again."""
        kept = [
            record
            for record in self.read_metrics()
            if record.get("step", 0) <= step and (record.get("kind") != "epoch" or record["epoch"] <= epochs)
        ]
        self.write(METRICS, "".join(json.dumps(record) + "\n" for record in kept).encode())

    def clean(self) -> None:
        """Remove what a sudden death may have left half-written."""
        for left in self.path.rglob(".*.partial"):
            left.unlink(missing_ok=True)

    def finish(self) -> None:
        """Write the manifest; the run is finished from then on, and the checkpoint is removed."""
        kept = (CONFIG, METRICS, MODEL, REPORT, AUDIT, EVALUATION, PREDICTIONS)
        names = [name for name in kept if (self.path / name).is_file()]
        files = {
            name: {"bytes": (self.path / name).stat().st_size, "sha256": _sha256(self.path / name)} for name in names
        }
        self.write_json(MANIFEST, {"schema": SCHEMA, "heedmap": self.config.get("heedmap"), "files": files})
        with disk(self.path):  # last: a death before the manifest must find the state to go on from
            (self.path / CHECKPOINT).unlink(missing_ok=True)

    def _check_manifest(self) -> None:
        if not self.is_finished:
            command = f"heedmap train --resume {shlex.quote(str(self.path))}"
            raise RunError(f"{self.path} is not finished; go on with `{command}`.")
        sums = self._sums()
        for name in (CONFIG, MODEL):
            path = self.path / name
            if not path.is_file():
                raise RunError(f"{self.path} is incomplete: {name} is missing. Train it again, or restore the file.")
            if sums.get(name) != _sha256(path):
                raise RunError(
                    f"{path} was changed since the run was finished: its SHA-256 is not the one in {MANIFEST}. "
                    "Restore the file, or train the run again."
                )

    def _sums(self) -> dict[str, str]:
        """File name -> SHA-256, as the manifest has them."""
        try:
            return {name: kept["sha256"] for name, kept in self.read_json(MANIFEST)["files"].items()}
        except (TypeError, KeyError, AttributeError):
            raise RunError(f"{self.path / MANIFEST} is damaged; restore the file, or train the run again.") from None

    def _part(self, name: str) -> dict[str, Any]:
        part = self.config.get(name)
        if not isinstance(part, dict):
            raise RunError(f"{self.path / CONFIG} has no part {name!r}; the run is damaged.")
        return part

    def _save(self, name: str, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        # One entry only: safetensors writes several in an order of its own, and equal weights make equal files.
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


def _plain(value: Any) -> Any:
    """Tuples as lists, so that YAML stays readable."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
