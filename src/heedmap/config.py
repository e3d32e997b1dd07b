"""The options of training: one dataclass is the command's flags, the config file and the Python argument.

Where a default is ``None`` the value is derived from the data (``train.derive``), and what was derived is written into
the run's ``config.yaml``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import numbers
import os
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from heedmap.errors import OptionError, nearest

AttentionName = Literal["parametrised", "dot", "additive", "feature", "feature-dense", "none"]


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Everything that ``heedmap train`` can be told.

    Attributes:
        data: A folder of images (DIR/train/CLASS/* with a test part beside it, or DIR/CLASS/*), ``digit-scenes``, or
            a named set: cifar10, cifar100, svhn, stl10, mnist, fashion-mnist.
        out: The run's folder; made, and refused where something is in it already. Default: the next free
            runs/DATA-MODEL-ATTENTION-NUMBER.
        root: Where named sets lie or are put.
        download: Fetch a named set that is not there yet.
        image_size: Side in pixels of the square that the network sees. Default: from the images.
        validation: Share of the training part kept apart to choose the weights by.
        test: Share kept apart as the test part where the folder has none.
        allow_unreadable: Go on when more than one image in fifty cannot be read.
        model: compact, whitened, paper-vgg, paper-resnet, or any timm or torchvision name. Default: compact, but
            whitened for ten thousand and more images of up to 48 pixels.
        attention: How the score of a place is made, or feature (soft feature attention), or none (the matched control).
        attention_weights: How scores become weights. Default: softmax, and sigmoid for feature attention.
        head: How readouts become logits: concat, indep, or residual (added to an already trained network's own answer).
        taps: Names of the stages that attention reads. Default: the two deepest that suit.
        pretrained: hub, or a file of weights (.safetensors, .pt); at a tenth of the rate. Default: start anew.
        recipe: standard, or fast: two thirds of the passes, and photographs are seen smaller in most of them.
        epochs: Passes over the training part. Default: from its size and the recipe.
        batch_size: Images a step, over all processes. Default: by size and number of the images.
        optimizer: adamw, sgd (Nesterov momentum 0.9), or muon (orthogonalised momentum; for compact and whitened).
            Default: adamw; muon for whitened.
        learning_rate: Highest learning rate of the schedule. Default: by optimizer and batch size.
        weight_decay: Decay of weight matrices and kernels (not of biases and normalisations). Default: by optimizer and
            model.
        schedule: Course of the learning rate.
        label_smoothing: Share of the target that is spread over all classes. Default: 0.1; 0.2 for whitened.
        averaging: Decay of the weights' moving average, which is what is evaluated and kept; 0 switches it off.
            Default: a horizon of one eighth of all steps.
        augment: How images are varied: shift (small images), crop (photographs), none. Default: by size.
        shift: Largest shift in pixels, where images are shifted. Default: an eighth of the side; a sixteenth for
            whitened, which passes over the images only a few times.
        flip: Mirror images. Default: yes, but not for digits.
        cutmix: Share of steps that paste a rectangle of one image into another (Yun et al., 2019). Default: by
            augmentation.
        combine: How the taps' maps make the combined one: root (of their product), or learned (from masks, by
            map_supervision: how much each tap counts).
        annotations: Where the objects in a folder's images are: a folder of masks, VOC or YOLO files, a COCO JSON, or
            a CSV of boxes; for map_supervision, and for compare to evaluate the maps by. Default: what the data brings.
        annotation_format: How the annotations are written. Default: told from the files.
        same_class: Take only objects of the image's own class, by name; else every object counts.
        mask_kind: How the values of mask files are read. Default: told from them, and said.
        class_values: The value that stands for each class in mask files, such as cat=1 dog=2; others are then no
            objects.
        parts: Give each connected part of a mask a box of its own, where maps are evaluated; else one for all pixels of
            a value.
        map_supervision: Weight of a term that spreads the attention over the objects' masks, where these are known.
        map_consistency: Weight of a term that asks a mirrored cut of the image for the mirrored cut of the map; a
            second forward pass.
        map_entropy: Weight of a term that narrows the maps; below zero it spreads them.
        patience: Stop when validation has not improved for this many epochs; 0 never stops early.
        precision: Arithmetic of the network. auto takes bf16 where the machine computes in it.
        workers: Threads that decode images. Default: the machine's cores.
        memory: Gigabytes of decoded images to keep in memory; a larger set streams from disk. Default: a quarter of
            what is free.
        cache: Folder where decoded images are kept for the next run, or off. Default: $HEEDMAP_CACHE, or the user's
            cache folder.
        cache_size: Gigabytes that the decoded images there may take, of all sets together.
        seed: Of the split, the order, the views and the weights.
        tensorboard: Write TensorBoard events into the run too.
        save_every: Seconds between checkpoints; one is also written after an epoch that lasted a hundred times as long
            as writing it takes.
    """

    data: str = "digit-scenes"
    out: str | None = None
    root: str = "data"
    download: bool = True
    image_size: int | None = None
    validation: float = 0.1
    test: float = 0.2
    allow_unreadable: bool = False
    model: str | None = None
    attention: AttentionName = "parametrised"
    attention_weights: Literal["softmax", "sigmoid"] | None = None
    head: Literal["concat", "indep", "residual"] = "concat"
    taps: tuple[str, ...] | None = None
    pretrained: str | None = None
    recipe: Literal["standard", "fast"] = "standard"
    epochs: int | None = None
    batch_size: int | None = None
    optimizer: Literal["sgd", "adamw", "muon"] | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None
    schedule: Literal["one-cycle", "cosine"] = "one-cycle"
    label_smoothing: float | None = None
    averaging: float | None = None
    augment: Literal["shift", "crop", "none"] | None = None
    shift: int | None = None
    flip: bool | None = None
    cutmix: float | None = None
    combine: Literal["root", "learned"] = "root"
    annotations: str | None = None
    annotation_format: Literal["masks", "coco", "voc", "yolo", "csv"] | None = None
    same_class: bool = False
    mask_kind: Literal["binary", "indexed", "grey"] | None = None
    class_values: tuple[str, ...] = ()
    parts: bool = True
    map_supervision: float = 0.0
    map_consistency: float = 0.0
    map_entropy: float = 0.0
    patience: int = 0
    precision: Literal["auto", "bf16", "float32"] = "auto"
    workers: int | None = None
    memory: float | None = None
    cache: str | None = None
    cache_size: float = 20.0
    seed: int = 0
    tensorboard: bool = False
    save_every: float = 60.0

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant.

        Raises:
            OptionError: a value of the wrong kind, out of its range, or not among the choices.
        """
        hints = typing.get_type_hints(TrainOptions)
        for name, hint in hints.items():  # a script may hand over anything
            object.__setattr__(self, name, _typed(name, getattr(self, name), hint, ""))
        for name in (
            "combine",
            "attention",
            "attention_weights",
            "head",
            "schedule",
            "augment",
            "precision",
            "optimizer",
            "recipe",
            "annotation_format",
            "mask_kind",
        ):
            _check_choice(name, getattr(self, name), hints[name])
        for name, (low, high) in _RANGES.items():
            check_range(name, getattr(self, name), low, high)
        if self.combine == "learned" and not self.map_supervision:
            raise OptionError("combine = 'learned' learns from masks; give map_supervision too, or leave it at root.")
        if self.taps == ():
            raise OptionError("taps names none; leave it out for those that are chosen, or name some.")
        for name in hints:
            if isinstance(value := getattr(self, name), str) and "\0" in value:
                raise OptionError(f"{name} = {value!r} holds a zero byte, which no name of a file can.")


_RANGES: dict[str, tuple[float, float]] = {
    "image_size": (8, 2048),
    "validation": (0, 0.9),
    "test": (0.01, 0.9),
    "epochs": (1, 100_000),
    "batch_size": (1, 1_000_000),
    "learning_rate": (1e-9, 1e3),
    "weight_decay": (0, 10),
    "label_smoothing": (0, 0.9),
    "averaging": (0, 0.999999),
    "shift": (0, 1024),
    "cutmix": (0, 1),
    "map_supervision": (0, 1000),
    "map_consistency": (0, 1000),
    "map_entropy": (-1000, 1000),
    "patience": (0, 100_000),
    "workers": (0, 1024),
    "memory": (0, 1e6),
    "cache_size": (0, 1e6),
    "seed": (0, 2**31 - 1),
    "save_every": (0, 1e9),
}


def check_range(name: str, value: float | None, low: float, high: float) -> None:
    """Check that a number lies from ``low`` to ``high``; None is no number yet.

    Raises:
        OptionError: it does not.
    """
    if value is not None and not (low <= value <= high):
        raise OptionError(f"{name} = {value!r} is out of range: give a value from {_plain(low)} to {_plain(high)}.")


def _plain(bound: float) -> str:
    return str(int(bound)) if bound == int(bound) else f"{bound:g}"


def _check_choice(name: str, value: Any, hint: Any) -> None:
    words = _words(hint)
    if value is not None and value not in words:
        raise OptionError(f"{name} = {value!r} is not one of {', '.join(words)}.{nearest(str(value), words)}")


def _words(hint: Any) -> list[str]:
    """The choices of a ``Literal``, or of one that may be None too."""
    choices = [c for part in (hint, *typing.get_args(hint)) for c in typing.get_args(part) or (part,)]
    return [c for c in dict.fromkeys(choices) if isinstance(c, str)]


def counted(count: int, noun: str) -> str:
    """Number and noun, as ``1 epoch`` or ``2,000 epochs``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def split_names(words: Iterable[str]) -> tuple[str, ...]:
    """Names given with spaces or commas between them."""
    return tuple(name.strip() for word in words for name in word.split(",") if name.strip())


