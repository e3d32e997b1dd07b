"""What other people's code and scripts hold on to: names and flags. A change here is a change for them."""

import dataclasses
import inspect
import subprocess
import sys

import heedmap
from heedmap.cli.main import COMMANDS
from heedmap.config import TrainOptions

NAMES = [
    "Architecture",
    "AttentionClassifier",
    "AttentionMap",
    "ExportOptions",
    "HeedmapError",
    "OnnxClassifier",
    "Output",
    "Run",
    "TrainOptions",
    "__version__",
    "attach",
    "audit",
    "build_classifier",
    "combined_map",
    "compare",
    "evaluate",
    "explain",
    "export",
    "fit",
    "from_pretrained",
    "open_data",
    "predict",
    "push_to_hub",
    "save_pretrained",
    "train",
    "visualize",
]

OPTIONS = (
    "data root download test seed out save_every track image_size augment shift flip cutmix allow_unreadable model "
    "attention attention_weights head taps combine pretrained recipe epochs batch_size optimizer learning_rate "
    "weight_decay schedule label_smoothing averaging validation patience map_supervision map_consistency map_entropy "
    "annotations annotation_format same_class mask_kind class_values parts precision workers memory cache cache_size"
)
FIELDS = {
    "demo": "out seed",
    "train": f"{OPTIONS} config resume",
    "visualize": "run images out query method target layer scale batch_size device overwrite",
    "predict": "run images out threshold probabilities maps batch_size part_size workers device precision",
    "evaluate": "annotations annotation_format same_class mask_kind class_values parts run data suite method transfer "
    "control flips limit deletion_baseline independent out device precision workers cache root download",
    "compare": f"{OPTIONS} variants seeds parallel config budget resume background",
    "export": "to include int8 run out images overwrite",
    "serve": "source host port allow_host max_bytes max_pixels timeout waiting batch_size batch_wait device",
    "explore": "run images with_ host port allow_host browser device",
    "audit": "data root download test seed depth json show",
    "pack": "data out shard_size test allow_unreadable seed",
    "list": "what match",
}


def test_all_is_what_was_promised() -> None:
    assert heedmap.__all__ == NAMES
    assert set(dir(heedmap)) == set(NAMES)


def test_every_public_name_can_be_had_and_says_what_it_is() -> None:
    for name in set(NAMES) - {"__version__"}:
        thing = getattr(heedmap, name)
        assert inspect.isclass(thing) or inspect.isfunction(thing), name
        assert inspect.getdoc(thing), name


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    assert not hasattr(heedmap, "Trainer")


def test_the_commands_and_their_options_are_as_promised() -> None:
    real = {name: " ".join(field.name for field in dataclasses.fields(command)) for name, command in COMMANDS.items()}
    assert real == FIELDS


def test_train_takes_every_option_there_is() -> None:
    assert {field.name for field in dataclasses.fields(TrainOptions)} == set(FIELDS["train"].split()) - {
        "config",
        "resume",
    }


def test_importing_heedmap_and_asking_for_help_load_nothing_heavy() -> None:
    script = (
        "import sys, heedmap\n"
        "from heedmap.cli.main import COMMANDS, main\n"
        "main([])\n"
        "for name in COMMANDS: main([name, '--help'])\n"
        "heavy = {'torch', 'numpy', 'PIL', 'torchvision', 'timm', 'accelerate', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "heedmap train [DATA]" in done.stdout


def test_the_names_are_functions_whatever_was_imported_before() -> None:
    script = (
        "import heedmap.workflows.train.train, heedmap.workflows.visualize, heedmap.workflows.evaluate.evaluate\n"
        "from heedmap import evaluate, train, visualize\n"
        "from heedmap.workflows.evaluate.evaluate import Evaluation\n"
        "assert callable(evaluate) and callable(train) and callable(visualize) and callable(heedmap.train)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
