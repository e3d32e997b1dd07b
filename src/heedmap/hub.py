"""Share a classifier in the form of Hugging Face's hub: a folder with config.json, model.safetensors and README.md.

The model card, README.md, is written from the run's evaluation. No pickle is ever read, and a folder with one is
refused: other software would load it.
"""

import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from heedmap._version import __version__
from heedmap.errors import ModelError
from heedmap.files import disk, refuse_pickle, write_whole
from heedmap.models.architecture import Architecture
from heedmap.models.classifier import AttentionClassifier
from heedmap.models.factory import build_classifier
from heedmap.runs import EVALUATION, Run

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
SCHEMA = 1
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")


def save_pretrained(model: Run | AttentionClassifier, folder: str | Path) -> Path:
    """Write a classifier into a folder that :func:`from_pretrained` and the hub can read; return the folder.

    Args:
        model: a finished run, or a classifier that :func:`heedmap.build_classifier` or :func:`from_pretrained`
            returned; the card of a classifier alone has no figures.
        folder: created if needed; the three files of an earlier call are replaced, others stay.

    Raises:
        ModelError: neither a run nor a classifier; a classifier around a network of your own, which cannot be built
            from a description; a file of one of these names in the folder that heedmap did not write.
        RunError: the folder cannot be written.
    """
    if not isinstance(model, Run | AttentionClassifier):  # the path of a run, most likely
        raise ModelError(f"save_pretrained takes a run or a classifier, not {model!r}; open a run by heedmap.Run.open.")
    run = model if isinstance(model, Run) else None
    classifier = model.classifier() if isinstance(model, Run) else model
    architecture = classifier.architecture if run is None else run.architecture
    if architecture is None:
        why = "is built around a network of your own and cannot be built again from a description"
        raise ModelError(f"This classifier {why}; keep your code, and its state_dict as safetensors.")
    out = Path(folder)
    version = {"library_name": "heedmap", "schema": SCHEMA, "heedmap": __version__}
    config = json.dumps({**version, "architecture": asdict(architecture)}, indent=1, ensure_ascii=False)
    tensors = {name: values.detach().cpu().contiguous() for name, values in classifier.state_dict().items()}
    with disk(out):
        _refuse_foreign(out)
        out.mkdir(parents=True, exist_ok=True)
        # config.json first: it marks the weights as ours, if this is interrupted and called again.
        write_whole(out / CONFIG, config.encode())
        write_whole(out / WEIGHTS, save(tensors, {"format": "pt"}))
        write_whole(out / CARD, _card(architecture, run).encode())
    return out


def from_pretrained(
    source: str | Path, *, revision: str | None = None, local_files_only: bool = False
) -> AttentionClassifier:
    """Load a classifier that :func:`save_pretrained` wrote, in eval mode; its predictions are the same bit for bit.

    Args:
        source: a folder, or the hub's name of one, such as ``me/cats-and-dogs``. An existing folder wins.
        revision: branch, tag or commit on the hub.
        local_files_only: use what was downloaded before, without a connection.

    Raises:
        ModelError: no such folder or name, the hub out of reach, a pickle, a missing, damaged or newer file.
    """
    folder = Path(source)
    if not folder.is_dir():
        folder = _download(str(source), revision, local_files_only)
    _refuse_pickles(folder, sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")))
    classifier = build_classifier(_read_architecture(folder))
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise ModelError(f"{folder} has no {WEIGHTS}.")
    refuse_pickle(weights)
    try:
        classifier.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError) as error:
        raise ModelError(f"{weights} is damaged or does not fit {CONFIG}: {str(error).splitlines()[0]}") from None
    return classifier.eval()


