"""examples/predict_many.py: killed in mid-run as often as one likes, it loses no picture and doubles none."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import processes
import pytest
import torch
from PIL import Image
from strategies import unhooked
from thorough import EVERY_TEST

from detkit.data import DigitScenes, write_shards
from detkit.detectors import Prediction, fpn_ssd, predict, save_results
from detkit.structures import Detection
from detkit.weights import save_detector

arrow = pytest.importorskip("pyarrow", reason="without pyarrow examples/predict_many.py was NOT tested")
parquet = pytest.importorskip("pyarrow.parquet")
EXAMPLES = Path(__file__).parent.parent / "examples"
COUNT, BAD = 40, "00007.b.png"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Weights, and a folder of scenes under names with dots, of which one is broken and one has 16 bits."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "pictures").mkdir()
    torch.manual_seed(0)
    detector = fpn_ssd(10, size=(64, 64), channels=8).eval()
    save_detector(detector, folder / "digits.safetensors", categories=list("0123456789"))
    for number, (image, _) in enumerate(DigitScenes(COUNT, size=(48, 64))):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        picture = picture.convert("I;16") if number == 3 else picture
        picture.save(folder / "pictures" / f"{number:05}.b.png")
    broken = folder / "pictures" / BAD
    broken.write_bytes(broken.read_bytes()[:500])
    return folder, detector


@pytest.fixture
def example(monkeypatch):
    """The modules of the example."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import predict_many

    yield predict_many
    for name in [name for name in sys.modules if name.split(".")[0] in ("many", "predict_many")]:
        del sys.modules[name]


def run_here(example, monkeypatch, *arguments, workers_alone=True):
    """The example in this process: blocks are done by a worker that is called directly, without Ray."""

    def detect(paths, settings, *, workers, block, address, retry):
        worker = example.Worker(settings)
        for first in range(0, len(paths), block):
            worker(arrow.table({"path": paths[first : first + block]}))

    from many.workers import Worker

    example.Worker = Worker
    monkeypatch.setattr(example, "detect", unhooked(detect) if workers_alone else pytest.fail)
    monkeypatch.setattr(sys, "argv", ["predict_many.py", *map(str, arguments)])
    threads = torch.get_num_threads()
    try:
        example.main()
    finally:
        torch.set_num_threads(threads)


def expected(detector, paths):
    return {found.name: found for found in predict(detector, paths, score_threshold=0.05, batch_size=1, progress=False)}


def check_all(table, folder, detector):
    """Every picture once, in order, with what the detector finds in it; the broken one with its error."""
    paths = sorted(str(path) for path in (folder / "pictures").iterdir())
    assert table["path"].to_pylist() == paths
    truth = expected(detector, [path for path in paths if not path.endswith(BAD)])
    for row in table.to_pylist():
        if row["path"].endswith(BAD):
            assert row["path"] in row["error"]
            assert row["boxes"] is None
            continue
        found = truth[row["path"]].detection
        assert row["error"] is None
        assert (row["height"], row["width"]) == (48, 64)
        assert row["labels"] == found["labels"].tolist()
        torch.testing.assert_close(torch.tensor(row["boxes"]).reshape(-1, 4), found["boxes"], atol=1e-3, rtol=0)
        torch.testing.assert_close(torch.tensor(row["scores"]), found["scores"], atol=1e-5, rtol=0)


def killed_in_mid_run(arguments, parts, printed):
    """Start the example, and kill -9 it when the next block is written; the number of blocks before and after."""
    before = len(list(parts.glob("*.parquet")))
    started = processes.start(
        processes.script, EXAMPLES / "predict_many.py", *arguments, printed=printed, RAY_worker_niceness="0"
    )
    end = time.monotonic() + processes.LONGEST
    while len(list(parts.glob("*.parquet"))) == before and started.process.is_alive() and time.monotonic() < end:
        time.sleep(0.005)
    os.kill(started.process.pid, signal.SIGKILL)
    started.process.join()
    assert started.process.exitcode == -signal.SIGKILL, printed.read_text()
    return before, len(list(parts.glob("*.parquet")))


