"""``python -m detkit.evaluate``: one HTML page that explains a detector's results, and the table of its classes.

    python -m detkit.evaluate runs/cells/best.safetensors bccd/annotations/test.json --images bccd/images
    python -m detkit.evaluate results.json instances_val2017.json --images val2017 --output runs/val

DETECTIONS is a detector that :func:`~detkit.weights.save_detector` wrote, which is run over the pictures first (what it
finds is kept as OUTPUT/results.json), or a COCO results json. TRUTH is a COCO json, a csv file, or a folder in YOLO's,
Roboflow's or VOC's form (kept as OUTPUT/truth.json). The page, OUTPUT/index.html, is one file without scripts, which
needs no network: AP and AR, errors by kind and what each costs, precision, recall and F1 over the score threshold, the
confusion matrix, calibration, and the pictures with most errors. Every section prints the rule by which it counts.
"""
