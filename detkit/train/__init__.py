"""``python -m detkit.train``: train any recipe, or a detector of your own, on one process or many.

    python -m detkit.train --data scenes --recipe fpn_ssd --size 96 96 --epochs 3 --output runs/scenes
    python -m detkit.train --data coco --train-json F --val-json F --test-json F --output runs/mine
    python -m detkit.train --data coco --root DIR --output runs/roboflow
    python -m detkit.train --data yolo --root DIR --output runs/yolo
    python -m detkit.train --data voc --root DIR --val-fraction 0.2 --output runs/labelimg
    python -m detkit.train --data csv --images DIR --train-csv F --val-fraction 0.2 --output runs/table
    python -m detkit.train --module my_file.py --output runs/mine
    torchrun --nproc-per-node 2 -m detkit.train ...

``--output`` then holds checkpoint.pt (every epoch; ``--resume`` continues from it, with a larger ``--epochs`` beyond
its end), weights.safetensors (the average that did best on the validation set), metrics.jsonl (a line for each epoch),
from the test set result.json and pictures.png, and, where matplotlib (the extra ``viz``) is installed, curve.png. A
batch is ``--batch-size`` images in each process, times ``--accumulate``. On several machines ``--output`` lies in a
folder that all of them share.

COCO's file names are relative to the folder of their json, unless ``--images``, or for one split ``--train-images``,
``--val-images`` or ``--test-images``, names another. ``--module`` names a file of Python with one or both of
``datasets()``, which returns the sets to train, validate and perhaps test on, each with ``categories``, and
``detector(num_classes)``. A resumed run has the same data, classes and options, or is refused, with those that
may be others. It is the same bit for bit where the number of threads and the device are the same as well: sums
in another order differ in their last bits, which training enlarges.
"""
