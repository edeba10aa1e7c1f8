"""Predictions of one model for many images."""

from tnet.inference.inputs import find_inputs
from tnet.inference.predictor import check_image_size, iter_predictions, load_input, predict
from tnet.inference.records import Prediction, RegionRecord, Unreadable
from tnet.inference.write import prediction_line, write_predictions

__all__ = [
    "Prediction",
    "RegionRecord",
    "Unreadable",
    "check_image_size",
    "find_inputs",
    "iter_predictions",
    "load_input",
    "predict",
    "prediction_line",
    "write_predictions",
]
