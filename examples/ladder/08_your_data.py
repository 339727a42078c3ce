"""
8. Your data
============

A data set gives pairs of an image and its target: a dict of boxes and labels. COCO's json is read as it is; so are VOC,
YOLO's text files and tables. Here the annotation file is written first.
"""

import json
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from PIL import Image

from detkit.data import CocoDataset, DigitScenes, object_statistics
from detkit.viz import draw_boxes

folder = Path(tempfile.mkdtemp())
pictures, annotations = [], []
for number, (image, target) in enumerate(DigitScenes(6)[i] for i in range(6)):
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
    pictures.append({"id": number, "file_name": f"{number}.png", "height": 96, "width": 96})
    for (x1, y1, x2, y2), label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
        box = [x1, y1, x2 - x1, y2 - y1]  # COCO writes corner and size
        row = {"id": len(annotations) + 1, "image_id": number, "category_id": label + 1, "iscrowd": 0}
        annotations.append({**row, "bbox": box, "area": box[2] * box[3]})
categories = [{"id": digit + 1, "name": str(digit)} for digit in range(10)]
content = {"images": pictures, "annotations": annotations, "categories": categories}
(folder / "digits.json").write_text(json.dumps(content))

# %%
# Labels count from 0, whatever the file's category ids are; the names come along.

dataset = CocoDataset(folder, folder / "digits.json")
image, target = dataset[0]
print("classes:", dataset.categories)
print({name: tuple(value.shape) for name, value in target.items() if isinstance(value, torch.Tensor)})

# %%
# Look at your data before you train: how many objects, how large?

targets = [dataset[i][1] for i in range(len(dataset))]
statistics = object_statistics(targets, [(96, 96)] * len(dataset))
print(f"{statistics.objects} objects in {statistics.images} images, {statistics.objects_per_image:.1f} an image")
figure, panels = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
texts = [dataset.categories[label] for label in target["labels"]]
panels[0].imshow(draw_boxes(image, target["boxes"], labels=target["labels"], texts=texts, enlarge=4))
panels[0].axis("off")
sides = torch.cat([(one["boxes"][:, 2:] - one["boxes"][:, :2]) for one in targets])
panels[1].scatter(*sides.T)
panels[1].set(xlabel="width, px", ylabel="height, px", xlim=(0, 60), ylim=(0, 60))
