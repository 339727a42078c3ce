"""The program, from its command line."""

import json

import pytest

from detkit.data import CocoDataset, CsvDataset, DigitScenes, save_coco
from detkit.detectors import tiny_ssd
from detkit.evaluate.program import arguments, main
from detkit.weights import save_detector


@pytest.fixture
def folder(tmp_path):
    """Three pictures; of the last everything is found, of the first nothing, and of the second all, twice moved."""
    save_coco(DigitScenes(3), tmp_path / "truth.json", images=tmp_path / "images")
    truth = json.loads((tmp_path / "truth.json").read_text())
    rows, last = [], max(image["id"] for image in truth["images"])
    for row in truth["annotations"]:
        if row["image_id"] >= last - 1:
            x, y, width, height = row["bbox"]
            box = [x if row["image_id"] == last else x + width, y, width, height]
            rows.append({key: row[key] for key in ("image_id", "category_id")} | {"bbox": box, "score": 0.9})
    (tmp_path / "found.json").write_text(json.dumps(rows))
    return tmp_path


def run(folder, *more):
    return main([str(folder / "found.json"), str(folder / "truth.json"), "--output", str(folder / "out"), *more])


def test_a_results_file_becomes_a_page_with_the_worst_pictures(folder, capsys):
    numbers = run(folder, "--images", str(folder / "images"), "--score", "0.5")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"page={folder / 'out' / 'index.html'}"
    assert lines[-2] == f"AP={numbers['bbox/AP']:.3f} AP50={numbers['bbox/AP50']:.3f}"
    page = (folder / "out" / "index.html").read_text(encoding="utf-8")
    dataset = CocoDataset(folder / "images", folder / "truth.json")
    shown = [index for index in range(3) if f"<h3>{dataset.file_name(index)}</h3>" in page]
    assert shown == [0, 1]
    assert page.count("data:image/jpeg") == 4


@pytest.mark.slow
def test_a_detector_is_run_first_and_its_results_are_kept(folder, capsys):
    save_detector(tiny_ssd(10), folder / "best.safetensors", categories=[str(digit) for digit in range(10)])
    texts = [str(folder / name) for name in ("best.safetensors", "truth.json", "images", "out")]
    first = main([*texts[:2], "--images", texts[2], "--output", texts[3], "--worst", "0"])
    assert (folder / "out" / "index.html").stat().st_size > 1000
    (folder / "out" / "results.json").replace(folder / "found.json")
    assert run(folder) == first
    assert "data:image" not in (folder / "out" / "index.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_table_beside_its_pictures_is_judged_as_the_json_is(folder):
    save_detector(tiny_ssd(10), folder / "best.safetensors", categories=[str(digit) for digit in range(10)])
    truth = json.loads((folder / "truth.json").read_text())
    files = {image["id"]: image["file_name"] for image in truth["images"]}
    names = {category["id"]: category["name"] for category in truth["categories"]}
    rows = ["image,xmin,ymin,xmax,ymax,class"]
    for row in truth["annotations"]:
        x, y, width, height = row["bbox"]
        rows.append(f"{files[row['image_id']]},{x},{y},{x + width},{y + height},{names[row['category_id']]}")
    rows += [f"{files[min(files)]},0,0,1,1,{name}" for name in set(names.values()) - {row[-1] for row in rows}]
    table = folder / "images" / "truth.csv"
    table.write_text("\n".join(rows))
    save_coco(CsvDataset(table.parent, table), table.parent / "truth.json")
    judged = []
    for file in ("truth.csv", "truth.json"):
        words = [str(folder / "best.safetensors"), str(table.with_name(file)), "--output", str(folder / "out")]
        judged.append(main([*words, "--worst", "1"]))
        assert "data:image/jpeg" in (folder / "out" / "index.html").read_text(encoding="utf-8")
    assert judged[0] == judged[1]


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["a.pth", "b.json"], "a.pth: allowed are a .safetensors of save_detector() and a .json"),
        (["a.json", "b.json", "--iou", "0.1"], "--iou 0.1: allowed are numbers above 0.1 up to 1"),
        (["a.json", "b.json", "--iou", "nan"], "--iou nan: allowed are"),
        (["a.json", "b.json", "--batch-size", "0"], "--batch-size 0: allowed is at least 1"),
        (["a.json", "b.json", "--worst", "-1"], "--worst -1: allowed is at least 0"),
        (["a.json", "b.json", "--score", "nan"], "--score nan: allowed is a finite number"),
    ],
)
def test_options_that_mean_nothing_are_refused(more, complaint, capsys):
    with pytest.raises(SystemExit):
        arguments(more)
    assert complaint in capsys.readouterr().err


def test_files_that_do_not_fit_are_refused_with_the_way_out(folder):
    (folder / "found.json").write_text('{"annotations": []}')
    with pytest.raises(ValueError, match=r"found.json a dict; allowed are COCO's dict and a list of detections"):
        run(folder)
    (folder / "found.json").write_text('[{"image_id": 99, "category_id": 1, "bbox": [0, 0, 4, 4], "score": 1}]')
    with pytest.raises(ValueError, match=r"found\.json.*image_id=99"):
        run(folder)
    with pytest.raises(FileNotFoundError, match=r"truth\.json|images"):
        run(folder, "--images", str(folder / "nowhere"))
    assert not (folder / "out" / "index.html").exists()
