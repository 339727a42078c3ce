#!/usr/bin/env bash
# transformers 5.24.0, D-FINE: each layer's distributions are judged with the classes and boxes of the layer before.
#
# Guess before the first run: with auxiliary_loss=True every decoder layer has losses of its classes, its boxes and its
# distributions, the last layer too, as published; and decoder_layers=1 is allowed.
# Seen: the first layer's prediction before distributions counts as a layer, so there are 4 logits of 3 layers (3 are
# documented), and auxiliary outputs pair them with the distributions from the first on. The classes and boxes of the
# layer before the last have no loss, and the last layer's distributions have none of their own (no "loss_fgl").
# decoder_layers=1 raises a ValueError about tied weights.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q uv
"$folder/venv/bin/uv" pip install -q --python "$folder/venv/bin/python" \
  "torch==2.15.0" "transformers==5.24.0" scipy pillow numpy
cat > "$folder/show.py" <<'PYTHON'
import torch
import transformers
from transformers import DFineConfig, DFineForObjectDetection, HGNetV2Config

print("torch", torch.__version__, "transformers", transformers.__version__)
assert transformers.__version__ == "5.24.0"
boxes = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.6, 0.6, 0.3, 0.4]])
labels = [{"class_labels": torch.tensor([0, 2]), "boxes": boxes}]


def small(layers):
    torch.manual_seed(0)
    backbone = HGNetV2Config(
        stem_channels=[3, 8, 8],
        stage_in_channels=[8, 12, 16, 20],
        stage_mid_channels=[4] * 4,
        stage_out_channels=[12, 16, 20, 24],
        stage_num_blocks=[1] * 4,
        stage_numb_of_layers=[2] * 4,
        hidden_sizes=[12, 16, 20, 24],
        out_features=["stage2", "stage3", "stage4"],
    )
    encoder = dict(encoder_in_channels=[16, 20, 24], encoder_hidden_dim=16, encoder_ffn_dim=16)
    decoder = dict(d_model=16, decoder_in_channels=[16] * 3, decoder_ffn_dim=16, decoder_attention_heads=2)
    sizes = dict(decoder_layers=layers, encoder_attention_heads=2, num_queries=5, num_labels=3)
    config = DFineConfig(backbone_config=backbone, num_denoising=0, auxiliary_loss=True, **encoder, **decoder, **sizes)
    model = DFineForObjectDetection(config).train()
    for parameter in model.parameters():
        if parameter.ndim > 1:  # as initialized, all layers predict the same
            torch.nn.init.normal_(parameter, std=0.3)
    return model


outputs = small(3)(pixel_values=torch.rand(1, 3, 64, 64), labels=labels)
logits, places = outputs.intermediate_logits, outputs.intermediate_reference_points
corners = outputs.intermediate_predicted_corners
print(f"decoder_layers=3: logits of {logits.shape[1]}, boxes of {places.shape[1]}, distributions of {corners.shape[1]}")
assert (logits.shape[1], places.shape[1], corners.shape[1]) == (4, 4, 3)


def position(found, stacked):
    return [torch.equal(found, one) for one in stacked.unbind(1)].index(True)


pairs = [
    (position(one["pred_corners"], corners), position(one["logits"], logits), position(one["pred_boxes"], places))
    for one in outputs.auxiliary_outputs
    if "pred_corners" in one
]
print("distributions, logits and boxes that are judged together:", pairs, "(logits and boxes of layer k are at k + 1)")
assert pairs == [(0, 0, 0), (1, 1, 1)]
gradients = torch.autograd.grad(outputs.loss, (logits, places, corners))
trained = [[bool(one.any()) for one in gradient.unbind(1)] for gradient in gradients]
print("with a loss of their own: logits", trained[0], "boxes", trained[1], "distributions", trained[2])
assert trained == [[True, True, False, True]] * 2 + [[True, True, False]]
print("losses of distributions:", sorted(name for name in outputs.loss_dict if "fgl" in name))
assert {name for name in outputs.loss_dict if "fgl" in name} == {"loss_fgl_aux_0", "loss_fgl_aux_1"}
try:
    small(1)
    raise AssertionError("decoder_layers=1 was taken")
except ValueError as error:
    print("decoder_layers=1:", str(error)[:100])
    assert "tie_weights_keys" in str(error)
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