def wanted_names(option: str, words: Iterable[str]) -> tuple[str, ...]:
    """The same of an option, which says something where it is given.

    Raises:
        OptionError: words without any name, such as of a shell's empty variable.
    """
    words = tuple(words)
    names = split_names(words)
    if words and not names:
        raise OptionError(f"--{option} names nothing; leave it out, or name something.")
    return names


def class_values(words: Iterable[str]) -> dict[str, int] | None:
    """Classes and the whole numbers that stand for them, given as ``cat=1``; None where none are given.

    Raises:
        OptionError: a word of another form, or a class given twice.
    """
    values: dict[str, int] = {}
    for word in words:
        name, _, number = word.rpartition("=")
        if not name or not number.isdecimal() or name in values:
            raise OptionError(f"class_values cannot hold {word!r}; give each class once, such as cat=1.")
        values[name] = int(number)
    return values or None


def plan_sentence(options: TrainOptions, sizes: Mapping[str, int], taps: tuple[str, ...], parameters: int) -> str:
    """Say in one line what a training with these options, all of them derived, is going to do."""
    parts = ", ".join(f"{name} {count:,}" for name, count in sizes.items())
    epochs = counted(options.epochs or 0, "epoch")
    attention = "no attention (the control)" if options.attention == "none" else f"{options.attention} attention"
    return (
        f"{options.model}, {parameters / 1e6:.2f} M parameters, {attention} at {', '.join(taps)}; "
        f"{options.image_size} px, {epochs}, batch size {options.batch_size}, "
        f"{options.optimizer} up to learning rate {options.learning_rate:.3g}; images: {parts}."
    )


