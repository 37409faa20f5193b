"""scikit-learn's own checks of estimators.

They give arrays of numbers, never images. What can be checked without any is checked on the
estimators themselves; the rest on adapters that turn each row into a picture.
"""

from __future__ import annotations

import logging

import numpy as np
import pytest
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import check_is_fitted, validate_data

from featx.estimators import FeatureExtractor, ImageClassifier

NO_IMAGES = "gives numbers in place of images; checked on the adapter"
FAIL_WITHOUT_IMAGES = {
    "check_dict_unchanged",
    "check_dont_overwrite_parameters",
    "check_dtype_object",
    "check_estimator_sparse_array",
    "check_estimators_dtypes",
    "check_estimators_empty_data_messages",
    "check_estimators_fit_returns_self",
    "check_estimators_nan_inf",
    "check_estimators_overwrite_params",
    "check_estimators_pickle",
    "check_f_contiguous_array_estimator",
    "check_fit2d_1feature",
    "check_fit2d_1sample",
    "check_fit2d_predict1d",
    "check_fit_check_is_fitted",
    "check_fit_idempotent",
    "check_fit_score_takes_y",
    "check_methods_sample_order_invariance",
    "check_methods_subset_invariance",
    "check_n_features_in",
    "check_n_features_in_after_fitting",
    "check_pipeline_consistency",
    "check_positive_only_tag_during_fit",
    "check_readonly_memmap_input",
}
OF_TRANSFORMERS = {
    "check_complex_data",
    "check_transformer_data_not_an_array",
    "check_transformer_general",
}
OF_CLASSIFIERS = {
    "check_class_weight_classifiers",
    "check_classifier_data_not_an_array",
    "check_classifiers_classes",
    "check_classifiers_one_label",
    "check_classifiers_train",
    "check_supervised_y_2d",
}


class _TakesRows:
    """Turns rows of numbers into pictures, a grey square for each number."""

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        tags.input_tags.one_d_array = tags.input_tags.string = False
        return tags

    def _pictures(self, X, *, reset):
        if not reset:
            check_is_fitted(self)
        rows = np.asarray(validate_data(self, X, reset=reset), float)
        side = int(np.ceil(np.sqrt(rows.shape[1])))
        squares = np.zeros((len(rows), side * side))
        squares[:, : rows.shape[1]] = np.clip(128 + 20 * rows, 0, 255)
        grey = squares.reshape(-1, side, side, 1).repeat(3, axis=3).astype(np.uint8)
        return list(grey.repeat(32 // side + 1, axis=1).repeat(32 // side + 1, axis=2))


class ExtractorOfRows(_TakesRows, FeatureExtractor):
    def fit(self, X, y=None):
        return super().fit(self._pictures(X, reset=True), y)

    def transform(self, X):
        return super().transform(self._pictures(X, reset=False))


class ClassifierOfRows(_TakesRows, ImageClassifier):
    def fit(self, X, y):
        return super().fit(self._pictures(X, reset=True), y)

    def predict(self, X):
        return super().predict(self._pictures(X, reset=False))

    def predict_proba(self, X):
        return super().predict_proba(self._pictures(X, reset=False))


class _SaysItTakesRows:
    """Without this scikit-learn leaves out nearly all checks."""

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        return tags


class PlainExtractor(_SaysItTakesRows, FeatureExtractor):
    pass


class PlainClassifier(_SaysItTakesRows, ImageClassifier):
    pass


@pytest.fixture(autouse=True)
def _quiet():
    logging.disable(logging.WARNING)  # the checks' data have copies with several labels
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("estimator", "of_kind"),
    [(PlainExtractor, OF_TRANSFORMERS), (PlainClassifier, OF_CLASSIFIERS)],
)
def test_the_estimators_pass_all_checks_that_need_no_images(estimator, of_kind, cache):
    failing = dict.fromkeys(FAIL_WITHOUT_IMAGES | of_kind, NO_IMAGES)
    results = check_estimator(
        estimator("tiny", cache=cache), expected_failed_checks=failing, on_skip=None
    )
    assert {each["check_name"] for each in results if each["status"] == "xfail"} == set(failing)
    assert sum(each["status"] == "passed" for each in results) >= 15


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "estimator", [ExtractorOfRows, pytest.param(ClassifierOfRows, marks=pytest.mark.slow)]
)
def test_with_images_they_pass_every_check(estimator, cache):
    results = check_estimator(estimator("tiny", cache=cache), on_skip=None)
    assert {each["status"] for each in results} <= {"passed", "skipped"}
    assert len(results) > 40
