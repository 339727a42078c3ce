"""SequenceStage: saying token by token is what reading them gave, only boxes are said, and it learns."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from detkit.detectors.recipes.pix2seq import small_pix2seq
from detkit.detectors.sequence import SequenceOutputs, SequenceStage
from detkit.heads.sequence import TokenSampler
from detkit.structures import Images, pad_targets

CLASSES, OBJECTS, BINS = 3, 4, 20
SIZES = torch.tensor([[64, 96], [50, 70]])
IMAGES = Images(torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)), SIZES)
RULES = pytest.mark.parametrize("rule", ["argmax", "reference", "standard"])


def detector(*, seed: int = 0, sampler: TokenSampler | None = None, constrained: bool = True, noise: bool = False):
    torch.manual_seed(seed)
    model = small_pix2seq(CLASSES, size=(64, 96), channels=16, layers=2, bins=BINS, max_objects=OBJECTS, order="area")
    stage = model.sequence
    stage.targets.noise = noise
    model.sequence = SequenceStage(
        encoder=stage.encoder,
        decoder=stage.decoder,
        targets=stage.targets,
        criterion=stage.criterion,
        sampler=stage.sampler if sampler is None else sampler,
        constrained=constrained,
    )
    for parameter in model.sequence.decoder.parameters():  # fresh logits are all near 0: make them differ
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def truth(**more: list[Tensor]):
    boxes = torch.tensor([[4.0, 5, 40, 60], [30, 8, 96, 50]]), torch.tensor([[5.0, 5, 70, 50]])
    labels = torch.tensor([2, 0]), torch.tensor([1])
    return pad_targets(
        [
            {"boxes": boxes[i], "labels": labels[i], **{name: values[i] for name, values in more.items()}}
            for i in range(2)
        ]
    )


def seen(model, images: Images = IMAGES):
    with torch.no_grad():
        return model.trunk(images.tensors)


def said(stage: SequenceStage, features, images: Images = IMAGES, *, seed: int = 0) -> SequenceOutputs:
    return stage.generate(stage.encoder(features, images), generator=torch.Generator().manual_seed(seed))


# Decoding


@RULES
@pytest.mark.parametrize("constrained", [True, False])
@pytest.mark.slow
def test_saying_token_by_token_gives_the_logits_of_reading_them_at_once(rule, constrained):
    stage = detector(constrained=constrained, sampler=TokenSampler(rule, top_p=0.9)).sequence.double()
    features = [level.double() for level in seen(detector())]
    with torch.no_grad():
        memory = stage.encoder(features, IMAGES)
        found = said(stage, features)
        start = torch.full((2, 1), stage.coder.start)
        full = stage.decoder(torch.cat((start, found.tokens[:, :-1]), dim=1), memory)
    assert found.logits.shape == (2, 5 * OBJECTS, stage.coder.size)
    torch.testing.assert_close(found.logits, full, rtol=1e-9, atol=1e-9)
    assert full.std(1).mean() > 0.01  # logits that never changed would agree as well


@pytest.mark.slow
def test_in_float32_cached_and_full_decoding_agree_to_1e_5():
    stage = detector(sampler=TokenSampler("argmax")).sequence
    with torch.no_grad():
        features = seen(detector())
        found = said(stage, features)
        start = torch.full((2, 1), stage.coder.start)
        full = stage.decoder(
            torch.cat((start, found.tokens[:, :-1]), dim=1), stage.encoder(features, IMAGES)
        ).log_softmax(-1)
    torch.testing.assert_close(found.logits.log_softmax(-1), full, rtol=1e-5, atol=1e-5)


def test_a_step_reads_nothing_that_comes_after_it():
    stage = detector().sequence
    memory = stage.encoder(seen(detector()), IMAGES)
    tokens = torch.randint(1, stage.coder.size, (2, 10), generator=torch.Generator().manual_seed(3))
    changed = torch.cat((tokens[:, :6], (tokens[:, 6:] + 1) % stage.coder.size), dim=1)
    before, after = stage.decoder(tokens, memory), stage.decoder(changed, memory)
    assert torch.equal(before[:, :6], after[:, :6])
    assert (before[:, 6:] - after[:, 6:]).abs().amax((0, 2)).min() > 1e-4


@pytest.mark.slow
@given(seed=st.integers(0, 1000), rule=st.sampled_from(["argmax", "reference", "standard"]))
@settings(max_examples=4)
def test_random_weights_say_only_well_formed_boxes(seed, rule):
    model = detector(seed=seed, sampler=TokenSampler(rule, top_p=0.95))
    stage = model.sequence
    found = said(stage, seen(model), seed=seed)
    rows = found.tokens.unflatten(1, (OBJECTS, 5))
    first, classes = stage.coder.first_coordinate, stage.coder.first_class
    assert ((rows[..., :4] >= first) & (rows[..., :4] < first + BINS)).all()
    assert (rows[..., 2:4] >= rows[..., :2]).all()
    assert ((rows[..., 4] >= classes) & (rows[..., 4] < classes + CLASSES)).all()
    detections = stage.detections(found, IMAGES)
    assert detections.valid.all()
    limits = SIZES.flip(-1).repeat(1, 2)[:, None]
    assert ((detections.boxes >= 0) & (detections.boxes <= limits)).all()
    assert (detections.boxes[..., 2:] >= detections.boxes[..., :2]).all()


def test_a_diverged_network_still_says_boxes():
    model = detector()
    with torch.no_grad():
        next(model.sequence.decoder.parameters()).fill_(torch.nan)
    found = model.sequence(seen(model), IMAGES, None)
    detections = model.sequence.detections(found, IMAGES)
    assert torch.isfinite(detections.boxes).all()
    assert torch.isfinite(detections.scores).all()


def test_without_the_grammar_rows_that_are_no_box_are_not_valid():
    model = detector(constrained=False, sampler=TokenSampler("standard", top_p=1.0))
    found = model.sequence.detections(said(model.sequence, seen(model)), IMAGES)
    assert not found.valid.all()
    assert (found.valid[:, :-1] >= found.valid[:, 1:]).all()
    assert not found.boxes[~found.valid].any()
    assert not found.scores[~found.valid].any()


@pytest.mark.slow
def test_a_generator_state_is_a_sequence():
    model = detector(sampler=TokenSampler("standard", top_p=0.99))
    one, same, other = (said(model.sequence, seen(model), seed=seed).tokens for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.slow
def test_an_image_alone_and_padded_further_says_the_same():
    """What lies beyond an image's size is not looked at: to 1e-5, as sums run in another order."""
    model = detector(sampler=TokenSampler("argmax"))
    features = seen(model)
    together = said(model.sequence, features).logits[1]
    padded = [F.pad(level[1:], (0, 2, 0, 2), value=9.0) for level in features]
    padded[-1][..., 5:] = -7.0  # column 5 starts at pixel 80 of 70
    found = said(model.sequence, padded, Images(torch.zeros(1, 3, 96, 128), SIZES[1:])).logits[0]
    torch.testing.assert_close(found, together, rtol=1e-4, atol=1e-4)


