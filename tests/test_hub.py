"""What is saved, pushed and pulled answers the same, bit for bit; and no pickle comes in that way."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import nn

from heedmap import Run, attach, from_pretrained, push_to_hub, save_pretrained
from heedmap.errors import HeedmapError, ModelError
from heedmap.models.architecture import Architecture
from heedmap.models.classifier import AttentionClassifier
from heedmap.models.factory import build_classifier
from hub_standin import COMMIT, hub_standin

huggingface_hub = pytest.importorskip("huggingface_hub")


def assert_same(one: AttentionClassifier, other: AttentionClassifier) -> None:
    images = torch.rand(3, 3, one.image_size, one.image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first, second = one.eval()(images), other(images)
    assert torch.equal(first.logits, second.logits)
    assert list(first.attention) == list(second.attention)
    assert all(torch.equal(first.attention[tap], second.attention[tap]) for tap in first.attention)
    assert (one.classes, one.image_size, one.taps) == (other.classes, other.image_size, other.taps)


@pytest.fixture
def saved(finished_run: Path, tmp_path: Path) -> Path:
    return save_pretrained(Run.open(finished_run), tmp_path / "saved")


class Hub:
    """A hub in a folder: what is pushed lies there, and can be pulled."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls = root, []

    def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> None:
        self.calls.append(("create", repo_id, private, exist_ok))

    def upload_folder(self, repo_id: str, folder_path: str, commit_message: str) -> SimpleNamespace:
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)
        self.calls.append(("upload", commit_message))
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

    def list_repo_files(self, repo_id: str, revision: str | None) -> list[str]:
        self.calls.append(("list", revision))
        return [path.name for path in (self.root / repo_id).iterdir()]

    def snapshot_download(self, repo_id: str, **more: object) -> str:
        self.calls.append(("download", more["revision"], more["local_files_only"], tuple(more["allow_patterns"])))
        return str(self.root / repo_id)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda library_name: made)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot_download)
    return made


# ---- a folder


