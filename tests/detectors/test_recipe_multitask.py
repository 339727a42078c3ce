"""The networks of three tasks: every result of one image, the ablations, what they learn, and many processes."""

import copy
from datetime import timedelta
from pathlib import Path

import processes
import pytest
import torch
import torch.distributed as torch_dist
from several_tasks import small_tasks
from strategies import assert_refused
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.models.resnet import BasicBlock, ResNet

from detkit.backbones import ResNetBackbone, SmallBackbone
from detkit.boxes import cxcywh_to_xyxy, distance_box_iou
from detkit.detectors import Detector, image_box_stage, segmenter, three_tasks
from detkit.losses import distance_box_iou_loss
from detkit.multitask import SharedTrunk, StitchedTrunk, TransferTrunk, cross_stitches
from detkit.structures import VOID

TASKS = "classification", "boxes", "segmentation"


def pets(count=4, *, seed=0):
    """Images of a bright box each, on noise: its class says whether it is red."""
    generator = torch.Generator().manual_seed(seed)
    images, targets = [], []
    for i in range(count):
        image = 0.3 * torch.rand(3, 48, 64, generator=generator)
        y, x = torch.randint(4, 20, (2,), generator=generator).tolist()
        image[i % 2, y : y + 20, x : x + 28] = 1.0
        segmentation = torch.zeros(48, 64, dtype=torch.int64)
        segmentation[y : y + 20, x : x + 28] = 1
        segmentation[y, x : x + 28] = VOID
        box = torch.tensor([[x, y, x + 28.0, y + 20]])
        targets.append(
            {
                "boxes": box,
                "labels": torch.tensor([i % 2]),
                "segmentation": segmentation,
                "image_labels": torch.tensor(i % 2),
            }
        )
        images.append(image)
    return images, targets


def backbones():
    return {name: SmallBackbone((8, 16, 32)) for name in TASKS}


TRUNKS = {
    "stitched": lambda: StitchedTrunk(backbones(), cross_stitches(3, (8, 16, 32))),
    "shared": lambda: SharedTrunk(SmallBackbone((8, 16, 32)), TASKS),
    "stitched resnets": lambda: StitchedTrunk(
        {name: ResNetBackbone(ResNet(BasicBlock, [1, 1, 1, 1]), levels=("layer1", "layer2")) for name in TASKS},
        [None, None],
    ),
    "transfer": lambda: TransferTrunk(
        SmallBackbone((8, 16)), {name: SmallBackbone((8, 16)) for name in TASKS[:2]}, branch="segmentation"
    ),
}


@pytest.mark.parametrize("trunk", TRUNKS)
def test_every_result_of_an_image_comes_out(trunk):
    torch.manual_seed(0)
    detector = three_tasks(2, TRUNKS[trunk](), size=(64, 64))
    images, targets = pets(2)
    losses = detector(images, targets)
    assert set(losses) == {"classification.classification", "boxes.box", "segmentation.segmentation"}
    for image, found in zip(images, detector.eval()(images), strict=True):
        assert found["segmentation"].shape == image.shape[-2:]
        assert found["image_scores"].shape == (2,)
        assert found["boxes"].shape == (2, 4)
        assert torch.equal(found["boxes"][0], found["boxes"][1])
        assert found["labels"][0] == found["image_scores"].argmax()


