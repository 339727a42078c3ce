"""
9. Deploy
=========

``inference_form`` folds norms into convolutions; ``detkit.export.program`` makes one program of plain operators, for
ONNX and others, suppression included.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from detkit.data import DigitScenes
from detkit.demo import digit_detector
from detkit.detectors import inference_form
from detkit.export import program

torch.manual_seed(0)
detector = digit_detector().eval()
image, _ = DigitScenes(1)[0]
images, _ = detector.preprocess([image])
with torch.no_grad():
    before = detector(images)
    after = inference_form(detector)(images)
print("largest difference of a score:", float((before.scores - after.scores)[before.valid].abs().max()))

# %%
# Batch, height and width of the program stay free. Any ONNX runtime takes the file; here it is onnxruntime.

exported = program(detector, (96, 96))
names = list(exported.call_spec.out_spec.context)  # pyright: ignore[reportOptionalMemberAccess]
path = Path(tempfile.mkdtemp()) / "detector.onnx"
torch.onnx.export(exported, (), path, output_names=names, verbose=False)

import onnxruntime  # noqa: E402

session = onnxruntime.InferenceSession(path)
values = session.run(names, {"images": images.tensors.numpy(), "sizes": images.sizes.numpy()})
moved = (torch.from_numpy(values[names.index("boxes")]) - before.boxes)[before.valid].abs().amax(-1)
print(f"{int(before.valid.sum())} detections of an untrained detector; farthest corner: {float(moved.max()):.1e} px")

# %%
# Equal scores may change places between runtimes, so compare boxes of the same rank with care.

figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.semilogy(moved.clamp(min=1e-7).sort().values)
axes.set(xlabel="detection", ylabel="moved by, px")