@pytest.mark.slow(300)
@pytest.mark.skipif(
    not EVERY_TEST,
    reason="a killed run of Ray was NOT tried: five starts of a cluster take minutes; DETKIT_EVERY_TEST=1 runs it",
)
def test_a_run_killed_three_times_loses_and_doubles_nothing(made, tmp_path):
    pytest.importorskip("ray", reason="without ray examples/predict_many.py was NOT run on a cluster")
    (folder, detector), output = made, tmp_path / "found"
    arguments = [str(folder / "digits.safetensors"), str(output), str(folder / "pictures")]
    arguments += ["--score", "0.05", "--block", "1"]
    alone = [*arguments, "--workers", "1"]  # a process less that loads torch
    for attempt in range(3):
        before, after = killed_in_mid_run(alone, output / "parts", tmp_path / f"{attempt}.txt")
        assert before < after < COUNT
    for attempt in ("rest", "nothing left"):
        started = processes.start(
            processes.script, EXAMPLES / "predict_many.py", *arguments, printed=tmp_path / f"{attempt}.txt"
        )
        (printed,) = processes.end(started)
        assert f"results of {COUNT - 1} pictures" in printed
        assert BAD in printed
        check_all(parquet.read_table(output / "predictions.parquet"), folder, detector)
    assert f"{COUNT} pictures, {COUNT} of them done before" in printed
    held = [
        path for part in (output / "parts").glob("*.parquet") for path in parquet.read_table(part)["path"].to_pylist()
    ]
    assert len(held) <= COUNT + 3 * 4  # what ended after its run was killed may be done again


@pytest.mark.slow(2)
def test_blocks_are_joined_in_order_and_types_are_stated(made, example, monkeypatch, tmp_path):
    folder, detector = made
    arguments = (folder / "digits.safetensors", tmp_path, folder / "pictures", "--score", 0.05, "--embeddings")
    run_here(example, monkeypatch, *arguments, "--block", 7)
    table = parquet.read_table(tmp_path / "predictions.parquet")
    check_all(table, folder, detector)
    from many.results import SCHEMA

    assert table.schema.remove_metadata() == SCHEMA
    lengths = [torch.tensor(row).norm() for row in table["embeddings"].to_pylist()[0]]
    torch.testing.assert_close(torch.tensor(lengths), torch.ones(len(lengths)))
    run_here(example, monkeypatch, *arguments, workers_alone=False)  # nothing is left: no cluster


@pytest.mark.slow(2)
def test_pictures_done_twice_count_once_and_another_run_is_refused(made, example, monkeypatch, tmp_path):
    folder, detector = made
    pictures = sorted((folder / "pictures").iterdir())
    arguments = (folder / "digits.safetensors", tmp_path)
    run_here(example, monkeypatch, *arguments, *pictures[:5], "--score", 0.05)
    part = next((tmp_path / "parts").glob("*.parquet"))
    (tmp_path / "parts" / "again.parquet").write_bytes(part.read_bytes())
    (tmp_path / "parts" / ".half.123").write_bytes(b"half")
    run_here(example, monkeypatch, *arguments, folder / "pictures", "--score", 0.05)
    check_all(parquet.read_table(tmp_path / "predictions.parquet"), folder, detector)
    with pytest.raises(SystemExit, match="other weights or options"):
        run_here(example, monkeypatch, *arguments, folder / "pictures", "--score", 0.5)
    (tmp_path / "run.json").unlink()
    with pytest.raises(SystemExit, match=r"unknown ones, not .* delete the folder"):
        run_here(example, monkeypatch, *arguments, folder / "pictures", "--score", 0.05)


@pytest.mark.slow
def test_what_could_not_be_read_is_read_again_on_request(made, example, monkeypatch, tmp_path):
    folder, _ = made
    picture = tmp_path / "path=1" / "a b.png"  # no column of a partitioned table
    picture.parent.mkdir()
    picture.write_bytes(b"half")
    arguments = (folder / "digits.safetensors", picture.parent / "found", picture.parent)

    def errors(*more, **settings):
        run_here(example, monkeypatch, *arguments, *more, **settings)
        return parquet.read_table(arguments[1] / "predictions.parquet", partitioning=None)["error"].to_pylist()

    assert "a b.png" in errors()[0]
    picture.write_bytes((folder / "pictures" / "00000.b.png").read_bytes())
    assert "a b.png" in errors(workers_alone=False)[0]
    for more in (["--retry", "--block", 2], ["--retry"], []):  # the first is a block of another name: both are there
        assert errors(*more) == [None]


@pytest.mark.parametrize("table", [None, {"path": ["a"]}, {"path": [["a"]], "error": ["b"]}], ids=str)
def test_a_broken_file_of_results_is_refused_by_name(example, tmp_path, table):
    from many.joined import done

    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    if table:
        parquet.write_table(arrow.table(table), tmp_path / "a.parquet")
    with pytest.raises(SystemExit, match=r"a\.parquet is no file of results; delete it"):
        done(tmp_path)


@pytest.mark.parametrize("options", [("--score", "nan"), ("--block", 0), ("--workers", 0), ("--batch-size", -1)])
def test_options_out_of_range_are_refused_before_the_folder_is_made(made, example, monkeypatch, tmp_path, options):
    with pytest.raises(SystemExit, match="2"):
        run_here(example, monkeypatch, made[0] / "digits.safetensors", tmp_path / "found", made[0], *options)
    assert not (tmp_path / "found").exists()


