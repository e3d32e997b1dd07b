"""Share a classifier the way Hugging Face's hub does: a folder with config.json, model.safetensors and README.md.

    save_pretrained(run, "cats-and-dogs")
    push_to_hub(run, "me/cats-and-dogs")
    classifier = from_pretrained("me/cats-and-dogs")

The card, README.md, is written from the run's own report: what it was trained on, what it came to, what its maps are.
No pickle is ever read, and none may lie in the folder either: who finds one there would load it with something else.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from heedmap._version import __version__
from heedmap.errors import ModelError
from heedmap.files import disk, refuse_pickle, write_whole
from heedmap.models.architecture import Architecture
from heedmap.models.classifier import AttentionClassifier
from heedmap.models.factory import build_classifier
from heedmap.runs import EVALUATION, Run

__all__ = ["from_pretrained", "push_to_hub", "save_pretrained"]

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
SCHEMA = 1
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")


def save_pretrained(model: Run | AttentionClassifier, folder: str | Path) -> Path:
    """Write a classifier into a folder that :func:`from_pretrained` and the hub understand.

    Args:
        model: a finished run, or a classifier that :func:`heedmap.build_classifier` made or :func:`from_pretrained`
            read; a classifier alone has no measured figures, and its card says so.
        folder: made where it is not there; the three files of an earlier saving are replaced, others stay.

    Returns:
        The folder.

    Raises:
        ModelError: neither a run nor a classifier; a classifier around a network of your own, which cannot be built
            again from its description; a file of one of these names in the folder that heedmap did not write.
        RunError: the folder cannot be written.
    """
    if not isinstance(model, Run | AttentionClassifier):  # the path of a run, most likely
        raise ModelError(
            f"save_pretrained takes a run or a classifier, not {model!r}; open a run's folder with heedmap.Run.open."
        )
    classifier = model.classifier() if isinstance(model, Run) else model
    architecture = model.architecture if isinstance(model, Run) else _architecture(classifier)
    out = Path(folder)
    config = {**_version(), "architecture": asdict(architecture)}
    tensors = {name: values.detach().cpu().contiguous() for name, values in classifier.state_dict().items()}
    with disk(out):
        _refuse_foreign(out)
        out.mkdir(parents=True, exist_ok=True)
        # The mark of the weights comes before them, so that who was interrupted can go on.
        write_whole(out / CONFIG, json.dumps(config, indent=1, ensure_ascii=False).encode())
        write_whole(out / WEIGHTS, save(tensors, {"format": "pt"}))
        write_whole(out / CARD, _card(architecture, model if isinstance(model, Run) else None).encode())
    return out


def from_pretrained(
    source: str | Path, *, revision: str | None = None, local_files_only: bool = False
) -> AttentionClassifier:
    """Read a classifier that :func:`save_pretrained` wrote, in eval mode; its answers are the same bit for bit.

    Args:
        source: a folder, or the hub's name of one, such as ``me/cats-and-dogs``. A folder that is there wins.
        revision: branch, tag or commit on the hub.
        local_files_only: take what was fetched from the hub before, and ask nobody.

    Raises:
        ModelError: no such folder or name, the hub out of reach, a pickle in the folder, a file that is missing,
            damaged, or from a newer heedmap.
    """
    folder = Path(source)
    if not folder.is_dir():
        folder = _fetched(str(source), revision, local_files_only)
    _refuse_pickles(folder)
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
    """Put a classifier on the hub, with the account that ``hf auth login`` or HF_TOKEN names.

    Args:
        model: see :func:`save_pretrained`.
        name: where to, such as ``me/cats-and-dogs``; made where it is not there.
        private: for your eyes only, where it is made.
        message: of the commit.

    Returns:
        The commit's address.

    Raises:
        ModelError: huggingface_hub is missing, the hub is out of reach, or it refuses.
    """
    hub = _hub()
    with tempfile.TemporaryDirectory() as folder, _asking(hub, name):
        save_pretrained(model, folder)
        api = hub.HfApi(library_name="heedmap")
        api.create_repo(repo_id=name, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=name, folder_path=folder, commit_message=message or "A classifier with attention maps, by heedmap"
        )
    return str(done.commit_url)


def _refuse_foreign(folder: Path) -> None:
    """Look for files that would be replaced although another hand wrote them; config.json vouches for the weights.

    Raises:
        ModelError: there is one.
    """
    config, card = folder / CONFIG, folder / CARD
    ours = {CONFIG: _is_our_config(config), WEIGHTS: _is_our_config(config), CARD: _is_our_card(card)}
    foreign = [name for name, is_ours in ours.items() if (folder / name).exists() and not is_ours]
    if foreign:
        raise ModelError(
            f"{folder / foreign[0]} was not written by heedmap.save_pretrained and would be lost; name another folder, "
            "or move the file away."
        )


def _is_our_config(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("library_name") == "heedmap"


def _is_our_card(path: Path) -> bool:
    """Whether the part between the dashes, which people may have added to, names heedmap."""
    try:
        before, _, rest = path.read_text(encoding="utf-8").partition("---\n")
    except (OSError, ValueError):
        return False
    return not before and "library_name: heedmap" in rest.partition("\n---")[0].splitlines()


def _version() -> dict[str, Any]:
    return {"library_name": "heedmap", "schema": SCHEMA, "heedmap": __version__}


def _architecture(classifier: AttentionClassifier) -> Architecture:
    """The description that the classifier was built from.

    Raises:
        ModelError: it was not built from one.
    """
    if classifier.architecture is None:
        raise ModelError(
            "This classifier is built around a network of your own and cannot be made again from a description; keep "
            "your code, and its state_dict as safetensors."
        )
    return classifier.architecture


def _read_architecture(folder: Path) -> Architecture:
    path = folder / CONFIG
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise ModelError(f"{folder} has no {CONFIG} that can be read; heedmap.save_pretrained writes one.") from None
    except ValueError as error:
        raise ModelError(f"{path} is damaged: {error}.") from None
    if not isinstance(content, dict) or content.get("library_name") != "heedmap":
        raise ModelError(f"{path} describes no classifier of heedmap.")
    if content["schema"] > SCHEMA:
        raise ModelError(f"{path} was written by heedmap {content['heedmap']}, a newer one; install that.")
    try:
        part = content["architecture"]
        taps = tuple(part["taps"]) if part["taps"] else None
        return Architecture(**{**part, "taps": taps, "classes": tuple(part["classes"])})
    except (KeyError, TypeError) as error:
        raise ModelError(f"{path} describes no architecture: {error}.") from None


def _refuse_pickles(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in PICKLES:
            raise ModelError(
                f"{path} may be a pickle, which can run code when loaded; a folder that holds one is not read. "
                f"Remove it; heedmap needs {CONFIG} and {WEIGHTS} only."
            )


def _hub() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors  # the package gives its submodules only once they are imported
    except ImportError:
        raise ModelError("The hub needs huggingface_hub, which is missing: pip install 'heedmap[hub]'") from None
    return huggingface_hub


def _fetched(name: str, revision: str | None, local_files_only: bool) -> Path:
    """The folder that the hub's files lie in."""
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise ModelError(f"There is no folder {name}.")
    hub = _hub()
    with _asking(hub, name, local_files_only):
        listed = [] if local_files_only else hub.HfApi(library_name="heedmap").list_repo_files(name, revision=revision)
        for each in listed:  # before anything is fetched
            if Path(each).suffix.lower() in PICKLES:
                raise ModelError(
                    f"{name} holds {each}, which may be a pickle and run code when loaded; it is not read."
                )
        found = hub.snapshot_download(
            name,
            revision=revision,
            local_files_only=local_files_only,
            allow_patterns=[CONFIG, WEIGHTS, CARD],
            library_name="heedmap",
        )
    return Path(found)


