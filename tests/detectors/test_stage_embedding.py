"""EmbeddingStage: behind RoI, dense and query stages, and on whole images; what it learns, and on which boxes."""

import pytest
import torch
from pytorch_metric_learning.losses import ContrastiveLoss, TripletMarginLoss
from region_stages import IMAGES, features, learned, positives
from strategies import unhooked
from torch import Tensor, nn

from detkit.boxes import PyramidRoIAlign
from detkit.detectors import (
    Detector,
    EmbeddingStage,
    Preprocess,
    SetPostprocess,
    fpn_ssd,
    small_d_fine,
    small_deformable_detr,
    small_detr,
    small_faster_rcnn,
    small_fcos,
    small_rt_detr,
    tiny_ssd,
)
from detkit.detectors import detr_stage as detr
from detkit.detectors.dense import DenseOutputs
from detkit.heads import EmbeddingHead, RefinementHead, RegressionHead
from detkit.layers import ConditionalDecoder, ConditionalDecoderLayer
from detkit.retrieval import SupervisedContrastiveLoss
from detkit.structures import Anchors, Assignment, DensePredictions, Targets, pad_targets


class Pulls(nn.Module):
    """Half the mean squared distance of equal rows: knows padding, and keeps what it was called with."""

    takes_padding = True

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        self.labels = labels
        rows = labels if labels.ndim == 1 else labels.amin(1)
        same = (rows[:, None] == rows) & (rows >= 0)
        return (torch.cdist(embeddings, embeddings).square() * same).mean() / 2


def stage(**settings) -> EmbeddingStage:
    torch.manual_seed(0)
    pool = PyramidRoIAlign(3, strides=(4, 8))
    return EmbeddingStage(EmbeddingHead(6 * 9, 5), **{"pool": pool, "criterion": Pulls(), **settings})


def truth(**more: list) -> Targets:
    """Two objects in the first image, one in the second."""
    boxes = [[[4.0, 5, 40, 60], [30, 8, 96, 50]], [[5.0, 5, 70, 50]]]
    labels = [[7, 3], [7]]
    entries = {"boxes": boxes, "labels": labels, **more}
    return pad_targets([{name: torch.tensor(own[i]) for name, own in entries.items()} for i in range(2)])


def found(targets: Targets, **settings) -> tuple[EmbeddingStage, Tensor]:
    """A stage that has learned a step on the positives handed over, and the labels it learned."""
    one = stage(**settings)
    one.loss(one(features(), IMAGES, positives(), targets), targets)
    return one, one.criterion.labels


# What it learns


def test_every_box_learns_the_label_of_its_object_and_padding_nothing():
    assert found(truth())[1].tolist() == [7, 3, 7, -1, 7, 7, -1, -1]


def test_identities_and_label_sets_are_learned_instead():
    identities = truth(identities=[[11, -1], [12]])
    assert found(identities, learns="identities")[1].tolist() == [11, -1, 11, -1, 12, 12, -1, -1]
    sets = truth(label_sets=[[[1, 0], [1, 1]], [[0, 1]]])
    labels = found(sets, learns="label_sets")[1]
    assert labels.tolist() == [[1, 0], [1, 1], [1, 0], [-1, -1], [0, 1], [0, 1], [-1, -1], [-1, -1]]


def test_without_matched_it_learns_on_the_true_boxes():
    one, targets = stage(), truth()
    outputs = one(features(), IMAGES, positives()._replace(matched=None), targets)
    assert torch.equal(outputs.detections.boxes, targets.boxes)
    one.loss(outputs, targets)
    assert one.criterion.labels.tolist() == [7, 3, 7, -1]


def test_the_loss_is_the_criterions_on_the_objects_times_the_weight():
    one, targets = stage(weight=0.5), truth()
    outputs = one(features(), IMAGES, positives(), targets)
    expected = Pulls()(outputs.embeddings.flatten(0, 1), torch.tensor([7, 3, 7, -1, 7, 7, -1, -1]))
    torch.testing.assert_close(one.loss(outputs, targets), {"embedding": expected / 2})
    assert one.loss(outputs, targets)["embedding"] > 0


