"""What commands print of the library's texts."""

import pytest

from featx.cli.output import with_flags


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