@contextmanager
def _asking(hub: Any, name: str, local_files_only: bool = False) -> Iterator[None]:
    """Turn what the hub can answer into one line.

    Raises:
        ModelError: no such name, nothing kept here, no permission, or out of reach.
    """
    errors = hub.errors
    try:
        yield
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        raise ModelError(f"The hub has no {name!r}, or it is private; and there is no such folder here.") from None
    except errors.HFValidationError as error:
        raise ModelError(f"{name!r} is neither a folder here nor a name on the hub: {error}") from None
    except errors.LocalEntryNotFoundError:
        way = "fetch it once without local_files_only" if local_files_only else "try again with a connection"
        raise ModelError(f"{name!r} is not among the files kept here; {way}.") from None
    except errors.HfHubHTTPError as error:
        raise ModelError(f"The hub refuses {name!r}: {str(error).splitlines()[0]}") from None
    except ModelError:
        raise
    except Exception as error:  # whichever HTTP library the hub's package uses has errors of its own
        if not isinstance(error, OSError) and not type(error).__module__.startswith(("httpx", "httpcore", "requests")):
            raise
        raise ModelError(
            f"The hub is out of reach for {name!r} ({type(error).__name__}); name a folder, or take what was fetched "
            "before with local_files_only=True."
        ) from None