def push_to_hub(model: Run | AttentionClassifier, name: str, *, private: bool = False, message: str = "") -> str:
    """Upload a classifier to the hub, with the account of ``hf auth login`` or HF_TOKEN; return the commit's address.

    Args:
        model: see :func:`save_pretrained`.
        name: of the repository, such as ``me/cats-and-dogs``; created if needed, ``private`` or not.
        message: of the commit.

    Raises:
        ModelError: huggingface_hub is missing, the hub is out of reach, or it refuses.
    """
    hub = _hub()
    with tempfile.TemporaryDirectory() as folder, _one_line_errors(hub, name):
        save_pretrained(model, folder)
        api = hub.HfApi(library_name="heedmap")
        api.create_repo(repo_id=name, private=private, exist_ok=True)
        message = message or "A classifier with attention maps, by heedmap"
        return str(api.upload_folder(repo_id=name, folder_path=folder, commit_message=message).commit_url)


def _refuse_foreign(folder: Path) -> None:
    """Refuse to replace files that heedmap did not write; config.json vouches for the weights."""
    is_ours = {name: _is_our_config(folder / CONFIG) for name in (CONFIG, WEIGHTS)}
    for name, ours in {**is_ours, CARD: _is_our_card(folder / CARD)}.items():
        if (folder / name).exists() and not ours:
            why = "was not written by heedmap.save_pretrained and would be lost"
            raise ModelError(f"{folder / name} {why}; name another folder, or move the file away.")


def _is_our_config(path: Path) -> bool:
    with suppress(OSError, ValueError):
        content = json.loads(path.read_text(encoding="utf-8"))
        return isinstance(content, dict) and content.get("library_name") == "heedmap"
    return False


def _is_our_card(path: Path) -> bool:
    """Return whether the front matter, which people may have added to, names heedmap."""
    with suppress(OSError, ValueError):
        before, _, rest = path.read_text(encoding="utf-8").partition("---\n")
        return not before and "library_name: heedmap" in rest.partition("\n---")[0].splitlines()
    return False


def _read_architecture(folder: Path) -> Architecture:
    path = folder / CONFIG
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise ModelError(f"{folder} has no {CONFIG} that can be read; heedmap.save_pretrained writes one.") from None
    except ValueError as error:
        raise ModelError(f"{path} is damaged: {error}.") from None
    if not _is_our_config(path):
        raise ModelError(f"{path} describes no classifier of heedmap.")
    if content["schema"] > SCHEMA:
        raise ModelError(f"{path} was written by heedmap {content['heedmap']}, a newer one; install that.")
    try:
        return Architecture.from_dict(content["architecture"])
    except (KeyError, TypeError) as error:
        raise ModelError(f"{path} describes no architecture: {error}.") from None


def _refuse_pickles(where: str | Path, names: Iterable[str]) -> None:
    for name in names:
        if Path(name).suffix.lower() in PICKLES:
            why = "may be a pickle, which can run code when loaded; so nothing there is read"
            raise ModelError(f"{name} in {where} {why}. Remove it; heedmap needs {CONFIG} and {WEIGHTS} only.")


def _hub() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors  # the package has its submodules only once they are imported
    except ImportError:
        raise ModelError("The hub needs huggingface_hub, which is missing: pip install 'heedmap[hub]'") from None
    return huggingface_hub


def _download(name: str, revision: str | None, local_files_only: bool) -> Path:
    """Return the folder that the hub's files are downloaded to."""
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise ModelError(f"There is no folder {name}.")
    hub = _hub()
    with _one_line_errors(hub, name, local_files_only):
        if not local_files_only:
            _refuse_pickles(name, hub.HfApi(library_name="heedmap").list_repo_files(name, revision=revision))
        options = {"allow_patterns": [CONFIG, WEIGHTS, CARD], "library_name": "heedmap"}
        return Path(hub.snapshot_download(name, revision=revision, local_files_only=local_files_only, **options))


