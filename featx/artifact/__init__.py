"""What the three artifacts share.

header   what an artifact says about itself; one fingerprint, and who has the same
fields   the details of a header that are read, each with its type and range, by
schema   rules for values of JSON
files    looking at a file before it is read, and publishing one atomically
paths    where outputs lie: links, files beside them, and what they must not be
own      which files featx wrote itself, and may replace
"""

from featx.artifact.files import (
    LOG_MAGIC,
    file_sha256,
    is_unfinished,
    kind_of_file,
    partial_path,
    publishing,
    require_file,
    require_writable,
    sync,
)
from featx.artifact.header import (
    MAX_HEADER_BYTES,
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
)
from featx.artifact.own import (
    CARD_SIGN,
    PAGE_SIGN,
    Written,
    free_path,
    is_own,
    require_replaceable,
)
from featx.artifact.paths import (
    beside,
    require_apart,
    require_no_links,
    run_files,
    target_of,
)

__all__ = [
    "CARD_SIGN",
    "LOG_MAGIC",
    "MAX_HEADER_BYTES",
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
    "partial_path",
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
]
