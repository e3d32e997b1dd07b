"""One dataclass is the flags, the config file and the Python arguments; wrong values are refused by name."""

import dataclasses
import shlex
from pathlib import Path

import pytest
import yaml

from heedmap.cli.commands.train import Train
from heedmap.cli.parser import parse
from heedmap.config import MapOptions, Options, TrainingOptions, TrainOptions, known_options, read_config
from heedmap.errors import OptionError
from heedmap.workflows.train.train import plan_sentence

ODD = TrainOptions(
    data="my images",
    out="a run",
    root="r",
    download=False,
    image_size=96,
    validation=0.25,
    test=0.3,
    allow_unreadable=True,
    model="paper-vgg",
    attention="additive",
    attention_weights="sigmoid",
    head="indep",
    taps=("conv10", "conv13"),
    pretrained="weights.pt",
    recipe="fast",
    combine="learned",
    map_supervision=0.5,
    map_consistency=0.25,
    map_entropy=-0.125,
    epochs=3,
    batch_size=7,
    optimizer="adamw",
    learning_rate=0.001,
    weight_decay=0.0,
    schedule="cosine",
    label_smoothing=0.0,
    averaging=0.5,
    augment="none",
    shift=3,
    annotations="masks",
    annotation_format="masks",
    same_class=True,
    mask_kind="indexed",
    class_values=("cat=1", "a dog=2"),
    parts=False,
    flip=False,
    cutmix=0.5,
    patience=4,
    precision="float32",
    workers=0,
    memory=0.5,
    cache="off",
    cache_size=1.5,
    seed=11,
    track=("tensorboard", "csv"),
    save_every=5.0,
)


def test_a_combination_is_learned_from_masks_alone() -> None:
    with pytest.raises(OptionError, match=r"combine = 'learned'.*map_supervision"):
        TrainOptions(combine="learned")


def parsed(words: list[str]) -> TrainOptions:
    made = parse(Train, "train", words)
    return TrainOptions(**{field.name: getattr(made, field.name) for field in dataclasses.fields(TrainOptions)})


def config_file(folder: Path, **values: object) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_the_odd_options_leave_no_default_as_it_is() -> None:
    untouched = [f.name for f in dataclasses.fields(TrainOptions) if getattr(ODD, f.name) == f.default]
    assert untouched == []


def test_the_recorded_command_has_the_same_options() -> None:
    from heedmap.workflows.train.train import command_line

    words = shlex.split(command_line(ODD))
    assert words[:2] == ["heedmap", "train"]
    assert parsed(words[2:]) == ODD
    turned = dataclasses.replace(ODD, flip=True, download=True)
    assert parsed(shlex.split(command_line(turned))[2:]) == turned


def test_a_config_file_gives_the_same_options_as_flags(tmp_path: Path) -> None:
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(ODD).items()}
    assert TrainOptions(**read_config(config_file(tmp_path, **values))) == ODD
    dashed = {name.replace("_", "-"): value for name, value in values.items()}
    assert TrainOptions(**read_config(config_file(tmp_path, **dashed))) == ODD


def test_an_empty_config_file_is_all_defaults(tmp_path: Path) -> None:
    assert read_config(config_file(tmp_path)) == {}
    (tmp_path / "empty.yaml").write_text("")
    assert read_config(tmp_path / "empty.yaml") == {}


def test_a_whole_number_may_stand_for_a_fraction_but_not_the_other_way() -> None:
    assert known_options({"learning_rate": 1}) == {"learning_rate": 1.0}
    with pytest.raises(OptionError, match=r"epochs.*2\.5"):
        known_options({"epochs": 2.5})


def test_the_config_of_a_run_is_a_config_file(finished_run: Path) -> None:
    from heedmap.runs import Run

    assert TrainOptions(**read_config(finished_run / "config.yaml")) == Run.open(finished_run).options


def test_a_number_may_be_written_as_text_and_one_tap_without_brackets(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("learning_rate: 1e-3\nepochs: '3'\ntaps: stage3\n")
    assert read_config(path) == {"learning_rate": 0.001, "epochs": 3, "taps": ("stage3",)}
    assert TrainOptions(taps="stage3", out=tmp_path).taps == ("stage3",)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"atention": "dot"}, "'atention' in here. Did you mean 'attention'?"),
        ({3: 4}, "Unknown option 3 in here"),
        ({"epochs": "many"}, "'epochs' in here cannot be 'many'"),
        ({"epochs": True}, "'epochs' in here cannot be True"),
        ({"download": 1}, "'download' in here cannot be 1"),
        ({"taps": 2}, "'taps' in here cannot be 2"),
        ({"memory": "much"}, "'memory' in here cannot be 'much'"),
        ({"attention": ["dot"]}, r"'attention' in here cannot be \['dot'\]"),
        ({"head": None}, "'head' in here cannot be None"),
    ],
)
def test_a_wrong_key_or_kind_is_refused_by_name(values: dict[object, object], said: str) -> None:
    with pytest.raises(OptionError, match=said.replace("?", r"\?")):
        known_options(values, where=" in here")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("epochs", "3", "'epochs' cannot be '3'"),
        ("augment", "flip", "^[^,]*shift, crop, none.$"),
        ("attention", "dott", "Did you mean 'dot'"),
        ("attention_weights", "soft-max", "Did you mean 'softmax'"),
        ("track", ("csv", "wandbb"), "Did you mean 'wandb'"),
        ("taps", (), "taps"),
        ("data", "a\0b", "data"),
        ("epochs", 0, "from 1 to 100000"),
        ("image_size", 4, "from 8 to 2048"),
        ("learning_rate", float("nan"), "learning_rate = nan is out of range"),
        ("validation", 1.0, "from 0 to 0.9"),
        ("seed", -1, "seed = -1"),
    ],
)
def test_a_value_out_of_its_range_is_refused_by_name(name: str, value: object, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        TrainOptions(**{name: value})  # type: ignore[arg-type]


def test_each_group_checks_its_own_options_without_the_others() -> None:
    assert TrainingOptions(epochs=3).epochs == 3
    assert MapOptions(map_entropy=-1).map_entropy == -1.0
    for group in TrainOptions.__bases__:
        assert issubclass(group, Options)
        for other in TrainOptions.__bases__:
            fields = {field.name for field in dataclasses.fields(group)}
            assert other is group or not fields & {field.name for field in dataclasses.fields(other)}
    with pytest.raises(OptionError, match="epochs = 0"):
        TrainingOptions(epochs=0)


def test_the_plan_names_what_will_be_done() -> None:
    plan = plan_sentence(ODD, {"train": 1200, "test": 300}, ("conv10", "conv13"), 2_345_678)
    assert plan == (
        "paper-vgg, 2.35 M parameters, additive attention at conv10, conv13; 96 px, 3 epochs, batch size 7, "
        "adamw up to learning rate 0.001; images: train 1,200, test 300."
    )
    single = plan_sentence(dataclasses.replace(ODD, epochs=1, batch_size=1), {}, (), 1)
    assert "1 epoch, batch size 1," in single