def test_a_list_has_each_picture_once(example, made, tmp_path):
    from many.sources import listed

    pictures = made[0] / "pictures"
    near = os.path.relpath(pictures, tmp_path)
    names = [str(pictures / BAD), f"{near}/{BAD}", f"./{near}/../pictures/{BAD}"]
    parquet.write_table(arrow.table({"path": names}), tmp_path / "l.parquet")
    assert listed([str(tmp_path / "l.parquet")]) == [names[0]]
    assert listed([str(tmp_path / "l.parquet"), str(pictures)]) == sorted(map(str, pictures.iterdir()))


@pytest.mark.parametrize(
    "column", [{"path": ["a", None]}, {"path": ["a", ""]}, {"path": [1]}, {"file": ["a"]}], ids=str
)
def test_a_list_without_paths_is_refused_by_name(example, tmp_path, column):
    from many.sources import listed

    parquet.write_table(arrow.table(column), tmp_path / "l.parquet")
    with pytest.raises(ValueError, match=r"l\.parquet"):
        listed([str(tmp_path / "l.parquet")])


def test_a_name_that_parquet_cannot_hold_is_refused_by_name(example, tmp_path):
    from many.sources import listed

    try:
        (tmp_path / os.fsdecode(b"\xe4.png")).touch()
    except (OSError, UnicodeError):
        pytest.skip("this file system takes names in UTF-8 alone")
    with pytest.raises(ValueError, match=r"udce4\.png.* rename"):
        listed([str(tmp_path)])


@pytest.mark.slow(2)
def test_results_of_coco_have_the_ids_of_the_sorted_paths(made, example, monkeypatch, tmp_path):
    folder, detector = made
    run_here(
        example,
        monkeypatch,
        folder / "digits.safetensors",
        tmp_path,
        folder / "pictures",
        "--format",
        "coco",
        "--score",
        0.05,
    )
    entries, images = (json.loads((tmp_path / name).read_text()) for name in ("results.json", "images.json"))
    paths = sorted(str(path) for path in (folder / "pictures").iterdir())
    assert [image["path"] for image in images] == paths
    assert [image["id"] for image in images] == list(range(1, COUNT + 1))
    truth = expected(detector, [path for path in paths if not path.endswith(BAD)])
    assert len(entries) == sum(len(found.names) for found in truth.values())
    assert {paths[entry["image_id"] - 1] for entry in entries} == {n for n, found in truth.items() if found.names}


@pytest.mark.slow(2)
def test_shards_and_lists_give_what_the_folder_gives(made, example, monkeypatch, tmp_path):
    folder, detector = made
    pictures = [path for path in sorted((folder / "pictures").iterdir()) if path.name != BAD]
    target = {"boxes": [], "labels": []}
    index = write_shards(
        [(path, target) for path in pictures], tmp_path / "s.json", samples_per_shard=15, progress=False
    )
    parquet.write_table(
        arrow.table({"path": [os.path.relpath(path, tmp_path) for path in pictures]}), tmp_path / "l.parquet"
    )
    truth = expected(detector, pictures)
    for source in (index, tmp_path / "l.parquet"):
        output = tmp_path / source.suffix
        run_here(example, monkeypatch, folder / "digits.safetensors", output, source, "--score", 0.05)
        rows = parquet.read_table(output / "predictions.parquet").to_pylist()
        assert [os.path.basename(row["file_name"]) for row in rows] == [path.name for path in pictures]
        for row, path in zip(rows, pictures, strict=True):
            assert row["labels"] == truth[str(path)].detection["labels"].tolist()


def test_masks_and_points_are_what_save_results_writes(example, tmp_path):
    from many.joined import coco_results
    from many.results import SCHEMA, row_of

    found = Detection(boxes=torch.tensor([[1.0, 2, 4, 6]]), scores=torch.ones(1), labels=torch.tensor([2]))
    found["masks"], found["keypoints"] = torch.ones(1, 6, 8, dtype=torch.bool), torch.ones(1, 2, 3)
    nothing = Detection(**{key: value[:0] for key, value in found.items()})
    predictions = [Prediction(name, (6, 8), one) for name, one in (("a.png", found), ("b.png", nothing))]
    rows = [row_of(prediction.name, prediction.name, prediction) for prediction in predictions]
    ids = {"a.png": 7, "b.png": 8}
    save_results(predictions, tmp_path / "found.json", image_ids=ids)
    written = json.loads((tmp_path / "found.json").read_text())
    assert list(coco_results(arrow.Table.from_pylist(rows, SCHEMA), ids)) == written


def test_shards_are_not_mixed_with_other_sources(example):
    from many.sources import listed

    for sources in (["a.json", "b.json"], ["a.tar", "folder"], ["a.json", "a.tar"]):
        with pytest.raises(ValueError, match="one index"):
            listed(sources)
