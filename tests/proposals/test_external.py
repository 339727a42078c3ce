"""Proposals of other programs: read, checked, best first, padded, and judged."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from detkit.data import CocoDataset
from detkit.metrics import ProposalRecall
from detkit.proposals.external import load_proposals, pad_proposals

SIZES = [(40, 60), (20, 30)]


def row(image_id=1, bbox=(1, 2, 3, 4), score=0.5, **others) -> dict:
    return {"image_id": image_id, "bbox": list(bbox), "score": score, **others}


@pytest.fixture
def written(tmp_path: Path):
    def write(content) -> Path:
        path = tmp_path / "proposals.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def test_boxes_come_per_image_best_first_and_ties_in_file_order(written):
    path = written([row(2, score=0.1), row(1, (0, 0, 5, 5), 0.3), row(2, (3, 3, 6, 7), 0.9), row(1, (2, 2, 5, 5), 0.3)])
    first, second = load_proposals(path, [1, 2], SIZES)
    assert first["boxes"].tolist() == [[0, 0, 5, 5], [2, 2, 7, 7]]
    assert second["boxes"].tolist() == [[3, 3, 9, 10], [1, 2, 4, 6]]
    torch.testing.assert_close(second["scores"], torch.tensor([0.9, 0.1]))


def test_images_come_in_the_order_asked_for_and_empty_where_nothing_is_known(written):
    found = load_proposals(written([row(2)]), [3, 2], SIZES)
    assert [image["boxes"].shape for image in found] == [(0, 4), (1, 4)]
    assert found[0]["scores"].shape == (0,)


def test_the_best_so_many_of_each_image_are_kept(written):
    rows = [row(image, (0, 0, i + 1, 5), i / 10) for i in range(9) for image in (1, 2)]
    for image in load_proposals(written(rows), [1, 2], SIZES, max_proposals=3):
        torch.testing.assert_close(image["scores"], torch.tensor([0.8, 0.7, 0.6]))
        assert image["boxes"][:, 2].tolist() == [9, 8, 7]


def test_boxes_are_clipped_to_their_own_image_and_dropped_where_nothing_is_left(written):
    path = written(
        [row(1, (-5, -5, 500, 500)), row(2, (-5, -5, 500, 500)), row(1, (61, 0, 5, 5)), row(1, (4, 4, 0, 5))]
    )
    found = load_proposals(path, [1, 2], SIZES)
    assert [image["boxes"].tolist() for image in found] == [[[0, 0, 60, 40]], [[0, 0, 30, 20]]]


def test_other_keys_are_not_read(written):
    path = written([row(category_id="anything", segmentation=None)])
    assert len(load_proposals(path, [1], SIZES[:1])[0]["boxes"]) == 1


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (5, "is 5; allowed is a dict"),
        ({"image_id": 1, "bbox": [1, 2, 3, 4]}, "score is missing"),
        ({"bbox": [1, 2, 3, 4], "score": 1}, "image_id is missing"),
        ({"image_id": 1, "score": 1}, "bbox is missing"),
        (row("1"), "image_id='1'; allowed is an integer"),
        (row(True), "image_id=True"),
        (row(bbox=(1, 2, 3)), r"bbox=\[1, 2, 3\]"),
        (row(bbox=(1, 2, -3, 4)), "width and height from 0 on"),
        (row(bbox=(1, 2, float("nan"), 4)), "finite numbers"),
        (row(bbox=(1, 2, 10**400, 4)), "finite numbers"),
        (row(bbox=(1, 2, "3", 4)), "finite numbers"),
        (row(score=float("inf")), "score=inf"),
        (row(score=None), "score=None"),
        (row(9), "image_id=9 is none of the 2 image_ids"),
    ],
)
def test_what_is_wrong_with_an_entry_is_said_with_file_and_position(written, entry, problem):
    path = written([row(), entry])
    with pytest.raises(ValueError, match=rf"load_proposals: .*proposals\.json: entry 1: .*{problem}"):
        load_proposals(path, [1, 2], SIZES)


def test_entries_of_other_images_are_passed_over_where_asked(written):
    found = load_proposals(written([row(9), row(1)]), [1], SIZES[:1], unknown="drop")
    assert [len(image["boxes"]) for image in found] == [1]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('"' + "\x00", "not valid JSON"),
        ({"annotations": []}, "holds a dict; allowed is a list"),
    ],
)
def test_a_file_that_is_no_list_is_refused(written, content, problem):
    with pytest.raises(ValueError, match=problem):
        load_proposals(written(content), [1], SIZES[:1])


def test_a_file_is_bounded_before_it_is_read(written, monkeypatch):
    monkeypatch.setattr("detkit._regular_file.MAX_JSON_BYTES", 10)
    with pytest.raises(ValueError, match=r"has \d+ bytes; allowed are 10"):
        load_proposals(written([row()]), [1], SIZES[:1])


def test_what_is_no_file_is_refused_or_not_found(tmp_path):
    with pytest.raises(ValueError, match="regular file"):
        load_proposals(tmp_path, [1], SIZES[:1])
    with pytest.raises(FileNotFoundError):
        load_proposals(tmp_path / "none.json", [1], SIZES[:1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, 1], SIZES), "2 image_ids, 1 of them different"),
        (([1], SIZES), "1 image_ids, 1 of them different, and 2 sizes"),
    ],
)
def test_ids_and_sizes_must_agree(written, arguments, message):
    with pytest.raises(ValueError, match=message):
        load_proposals(written([]), *arguments)


def test_no_proposal_at_all_is_asked_for_in_vain(written):
    with pytest.raises(ValueError, match="max_proposals=0"):
        load_proposals(written([]), [1], SIZES[:1], max_proposals=0)
    with pytest.raises(ValueError, match="max_proposals=0"):
        pad_proposals([{"boxes": torch.zeros(0, 4), "scores": torch.zeros(0)}], max_proposals=0)
    with pytest.raises(ValueError, match="0 images"):
        pad_proposals([])


def test_padding_keeps_the_best_and_marks_what_is_none(written):
    found = load_proposals(written([row(1, (0, 0, i, i), i / 9) for i in range(1, 5)]), [1, 2], SIZES)
    padded = pad_proposals(found, max_proposals=3)
    assert padded.boxes[0].tolist() == [[0, 0, 4, 4], [0, 0, 3, 3], [0, 0, 2, 2]]
    assert padded.valid.tolist() == [[True] * 3, [False] * 3]
    assert padded.labels.tolist() == [[0] * 3] * 2
    assert padded.boxes[1].eq(0).all()
    assert padded.matched is None


@pytest.mark.parametrize(("counts", "length"), [((0, 0), 1), ((2, 5), 5)])
def test_without_a_number_the_longest_image_decides(counts, length):
    padded = pad_proposals([{"boxes": torch.ones(n, 4), "scores": torch.ones(n)} for n in counts])
    assert padded.boxes.shape == (2, length, 4)
    assert padded.valid.sum(1).tolist() == list(counts)


def test_boxes_and_scores_must_agree():
    with pytest.raises(ValueError, match=r"proposals\[1\].*boxes.*\(2, 4\).*scores.*\(3,\)"):
        pad_proposals([{"boxes": torch.ones(n, 4), "scores": torch.ones(m)} for n, m in ((1, 1), (2, 3))])


def test_proposal_recall_judges_what_was_read(written):
    truth = [
        {"boxes": torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40]]), "labels": torch.tensor([3, 5])},
        {"boxes": torch.tensor([[5.0, 5, 15, 15]]), "labels": torch.tensor([1])},
    ]
    path = written([row(1, (0, 0, 10, 10), 0.2), row(1, (50, 0, 5, 5), 0.9), row(2, (5, 5, 10, 10), 0.1)])
    recall = ProposalRecall((1, 2))
    recall.update(load_proposals(path, [1, 2], SIZES), truth)
    assert recall.compute()["AR@1"] == pytest.approx(1 / 3)
    assert recall.compute()["AR@2"] == pytest.approx(2 / 3)


def test_real_detections_of_another_program_are_read_and_judged(detkit_data):
    folder = detkit_data / "coco_open"
    dataset = CocoDataset(folder / "images", folder / "annotations" / "instances_val.json")
    path = folder / "annotations" / "detections_fastestdet_val.json"
    sizes = [dataset.image_size(i) for i in range(len(dataset))]
    found = load_proposals(path, dataset.image_ids, sizes)
    assert sum(len(image["boxes"]) for image in found) == len(json.loads(path.read_text()))
    recall = ProposalRecall((10, 100))
    recall.update(found, [dataset.target(i) for i in range(len(dataset))])
    judged = recall.compute()
    assert 0.05 < judged["AR@10"] < judged["AR@100"] < 0.9


def test_integer_boxes_of_one_image_do_not_round_those_of_another():
    boxes = [torch.tensor([[1, 1, 9, 9]]), torch.tensor([[1.5, 1, 9, 9.5]])]
    padded = pad_proposals([{"boxes": own, "scores": torch.ones(1)} for own in boxes])
    assert padded.boxes.tolist() == [own.tolist() for own in boxes]


def test_types_of_the_first_image_do_not_round_those_of_another():
    box = torch.tensor([[0.1, 0, 9, 9]], dtype=torch.float64)
    firsts = [(torch.zeros(1, 4), torch.tensor([1])), (torch.zeros(1, 4).half(), torch.ones(1).half())]
    for boxes, scores in firsts:
        padded = pad_proposals([{"boxes": boxes, "scores": scores}, {"boxes": box, "scores": torch.tensor([0.7])}])
        assert torch.equal(padded.boxes[1], box)
        assert padded.scores[1].item() == pytest.approx(0.7, abs=1e-7)


def test_the_batch_stays_on_the_device_of_its_boxes():
    image = {"boxes": torch.zeros(2, 4, device="meta"), "scores": torch.zeros(2, device="meta")}
    padded = pad_proposals([image, image])
    assert {rows.device.type for rows in padded if rows is not None} == {"meta"}


def test_arrays_lists_and_other_formats_are_padded_alike():
    boxes = tv_tensors.BoundingBoxes([[2.0, 3, 4, 6]], format="XYWH", canvas_size=(20, 20))
    given = [
        {"boxes": boxes, "scores": torch.tensor([0.5])},
        {"boxes": np.array([[2, 3, 6, 9]]), "scores": np.array([0.5])},
        {"boxes": [[2, 3, 6, 9]], "scores": [0.5]},
    ]
    assert pad_proposals(given).boxes.tolist() == [[[2, 3, 6, 9]]] * 3


def test_the_gradient_of_proposals_is_taken_off():
    padded = pad_proposals([{"boxes": torch.ones(2, 4, requires_grad=True), "scores": torch.ones(2)}])
    assert not padded.boxes.requires_grad


@pytest.mark.parametrize(
    ("entries", "error", "message"),
    [
        ({"boxes": torch.ones(1, 4)}, ValueError, r"no 'scores' among \['boxes'\]"),
        ({"boxes": torch.ones(1, 4), "scores": None}, ValueError, r"no 'scores' among \['boxes'\]"),
        ({"box": torch.ones(1, 4), "scores": torch.ones(1)}, ValueError, r"unknown key 'box'; did you mean 'boxes'\?"),
        ({"boxes": "all", "scores": torch.ones(1)}, TypeError, r"boxes: a str that holds no numbers"),
    ],
)
def test_what_is_no_proposal_is_refused_by_image_and_entry(entries, error, message):
    good = {"boxes": torch.ones(1, 4), "scores": torch.ones(1)}
    with pytest.raises(error, match=rf"^pad_proposals: proposals\[1\]: {message}"):
        pad_proposals([good, entries])