def test_a_saved_run_predicts_the_same_when_it_is_loaded(saved, finished_run):
    assert sorted(path.name for path in saved.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert_same(Run.open(finished_run).classifier(), from_pretrained(saved))


@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors"])
def test_a_file_of_other_software_is_not_replaced(name, finished_run, tmp_path):
    (tmp_path / name).write_text('{"title": "mine"}', encoding="utf-8")
    with pytest.raises(ModelError, match=name):
        save_pretrained(Run.open(finished_run), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text(encoding="utf-8") == '{"title": "mine"}'


def test_an_earlier_saving_is_replaced_although_somebody_added_to_its_card(saved, finished_run):
    card = saved / "README.md"
    card.write_text(card.read_text(encoding="utf-8") + "\nTaken in my garden.\n", encoding="utf-8")
    save_pretrained(Run.open(finished_run), saved)
    assert "garden" not in card.read_text(encoding="utf-8")


def test_the_path_of_a_run_is_no_run(tmp_path):
    with pytest.raises(ModelError, match=r"not 'runs/x'.*heedmap\.Run\.open"):
        save_pretrained("runs/x", tmp_path / "saved")


@pytest.mark.parametrize(
    ("attention", "taps"), [("dot", ("stage3",)), ("additive", None), ("feature", None), ("none", None)]
)
def test_a_classifier_without_a_run_is_saved_too(attention, taps, tmp_path):
    one = build_classifier(Architecture("compact", attention, None, "concat", taps, 32, ("ant", "bee")))
    assert_same(one, from_pretrained(save_pretrained(one, tmp_path)))
    assert "No figures" in (tmp_path / "README.md").read_text()


def test_what_was_read_can_be_saved_again(saved, tmp_path):
    again = save_pretrained(from_pretrained(saved), tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (again / name).read_bytes() == (saved / name).read_bytes()


def test_a_network_of_ones_own_cannot_be_saved_and_the_message_says_what_to_do(tmp_path):
    own = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    classifier = attach(own, classes=("ant", "bee"), image_size=32, taps="1")
    with pytest.raises(ModelError, match="safetensors"):
        save_pretrained(classifier, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_card_holds_the_figures_of_the_report(saved, finished_run):
    card = (saved / "README.md").read_text()
    found = Run.open(finished_run).read_json("evaluation.json")
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["library_name"] == "heedmap"
    (result,) = front["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == pytest.approx(found["top1"], abs=1e-6)
    assert f"| top-1 | {found['top1']:.2%} |" in card
    for row in found["per_class"]:
        assert f"| {row['name']} | {row['count']} | {row['precision']:.1%} | {row['recall']:.1%} |" in card
    assert str(Path.home()) not in card
    assert str(finished_run) not in card


@pytest.mark.parametrize("name", ["pytorch_model.bin", "old.pt", "inside/more.pkl"])
def test_a_folder_with_a_pickle_in_it_is_refused_by_name(name, saved):
    (saved / name).parent.mkdir(exist_ok=True)
    (saved / name).write_bytes(b"\x80\x04N.")
    with pytest.raises(ModelError, match=rf"{name}.*pickle"):
        from_pretrained(saved)


def test_a_pickle_under_the_name_of_the_weights_is_refused(saved):
    torch.save({"a": torch.zeros(1)}, saved / "model.safetensors")
    with pytest.raises(HeedmapError, match=r"model\.safetensors is a pickle"):
        from_pretrained(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: None, "has no config.json"),
        (lambda config: "{", "is damaged"),
        (lambda config: json.dumps({**config, "library_name": "timm"}), "describes no classifier of heedmap"),
        (lambda config: json.dumps({**config, "schema": 9, "heedmap": "7.0"}), r"heedmap 7\.0, a newer one"),
        (lambda config: json.dumps({**config, "architecture": {"model": "compact"}}), "describes no architecture"),
    ],
)
def test_a_folder_that_cannot_be_used_says_why(change, message, saved):
    path = saved / "config.json"
    changed = change(json.loads(path.read_text()))
    path.unlink() if changed is None else path.write_text(changed)
    with pytest.raises(ModelError, match=message):
        from_pretrained(saved)


def test_weights_that_are_missing_or_damaged_are_named(saved):
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged"):
        from_pretrained(saved)
    weights.unlink()
    with pytest.raises(ModelError, match=r"has no model\.safetensors"):
        from_pretrained(saved)


# ---- the hub


def test_what_is_pushed_can_be_pulled_and_predicts_the_same(hub, finished_run):
    run = Run.open(finished_run)
    assert push_to_hub(run, "me/cues", private=True) == "https://hub/me/cues/commit/1"
    assert hub.calls[0] == ("create", "me/cues", True, True)
    assert_same(run.classifier(), from_pretrained("me/cues", revision="v1"))
    patterns = ("config.json", "model.safetensors", "README.md")
    assert hub.calls[2:] == [("list", "v1"), ("download", "v1", False, patterns)]


def test_local_files_only_needs_no_connection(hub, finished_run):
    push_to_hub(Run.open(finished_run), "me/cues")
    hub.calls.clear()
    from_pretrained("me/cues", local_files_only=True)
    assert [(call[0], call[2]) for call in hub.calls] == [("download", True)]


def test_a_pickle_on_the_hub_is_refused_before_anything_is_fetched(hub, finished_run):
    push_to_hub(Run.open(finished_run), "me/cues")
    (hub.root / "me/cues/pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin in me/cues"):
        from_pretrained("me/cues")
    assert "download" not in [call[0] for call in hub.calls]


def test_a_hub_out_of_reach_is_one_line(monkeypatch):
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", unreachable)
    with pytest.raises(ModelError, match=r"out of reach for 'me/cues' \(ConnectionError\).*local_files_only=True"):
        from_pretrained("me/cues")


def test_what_was_not_downloaded_before_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"me/never-fetched-this.*local_files_only"):
        from_pretrained("me/never-fetched-this", local_files_only=True)


@pytest.mark.parametrize("name", ["./nowhere", "a/b/c", "/nowhere"])
def test_a_path_that_is_not_there_does_not_go_to_the_hub(name, hub):
    with pytest.raises(ModelError, match="There is no folder"):
        from_pretrained(name)
    assert hub.calls == []


REAL_CLIENT = """
import sys
import torch
from heedmap import HeedmapError, Run, from_pretrained, push_to_hub

run = Run.open(sys.argv[1])
print(push_to_hub(run, "me/cues"))
images = torch.rand(3, 3, 32, 32)
for again in (from_pretrained("me/cues"), from_pretrained("me/cues", local_files_only=True)):
    with torch.no_grad():
        one, other = run.classifier()(images), again(images)
    assert torch.equal(one.logits, other.logits)
    assert all(torch.equal(one.attention[tap], other.attention[tap]) for tap in one.attention)
try:
    from_pretrained("me/nothing")
except HeedmapError as error:
    print(error)
"""


@pytest.mark.slow
def test_the_hubs_own_client_pushes_and_pulls_over_http(finished_run, tmp_path):
    with hub_standin() as (address, kept):
        telling = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_none", "NO_PROXY": "*"}
        environment = os.environ | telling | {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        done = subprocess.run(
            [sys.executable, "-c", REAL_CLIENT, str(finished_run)],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr + "\n".join(kept.asked)
        assert sorted(kept.files) == ["README.md", "config.json", "model.safetensors"]
        printed = done.stdout.splitlines()
        assert printed[0] == f"{address}/me/cues/commit/{COMMIT}"
        assert "'me/nothing'" in printed[1]
