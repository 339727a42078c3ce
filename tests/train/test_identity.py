"""What makes a run the one that it is."""

from pathlib import Path

import pytest
from torch.utils.data import Subset
from training import identified

from detkit.data import DigitScenes
from detkit.train.identity import check_same_run, fingerprint, known_targets


class Renamed(DigitScenes):
    """Scenes whose classes have other names, or stand in another order."""

    names: tuple[str, ...] = ()
    categories = property(lambda self: list(self.names))


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (("--epochs", "1"), "--epochs was 2, is 1"),
        (("--group-norm",), "--group-norm was False, is True"),
        (("--size", "64", "96"), r"--size was \[64, 64\], is \[64, 96\]"),
        (("--lr", "0.1", "--augment", "ssd"), "--augment was 'flip', is 'ssd'; --lr was 0.002, is 0.1"),
    ],
)
def test_other_options_are_refused_by_their_names_and_values(options, difference, tmp_path):
    _, saved = identified(tmp_path)
    _, own = identified(tmp_path, *options)
    with pytest.raises(
        ValueError, match=rf"^--resume: a is of another run: {difference}\. Only these may change: --im"
    ):
        check_same_run(saved, own, Path("a"))


def test_other_classes_and_pictures_are_refused_and_free_options_are_not(tmp_path):
    _, saved = identified(tmp_path)
    scenes = Renamed(4, size=(64, 64))
    for names in ([f"digit {i}" for i in range(10)], list("9876543210"), list("012345678")):
        scenes.names = tuple(names)
        _, own = identified(tmp_path, scenes=scenes)
        with pytest.raises(ValueError, match=r"classes was \['0', '1'.*, is \['" + names[0]):
            check_same_run(saved, own, tmp_path)
    for other in (DigitScenes(4, size=(64, 64), split="val"), DigitScenes(3, size=(64, 64))):
        _, own = identified(tmp_path, scenes=other)
        with pytest.raises(ValueError, match=r"train data was '4 images, \w+', is '[34] images, \w+'\. Only"):
            check_same_run(saved, own, tmp_path)
    free = ("--workers", "1", "--nonfinite", "skip", "--evaluate-every", "2", "--checkpoint-steps", "1", "--resume")
    _, own = identified(tmp_path / "moved", *free)
    check_same_run(saved, own, tmp_path)


def test_a_fingerprint_depends_on_every_picture_label_and_box_and_on_the_annotation_files(tmp_path):
    scenes = DigitScenes(3, size=(64, 64))
    items = [scenes[i] for i in range(3)]
    expected = fingerprint(items, [])
    assert fingerprint([scenes[i] for i in range(3)], []) == expected
    for key in ("boxes", "labels"):
        image, target = items[2]
        changed = {**target, key: target[key].clone()}
        changed[key].view(-1)[-1] += 1
        assert fingerprint([*items[:2], (image, changed)], []) != expected, key
    pixels = items[1][0].clone()
    pixels[0, 0, 0] += 1
    assert fingerprint([items[0], (pixels, items[1][1]), items[2]], []) != expected
    (tmp_path / "a.json").write_text("{}")
    first = fingerprint(items, [tmp_path / "a.json"])
    (tmp_path / "a.json").write_text("{ }")
    assert expected != first != fingerprint(items, [tmp_path / "a.json"])


def test_a_longer_run_is_the_same(tmp_path):
    _, saved = identified(tmp_path)
    _, own = identified(tmp_path, "--epochs", "4")
    check_same_run(saved, own, tmp_path)


def test_targets_are_known_through_wrappers_and_not_of_a_plain_list():
    scenes = DigitScenes(4)
    found = list(known_targets(Subset(scenes, [3, 1])))
    assert [target["image_id"] for target in found] == [3, 1]
    assert list(known_targets([scenes[0]])) == []
