"""Many pictures, one model."""

from tnet.inference.inputs import find_inputs
from tnet.inference.predict import check_image_size, predict_paths, read_picture
from tnet.inference.records import Prediction, RegionRecord, Unreadable
from tnet.inference.write import prediction_line, write_predictions

__all__ = [
    "Prediction",
    "RegionRecord",
    "Unreadable",
    "check_image_size",
    "find_inputs",
    "predict_paths",
    "prediction_line",
    "read_picture",
    "write_predictions",
]
