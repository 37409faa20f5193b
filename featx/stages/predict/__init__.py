"""Stage 4: answer for new images with an exported file; ONNX Runtime, numpy and Pillow only.

    images      images as users give them, and those of a path or folder
    predictor   from images to predictions, on all cores

Pixels are resized and cropped by ``images.preprocess``, as in extraction, not by the graph of the
file: that is exact, and images of any size go to the graph in one batch.
"""

from featx.stages.predict.images import ImageLike, find_images
from featx.stages.predict.predictor import Prediction, Predictor

__all__ = ["ImageLike", "Prediction", "Predictor", "find_images"]