# Detections


def outputs_of(rows: list[list[int]], stage: SequenceStage, classes: dict[int, int]) -> SequenceOutputs:
    """Tokens of one image, with logits that favor the class ``classes[row]`` more the lower the row."""
    logits = torch.zeros(1, 5 * OBJECTS, stage.coder.size)
    for row, label in classes.items():
        logits[0, 5 * row + 4, stage.coder.first_class + label] = 1.0 + row
        logits[0, 5 * row + 4, stage.coder.noise] = 2.0  # scores below, but is no class
    return SequenceOutputs(logits, torch.tensor(rows).reshape(1, -1))


def test_labels_are_the_likeliest_class_and_scores_its_probability_best_first():
    stage = detector().sequence
    first, classes = stage.coder.first_coordinate, stage.coder.first_class
    rows = [[first, first, first + 19, first + 19, classes]] * 3 + [[first + 9, first, first, first, classes]]
    outputs = outputs_of(rows, stage, {0: 2, 1: 1, 2: 0, 3: 2})
    found = stage.detections(outputs, Images(IMAGES.tensors[:1], SIZES[:1]))
    assert found.labels.tolist() == [[0, 1, 2, 0]]
    assert found.valid.tolist() == [[True, True, True, False]]  # the last is inverted, likely as it is
    expected = [stage.criterion.scores(outputs.logits[0, 5 * row + 4], stage.coder).max().item() for row in (2, 1, 0)]
    assert found.scores[0, :3].tolist() == pytest.approx(expected)
    assert found.boxes[0, 0].tolist() == [0, 0, 96, 64]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.slow