def test_the_box_costs_diou_in_pixels():
    detector, (images, targets) = three_tasks(2, TRUNKS["shared"](), size=(48, 64)).eval(), pets(3)
    batch, padded = detector.preprocess(images, targets)
    outputs = detector.boxes(detector.trunk(batch.tensors)["boxes"], batch, None, padded)
    found = cxcywh_to_xyxy(outputs.boxes * torch.tensor([64.0, 48, 64, 48]))
    true = torch.cat([one["boxes"] for one in targets])
    loss = detector(images, targets)["boxes.box"]
    torch.testing.assert_close(loss, distance_box_iou_loss(found, true).mean(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss, 1 - distance_box_iou(found, true).diagonal().mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow(6)
def test_it_learns_all_three():
    torch.manual_seed(0)
    detector, (images, targets) = three_tasks(2, TRUNKS["stitched"](), size=(48, 64)), pets(8)
    optimizer = torch.optim.AdamW(detector.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        sum(detector(images, targets).values()).backward()
        optimizer.step()
    losses = detector.eval()(images, targets)
    assert losses["segmentation.segmentation"] < 0.15
    assert losses["boxes.box"] < 0.4
    assert losses["classification.classification"] < 0.1


def test_ablations_leave_out_a_stage_and_a_branch():
    pair = StitchedTrunk(
        {name: SmallBackbone((8, 16)) for name in ("boxes", "segmentation")}, cross_stitches(2, (8, 16))
    )
    whole = three_tasks(2, TRUNKS["transfer"](), size=(64, 64))
    boxes = image_box_stage(16, alone=True, branch="boxes")
    detector = Detector(pair, preprocess=whole.preprocess, boxes=boxes, segmentation=whole.segmentation)
    images, targets = pets(2)
    assert set(detector(images, targets)) == {"boxes.box", "segmentation.segmentation"}
    found = detector.eval()(images)[0]
    assert (found["scores"].tolist(), found["labels"].tolist()) == ([1], [0])
    assert found["segmentation"].shape == (48, 64)


def test_the_baseline_takes_any_backbone_and_has_the_sources_code():
    code = SmallBackbone((32, 128, 256, 512)).eval()(torch.zeros(1, 3, 128, 128))[-1]
    assert code.shape == (1, 512, 4, 4)
    images, targets = pets(2)
    for backbone in (
        SmallBackbone((8, 16)),
        ResNetBackbone(ResNet(BasicBlock, [1, 1, 1, 1]), levels=("layer1", "layer2")),
    ):
        detector = segmenter(2, backbone, size=(64, 64))
        assert set(detector(images, targets)) == {"segmentation.segmentation"}
        found = detector.eval()(images)[0]
        assert found["boxes"].shape == (0, 4)
        assert found["segmentation"].shape == (48, 64)


def test_a_trunk_without_channels_is_refused():
    assert_refused("multitask: trunk is a Identity without out_channels", segmenter, 2, nn.Identity())


def _train(rank, world, folder):
    """Two steps on this process' images, one of which sees no object."""
    torch_dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world, timeout=timedelta(seconds=120)
    )
    detector = stepped(lambda model: DistributedDataParallel(model), slice(rank, None, world))
    torch.save({key: value.clone() for key, value in detector.state_dict().items()}, Path(folder, f"{rank}.pt"))
    torch_dist.destroy_process_group()


def stepped(wrapped, own):
    torch.manual_seed(0)
    detector = small_tasks(2, size=(48, 64)).eval()  # batch norms would see other batches
    model = wrapped(detector)
    optimizer = torch.optim.SGD(detector.parameters(), 0.05)
    images, targets = pets(4)
    for i in (1, 3):  # no object, and nothing of the image either: rank 1 of 2 learns nothing
        targets[i] = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0), "image_labels": torch.tensor(-1)}
        targets[i]["segmentation"] = torch.full((48, 64), VOID)
    for _ in range(2):
        optimizer.zero_grad()
        sum(model(images[own], targets[own]).values()).backward()
        optimizer.step()
    return detector


@pytest.mark.slow(8)
def test_two_processes_are_one_though_one_of_them_sees_no_object(tmp_path):
    """Without find_unused_parameters, which would hide what gets no gradient."""
    started = [processes.start(_train, rank, 2, tmp_path, printed=tmp_path / f"{rank}.txt") for rank in range(2)]
    processes.end(*started)
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    alone = copy.deepcopy(stepped(lambda model: model, slice(None)).state_dict())
    for key, value in alone.items():
        assert torch.equal(states[0][key], states[1][key]), key
        torch.testing.assert_close(states[0][key], value, rtol=1e-4, atol=1e-6, msg=key)
