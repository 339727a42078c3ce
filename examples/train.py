"""Train any recipe on COCO, VOC, YOLO or CSV files or made scenes: ``python -m detkit.train``, which has the options.

Its parts are the files of ``detkit/train``: options, sets, building, epoch, results ... To write a loop of your own
begin with docs/training.md.
"""

from detkit.train.program import main

if __name__ == "__main__":
    main()