def read_config(path: str | Path) -> dict[str, Any]:
    """Read a YAML file of options; keys may be written with - or _. A run's config.yaml is one too.

    Raises:
        OptionError: no such file, not a mapping, a key that no option has, or a value of the wrong kind.
    """
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"Config file {path} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise OptionError(f"Config file {path} is not YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise OptionError(f"Config file {path} must hold 'name: value' lines; it holds a {type(content).__name__}.")
    if "schema" in content and isinstance(content.get("options"), dict):  # a run's config.yaml: train that again
        content = content["options"]
    if isinstance(content.get("variants"), dict):
        raise OptionError(f"{path} is an experiment with variants: take `heedmap compare --config {path}`.")
    return known_options(content, where=f" in {path}")


def known_options(values: dict[Any, Any], where: str = "") -> dict[str, Any]:
    """Return ``values`` under the options' names, each checked and turned into the option's type.

    Raises:
        OptionError: an unknown name, with the nearest right one, or a value of the wrong kind.
    """
    hints = typing.get_type_hints(TrainOptions)
    fields = {field.name for field in dataclasses.fields(TrainOptions)}
    checked = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in fields:
            raise OptionError(f"Unknown option {key!r}{where}.{nearest(name, fields)}")
        checked[name] = _typed(name, _number(value, hints[name]), hints[name], where)
    return checked


def _number(value: Any, hint: Any) -> Any:
    """The number that a text means where one is wanted: YAML reads 1e-3, without a point, as text."""
    for kind in (hint, *typing.get_args(hint)):
        if kind in (int, float) and isinstance(value, str):
            with contextlib.suppress(ValueError):
                return kind(value)
    return value


def _typed(name: str, value: Any, hint: Any, where: str) -> Any:
    kinds = typing.get_args(hint) if type(None) in typing.get_args(hint) else (hint,)
    if value is None and type(None) in kinds:
        return None
    (kind,) = [each for each in kinds if each is not type(None)]
    if typing.get_origin(kind) is tuple and isinstance(value, str | list | tuple):
        return (value,) if isinstance(value, str) else tuple(str(item) for item in value)
    if typing.get_origin(kind) is Literal and isinstance(value, str):
        return value
    if kind is str and isinstance(value, str | os.PathLike):
        return os.fspath(value)
    if kind is bool and isinstance(value, bool):
        return value
    wanted = {int: numbers.Integral, float: numbers.Real}.get(kind)
    if wanted and not isinstance(value, bool) and isinstance(value, wanted):
        return kind(value)
    raise OptionError(f"Option {name!r}{where} cannot be {value!r}; give {_wanted(kind)}.")


def _wanted(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return f"one of {', '.join(_words(kind))}"
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return plain.get(kind, "a list of names")


def free_name(parent: Path, stem: str) -> Path:
    """The first of ``stem-1``, ``stem-2``, ... in ``parent`` that does not exist."""
    number = 1
    while (parent / f"{stem}-{number}").exists():
        number += 1
    return parent / f"{stem}-{number}"