@pytest.mark.parametrize("criterion", [ContrastiveLoss(), TripletMarginLoss(margin=10.0)])
def test_losses_of_pytorch_metric_learning_get_the_objects_only(criterion):
    one, targets = stage(criterion=criterion), truth()
    outputs = one(features(), IMAGES, positives(), targets)
    rows = outputs.embeddings.flatten(0, 1)[[0, 1, 2, 4, 5]]
    expected = criterion(rows, torch.tensor([7, 3, 7, 7, 7]))
    torch.testing.assert_close(one.loss(outputs, targets)["embedding"], expected)


@pytest.mark.parametrize("criterion", [Pulls(), ContrastiveLoss()])
def test_without_objects_the_loss_is_0_and_every_parameter_has_a_gradient(criterion):
    loss, gradients = learned(stage(criterion=criterion), positives(valid=(0, 0)), truth())
    assert loss == 0
    assert all(gradient is not None and bool(torch.isfinite(gradient).all()) for gradient in gradients)


def test_without_a_criterion_it_learns_nothing_and_still_describes():
    one = stage(criterion=None)
    assert one.loss(one(features(), IMAGES, positives(), truth()), truth()) == {}
    assert one.detections(one(features(), IMAGES, positives()), IMAGES).embeddings.shape == (2, 4, 5)


# Where it stands


def test_detections_are_the_same_with_embeddings_and_zeros_in_padding():
    one, boxes = stage(), positives()
    detections = one.detections(one(features(), IMAGES, boxes), IMAGES)
    regions = one.pool(features(), boxes.boxes)
    expected = one.head(regions).unflatten(0, (2, 4)) * boxes.valid[..., None]
    torch.testing.assert_close(detections.embeddings, expected)
    assert torch.equal(detections.boxes, boxes.boxes)


@pytest.mark.parametrize(
    ("recipe", "channels"), [(lambda: tiny_ssd(2), 64), (lambda: small_faster_rcnn(2, size=(96, 128), channels=8), 8)]
)
@pytest.mark.slow
def test_any_detector_finds_embeddings_in_the_form_of_lists(recipe, channels):
    torch.manual_seed(0)
    detector = recipe()
    head, pool = EmbeddingHead(channels * 9, 4), PyramidRoIAlign(3, strides=(8,))
    embedding = EmbeddingStage(head, pool=pool, criterion=Pulls())
    detector = Detector(detector.trunk, preprocess=detector.preprocess, **detector.stages, embedding=embedding)
    pictures = [torch.rand(3, 96, 128), torch.rand(3, 80, 90)]
    for one in detector.eval()(pictures):
        assert one["embeddings"].shape == (len(one["boxes"]), 4)
    target = {"boxes": torch.tensor([[10.0, 10, 60, 60]]), "labels": torch.tensor([1])}
    losses = detector.train()(pictures, [target, target])
    assert torch.isfinite(losses["embedding.embedding"])


def query_detector(*, conditional: bool = False) -> Detector:
    torch.manual_seed(0)
    queries = detr(2, 3, channels=32, depth=1, queries=5)
    if conditional:
        layers = [ConditionalDecoderLayer(32, 2, hidden=32, first=i == 0) for i in range(2)]
        parts = {"points": nn.Linear(32, 2), "scale": nn.Linear(32, 32), "norm": nn.LayerNorm(32)}
        queries.decoder, queries.head = ConditionalDecoder(layers, **parts), RefinementHead(32, num_classes=2)
    queries.postprocess = SetPostprocess(rows=True, max_detections=3)
    embedding = EmbeddingStage(EmbeddingHead(32, 4), criterion=Pulls())
    trunk = nn.Sequential(nn.AvgPool2d(8), Listed())
    return Detector(trunk, preprocess=Preprocess(None), queries=queries, embedding=embedding)


class Listed(nn.Module):
    def forward(self, features: Tensor) -> list[Tensor]:
        return [features]


either_detr = pytest.mark.parametrize("conditional", [False, True], ids=["DETR", "Conditional DETR"])


