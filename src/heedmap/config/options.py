"""The options of training, in the groups that ``heedmap train --help`` shows, those of export, and YAML files of them.

Each group is a dataclass that checks its own fields; :class:`TrainOptions` inherits from all of them, so that command
line, YAML file and Python constructor are flat, and a function that needs a part takes the part's type. Where a default
is ``None`` the value is derived from the data (``heedmap.training.recipes.derive``) and written into ``config.yaml``.
"""

import contextlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from heedmap.config.checks import Options, Range, convert, kinds, option_hints
from heedmap.errors import OptionError, nearest

AttentionName = Literal["parametrised", "dot", "additive", "feature", "feature-dense", "none"]


@dataclass(frozen=True, kw_only=True)
class DataOptions(Options):
    """Which images, and how they are split.

    Attributes:
        data: A folder of images (DIR/train/CLASS/* with a test part beside it, or DIR/CLASS/*), digit-scenes, or a
            named set: cifar10, cifar100, svhn, stl10, mnist, fashion-mnist.
        root: Folder of the named sets.
        download: Fetch a named set that is not there yet.
        test: Share of each class set apart as the test part where the folder has none.
        seed: Seed of the split, the order, the augmentation and the weights.
    """

    data: str = "digit-scenes"
    root: str = "data"
    download: bool = True
    test: Annotated[float, Range(0.01, 0.9)] = 0.2
    seed: Annotated[int, Range(0, 2**31 - 1)] = 0


@dataclass(frozen=True, kw_only=True)
class ImageOptions(Options):
    """How images are read and augmented.

    Attributes:
        image_size: Side in pixels of the square that the network sees. Default: from the images.
        augment: Data augmentation: shift (small images), crop (photographs), none. Default: by size.
        shift: Largest shift in pixels, with augment shift. Default: an eighth of the side; a sixteenth for whitened.
        flip: Mirror images. Default: yes, but not for digits.
        cutmix: Share of steps that paste a rectangle of one image into another (Yun et al., 2019). Default: by
            augmentation.
        allow_unreadable: Continue when more than one image in fifty cannot be read.
    """

    image_size: Annotated[int | None, Range(8, 2048)] = None
    augment: Literal["shift", "crop", "none"] | None = None
    shift: Annotated[int | None, Range(0, 1024)] = None
    flip: bool | None = None
    cutmix: Annotated[float | None, Range(0, 1)] = None
    allow_unreadable: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Options):
    """What the classifier is made of.

    Attributes:
        model: compact, whitened, paper-vgg, paper-resnet, or any timm or torchvision name. Default: compact, but
            whitened for ten thousand and more images of up to 48 pixels.
        attention: How a position is scored, or feature (soft feature attention), or none (the matched control).
        attention_weights: How scores become weights. Default: softmax, and sigmoid for feature attention.
        head: How readouts become logits: concat, indep, or residual (added to a trained network's logits).
        taps: Names of the stages that attention reads. Default: the two deepest suitable ones.
        combine: How the taps' maps make one: root (of their product), or learned (weights, from masks, with
            map_supervision).
        pretrained: hub, or a file of weights (.safetensors, .pt); trained at a tenth of the learning rate. Default:
            random initialization.
    """

    model: str | None = None
    attention: AttentionName = "parametrised"
    attention_weights: Literal["softmax", "sigmoid"] | None = None
    head: Literal["concat", "indep", "residual"] = "concat"
    taps: tuple[str, ...] | None = None
    combine: Literal["root", "learned"] = "root"
    pretrained: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.taps == ():
            raise OptionError("taps is empty; leave it out for the default stages, or name some.")


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(Options):
    """How the weights are trained.

    Attributes:
        recipe: standard, or fast: two thirds of the epochs, most of them on smaller photographs.
        epochs: Epochs. Default: from the size of the training part and the recipe.
        batch_size: Images in a batch, over all processes. Default: by size and number of the images.
        optimizer: adamw, sgd (Nesterov momentum 0.9), or muon (orthogonalised momentum; for compact and whitened).
            Default: adamw; muon for whitened.
        learning_rate: Highest learning rate of the schedule. Default: by optimizer and batch size.
        weight_decay: Of matrices and kernels (not of biases and normalisations). Default: by optimizer and model.
        schedule: Learning-rate schedule.
        label_smoothing: Share of the target that is spread over all classes. Default: 0.1; 0.2 for whitened.
        averaging: Decay of the weights' moving average, which is evaluated and saved; 0: none. Default: a horizon of
            one eighth of all steps.
        validation: Share of the training part set apart to choose the best epoch by.
        patience: Stop when validation has not improved for this many epochs; 0 never stops early.
    """

    recipe: Literal["standard", "fast"] = "standard"
    epochs: Annotated[int | None, Range(1, 100_000)] = None
    batch_size: Annotated[int | None, Range(1, 1_000_000)] = None
    optimizer: Literal["sgd", "adamw", "muon"] | None = None
    learning_rate: Annotated[float | None, Range(1e-9, 1e3)] = None
    weight_decay: Annotated[float | None, Range(0, 10)] = None
    schedule: Literal["one-cycle", "cosine"] = "one-cycle"
    label_smoothing: Annotated[float | None, Range(0, 0.9)] = None
    averaging: Annotated[float | None, Range(0, 0.999999)] = None
    validation: Annotated[float, Range(0, 0.9)] = 0.1
    patience: Annotated[int, Range(0, 100_000)] = 0


