"""The one reading of COCO's files, shared by the data set, the metrics and stored proposals."""
