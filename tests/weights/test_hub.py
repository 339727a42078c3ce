"""Detectors in folders and on a Hub that the tests put in the place of the network."""

import builtins
import shutil

import huggingface_hub
import pytest
import torch

from detkit.detectors import fpn_ssd, tiny_ssd
from detkit.weights import from_pretrained, push_to_hub, save_pretrained


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub in a folder; whatever else huggingface_hub would do is an error."""

    class Api:
        def __init__(self, token):
            assert token == "secret"

        def create_repo(self, repo_id, *, private, exist_ok):
            (tmp_path / repo_id).mkdir(parents=True, exist_ok=exist_ok)

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            shutil.copytree(folder_path, tmp_path / repo_id, dirs_exist_ok=True)
            return f"https://hub/{repo_id}"

    def download(repo_id, filename, *, revision, token):
        assert revision == "v1"
        return str(tmp_path / repo_id / filename)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return tmp_path


def assert_same(one, other):
    for (name, value), again in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(value, again), name


def test_a_detector_goes_to_the_hub_and_comes_back(hub):
    detector = fpn_ssd(2, size=(64, 96), channels=8)
    assert push_to_hub(detector, "me/cells", categories=["red", "white"], token="secret") == "https://hub/me/cells"
    again = from_pretrained("me/cells", revision="v1")
    assert again.categories == ("red", "white")
    assert again.preprocess.size == (64, 96)
    assert_same(detector, again)
    card = (hub / "me/cells/README.md").read_text()
    assert 'from_pretrained("me/cells")' in card
    assert "It finds: red, white." in card


def test_a_folder_needs_neither_package_nor_network(tmp_path, monkeypatch):
    imported = builtins.__import__

    def importing(name, *rest):
        assert not name.startswith("huggingface_hub")
        return imported(name, *rest)

    detector = tiny_ssd(3)
    monkeypatch.setattr(builtins, "__import__", importing)
    save_pretrained(detector, tmp_path / "mine")
    assert_same(detector, from_pretrained(tmp_path / "mine"))
    assert "classes without names" in (tmp_path / "mine/README.md").read_text()


def test_a_card_that_is_there_stays(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    save_pretrained(tiny_ssd(3), tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_a_detector_that_no_file_can_hold_makes_no_repository(hub):
    detector = tiny_ssd(3)
    detector.recipe = None
    with pytest.raises(ValueError, match="was not built by a recipe"):
        push_to_hub(detector, "me/other", token="secret")
    assert not (hub / "me").exists()


@pytest.mark.parametrize("source", ["./nowhere/x", "a", "a/b/c", "", "../a", "https://hub/a/b"])
def test_what_is_neither_a_folder_nor_a_repository_is_refused_without_the_network(source):
    with pytest.raises(FileNotFoundError, match=r"from_pretrained: .* is neither a folder nor owner/name"):
        from_pretrained(source)
    with pytest.raises(ValueError, match=r"push_to_hub: repo_id=.*; allowed is owner/name"):
        push_to_hub(tiny_ssd(3), source)


def test_a_folder_without_weights_is_told_what_writes_them(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors; save_pretrained writes it"):
        from_pretrained(tmp_path)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    imported = builtins.__import__

    def importing(name, *rest):
        if name == "huggingface_hub":
            raise ImportError(name)
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", importing)
    with pytest.raises(ImportError, match=r'from_pretrained needs huggingface_hub: pip install "torch-detkit\[hub\]"'):
        from_pretrained("me/cells")
