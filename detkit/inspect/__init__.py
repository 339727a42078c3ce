"""``python -m detkit.inspect``: whether a data set and a recipe fit each other, before anything is trained.

    python -m detkit.inspect bccd/annotations/train.json --images bccd/images --recipe fpn_ssd --size 240 320
    python -m detkit.inspect DIR --recipe small_fcos --size 320 320 --output runs/fit

DATA is a COCO json, a csv file, a folder in YOLO's, Roboflow's or VOC's form, or ``scenes``. Printed are the counts of
the objects, their sizes in the pictures and at the input size of the detector, the share of them that no anchor fits
there, the anchor sizes that :func:`~detkit.anchors.cluster_anchors` finds in the data, and the smallest object that the
recipe has an anchor for wherever it stands. ``--output`` holds hardest.png: the pictures with most objects that no
anchor fits, each with its overlap.

An anchor fits an object if their IoU reaches the matcher's ``positive_iou``, or .5 where that is higher; for matchers
without one, such as FCOS's and YOLO's, if its cell's center lies in the object. An object that none fits is learned by
one anchor that is forced on it, or not at all.
"""
