"""The truth of data sets inside others is that of the items that they hand out."""

from typing import Any

import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from detkit.data import Augmented, DigitScenes, coco_ground_truth, flip_augmentation
from detkit.data.wrapped import find_categories, find_item


class Wrapper(Dataset[Any]):
    """What users write around a data set."""

    def __init__(self, dataset: Any, times: int = 1) -> None:
        self.dataset, self.times = dataset, times

    def __len__(self) -> int:
        return len(self.dataset) * self.times

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index % len(self.dataset)]


def by_image(truth: dict[str, list[dict[str, Any]]]) -> dict[int, list[list[float]]]:
    """The boxes of each image."""
    boxes = {image["id"]: [] for image in truth["images"]}
    for annotation in truth["annotations"]:
        boxes[annotation["image_id"]].append(annotation["bbox"])
    return boxes


@pytest.fixture(scope="module")
def scenes() -> DigitScenes:
    return DigitScenes(6, size=(64, 64))


def test_an_item_is_found_through_every_wrapper(scenes):
    other = DigitScenes(4, split="val", size=(64, 64))
    nested = Wrapper(Subset(ConcatDataset([Subset(scenes, [5, 1]), Augmented(other, flip_augmentation())]), [3, 0, 5]))
    assert [find_item(nested, i, function="f") for i in range(3)] == [(other, 1), (scenes, 5), (other, 3)]
    assert find_item(scenes, -1, function="f") == (scenes, 5)


def test_the_truth_of_a_subset_is_that_of_its_images(scenes):
    whole, part = by_image(coco_ground_truth(scenes)), by_image(coco_ground_truth(Subset(scenes, [4, 0, 3])))
    assert [*part] == [4, 0, 3]
    assert part == {image: whole[image] for image in (4, 0, 3)}
    assert by_image(coco_ground_truth(Wrapper(Augmented(scenes, flip_augmentation())))) == whole


def test_images_of_several_files_that_share_an_id_are_refused_or_numbered_by_position(scenes):
    both = ConcatDataset([scenes, Subset(scenes, [2])])
    with pytest.raises(ValueError, match=r'^coco_ground_truth: the images at 2 and 6 both have the id 2;.*"position"'):
        coco_ground_truth(both)
    boxes = by_image(coco_ground_truth(both, image_ids="position"))
    assert [*boxes] == [*range(7)]
    assert boxes[6] == boxes[2]


def test_parts_of_other_categories_are_refused(scenes):
    other = DigitScenes(2, size=(64, 64))

    class Renamed(DigitScenes):
        categories = property(lambda self: [f"digit {i}" for i in range(10)])

    assert find_categories(ConcatDataset([scenes, other]), function="f") == (scenes.categories, scenes.category_ids)
    with pytest.raises(ValueError, match=r"^f: parts .* categories \['0', .*and \['digit 0', .*allowed are the same"):
        find_categories(ConcatDataset([scenes, Subset(Renamed(2, size=(64, 64)), [0])]), function="f")


def test_what_knows_no_truth_and_what_changes_the_number_of_items_is_refused_by_name(scenes):
    with pytest.raises(TypeError, match=r"^coco_ground_truth: a TensorDataset does not know its ground truth; allowed"):
        coco_ground_truth(Wrapper(TensorDataset(torch.zeros(2))))
    with pytest.raises(ValueError, match=r"^coco_ground_truth: a Wrapper of 12 items wraps 6; allowed"):
        coco_ground_truth(Wrapper(scenes, times=2))