@either_detr
def test_queries_of_detr_are_described_by_their_own_embeddings(conditional):
    detector = query_detector(conditional=conditional).eval()
    pictures = [torch.rand(3, 64, 64), torch.rand(3, 48, 64)]
    batch, _ = detector.preprocess(pictures)
    maps = detector.trunk(batch.tensors)
    outputs = detector.queries(maps, batch, None)
    before = detector.queries.detections(outputs, batch)
    expected = [outputs.embeddings[i, row] for i in range(2) for row in before.rows[i]]
    torch.testing.assert_close(before.embeddings.flatten(0, 1), torch.stack(expected))
    described = detector.embedding.head(before.embeddings.flatten(0, 1)).unflatten(0, (2, 3))
    torch.testing.assert_close(detector(batch).embeddings, described)


@either_detr
def test_queries_learn_where_an_object_is_matched_to_them(conditional):
    detector = query_detector(conditional=conditional)
    target = {"boxes": torch.tensor([[4.0, 4, 40, 40], [20, 20, 60, 50]]), "labels": torch.tensor([1, 0])}
    losses = detector([torch.rand(3, 64, 64)] * 2, [target, {name: values[:1] for name, values in target.items()}])
    assert torch.isfinite(sum(losses.values()))
    labels = detector.embedding.criterion.labels
    assert sorted(labels[labels >= 0].tolist()) == [0, 1, 1]


KIN = [small_detr, small_deformable_detr, small_rt_detr, small_d_fine]


@pytest.mark.parametrize("recipe", KIN)
@pytest.mark.slow
def test_the_kin_of_detr_hands_its_queries_on_as_well(recipe):
    torch.manual_seed(0)
    base = recipe(2, size=(64, 64), channels=32, depth=2, queries=9)
    base.objects.postprocess.rows = True
    embedding = EmbeddingStage(EmbeddingHead(32, 4), criterion=Pulls())
    detector = Detector(base.trunk, preprocess=base.preprocess, **base.stages, embedding=embedding)
    target = {"boxes": torch.tensor([[4.0, 4, 40, 40], [20, 20, 60, 50]]), "labels": torch.tensor([1, 0])}
    losses = detector([torch.rand(3, 64, 64)] * 2, [target, {name: values[:1] for name, values in target.items()}])
    assert torch.isfinite(losses["embedding.embedding"])
    labels = embedding.criterion.labels
    assert sorted(labels[labels >= 0].tolist()) == [0, 1, 1]
    losses["embedding.embedding"].backward()
    assert all(part.grad is not None for part in detector.objects.decoder.layers.parameters())

    batch, _ = detector.eval().preprocess([torch.rand(3, 64, 64)])
    outputs = detector.objects(detector.trunk(batch.tensors), batch, None)
    found, own = detector.objects.detections(outputs, batch), outputs.found.embeddings
    torch.testing.assert_close(found.embeddings[0], own[0][found.rows[0]] * found.valid[0][:, None])
    assert detector([torch.rand(3, 64, 64)])[0]["embeddings"].shape[1] == 4


def dense_detector(recipe, per_cell: int, criterion: nn.Module) -> Detector:
    """Each anchor predicts 6 numbers, of which the stage behind makes 4."""
    torch.manual_seed(0)
    base = recipe(2, size=(64, 64), channels=8)
    base.dense.head.embedding_head = RegressionHead(8, per_cell, outputs=6)
    base.dense.postprocess.rows, base.dense.postprocess.score_threshold = True, 0.0
    embedding = EmbeddingStage(EmbeddingHead(6, 4), criterion=criterion)
    return Detector(base.trunk, preprocess=base.preprocess, **base.stages, embedding=embedding)


TWO = {"boxes": torch.tensor([[4.0, 4, 40, 40], [30, 24, 60, 60]]), "labels": torch.tensor([1, 0])}


