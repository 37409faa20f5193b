"""Parts that the three artifacts share.

header   metadata of an artifact as JSON, with one fingerprint
fields   the details of a header that are read, each with its type and range, by
schema   rules for values of JSON
files    which of the three a file is; where outputs lie, what they may replace, atomic writing
hub      Hugging Face's hub: its refusals, and faults of the network, as sentences
parts    names in a folder of parts
cells    CSV that no spreadsheet calculates
keywords options by keyword, in place of a record or beside it
frames   results as pandas frames
bars     progress of the library's own, in terminals and notebooks
shown    results as lines in a terminal, and as HTML in a notebook
"""

from featx.artifact.files import (
    CARD_SIGN,
    JOURNAL_MAGIC,
    PAGE_SIGN,
    Written,
    beside,
    file_sha256,
    free_path,
    is_own,
    is_unfinished,
    kind_of_file,
    other_kind,
    partial_path,
    publish,
    publishing,
    require_apart,
    require_file,
    require_no_links,
    require_replaceable,
    require_writable,
    run_files,
    sync,
    target_of,
    tensor_metadata,
)
from featx.artifact.header import (
    MAX_HEADER_BYTES,
    NEWEST_SCHEMA_VERSION,
    OLDEST_SCHEMA_VERSION,
    SCHEMA_VERSION,
    Header,
    Kind,
    canonical_json,
    describe_environment,
    differing_features,
    differing_settings,
    fingerprint_of,
    require_same_features,
    without_folders,
)

__all__ = [
    "CARD_SIGN",
    "JOURNAL_MAGIC",
    "MAX_HEADER_BYTES",
    "NEWEST_SCHEMA_VERSION",
    "OLDEST_SCHEMA_VERSION",
    "PAGE_SIGN",
    "SCHEMA_VERSION",
    "Header",
    "Kind",
    "Written",
    "beside",
    "canonical_json",
    "describe_environment",
    "differing_features",
    "differing_settings",
    "file_sha256",
    "fingerprint_of",
    "free_path",
    "is_own",
    "is_unfinished",
    "kind_of_file",
    "other_kind",
    "partial_path",
    "publish",
    "publishing",
    "require_apart",
    "require_file",
    "require_no_links",
    "require_replaceable",
    "require_same_features",
    "require_writable",
    "run_files",
    "sync",
    "target_of",
    "tensor_metadata",
    "without_folders",
]
