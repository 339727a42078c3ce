"""From pictures of every kind to named boxes, a batch at a time, and to COCO's list of results."""

import inspect
import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from strategies import unhooked
from torch import nn

from detkit.detectors import Detector, Prediction, fpn_ssd, predict, save_results
from detkit.structures import Detection

GRAY = torch.full((3, 40, 60), 51, dtype=torch.uint8)


class Corner(nn.Module):
    """Finds in each image the box of its frame, with the score of its brightest value; counts the images of calls."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []
        self.place = nn.Parameter(torch.zeros(()))

    def forward(self, images):
        self.seen.append(len(images))
        assert not self.training
        return [
            Detection(
                boxes=torch.tensor([[0.0, 0, image.shape[2], image.shape[1]]]).repeat(2, 1),
                scores=torch.stack(
                    [image.float().max() / (255 if image.dtype == torch.uint8 else 1), torch.tensor(0.1)]
                ),
                labels=torch.tensor([1, 0]),
            )
            for image in images
        ]


@pytest.fixture
def pictures(tmp_path):
    array = GRAY.permute(1, 2, 0).numpy()
    Image.fromarray(array).save(tmp_path / "a.png")
    return {
        "path": tmp_path / "a.png",
        "text": str(tmp_path / "a.png"),
        "Pillow": Image.fromarray(array),
        "gray Pillow": Image.fromarray(array[..., 0]),
        "array": array,
        "gray array": array[..., 0],
        "tensor": GRAY,
        "floats": GRAY / 255,
        "gray tensor": GRAY[:1],
        "folder": tmp_path,
    }


def test_a_picture_of_every_kind_alone_and_in_a_list_is_found_the_same_in(pictures):
    for kind, picture in pictures.items():
        for given in (picture, [picture]):
            (found,) = predict(Corner(), given, score_threshold=0.15, progress=False, categories=["cat", "dog"])
            assert (found.size, found.names) == ((40, 60), ["dog"]), kind
            assert found.detection["boxes"].tolist() == [[0, 0, 60, 40]], kind
            assert found.detection["scores"].item() == pytest.approx(0.2, abs=1e-6), kind


def test_pictures_are_named_by_their_files_or_counted(pictures):
    given = [pictures["path"], GRAY, Image.open(pictures["path"])]
    found = predict(Corner(), given, progress=False)
    assert [one.name for one in found] == [str(pictures["path"]), "picture 1", str(pictures["path"])]


def test_a_generator_is_read_only_as_far_as_a_batch_needs():
    read, detector = [], Corner()

    def endless():
        while True:
            read.append(None)
            yield GRAY

    found = predict(detector, endless(), batch_size=3, progress=False)
    next(found)
    assert (len(read), detector.seen) == (3, [3])


def test_batches_do_not_change_what_a_detector_finds_nor_its_mode():
    torch.manual_seed(0)
    detector = fpn_ssd(2, size=(64, 64), channels=8).train()
    images = [torch.rand(3, 50 + 10 * i, 70) for i in range(5)]
    one_by_one = [detector.eval()([image])[0] for image in images]
    found = detector.train().predict(images, batch_size=2, score_threshold=0.0, progress=False)
    assert detector.training
    for mine, own in zip(found, one_by_one, strict=True):
        torch.testing.assert_close(mine.detection["boxes"], own["boxes"], rtol=1e-4, atol=1e-3)


def test_names_come_from_the_detector_and_read_as_a_sentence():
    detector = Corner()
    detector.categories = ("cat", "dog")
    assert str(next(predict(detector, GRAY, score_threshold=0.15, progress=False))) == "picture 0: dog 0.20"
    assert str(next(predict(detector, GRAY, score_threshold=1.0, progress=False))) == "picture 0: nothing"
    assert next(predict(Corner(), GRAY, score_threshold=0.0, progress=False)).names == ["1", "0"]
    many = Detection(boxes=torch.zeros(23, 4), scores=torch.ones(23), labels=torch.zeros(23, dtype=torch.int64))
    assert str(Prediction("a", (9, 9), many)).endswith("0 1.00, 0 1.00 and 3 more")


def test_the_method_has_the_settings_of_the_function():
    method, function = (list(inspect.signature(each).parameters.values())[1:] for each in (Detector.predict, predict))
    assert method == function


def test_one_text_is_no_list_of_names():
    with pytest.raises(ValueError, match="predict: categories='ab' is one text; allowed is a list of names"):
        unhooked(predict)(Corner(), GRAY, categories="ab", progress=False)


def test_too_few_names_are_refused():
    with pytest.raises(ValueError, match="predict: label 1 has no name; categories has 1"):
        list(predict(Corner(), GRAY, score_threshold=0.0, categories=["cat"], progress=False))


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (np.zeros((3, 40, 60), np.uint8), r"picture 0 is an array \(3, 40, 60\) of uint8; allowed are \(H, W\)"),
        (np.zeros((40, 60, 3)), r"picture 0 is an array .* of float64; .*array \* 255"),
        (torch.zeros(40, 60), r"picture 0 is a tensor \(40, 60\)"),
        (torch.zeros(4, 40, 60), r"picture 0 is a tensor \(4, 40, 60\)"),
        ({"image": GRAY}, r"pictures is a dict; allowed are files"),
        (7, r"pictures is a int; allowed are files"),
        ([None], r"picture 0 is a NoneType; allowed are files"),
    ],
)
def test_what_is_no_picture_is_refused_by_its_place_and_kind(picture, words):
    with pytest.raises(ValueError, match=f"predict: {words}"):
        list(unhooked(predict)(Corner(), picture, progress=False))


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match=r"none\.jpg"):
        list(predict(Corner(), ["none.jpg"], progress=False))


def some(**more: torch.Tensor) -> Detection:
    own = {"boxes": torch.tensor([[1.0, 2, 4, 6]]), "scores": torch.tensor([0.5]), "labels": torch.tensor([1])}
    return Detection(**own, **more)


def test_results_are_those_of_coco_with_masks_and_keypoints(tmp_path):
    masks, keypoints = torch.zeros(1, 8, 8, dtype=torch.bool), torch.tensor([[[1.0, 2, 1]]])
    masks[0, 2:6, 1:4] = True
    found = [
        Prediction("p/a.jpg", (8, 8), some(masks=masks, keypoints=keypoints)),
        Prediction("p/b.jpg", (8, 8), some()),
    ]
    save_results(found, tmp_path / "r.json", image_ids={"a.jpg": 5, "b.jpg": 9}, category_ids=[10, 20])
    first, second = json.loads((tmp_path / "r.json").read_text())
    assert second == {"image_id": 9, "category_id": 20, "bbox": [1, 2, 3, 4], "score": 0.5}
    assert (coco_mask.decode(first["segmentation"]) == masks[0].numpy()).all()
    assert first["keypoints"] == [1, 2, 1]


def test_without_ids_pictures_are_counted_and_named(tmp_path):
    save_results([Prediction("p/a.jpg", (8, 8), some())], tmp_path / "r.json")
    (entry,) = json.loads((tmp_path / "r.json").read_text())
    assert (entry["image_id"], entry["file_name"], entry["category_id"]) == (1, "a.jpg", 2)


def test_what_has_no_id_is_refused_and_nothing_written(tmp_path):
    found = [Prediction("a.jpg", (8, 8), some())]
    with pytest.raises(ValueError, match=r"save_results: image_ids has no 'a\.jpg'"):
        save_results(found, tmp_path / "r.json", image_ids={"b.jpg": 1})
    with pytest.raises(ValueError, match="save_results: label 1 has no id; category_ids has 1"):
        save_results(found, tmp_path / "r.json", category_ids=[1])
    assert not list(tmp_path.iterdir())


def test_a_part_that_was_frozen_in_eval_stays_so():
    detector = fpn_ssd(2, size=(64, 64), channels=8).train()
    detector.trunk.eval()
    detector.predict(GRAY, progress=False)
    assert (detector.training, detector.dense.training) == (True, True)
    assert not any(part.training for part in detector.trunk.modules())


def test_pictures_of_one_name_in_two_folders_have_their_own_ids(tmp_path):
    found = [Prediction(f"/p/{folder}/a.jpg", (8, 8), some()) for folder in ("x", "y")]
    save_results(found, tmp_path / "r.json", image_ids={"x/a.jpg": 5, "y/a.jpg": 9})
    assert [entry["image_id"] for entry in json.loads((tmp_path / "r.json").read_text())] == [5, 9]


def test_broken_files_of_a_folder_end_it_with_their_names_or_are_left_out_and_counted(pictures):
    folder = pictures["folder"]
    (folder / "0 broken.jpg").write_bytes(b"no picture")
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:60])
    with pytest.raises(ValueError, match=r"0 broken\.jpg' cannot be read as an image"):
        list(predict(Corner(), folder, progress=False))
    with pytest.warns(UserWarning, match=r"predict: 2 files cannot be read and were left out:\n.*0 broken.*\n.*b\.png"):
        found = list(predict(Corner(), folder, unreadable="skip", progress=False))
    assert [one.name for one in found] == [str(folder / "a.png")]
    with pytest.warns(UserWarning, match="1 files"):
        assert list(predict(Corner(), folder / "b.png", unreadable="skip", progress=False)) == []
    with pytest.raises(ValueError, match="unreadable='ignore'; allowed are 'raise' and 'skip'"):
        unhooked(predict)(Corner(), folder, unreadable="ignore")


def test_what_is_no_list_of_tensors_is_told_of_predict(pictures):
    detector = fpn_ssd(2, size=(64, 64), channels=8)
    for images in (pictures["text"], [pictures["text"]], pictures["Pillow"], [pictures["array"]]):
        with pytest.raises(
            TypeError, match=r"images.*Detector\.predict takes files, folders, Pillow images and arrays"
        ):
            unhooked(detector.forward)(images)
