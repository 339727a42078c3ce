"""The trunk of a cfg: any chain of its sections computes what loops over numbers compute."""

import random
import tempfile
import weakref
from pathlib import Path

import darknet_cfgs as cfgs
import darknet_loops as loops
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import assert_refused
from torch import nn

from detkit.weights import from_darknet
from detkit.weights.darknet_cfg import read_cfg
from detkit.weights.darknet_trunk import Concatenate, DarknetTrunk, Shortcut, trunk_of

SIDES = st.tuples(st.integers(6, 9), st.integers(6, 9))
ACTIVATIONS = st.sampled_from(["linear", "leaky", "relu", "logistic"])


@st.composite
def convolutions(draw: st.DrawFn) -> str:
    size, shape = draw(st.integers(1, 4)), [f"filters={draw(st.integers(1, 3))}", f"stride={draw(st.integers(1, 2))}"]
    padded = draw(st.sampled_from(["pad=1", "pad=0", f"padding={size - 1}", "pad=1\npadding=3"]))
    normed = draw(st.sampled_from(["batch_normalize=1", "batch_normalize=0"]))
    activation = f"activation={draw(ACTIVATIONS)}"
    return "\n".join(["[convolutional]", f"size={size}", *shape, padded, normed, activation, ""])


@st.composite
def pools(draw: st.DrawFn) -> str:
    size = draw(st.integers(1, 4))
    padding = draw(st.sampled_from(["", *(f"padding={i}\n" for i in range(size))]))
    return f"[maxpool]\nsize={size}\nstride={draw(st.integers(1, 3))}\n{padding}"


@pytest.mark.filterwarnings("error")
@given(SIDES, st.lists(st.one_of(convolutions(), pools(), st.just(cfgs.UPSAMPLE)), min_size=1, max_size=4))
@pytest.mark.slow
def test_any_chain_of_layers_computes_what_loops_compute(size, layers):
    cfg = cfgs.net(*size) + "".join(layers) + cfgs.yolo("0", "4,4", 1)
    with tempfile.TemporaryDirectory() as folder:
        paths = Path(folder, "a.cfg"), Path(folder, "a.weights")
        paths[0].write_text(cfg)
        drawn = loops.random_weights(cfg)
        paths[1].write_bytes(loops.weights_file(drawn))
        try:
            detector = from_darknet(*paths).eval()
        except ValueError as error:
            if "cannot read" not in str(error):  # a map that is smaller than the layer
                raise
            return
    draw = random.Random(0)
    image = [[[draw.random() for _ in range(size[0])] for _ in range(size[1])] for _ in range(3)]
    with torch.no_grad():
        (head,) = detector.dense.head.levels
        (features,) = detector.trunk(torch.tensor([image]))
        raw = head(features)[0].flatten(1).T
    (found,) = loops.detect(cfg, drawn, image)
    assert len(found) == len(raw)
    objectness = torch.tensor([box.objectness for box in found])
    torch.testing.assert_close(raw[:, 4].sigmoid(), objectness, rtol=1e-5, atol=1e-5)


def test_layers_keep_darknets_numbers_and_levels_come_finest_first(tmp_path):
    (tmp_path / "a.cfg").write_text(cfgs.PYRAMID)
    _, (net, *layers) = read_cfg(tmp_path / "a.cfg")
    trunk, predictors = trunk_of(net, layers)
    assert [*trunk.layers] == [*map(str, (0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13))]
    assert trunk.predictors == (14, 9)
    assert (trunk.reads[3], trunk.reads[8], trunk.reads[11], trunk.reads[13]) == ((2, 0), (7, 6), (8,), (12, 5))
    assert [predictor.reads for predictor in predictors] == [(1, 10, 8, 16), (1, 6, 4, 8)]
    assert all(parameter.is_meta for parameter in trunk.parameters())  # no memory before the file is known to fit


def test_a_map_is_let_go_after_the_last_layer_that_reads_it():
    made: list[weakref.ref] = []

    class Made(nn.Module):
        def forward(self, *maps):
            alive.append([i for i, each in enumerate(made) if each() is not None])
            result = sum(maps) + 1
            made.append(weakref.ref(result))
            return result

    alive: list[list[int]] = []
    trunk = DarknetTrunk({i: Made() for i in range(5)}, {0: [-1], 1: [0], 2: [1], 3: [2, 1], 4: [3]}, [5, 1])
    levels = trunk(torch.zeros(1, 3, 2, 2))
    assert alive == [[], [0], [0, 1], [0, 1, 2], [0, 3]]  # layer 0 is read by the predictor 1
    assert [float(level.mean()) for level in levels] == [7, 1]


def test_a_pool_of_stride_1_looks_to_the_right_and_below_only(tmp_path):
    (tmp_path / "a.cfg").write_text(cfgs.net(4, 4) + cfgs.MAX_SAME + cfgs.yolo("0", "4,4", 1))
    _, (net, *layers) = read_cfg(tmp_path / "a.cfg")
    trunk, _ = trunk_of(net, layers)
    rising = torch.arange(48.0).view(1, 3, 4, 4)
    (pooled,) = trunk(-rising)
    assert pooled.equal(-rising)  # nothing lies beyond the border: not even a zero
    (pooled,) = trunk(rising)
    assert pooled[0, 0, [0, 0, 3, 3], [0, 3, 0, 3]].tolist() == [5, 7, 13, 15]


def test_one_map_passes_a_route_as_it_is_and_shortcuts_are_activated():
    features = torch.randn(1, 2, 3, 3)
    assert Concatenate()(features) is features
    assert Shortcut(nn.LeakyReLU(0.5))(features, features).equal(torch.where(features > 0, 2 * features, features))


@pytest.mark.parametrize("layers", ["0,-9", "-4", "3", "99999999999"])
def test_a_route_that_leads_nowhere_is_refused(layers, tmp_path):
    cfg = cfgs.net(8, 8) + cfgs.conv(2) * 3 + f"[route]\nlayers={layers}\n" + cfgs.yolo("0", "4,4", 1)
    (tmp_path / "a.cfg").write_text(cfg)
    _, (net, *sections) = read_cfg(tmp_path / "a.cfg")
    assert_refused(f"from_darknet: a.cfg line 46: layers={layers} of [route]; allowed are", trunk_of, net, sections)
