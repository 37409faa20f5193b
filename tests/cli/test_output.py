"""What commands print of the library's texts."""

import pytest

from featx.cli.output import proof_fields, with_flags


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Use overwrite=True to replace it.", "Use --overwrite to replace it."),
        ("leave them out with on_error='skip'.", "leave them out with --on-error skip."),
        ("or export unproven with verify=False.", "or export unproven with --no-verify."),
        ("Give it by features=…, or", "Give it by --features, or"),
        ("allowed by max_bad. Repair", "allowed by --max-bad. Repair"),
        ("'/data/image_size/overwrite=True' exists", "'/data/image_size/overwrite=True' exists"),
        ("'my image_size photos' is empty.", "'my image_size photos' is empty."),
        ("the head's 'a max_bad=True b' isn't", "the head's 'a max_bad=True b' isn't"),
        ("class 'batch_size' of /x/batch_size", "class 'batch_size' of /x/batch_size"),
        ("the source of features", "the source of features"),
        ("max_epochs must be at least 1; got 0.", "--epochs must be at least 1; got 0."),
        ("lr must be above 0; got 0.0.", "--lr must be above 0; got 0.0."),
        ("memory must be a size like 2GB", "--memory must be a size like 2GB"),
        ("the memory must be", "the memory must be"),
        ("x=True and unknown_name", "x=True and unknown_name"),
    ],
)
def test_options_are_shown_as_flags(text, shown):
    assert with_flags(text) == shown


@pytest.mark.parametrize(
    ("task", "agreement", "end"),
    [
        ("single-label", 199 / 200, "; 1 with another class"),
        ("multi-label", 0.94, "; 12 with other tags"),
        ("single-label", 1.0, ""),
        ("regression", 0.9, ""),  # a share of the variance, and not of the images
    ],
)
def test_validation_images_that_get_another_answer_are_counted(task, agreement, end):
    accuracy = {
        **{"split": "val", "num_images": 200, "num_available": 200, "file": 0.9, "head": 0.9},
        "agreement": agreement,
    }
    proof = {"num_images": 64, "bound": 0.1, "top1_agreement": 1.0, "max_difference": 1e-3}
    fields = proof_fields(proof | {"task": task, "accuracy": accuracy})
    assert fields["accuracy"].endswith(f"200 of 200 validation images{end}")
    del accuracy["agreement"]  # as in files of the first versions
    fields = proof_fields(proof | {"task": task, "accuracy": accuracy})
    assert fields["accuracy"].endswith("200 of 200 validation images")
