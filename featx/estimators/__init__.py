"""Transformer and classifier of images that follow scikit-learn's conventions.

extractor    images to features
classifier   images and labels to a head, to predictions, to one ONNX file
inputs       images as scikit-learn's users give them: lists, columns of frames, arrays
"""

from featx.estimators.classifier import ImageClassifier
from featx.estimators.extractor import FeatureExtractor

__all__ = ["FeatureExtractor", "ImageClassifier"]
