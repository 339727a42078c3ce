"""From a command line to a page."""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

from torchvision.transforms.v2.functional import to_pil_image

import detkit.evaluate
from detkit._disk import write_atomically
from detkit.data import CocoDataset
from detkit.evaluate.page import Drawing, write_page
from detkit.evaluate.pictures import draw_errors
from detkit.evaluate.report import Report, make_report, text_lines
from detkit.evaluate.source import as_coco, detect
from detkit.metrics import CocoMetrics


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; ``--help`` shows it."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m detkit.evaluate", description=detkit.evaluate.__doc__, formatter_class=raw
    )
    add = parser.add_argument
    add("detections", type=Path, help="a detector's .safetensors, or a COCO results .json")
    add("truth", type=Path, help="a COCO json, a csv file, or a folder in YOLO's, Roboflow's or VOC's form")
    add("--images", type=Path, help="folder of the pictures; without it those beside TRUTH, for two .json none")
    add("--split", help="of a folder; without it all pictures")
    add("--output", type=Path, default=Path("runs/evaluate"), help="folder of index.html")
    add("--iou-type", choices=("bbox", "segm"), default="bbox", help="compare boxes or masks")
    add("--iou", type=float, default=0.5, help="IoU of a hit, above 0.1")
    add("--score", type=float, help="least score that the matrix and the pictures count; default: of the best F1")
    add("--worst", type=int, default=8, help="how many pictures to show")
    add("--batch-size", type=int, default=8)
    add("--device", default="cpu")
    args = parser.parse_args(argv)
    if args.detections.suffix not in (".json", ".safetensors"):
        parser.error(f"{args.detections}: allowed are a .safetensors of save_detector() and a .json")
    if not 0.1 < args.iou <= 1:
        parser.error(f"--iou {args.iou:g}: allowed are numbers above 0.1 up to 1")
    if args.score is not None and not math.isfinite(args.score):
        parser.error(f"--score {args.score:g}: allowed is a finite number")
    for name, least in (("worst", 0), ("batch_size", 1)):
        if getattr(args, name) < least:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)}: allowed is at least {least}")
    return args


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Print the tables, write the page, and return the numbers of :meth:`CocoMetrics.compute`."""
    args = arguments(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    truth, images, results = args.truth, args.images, args.detections
    if truth.suffix.lower() != ".json":
        truth, images = as_coco(truth, args.output / "truth.json", images=images, split=args.split)
    if results.suffix == ".safetensors":
        images = images or truth.parent
    dataset = CocoDataset(images, truth) if images else None
    if dataset and results.suffix == ".safetensors":
        results = args.output / "results.json"
        detect(args.detections, dataset, results, batch_size=args.batch_size, device=args.device)
    metrics = CocoMetrics.from_json(truth, results, iou_types=(args.iou_type,))
    report = make_report(metrics, iou_threshold=args.iou, score_threshold=args.score)
    drawings = list(_drawings(report, dataset, args.worst)) if dataset else []
    title = f"{args.detections.name} on {args.truth.name}"
    page, text = args.output / "index.html", write_page(report, title=title, drawings=drawings)
    write_atomically(page, lambda file: file.write(text.encode()), owner="detkit.evaluate")
    print("\n".join([*text_lines(report), f"page={page}"]))
    return report.numbers


def _drawings(report: Report, dataset: CocoDataset, most: int) -> Iterator[Drawing]:
    places = {image_id: place for place, image_id in enumerate(dataset.image_ids)}
    shown = report.judged.above(report.score_threshold)
    for row in report.worst[:most]:
        place, match = places[row.image_id or 0], shown.images[row.place]
        kinds = report.errors.images[row.place].detections[: len(match.objects)]  # best first, so those above
        pictures = draw_errors(to_pil_image(dataset[place][0]), match, kinds, report.judged.names)
        text = f"{row.hits} found, {row.missed} missed, {row.alarms} false"
        yield Drawing(dataset.file_name(place), text, *pictures)
