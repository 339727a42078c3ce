#!/usr/bin/env bash
# transformers 5.24.0, Deformable DETR: in two stages the heads of the encoder get no loss, and refinement ties classes.
#
# Guess before the first run: two_stage=True adds the losses of the encoder's proposals ("loss_ce_enc" as published),
# and with_box_refine=True gives each decoder layer a class head and a box head of its own.
# Seen: the losses with two_stage=True are those without it, and the encoder's class and box heads get no gradient, so
# that the choice of proposals is never trained. With refinement alone the box heads are separate, but the class heads
# of all layers are one parameter; in two stages they are separate.
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
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection, ResNetConfig

print("torch", torch.__version__, "transformers", transformers.__version__)
assert transformers.__version__ == "5.24.0"
boxes = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.6, 0.6, 0.3, 0.4]])
labels = [{"class_labels": torch.tensor([0, 2]), "boxes": boxes}]


def small(**settings):
    torch.manual_seed(0)
    stages = ["stage2", "stage3", "stage4"]
    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, out_features=stages)
    layers = dict(encoder_layers=1, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2)
    sizes = dict(d_model=32, encoder_ffn_dim=16, decoder_ffn_dim=16, num_queries=5, two_stage_num_proposals=5)
    config = DeformableDetrConfig(
        backbone_config=backbone, num_labels=3, auxiliary_loss=True, with_box_refine=True, **layers, **sizes, **settings
    )
    return DeformableDetrForObjectDetection(config).train()


def separate(heads):
    """Number of heads that share no parameter."""
    return len({next(head.parameters()) for head in heads})


names = {}
for two_stage in (False, True):
    model = small(two_stage=two_stage)
    outputs = model(pixel_values=torch.rand(1, 3, 128, 128), labels=labels)
    names[two_stage] = sorted(outputs.loss_dict)
    outputs.loss.backward()
    classes, places = model.class_embed, model.bbox_embed
    print(f"two_stage={two_stage}: losses", *names[two_stage])
    print(f"  {separate(classes)} class heads of {len(classes)}, {separate(places)} box heads of {len(places)}")
    assert (separate(classes), separate(places)) == ((3, 3) if two_stage else (1, 2))
# the last heads are the encoder's
trained = [[parameter.grad is not None for parameter in head.parameters()] for head in (classes[-1], places[-1])]
print("gradients of the encoder's heads:", trained, "though they predict", tuple(outputs.enc_outputs_class.shape))
assert names[True] == names[False]
assert not any(name.endswith("_enc") for name in names[True])
assert not any(any(head) for head in trained)
assert next(classes[0].parameters()).grad is not None
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