@contextmanager
def _one_line_errors(hub: Any, name: str, local_files_only: bool = False) -> Iterator[None]:
    """Turn the hub's errors into a ModelError of one line."""
    errors = hub.errors
    try:
        yield
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        raise ModelError(f"The hub has no {name!r}, or it is private; and there is no such folder here.") from None
    except errors.HFValidationError as error:
        raise ModelError(f"{name!r} is neither a folder here nor a name on the hub: {error}") from None
    except errors.LocalEntryNotFoundError:
        way = "download it once without local_files_only" if local_files_only else "try again with a connection"
        raise ModelError(f"{name!r} was not downloaded before; {way}.") from None
    except errors.HfHubHTTPError as error:
        raise ModelError(f"The hub refuses {name!r}: {str(error).splitlines()[0]}") from None
    except Exception as error:  # the HTTP library below huggingface_hub has errors of its own
        if not isinstance(error, OSError) and not type(error).__module__.startswith(("httpx", "httpcore", "requests")):
            raise
        way = "name a folder, or use what was downloaded before with local_files_only=True"
        raise ModelError(f"The hub is out of reach for {name!r} ({type(error).__name__}); {way}.") from None


def _card(architecture: Architecture, run: Run | None) -> str:
    """Return README.md: the front matter that the hub reads, then the page."""
    title = f"{architecture.model} with {architecture.attention} attention"
    evaluation = run.read_json(EVALUATION) if run else None
    front: dict[str, Any] = {"library_name": "heedmap", "pipeline_tag": "image-classification"}
    front["tags"] = ["heedmap", "attention", "image-classification"]
    if evaluation and run:  # the figures in the form of the hub's own listing
        data = Path(run.options.data).name
        known = (("accuracy", "top-1", "top1"), ("ece", "expected calibration error", "ece"))
        metrics = [{"type": kind, "name": name, "value": round(evaluation[key], 6)} for kind, name, key in known]
        dataset = {"type": data, "name": data, "split": evaluation["part"]}
        result = {"task": {"type": "image-classification"}, "dataset": dataset, "metrics": metrics}
        front["model-index"] = [{"name": title, "results": [result]}]
    head = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    side, taps = architecture.image_size, architecture.taps
    description = f"""- images: the centred square at {side} x {side}, RGB in [0, 1]; the normalisation is inside
- classes: {", ".join(architecture.classes)}
- attention: {architecture.attention}, head {architecture.head}{f", at {', '.join(taps)}" if taps else ""}
"""
    figures = _figures(run, evaluation) if run and evaluation else "No figures: it was saved without a run.\n"
    return "\n".join([f"---\n{head}---\n", f"# {title}\n", description, figures, _USE])


def _figures(run: Run, evaluation: dict[str, Any]) -> str:
    options = run.options
    lines = [
        "## Results\n",
        f"Trained on {Path(options.data).name} for {options.epochs} epochs with seed {options.seed}. "
        f"Evaluated once, on {evaluation['count']:,} images of the part {evaluation['part']}.\n",
        "| metric | value |\n| --- | --- |",
        f"| top-1 | {evaluation['top1']:.2%} |",
        f"| calibration error (ECE) | {evaluation['ece']:.3f} |",
        f"| negative log-likelihood | {evaluation['nll']:.3f} |",
    ]
    pointing = evaluation.get("pointing") or {}
    lines += [f"| hottest point inside the object's box, {name} | {share:.1%} |" for name, share in pointing.items()]
    lines += ["", "| class | images | precision | recall |", "| --- | --- | --- | --- |"]
    row = "| {name} | {count} | {precision:.1%} | {recall:.1%} |"
    lines += [row.format(**figures) for figures in evaluation["per_class"]]
    return "\n".join(lines) + "\n"


_USE = """## How to use it

```python
from heedmap import from_pretrained, visualize

classifier = from_pretrained("THIS FOLDER OR ITS NAME ON THE HUB")
page = visualize(classifier, ["cat.jpg"], "maps").index
```

A map shows where the classifier read the image, not why it predicted the class.
"""