def _card(architecture: Architecture, run: Run | None) -> str:
    """README.md: what the hub reads between the dashes, then what a person wants to know."""
    title = f"{architecture.model} with {architecture.attention} attention"
    evaluation = run.read_json(EVALUATION) if run else None
    front: dict[str, Any] = {
        "library_name": "heedmap",
        "pipeline_tag": "image-classification",
        "tags": ["heedmap", "attention", "image-classification"],
    }
    if evaluation and run:
        front["model-index"] = [_index(title, run, evaluation)]
    import yaml

    head = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    parts = [f"---\n{head}---\n", f"# {title}\n", _made_of(architecture)]
    parts.append(_measured(run, evaluation) if run and evaluation else "Nothing was measured: it came without a run.\n")
    return "\n".join([*parts, _USE])


def _index(title: str, run: Run, evaluation: dict[str, Any]) -> dict[str, Any]:
    """The figures as the hub's own listing wants them."""
    data = Path(run.options.data).name
    metrics = [
        {"type": "accuracy", "name": "top-1", "value": round(evaluation["top1"], 6)},
        {"type": "ece", "name": "expected calibration error", "value": round(evaluation["ece"], 6)},
    ]
    dataset = {"type": data, "name": data, "split": evaluation["part"]}
    task = {"type": "image-classification"}
    return {"name": title, "results": [{"task": task, "dataset": dataset, "metrics": metrics}]}


def _made_of(architecture: Architecture) -> str:
    side = architecture.image_size
    lines = [
        f"- images: the centred square at {side} x {side}, RGB in [0, 1]; the normalisation is inside",
        f"- classes: {', '.join(architecture.classes)}",
        f"- attention: {architecture.attention}, head {architecture.head}"
        + (f", at {', '.join(architecture.taps)}" if architecture.taps else ""),
    ]
    return "\n".join(lines) + "\n"


def _measured(run: Run, evaluation: dict[str, Any]) -> str:
    """The figures of the report."""
    options = run.options
    lines = [
        "## What it came to\n",
        f"Trained on {Path(options.data).name} for {options.epochs} epochs with seed {options.seed}. "
        f"Predictions once, on {evaluation['count']:,} images of the part {evaluation['part']}.\n",
        "| measure | value |",
        "| --- | --- |",
        f"| top-1 | {evaluation['top1']:.2%} |",
        f"| calibration error (ECE) | {evaluation['ece']:.3f} |",
        f"| negative log-likelihood | {evaluation['nll']:.3f} |",
    ]
    pointing = evaluation.get("pointing") or {}
    lines += [f"| hottest point inside the object's box, {name} | {share:.1%} |" for name, share in pointing.items()]
    lines += ["", "| class | images | precision | recall |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {row['name']} | {row['count']} | {row['precision']:.1%} | {row['recall']:.1%} |"
        for row in evaluation["per_class"]
    ]
    return "\n".join(lines) + "\n"


_USE = """## How to use it

```python
from heedmap import from_pretrained, visualize

classifier = from_pretrained("THIS FOLDER OR ITS NAME ON THE HUB")
page = visualize(classifier, ["cat.jpg"], "maps").index
```

A map shows where the classifier read the image, not why it answered as it did.
"""
