"""From a command line to a report."""

import argparse
import inspect
from pathlib import Path
from typing import Any

import detkit.inspect
from detkit.data.wrapped import find_categories
from detkit.detectors import Detector, recipes
from detkit.inspect.anchors import AnchorFit
from detkit.inspect.report import describe, describe_fit, hardest, read_truth
from detkit.inspect.source import open_source
from detkit.inspect.suggest import suggest
from detkit.train.options import DEFAULT, TRAINABLE, trainable
from detkit.viz import save_picture


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; ``--help`` shows it."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m detkit.inspect", description=detkit.inspect.__doc__, formatter_class=raw
    )
    add = parser.add_argument
    add("data", help="a COCO json, a csv file, a folder, or scenes")
    add("--images", type=Path, help="folder of the pictures of a json or csv file; without it the file's own")
    add("--split", help="of a folder; without it all pictures")
    add("--recipe", type=trainable, default=DEFAULT, metavar="NAME", help=f"{', '.join(TRAINABLE)}; default: {DEFAULT}")
    add("--size", type=int, nargs=2, metavar=("H", "W"), help="input size, for recipes that take one; default: fitting")
    add("--count", type=int, default=6, help="how many anchor sizes to suggest")
    add("--most", type=int, default=1000, help="images to look at, spread over the data set")
    add("--output", type=Path, help="folder for hardest.png")
    args = parser.parse_args(argv)
    for name in ("count", "most"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)}: allowed is a whole number of at least 1")
    return args


def build(recipe: str, num_classes: int, **options: Any) -> Detector:
    """A recipe with its own input size, or another. Raises ValueError for one that takes none."""
    if "size" in options and not takes_size(recipe):
        raise ValueError(f"recipe {recipe} does not take --size")
    return getattr(recipes, recipe)(num_classes, **options)


def takes_size(recipe: str) -> bool:
    """Whether a recipe has a size of its input to choose."""
    return "size" in inspect.signature(getattr(recipes, recipe)).parameters


def main(argv: list[str] | None = None) -> list[str]:
    """Print the report, whose lines are returned, and draw the hardest pictures."""
    args = arguments(argv)
    dataset: Any = open_source(args.data, images=args.images, split=args.split)
    categories, _ = find_categories(dataset, function="detkit.inspect")
    truth = read_truth(dataset, args.most)
    lines = list(describe(truth, categories, len(dataset)))
    found = suggest(truth)
    height, width = found.size
    lines.append(f"suits       --size {height} {width} --finest {found.finest}, where the recipe takes them")
    options = {"size": tuple(args.size)} if args.size else found.taken_by(getattr(recipes, args.recipe))
    detector = build(args.recipe, len(categories), **options)
    lines.append(f"detector    {args.recipe}, input {detector.preprocess}")
    try:
        anchors = AnchorFit(detector)
    except ValueError as error:
        lines.append(f"anchors     {error}")
    else:
        fits = [anchors.fit(target, size) for target, size in zip(truth.targets, truth.sizes, strict=True)]
        lines += describe_fit(anchors, truth, fits, args.count)
        picture = hardest(dataset, truth, fits, anchors) if args.output else None
        if picture is not None:
            args.output.mkdir(parents=True, exist_ok=True)
            save_picture(args.output / "hardest.png", picture)
            lines.append(f"picture     {args.output / 'hardest.png'}")
    print("\n".join(lines))
    return lines
