"""examples/faces: published weights find the face of a portrait; their networks are those of tests/face_networks.py."""

import importlib
from pathlib import Path

import face_networks
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from detkit.boxes import box_iou, cxcywh_to_xyxy

EXAMPLES = Path(__file__).parent.parent / "examples"
FILES = {"ultra_light": "ulfg_RFB-320.pth", "retinaface": "retinaface_mnet025.pth"}
SIDE = 512  # pixels of the portrait
# By eye: from ear to ear and from the hairline to the chin; and eyes, tip of the nose, corners of the mouth.
FACE = torch.tensor([[175.0, 65.0, 275.0, 180.0]])
POINTS = torch.tensor([[202.5, 101.0], [247.0, 103.0], [226.0, 126.0], [205.0, 141.0], [244.0, 142.5]])
IN_A_MIRROR = [1, 0, 2, 4, 3]  # the eye on the left is then the other one


@pytest.fixture(scope="module")
def states(detkit_data):
    folder = detkit_data / "checkpoints"
    return {name: torch.load(folder / file, map_location="cpu", weights_only=True) for name, file in FILES.items()}


@pytest.fixture(scope="module")
def detectors(states):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        module = importlib.import_module("faces.detectors")
    return {name: getattr(module, name)(state) for name, state in states.items()}


@pytest.fixture(scope="module")
def portrait() -> Tensor:
    data = pytest.importorskip("skimage.data", reason="without scikit-image there is no portrait: this did NOT run")
    return torch.from_numpy(data.astronaut()).permute(2, 0, 1)


@torch.no_grad()
def look(detector, image: Tensor) -> dict[str, Tensor]:
    (found,) = detector([image])
    return found


def mirrored(boxes: Tensor) -> Tensor:
    return torch.stack((SIDE - boxes[:, 2], boxes[:, 1], SIDE - boxes[:, 0], boxes[:, 3]), dim=1)


def shrunk(image: Tensor, factor: float) -> Tensor:
    return F.interpolate(image[None].float(), scale_factor=factor, mode="bilinear", antialias=True)[0].round().byte()


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
@torch.no_grad()
def test_every_anchor_says_what_a_network_of_torch_alone_says(name, detectors, states, portrait):
    image = portrait[:, :480, :500]  # whose width is no multiple of 32
    batch, _ = detectors[name].preprocess([image])
    (stage,) = detectors[name].stages.values()
    outputs = stage(detectors[name].trunk(batch.tensors), batch, None)
    (predictions, anchors, _), points = outputs if name == "retinaface" else (outputs, [None])
    expected = getattr(face_networks, name)(states[name], image)
    torch.testing.assert_close(predictions.logits[0], expected.logits.flip(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(predictions.deltas[0], expected.deltas, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(points[0], expected.points, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(anchors.boxes, cxcywh_to_xyxy(expected.anchors))


@pytest.mark.parametrize("name", FILES)
@torch.no_grad()
def test_the_best_anchor_becomes_the_box_and_its_points(name, detectors, states, portrait):
    image = shrunk(portrait, 0.5)
    logits, deltas, points, anchors = getattr(face_networks, name)(states[name], image)
    scores = logits.softmax(-1)[:, 1]
    best = scores.argmax()
    center, size = anchors[best].split(2)
    middle, half = center + 0.1 * deltas[best, :2] * size, (0.2 * deltas[best, 2:]).exp() * size / 2
    pixels = SIDE / 2 / torch.tensor([320.0, 240.0]) if name == "ultra_light" else torch.ones(2)
    found = look(detectors[name], image)
    assert found["scores"][0] == pytest.approx(scores[best].item(), abs=1e-5)
    expected = torch.cat(((middle - half) * pixels, (middle + half) * pixels))
    torch.testing.assert_close(found["boxes"][0], expected, rtol=0, atol=0.01)
    if points is not None:
        expected = center + 0.1 * points[best].view(5, 2) * size
        torch.testing.assert_close(found["keypoints"][0, :, :2], expected, rtol=0, atol=0.01)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_the_face_of_a_portrait_is_found_and_nothing_else(name, turned, detectors, portrait):
    found = look(detectors[name], portrait.flip(2) if turned else portrait)
    assert found["labels"].tolist() == [0]
    assert found["scores"] > 0.99
    assert box_iou(found["boxes"], mirrored(FACE) if turned else FACE) > 0.75


@pytest.mark.parametrize("name", FILES)
def test_two_small_portraits_side_by_side_are_two_faces(name, detectors, portrait):
    small = shrunk(portrait, 0.5)
    scene = F.pad(torch.cat((small, small.flip(2)), dim=2), (30, 57, 101, 40), value=128)
    expected = torch.cat((FACE / 2, mirrored(FACE) / 2 + torch.tensor([SIDE / 2, 0, SIDE / 2, 0])))
    found = look(detectors[name], scene)
    ious = box_iou(expected + torch.tensor([30.0, 101, 30, 101]), found["boxes"])
    assert ious.shape == (2, 2)
    assert (ious.amax(1) > 0.6).all()
    assert (found["scores"] > 0.99).all()


@pytest.mark.parametrize("turned", [False, True])
def test_five_points_lie_on_eyes_nose_and_mouth(turned, detectors, portrait):
    found = look(detectors["retinaface"], portrait.flip(2) if turned else portrait)
    points, expected = found["keypoints"][0], POINTS
    if turned:
        expected = torch.stack((SIDE - POINTS[:, 0], POINTS[:, 1]), dim=1)[IN_A_MIRROR]
    assert (points[:, 2] == 1).all()
    assert (points[:, :2] - expected).norm(dim=1).max() < 6


@pytest.mark.parametrize("name", FILES)
def test_the_published_weights_lose_less_on_the_face_than_beside_it(name, detectors, portrait):
    detector, image = detectors[name], shrunk(portrait, 0.5)

    def loss(boxes: Tensor) -> Tensor:
        losses = detector([image], [{"boxes": boxes, "labels": torch.tensor([0])}])
        return torch.stack([*losses.values()]).sum()

    at_face = loss(look(detector, image)["boxes"])
    at_face.backward()
    learning = {key for key, parameter in detector.named_parameters() if parameter.grad is not None}
    detector.zero_grad()
    assert learning == {key for key, parameter in detector.named_parameters() if parameter.requires_grad}
    with torch.no_grad():
        beside = loss(FACE / 2 + torch.tensor([50.0, 75, 50, 75]))
    assert at_face < 1 < 5 < beside


def test_the_tensors_of_one_file_do_not_fit_the_other_detector(detectors, states):
    published = importlib.import_module("faces.published")
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"trunk\.base_net"):
        published.loaded(detectors["ultra_light"], states["retinaface"], {}, judges="none")