def test_detections_are_of_the_type_that_the_logits_are_promoted_to(dtype):
    model = detector()
    outputs = said(model.sequence, seen(model))
    found = model.sequence.detections(outputs._replace(logits=outputs.logits.to(dtype)), IMAGES)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert (found.boxes.dtype, found.scores.dtype) == (expected, expected)


# Learning


def test_the_loss_is_what_the_criterion_says_of_teacher_forcing():
    model = detector()
    stage, targets = model.sequence, truth()
    features = seen(model)
    outputs = stage(features, IMAGES, None, targets)
    learned = stage.targets(targets, SIZES)
    expected = stage.criterion(stage.decoder(learned.inputs, stage.encoder(features, IMAGES)), *learned[1:])
    assert torch.equal(stage.loss(outputs, targets)["tokens"], expected["tokens"])
    assert torch.equal(outputs.tokens, outputs.logits.argmax(-1))


def test_weights_of_objects_reach_the_loss():
    model = detector()
    features, weights = seen(model), [torch.tensor([1.0, 9]), torch.ones(1)]
    losses = []
    for targets in truth(), truth(weights=weights):
        torch.manual_seed(0)
        outputs = model.sequence(features, IMAGES, None, targets)
        losses.append(model.sequence.loss(outputs, targets)["tokens"])
    costs = torch.nn.functional.cross_entropy(outputs.logits.mT, outputs.learned.tokens, reduction="none")
    own = outputs.learned.weights
    assert (own > 3).sum() == 5  # 9, and three times that for the class
    torch.testing.assert_close(losses[1], (costs * own).sum() / own.sum())
    assert losses[0] != losses[1]


@pytest.mark.parametrize("objects", [True, False])
@pytest.mark.parametrize("noise", [True, False])
def test_every_parameter_learns_with_and_without_objects(objects, noise):
    model = detector(noise=noise).train()
    targets = truth()
    targets = targets if objects else targets._replace(valid=torch.zeros_like(targets.valid))
    losses = model(IMAGES, targets)
    assert set(losses) == {"sequence.tokens"}
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_outputs_of_inference_have_no_loss():
    model = detector()
    outputs = model.sequence(seen(model), IMAGES, None)
    with pytest.raises(ValueError, match="outputs are of inference"):
        model.sequence.loss(outputs, truth())


def test_inference_takes_no_gradient():
    model = detector()
    assert not model.sequence(model.trunk(IMAGES.tensors), IMAGES, None).logits.requires_grad


@pytest.mark.slow
def test_a_few_steps_lower_the_loss():
    torch.manual_seed(0)
    model = small_pix2seq(CLASSES, size=(64, 96), channels=16, layers=1, bins=BINS, max_objects=OBJECTS, order="area")
    model.sequence.targets.noise = False
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-2)
    history = []
    for _ in range(30):
        loss = sum(model(IMAGES, truth()).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.5 * history[0]
