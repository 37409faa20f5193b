"""Send a model to Hugging Face's hub: named files that are made here, never a folder.

Everything is made and checked first, the card by the hub's own rules as well; ``Upload.send``
sends it. A repository that exists keeps its visibility, and a card that was edited there stays.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from featx.artifact import without_folders
from featx.artifact.hub import TIMEOUT_S, Unreachable, asking, load_hub
from featx.backbones.licences import licence_warning
from featx.classifier.hub import MODEL_NAME
from featx.classifier.session import Classifier, load_classifier, read_classifier
from featx.errors import ArtifactInvalid, ConfigError, HubError, first_line
from featx.reporting.classify import load_runtime, page_files
from featx.reporting.hub_card import is_edited, model_readme, space_readme

Kind = Literal["model", "Space"]
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_README = "README.md"
_MAX_README = 1_000_000
_MIN_HOME = 5
"""Characters of a home folder from which on it is looked for; "/" is in every file."""


@dataclass(frozen=True)
class Part:
    """Files for one repository.

    Attributes:
        repo: ``USER/NAME``.
        kind: A model, or a static Space.
        is_new: It will be made.
        is_private: What it is, or will be.
        files: Contents by name.
        kept: Names of files that stay as they were edited on the hub.
    """

    repo: str
    kind: Kind
    is_new: bool
    is_private: bool
    files: dict[str, bytes] = field(repr=False)
    kept: tuple[str, ...] = ()
    _commit: str = ""

    @property
    def url(self) -> str:
        """Its address on the hub, also before it is made."""
        from huggingface_hub import constants

        place = f"spaces/{self.repo}" if self.kind == "Space" else self.repo
        return f"{constants.ENDPOINT}/{place}"


@dataclass(frozen=True)
class PushReport:
    """What was sent.

    Attributes:
        repo: ``USER/NAME``.
        url: The model's page.
        commit: Of the model.
        seal: Digest of the model's seal; ``hf:REPO@COMMIT#SEAL`` is this file.
        is_unchanged: The repository had all of it already.
        space: The page that runs the model; None where there is none.
    """

    repo: str
    url: str
    commit: str
    seal: str
    is_unchanged: bool
    space: str | None = None


@dataclass(frozen=True)
class Upload:
    """What ``send`` sends: the model's files, then those of the Space, if any.

    Attributes:
        parts: By repository.
        seal: Digest of the model's seal.
        licence: As the card says it, and whose; None where it says nothing.
        warning: What the licence of the weights asks; None where it is free.
    """

    parts: tuple[Part, ...]
    seal: str
    licence: str | None
    warning: str | None

    def send(self) -> PushReport:
        """Make the repositories that are new, and send the files; each repository in one commit.

        Raises:
            HubError: The hub refuses, cannot be reached, or shows a new repository to everybody.
        """
        hub = load_hub(self.parts[0].repo, "hub", HubError)
        model, *spaces = self.parts
        commit = _send(hub, model)
        for space in spaces:
            try:
                _send(hub, space)
            except HubError as err:
                raise HubError(
                    f"The model was sent to {model.url}, its page was not. {err}"
                ) from err
        page = spaces[0].url if spaces else None
        return PushReport(
            model.repo, model.url, commit, self.seal, commit == model._commit, space=page
        )


def prepare_push(
    model: str | Path,
    repo: str,
    *,
    public: bool = False,
    space: bool = False,
    licence: str | None = None,
    overwrite: bool = False,
) -> Upload:
    """Return what is to be sent; nothing is sent and no repository is made by this.

    Args:
        model: The ONNX file, with its seal intact.
        repo: ``USER/NAME``.
        public: Everybody may see it. One that exists keeps its visibility; a public one is only
            sent to with this option.
        space: Make a static Space of the same name, too, whose page runs the model in the browser.
        licence: As the hub names it, such as ``"apache-2.0"``; None takes that of the weights.
        overwrite: Replace a card that was edited on the hub.

    Raises:
        ArtifactError: The model cannot be used, was altered, or holds names of images or folders.
        ConfigError: The name is none; or with ``space`` the model takes something else than images.
        HubError: The hub refuses a name or the card, or cannot be reached; huggingface_hub is not
            installed; nobody is logged in; the repository is public, or a Space of somebody's own.
    """
    if not _REPO.fullmatch(repo):
        raise ConfigError(f"repo must be USER/NAME, such as me/bees; got '{repo}'.")
    content = read_classifier(model)
    classifier = load_classifier(content, path=Path(model))
    _require_anonymous(classifier)
    header = classifier.header
    readme = model_readme(header, repo, licence).encode()
    wanted: list[tuple[Kind, dict[str, bytes]]] = [
        ("model", {_README: readme, MODEL_NAME: content})
    ]
    if space:
        page = page_files(classifier, content, load_runtime())
        about = space_readme(header, repo, licence).encode()
        wanted.append(("Space", {_README: about, **page}))
    hub = load_hub(repo, "hub", HubError)
    token = hub.get_token()
    if not token:
        raise HubError(
            "Nobody is logged in to the hub: hf auth login, or set HF_TOKEN to a token that may "
            "write."
        )
    for _, files in wanted:
        _require_nothing_private(files, token)
    with _asking(hub, repo):
        parts = tuple(
            _part(hub, repo, kind, files, public=public, overwrite=overwrite)
            for kind, files in wanted
        )
        for part in parts:
            _require_valid(hub, part)
    own, warning = header.details.get("licence"), None
    if own:
        warning = licence_warning(str(header.spec["backbone"]), own)
    shown = f"{licence}, as given" if licence else own and f"{own}, that of the weights"
    return Upload(parts, content[-64:].decode(), shown, warning)


def push(
    model: str | Path,
    repo: str,
    *,
    public: bool = False,
    space: bool = False,
    licence: str | None = None,
    overwrite: bool = False,
) -> PushReport:
    """Send a model to Hugging Face's hub, with a card; private unless ``public``.

    The same as ``prepare_push(…).send()``, which has arguments and errors.
    """
    settings: dict[str, Any] = {"public": public, "space": space, "licence": licence}
    return prepare_push(model, repo, **settings, overwrite=overwrite).send()


def _require_anonymous(classifier: Classifier) -> None:
    """Refuse a model that holds names of images, or folders."""
    details = classifier.header.details
    proof = details.get("proof") or {}
    places = (details["source"], details["weights"])
    names = any("sample_id" in each for each in proof.get("witnesses") or ())
    if names or any(without_folders(place) != place for place in places):
        raise ArtifactInvalid(
            classifier.path,
            f"'{classifier.path}' holds names of images or of folders, as with_names=True writes "
            "them, and earlier versions of featx. Export it again without.",
        )


def _require_nothing_private(files: dict[str, bytes], token: str) -> None:
    """Refuse files that hold the token or the home folder, wherever these come from."""
    home = os.path.expanduser("~")  # noqa: PTH111 it never raises
    needles = {"the token": token, "the home folder": home if len(home) >= _MIN_HOME else ""}
    for name, content in files.items():
        for what, needle in needles.items():
            if needle and needle.encode("utf-8", "surrogateescape") in content:
                raise HubError(f"'{name}' would hold {what}; nothing was sent.")


def _part(
    hub: Any, repo: str, kind: Kind, files: dict[str, bytes], *, public: bool, overwrite: bool
) -> Part:
    """Return the files for a repository, as it is now."""
    try:
        info = hub.HfApi().repo_info(repo, repo_type=kind.lower(), timeout=TIMEOUT_S)
    except hub.errors.RepositoryNotFoundError as err:
        if isinstance(err, hub.errors.GatedRepoError) or err.response.status_code != 404:
            raise
        return Part(repo, kind, is_new=True, is_private=not public, files=files)
    if not info.private and not public:
        raise HubError(
            f"The {kind} '{repo}' is public: everybody would see what is sent. Give public=True to "
            "send it there, make it private in its settings, or choose another name."
        )
    names = {each.rfilename for each in info.siblings or ()}
    kept = _README in names and is_edited(_readme_there(hub, repo, kind, str(info.sha)))
    if kept and kind == "Space":
        raise HubError(
            f"The Space '{repo}' is there and was not made by featx, or was edited since: it is "
            "left as it is. Push under another name, or leave space out."
        )
    if kept and not overwrite:
        files = {name: content for name, content in files.items() if name != _README}
        return Part(repo, kind, False, bool(info.private), files, (_README,), str(info.sha))
    return Part(repo, kind, False, bool(info.private), files, (), str(info.sha))


def _readme_there(hub: Any, repo: str, kind: Kind, commit: str) -> str:
    path = hub.hf_hub_download(repo, _README, repo_type=kind.lower(), revision=commit)
    with Path(path).open("rb") as file:
        return file.read(_MAX_README).decode("utf-8", "replace")


def _require_valid(hub: Any, part: Part) -> None:
    """Let the hub validate a README and its metadata."""
    if _README not in part.files:
        return
    try:
        hub.ModelCard(part.files[_README].decode()).validate(repo_type=part.kind.lower())
    except ValueError as err:
        if isinstance(err, (OSError, hub.errors.HFValidationError)):
            raise
        raise HubError(
            f"The hub refuses the card of '{part.repo}': {first_line(err)}. Nothing was sent."
        ) from err


def _send(hub: Any, part: Part) -> str:
    """Make a repository if it is new, send its files, and return the commit."""
    api, kind = hub.HfApi(library_name="featx"), part.kind.lower()
    with _asking(hub, part.repo):
        if part.is_new:
            sdk = {"space_sdk": "static"} if part.kind == "Space" else {}
            api.create_repo(part.repo, repo_type=kind, private=part.is_private, **sdk)
            info = api.repo_info(part.repo, repo_type=kind, timeout=TIMEOUT_S)
            if part.is_private and not info.private:
                raise HubError(
                    f"The hub made '{part.repo}' public although a private one was asked for; "
                    "nothing was sent."
                )
        operations = [hub.CommitOperationAdd(name, own) for name, own in part.files.items()]
        try:
            commit = api.create_commit(
                part.repo, operations, commit_message="Upload with featx", repo_type=kind
            )
        except RuntimeError as err:  # of one of several uploads at once
            if err.__cause__ is None:
                raise HubError(f"The upload to '{part.repo}' failed: {first_line(err)}.") from err
            raise err.__cause__ from err
    return str(commit.oid)


@contextlib.contextmanager
def _asking(hub: Any, repo: str) -> Iterator[None]:
    """Turn what the hub refuses, and faults of the network, into errors of this stage."""
    remedy = "Log in with a token that may write there: hf auth login."
    try:
        with asking(hub, repo, "repository", HubError, remedy=remedy):
            yield
    except Unreachable as err:
        raise HubError(f"Nothing was sent to '{repo}': {err}.") from err
