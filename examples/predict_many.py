"""Run a detector over more pictures than one process can: folders, WebDataset shards or Parquet lists, on Ray Data.

Run: python examples/predict_many.py cells.safetensors runs/found pictures/ --workers 2
     python examples/predict_many.py cells.safetensors runs/found set/train.json --format coco
     python examples/predict_many.py cells.safetensors runs/found list.parquet --embeddings --address auto

The weights are those of save_detector. Sources are folders and pictures, or the index or tar files of shards, or
Parquet files with a column "path". With ``--address auto`` it runs on a cluster that is there already, whose machines
share sources and output. A killed run goes on where it was; one with nothing left starts no Ray. A picture is
known by its path: of others under the same names make a new output. Needs the extra "ray".
"""

import argparse
import hashlib
import json
from pathlib import Path

import pyarrow.parquet as parquet
from many.cluster import detect
from many.joined import coco_results, done, joined
from many.results import claimed, write_whole
from many.sources import listed
from many.workers import Settings

from detkit.weights import load_detector


def main() -> None:
    """List, leave out what is done, detect, join."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("detector", help="weights of save_detector")
    parser.add_argument("output", type=Path, help="folder of this run alone")
    parser.add_argument("sources", nargs="+", help="pictures, folders, shards or Parquet lists")
    parser.add_argument("--format", choices=("parquet", "coco"), default="parquet")
    parser.add_argument("--embeddings", action="store_true", help="add one of each detection, for Parquet")
    parser.add_argument("--retry", action="store_true", help="read those once more that could not be read")
    parser.add_argument("--score", type=float, default=0.3, help="detections below are left out")
    for name, value in (("workers", 2), ("batch-size", 8), ("block", 64)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--address", help="of a running cluster; without it one is started here")
    options = parser.parse_args()
    if not 0 <= options.score <= 1 or min(options.workers, options.batch_size, options.block) < 1:
        parser.error("--score lies in 0 to 1; --workers, --batch-size and --block are at least 1")

    sources = [str(Path(source).resolve()) if source else "" for source in options.sources]
    paths = listed(sources)
    load_detector(options.detector)  # broken weights are refused here, not by each worker
    digest = hashlib.sha256(Path(options.detector).read_bytes()).hexdigest()
    parts = claimed(options.output.resolve(), detector=digest, score=options.score, embeddings=options.embeddings)
    before = done(parts, retry=options.retry)
    print(f"{len(paths)} pictures, {len(before.intersection(paths))} of them done before", flush=True)
    if not before.issuperset(paths):
        weights = str(Path(options.detector).resolve())
        settings = Settings(weights, sources, parts, options.batch_size, options.score, options.embeddings)
        cluster = {"workers": options.workers, "block": options.block, "address": options.address}
        detect(paths, settings, retry=options.retry, **cluster)

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