@dataclass(frozen=True, kw_only=True)
class MapOptions(Options):
    """What the attention maps are trained to be.

    Attributes:
        map_supervision: Weight of a loss that spreads the attention over the objects' masks, where these are known.
        map_consistency: Weight of a loss that compares the map of a mirrored crop with the mirrored crop of the map; a
            second forward pass.
        map_entropy: Weight of a loss that narrows the maps; a negative one spreads them.
    """

    map_supervision: Annotated[float, Range(0, 1000)] = 0.0
    map_consistency: Annotated[float, Range(0, 1000)] = 0.0
    map_entropy: Annotated[float, Range(-1000, 1000)] = 0.0


@dataclass(frozen=True, kw_only=True)
class ObjectOptions(Options):
    """Where the objects in the images are, to train or evaluate maps by.

    Attributes:
        annotations: A folder of masks, VOC or YOLO files, a COCO JSON, or a CSV of boxes. Default: what the data
            includes.
        annotation_format: Format of the annotations. Default: detected from the files.
        same_class: Use only objects of the image's own class, by name; else every object counts.
        mask_kind: How the values of mask files are read. Default: detected and reported.
        class_values: The value of each class in mask files, such as cat=1 dog=2; others are then no objects.
        parts: Where maps are evaluated, give each connected part of a mask a box; else one for all pixels of a value.
    """

    annotations: str | None = None
    annotation_format: Literal["masks", "coco", "voc", "yolo", "csv"] | None = None
    same_class: bool = False
    mask_kind: Literal["binary", "indexed", "grey"] | None = None
    class_values: tuple[str, ...] = ()
    parts: bool = True


@dataclass(frozen=True, kw_only=True)
class MachineOptions(Options):
    """What the machine does: arithmetic, threads, memory.

    Attributes:
        precision: Arithmetic of the network. auto takes bf16 where the hardware computes in it.
        workers: Threads that decode images. Default: the number of cores.
        memory: Gigabytes of decoded images in memory; larger sets stream from disk. Default: a quarter of what is free.
        cache: Folder for decoded images of later runs, or off. Default: $HEEDMAP_CACHE, or the user's cache folder.
        cache_size: Gigabytes of decoded images in that folder, of all sets together.
    """

    precision: Literal["auto", "bf16", "float32"] = "auto"
    workers: Annotated[int | None, Range(0, 1024)] = None
    memory: Annotated[float | None, Range(0, 1e6)] = None
    cache: str | None = None
    cache_size: Annotated[float, Range(0, 1e6)] = 20.0


@dataclass(frozen=True, kw_only=True)
class RunOptions(Options):
    """What is written while training.

    Attributes:
        out: The run's folder, new or empty. Default: the next free runs/DATA-MODEL-ATTENTION-NUMBER.
        save_every: Seconds between checkpoints; one also follows an epoch a hundred times as long as writing it takes.
        track: Trackers that receive the metrics too: tensorboard and csv write into the run, wandb and mlflow where
            these are set up to.
    """

    out: str | None = None
    save_every: Annotated[float, Range(0, 1e9)] = 60.0
    track: tuple[Literal["tensorboard", "wandb", "mlflow", "csv"], ...] = ()


# Python takes the fields of the last base first.
@dataclass(frozen=True, kw_only=True)
class TrainOptions(
    MachineOptions, ObjectOptions, MapOptions, TrainingOptions, ModelOptions, ImageOptions, RunOptions, DataOptions
):
    """All options of ``heedmap train``; the groups that it inherits from describe them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.combine == "learned" and not self.map_supervision:
            raise OptionError("combine = 'learned' learns from masks; give map_supervision too, or leave it at root.")


@dataclass(frozen=True, kw_only=True)
class ExportOptions(Options):
    """What an exported file contains.

    Attributes:
        to: The format: onnx, or torch-export for ``torch.export.load``.
        include: Maps of a target class that are computed inside the file: grad_cam, saliency.
        int8: Weights in eight bits: smaller, and close rather than equal (ONNX only).
    """

    to: Literal["onnx", "torch-export"] = "onnx"
    include: tuple[Literal["grad_cam", "saliency"], ...] = ()
    int8: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.int8 and self.to != "onnx":
            raise OptionError("int8 is for ONNX files only; leave it out, or export to onnx.")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file of ``name: value`` lines (an empty one has none), or raise an OptionError."""
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"Config file {path} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise OptionError(f"Config file {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict | None):
        raise OptionError(f"Config file {path} must hold 'name: value' lines; it holds a {type(content).__name__}.")
    return content or {}


def read_config(path: str | Path) -> dict[str, Any]:
    """Read a YAML file of options, such as a run's config.yaml; errors as of :func:`known_options`."""
    content = read_yaml(path)
    if "schema" in content and isinstance(content.get("options"), dict):  # a run's config.yaml: train that again
        content = content["options"]
    if isinstance(content.get("variants"), dict):
        raise OptionError(f"{path} is an experiment with variants: take `heedmap compare --config {path}`.")
    return known_options(content, where=f" in {path}")


def known_options(values: Mapping[Any, Any], where: str = "") -> dict[str, Any]:
    """Return ``values`` by option of training (written with - or _) in the option's type.

    Raises:
        OptionError: an unknown name, with the nearest right one, or a value of the wrong type.
    """
    hints = option_hints(TrainOptions)
    converted = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in hints:
            raise OptionError(f"Unknown option {key!r}{where}.{nearest(name, hints)}")
        for kind in kinds(hints[name]):
            if kind in (int, float) and isinstance(value, str):  # YAML reads 1e-3, without a point, as text
                with contextlib.suppress(ValueError):
                    value = kind(value)
        converted[name] = convert(name, value, hints[name], where)
    return converted


def free_name(parent: Path, stem: str) -> Path:
    """Return the first of ``stem-1``, ``stem-2``, ... in ``parent`` that does not exist."""
    return next(path for number in itertools.count(1) if not (path := parent / f"{stem}-{number}").exists())
