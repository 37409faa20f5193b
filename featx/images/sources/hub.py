"""Data sets of the Hugging Face hub, by their Parquet files: ``hf:NAME[:CONFIG][@REVISION]``.

The files are downloaded once, at one commit, to the cache of ``huggingface_hub``; no script of
a data set is ever run. Where it has no Parquet files of its own, the hub's conversion is read.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from featx.artifact.hub import Unreachable, accept_terms, asking, load_hub
from featx.errors import SourceError, listed
from featx.images.sources.address import NO_OPTIONS, SourceOptions
from featx.images.sources.folder import split_of
from featx.images.sources.parquet import ParquetSource, parquet_files, read_files, splits_of

log = logging.getLogger(__name__)

_ADDRESS = re.compile(
    r"hf:(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[^:@?]+))?(?:@(?P<revision>[^@?]+))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_CONVERTED = "refs/convert/parquet"
_AT_ONCE = 8
_NUMBERED = re.compile(r"-\d+-of-0*(\d+)\.parquet$")


class _Wanted(NamedTuple):
    uri: str
    name: str
    config: str
    revision: str  # empty for the newest


def open_hub(uri: str, options: SourceOptions = NO_OPTIONS) -> ParquetSource:
    """Return the images of a data set of the hub; its address names the commit.

    Raises:
        SourceError: huggingface_hub is not installed; there is no such data set, it cannot be
            reached, or has no Parquet files; or as ``open_parquet``.
    """
    found = _ADDRESS.fullmatch(uri)
    if not found:
        raise SourceError(f"'{uri}' is not a data set: expected hf:NAME[:CONFIG][@REVISION].")
    wanted = _Wanted(uri, found["name"], found["config"] or "", found["revision"] or "")
    hub = load_hub(uri, "parquet", SourceError)
    try:
        commit, root, names = _download(hub, wanted)
    except Unreachable as err:
        commit, root, names = _cached(hub, wanted, str(err))
    splits = splits_of(names)
    config = f":{wanted.config}" if wanted.config else ""
    address = options.address(f"hf:{wanted.name}{config}@{commit}")
    return read_files(
        address, root, [(name, splits[name]) for name in names if name in splits], options
    )


def _download(hub: Any, wanted: _Wanted) -> tuple[str, Path, list[str]]:
    """Return the commit, its folder in the cache and the files in it, which are there then."""
    revision = wanted.revision
    commit, files = _listing(hub, wanted, revision)
    if not files and not revision:
        revision = _CONVERTED
        log.info("'%s' has no Parquet files; reading the hub's conversion.", wanted.uri)
        commit, files = _listing(hub, wanted, revision, instead=True)
    names = _chosen(wanted, files)

    def get(name: str, at: str = commit) -> str:
        with _asking(hub, wanted, at):
            return str(hub.hf_hub_download(wanted.name, name, repo_type="dataset", revision=at))

    if revision != commit:
        get(names[0], revision or "main")  # has the cache know the name of the commit
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        paths = list(pool.map(get, names))
    return commit, Path(paths[0].removesuffix(names[0])), names


def _listing(
    hub: Any, wanted: _Wanted, revision: str, *, instead: bool = False
) -> tuple[str, list[str]]:
    """Return a commit and its Parquet files; no files where there is no conversion ``instead``."""
    try:
        with _asking(hub, wanted, revision):
            info = hub.HfApi().dataset_info(wanted.name, revision=revision or None)
    except SourceError as err:
        if instead and isinstance(err.__cause__, hub.errors.RevisionNotFoundError):
            return "", []
        raise
    commit = str(info.sha)
    if not _COMMIT.fullmatch(commit):
        raise SourceError(f"'{wanted.uri}': the hub names no commit.")
    names = sorted(str(each.rfilename) for each in info.siblings or ())
    return commit, [
        name
        for name in names
        if name.lower().endswith(".parquet") and ".." not in name.split("/") and name[0] != "/"
    ]


def _chosen(wanted: _Wanted, files: Sequence[str]) -> list[str]:
    """Return the files of the configuration that is wanted, or the only one."""
    if not files:
        raise SourceError(
            f"'{wanted.uri}' has no Parquet files, and the hub no conversion of it. Scripts of "
            "data sets are not run: download its images and give their folder."
        )
    if wanted.config:
        own = [name for name in files if wanted.config in name.split("/")[:-1]]
    else:
        own = _only_config(wanted, files)
    if not own:
        folders = sorted({name.rpartition("/")[0] for name in files})
        raise SourceError(
            f"'{wanted.uri}': no Parquet files are in a folder '{wanted.config}'; there are "
            f"{listed(list(map(repr, folders)), 9)}."
        )
    partial = [name for name in own if "/partial-" in f"/{name}"]
    if partial and not wanted.revision:
        raise SourceError(
            f"'{wanted.uri}': the hub's conversion is partial, the first 5 GB ('{partial[0]}'). To "
            f"read that part, say so: hf:{wanted.name}"
            f"{':' + wanted.config if wanted.config else ''}@{_CONVERTED}."
        )
    return own


def _only_config(wanted: _Wanted, files: Sequence[str]) -> list[str]:
    """Return the files of the configuration that is meant where none is named."""
    configs: dict[str, list[str]] = {}
    for name in files:
        configs.setdefault(name.rpartition("/")[0].split("/")[0], []).append(name)
    for first in ("data", "default", ""):
        if first in configs:
            return configs[first]
    if len(configs) > 1 and not all(split_of(config) for config in configs):
        raise SourceError(
            f"'{wanted.uri}' has several configurations: {listed(list(map(repr, configs)), 9)}. "
            f"Say which: hf:{wanted.name}:{next(iter(configs))}."
        )
    return list(files)


def _cached(hub: Any, wanted: _Wanted, why: str) -> tuple[str, Path, list[str]]:
    """Return what an earlier run downloaded, where all files of it are there."""
    for revision in (wanted.revision,) if wanted.revision else ("main", _CONVERTED):
        try:
            folder = hub.snapshot_download(
                wanted.name,
                repo_type="dataset",
                revision=revision,
                local_files_only=True,
                allow_patterns="*.parquet",
            )
        except (OSError, ValueError):
            continue
        root = Path(folder)
        if files := parquet_files(root):
            names = _chosen(wanted, files)
            _require_all(wanted, names)
            log.info("'%s': %s; read from the cache.", wanted.uri, why)
            return root.name, root, names
    raise SourceError(f"'{wanted.uri}' cannot be downloaded: {why}, and it is not in the cache.")


def _require_all(wanted: _Wanted, names: Sequence[str]) -> None:
    """Refuse files of which the names say that there are more."""
    series: dict[str, list[int]] = {}
    for name in names:
        if found := _NUMBERED.search(name):
            series.setdefault(name[: found.start()], []).append(int(found[1]))
    for name, totals in series.items():
        if len(totals) < max(totals):
            raise SourceError(
                f"'{wanted.uri}': of {max(totals)} files '{name}-…', {len(totals)} are in the "
                "cache. Download the others first: go online."
            )


def _asking(hub: Any, wanted: _Wanted, revision: str) -> contextlib.AbstractContextManager[None]:
    remedy = accept_terms(f"https://huggingface.co/datasets/{wanted.name}")
    return asking(hub, wanted.uri, "data set", SourceError, remedy=remedy, revision=revision)
