"""Run a detector over more pictures than one process can: folders, WebDataset shards or Parquet lists, on Ray Data.

Run: python examples/predict_many.py cells.safetensors runs/found pictures/ --workers 2
     python examples/predict_many.py cells.safetensors runs/found set/train.json --format coco
     python examples/predict_many.py cells.safetensors runs/found list.parquet --embeddings --address auto

The weights are those of save_detector. Sources are folders and pictures, or the index or tar files of shards, or
Parquet files with a column "path". With ``--address auto`` it runs on a cluster that is there already, whose machines
share sources and output. A killed run goes on where it was; one with nothing left starts no Ray. Needs the extra "ray".
"""

import argparse
import hashlib
import json
from pathlib import Path

import pyarrow.parquet as parquet
from many.cluster import detect
from many.joined import coco_results, joined
from many.results import done, write_whole
from many.sources import listed
from many.workers import Settings


def check_same_run(options: argparse.Namespace) -> None:
    """Refuse to go on with other weights or options: an output of two detectors would be of neither."""
    weights = hashlib.sha256(Path(options.detector).read_bytes()).hexdigest()
    about = json.dumps({"detector": weights, "score": options.score, "embeddings": options.embeddings})
    known = options.output / "run.json"
    if known.exists() and known.read_text() != about:
        raise SystemExit(f"{options.output} holds results of other weights or options, {known.read_text()}")
    write_whole(known, lambda file: file.write(about.encode()))


def main() -> None:
    """List, leave out what is done, detect, join."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("detector", help="weights of save_detector")
    parser.add_argument("output", type=Path, help="folder of this run alone")
    parser.add_argument("sources", nargs="+", help="pictures, folders, shards or Parquet lists")
    parser.add_argument("--format", choices=("parquet", "coco"), default="parquet")
    parser.add_argument("--embeddings", action="store_true", help="add one of each detection, for Parquet")
    parser.add_argument("--score", type=float, default=0.3, help="detections below are left out")
    for name, value in (("workers", 2), ("batch-size", 8), ("block", 64)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--address", help="of a running cluster; without it one is started here")
    options = parser.parse_args()

    parts = options.output.resolve() / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    check_same_run(options)
    sources = [str(Path(source).resolve()) for source in options.sources]
    paths, before = listed(sources), done(parts)
    print(f"{len(paths)} pictures, {len(before.intersection(paths))} of them done before", flush=True)
    if not before.issuperset(paths):
        weights = str(Path(options.detector).resolve())
        settings = Settings(weights, sources, parts, options.batch_size, options.score, options.embeddings)
        detect(paths, settings, workers=options.workers, block=options.block, address=options.address)

    table, ids = joined(parts, paths), {path: number for number, path in enumerate(paths, 1)}
    for row in table.filter(table["error"].is_valid()).to_pylist():
        print(f"left out: {row['error']}")
    if options.format == "coco":
        images = [{"id": ids[row["path"]], **row} for row in table.select(["path", "file_name"]).to_pylist()]
        for name, entries in {"results": list(coco_results(table, ids)), "images": images}.items():
            text = json.dumps(entries).encode()
            write_whole(options.output / f"{name}.json", lambda file, text=text: file.write(text))
    else:
        write_whole(options.output / "predictions.parquet", lambda file: parquet.write_table(table, file))
    print(f"results of {table['error'].null_count} pictures in {options.output}")


if __name__ == "__main__":
    main()
