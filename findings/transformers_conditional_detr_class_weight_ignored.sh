#!/usr/bin/env bash
# transformers 5.24.0, Conditional DETR: config.cls_loss_coefficient has no effect; the class loss always weighs 1.
#
# Guess before the first run: it is the weight of the class loss, as bbox_loss_coefficient is that of the boxes; its
# default is 2, as published.
# Seen: the loss is the same with 2 and with 20, and is 1 * classes + 5 * boxes + 2 * GIoU. So by default classes weigh
# half of what was published. bbox_loss_coefficient has its effect. DAB-DETR has the same setting, without effect too.
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
from transformers import ResNetConfig

print("torch", torch.__version__, "transformers", transformers.__version__)
assert transformers.__version__ == "5.24.0"
boxes = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.6, 0.6, 0.3, 0.4]])
labels = [{"class_labels": torch.tensor([0, 2]), "boxes": boxes}]


@torch.no_grad()
def outputs(kind, **settings):
    torch.manual_seed(0)
    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, out_features=["stage4"])
    layers = dict(encoder_layers=1, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2)
    sizes = dict(encoder_ffn_dim=16, decoder_ffn_dim=16, num_queries=5, num_labels=3)
    width = {"hidden_size" if kind == "DabDetr" else "d_model": 32}
    config = getattr(transformers, f"{kind}Config")(backbone_config=backbone, **layers, **sizes, **width, **settings)
    model = getattr(transformers, f"{kind}ForObjectDetection")(config).eval()
    return model(pixel_values=torch.rand(1, 3, 128, 128), labels=labels)


for kind in ("ConditionalDetr", "DabDetr"):
    usual, heavy = outputs(kind), outputs(kind, cls_loss_coefficient=20)
    boxes_heavy = outputs(kind, bbox_loss_coefficient=50)
    classes, places, overlaps = (usual.loss_dict[name].item() for name in ("loss_ce", "loss_bbox", "loss_giou"))
    by_hand = classes + 5 * places + 2 * overlaps
    print(f"{kind}: 1 * {classes:.4f} + 5 * {places:.4f} + 2 * {overlaps:.4f} = {by_hand:.4f}, loss {usual.loss:.4f}")
    print(f"  cls_loss_coefficient=20 {heavy.loss:.4f}, bbox_loss_coefficient=50 {boxes_heavy.loss:.4f}")
    assert heavy.loss == usual.loss
    assert boxes_heavy.loss > usual.loss + 10
    assert abs(usual.loss.item() - by_hand) < 1e-4
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