@pytest.mark.parametrize(("recipe", "per_cell"), [(small_fcos, 1), (fpn_ssd, 4)])
@pytest.mark.slow
def test_anchors_of_a_dense_detector_predict_their_embeddings(recipe, per_cell):
    """Behind a postprocess by level as behind one of all anchors."""
    detector = dense_detector(recipe, per_cell, SupervisedContrastiveLoss())
    losses = detector([torch.rand(3, 64, 64)] * 2, [TWO] * 2)
    losses["embedding.embedding"].backward()
    assert losses["embedding.embedding"] > 0
    assert all(part.grad.any() for part in detector.dense.head.embedding_head.parameters())

    batch, _ = detector.eval().preprocess([torch.rand(3, 64, 64)])
    outputs = detector.dense(detector.trunk(batch.tensors), batch, None)
    found = detector.dense.detections(outputs, batch)
    own = outputs.predictions.embeddings[0][found.rows[0]]
    assert found.valid.any()
    torch.testing.assert_close(detector(batch).embeddings[0], detector.embedding.head(own) * found.valid[0][:, None])


class Says(nn.Module):
    """A matcher that has decided."""

    def __init__(self, matched: Tensor) -> None:
        super().__init__()
        self.matched = matched

    def forward(self, anchors: Anchors, targets: Targets) -> Assignment:
        return Assignment(self.matched[None], torch.zeros(1, len(self.matched)))


@pytest.mark.parametrize("positives", [0, 40, 400])
def test_positive_anchors_are_handed_over_and_at_most_256_of_an_image(positives):
    rows, dense = torch.arange(900), small_fcos(2, size=(64, 64), channels=8).dense
    matched = torch.where((rows % 2 == 1) & (rows < 2 * positives), rows % 3, -1 - rows % 2)
    dense.matcher = Says(matched)
    predictions = DensePredictions(
        *(torch.zeros(1, 900, n) for n in (2, 4)), torch.zeros(1, 900), rows[None, :, None].float()
    )
    anchors = Anchors.of(torch.rand(900, 2).repeat(1, 2) + torch.tensor([0.0, 0, 9, 9]))
    handed = dense.handover(DenseOutputs(predictions, anchors), IMAGES, truth())
    assert handed.embeddings.shape == (1, 256, 1)
    own = handed.embeddings[0, handed.valid[0], 0].long()
    assert len(own.unique()) == len(own) == min(positives, 256)
    assert torch.equal(matched[own], handed.matched[handed.valid])


def test_the_first_stage_describes_whole_images():
    one = EmbeddingStage(EmbeddingHead(6 * 9, 5), pool=PyramidRoIAlign(3, strides=(4, 8)), criterion=Pulls())
    outputs = one(features(), IMAGES, None)
    detections = one.detections(outputs, IMAGES)
    assert detections.boxes.tolist() == [[[0, 0, 96, 64]], [[0, 0, 70, 50]]]
    assert detections.embeddings.shape == (2, 1, 5)
    targets = truth()._replace(image_labels=torch.tensor([4, 9]))
    one.loss(one(features(), IMAGES, None, targets), targets)
    assert one.criterion.labels.tolist() == [4, 9]


# What is refused


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="learns='classes'; allowed are 'labels', 'identities', 'label_sets'"):
        unhooked(stage)(learns="classes")
    with pytest.raises(ValueError, match=r"the stage before found no embeddings .*give a pool"):
        stage(pool=None)(features(), IMAGES, positives())
    with pytest.raises(ValueError, match="EmbeddingStage: targets have no identities"):
        found(truth(), learns="identities")
    one = stage()
    with pytest.raises(ValueError, match="whole images learn image_labels; the targets have none"):
        one.loss(one(features(), IMAGES, None, truth()), truth())


def test_strides_that_are_not_those_of_the_trunk_are_refused():
    base = small_faster_rcnn(2, size=(96, 128), channels=8)
    embedding = EmbeddingStage(EmbeddingHead(8 * 9, 4), pool=PyramidRoIAlign(3, strides=(4, 8)))
    detector = Detector(base.trunk, preprocess=base.preprocess, **base.stages, embedding=embedding)
    with pytest.raises(ValueError, match=r"a level of stride 4, but images of 128 pixels have .* a stride of about 8"):
        detector.eval()([torch.rand(3, 96, 128)])
