"""Runs of detkit.train in this process, before their first step."""

from pathlib import Path

from torchvision.transforms.v2.functional import to_pil_image

from detkit.data import DigitScenes
from detkit.train.building import build
from detkit.train.identity import identity
from detkit.train.options import arguments
from detkit.train.run import Run

OPTIONS = ["--data", "scenes", "--scenes", "24", "--size", "64", "64", "--batch-size", "4", "--warmup", "4"]
OPTIONS += ["--augment", "flip", "--no-bf16"]


def begun(output: Path, *options: str):
    """A run of the script in this process, before its first step."""
    args, identity = identified(output, *options)
    return Run(args, build(args, 10), 24, identity)


def identified(output: Path, *options: str, scenes: DigitScenes | None = None):
    """The command line of a run on scenes, and what makes it the one that it is."""
    args = arguments([*OPTIONS, "--epochs", "2", *options, "--output", str(output)])
    data = scenes or DigitScenes(4, size=(64, 64))
    return args, identity(args, data.categories, {"train": data})


def claimed(folder: Path, *options: str):
    return arguments([*OPTIONS, "--output", str(folder), *options])


def draw_voc_folder(root: Path) -> None:
    """Digit scenes as a VOC data set: PNG images, XML annotations, split lists."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    scenes = DigitScenes(6, size=(64, 64))
    for i in range(6):
        image, target = scenes[i]
        to_pil_image(image).save(root / "JPEGImages" / f"{i}.jpg")
        objects = "".join(
            f"<object><name>digit {label}</name><difficult>0</difficult><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
            f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
            for (x1, y1, x2, y2), label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True)
        )
        size = "<size><width>64</width><height>64</height><depth>3</depth></size>"
        xml = f"<annotation><filename>{i}.jpg</filename>{size}{objects}</annotation>"
        (root / "Annotations" / f"{i}.xml").write_text(xml)
    for split in ("train", "val", "test"):
        # Validation repeats training here: every class must occur among those that train names.
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{i}\n" for i in range(6)))
