"""Pictures of detections and of training: objects on images, precision-recall and loss curves, attention maps.

Images are drawn with Pillow alone; the ``plot_`` functions need matplotlib (``pip install "torch-detkit[viz]"``).
"""

from detkit.viz.attention import attention_maps
from detkit.viz.draw import class_color, draw_boxes, draw_detections, save_picture, side_by_side
from detkit.viz.plot import plot_bars, plot_curves, plot_precision_recall
from detkit.viz.predictions import draw_prediction, save_drawings

__all__ = [
    "attention_maps",
    "class_color",
    "draw_boxes",
    "draw_detections",
    "draw_prediction",
    "plot_bars",
    "plot_curves",
    "plot_precision_recall",
    "save_drawings",
    "save_picture",
    "side_by_side",
]
