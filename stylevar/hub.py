"""Fetch checkpoints: a local file or folder, or a model on the Hugging Face hub."""

from __future__ import annotations

import os
import re
import threading
from functools import lru_cache
from pathlib import Path, PurePosixPath

from stylevar.errors import UserError
from stylevar.text_files import read_text

_HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?::(?P<file>[\w./-]+))?")
ANSWER_SECONDS = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or 5)
"""How long to wait for the hub to answer."""
LINKS = ("latest", "best")
"""Aliases of checkpoints in a run."""
_BEARER = re.compile(r"Bearer [^\s'\"]+")
_FILE_ENDINGS = (".pth", ".pt", ".safetensors", ".bin")


def fetch(
    source: str,
    default_file: str,
    revision: str | None = None,
    accepted: str = "a file, a folder that holds one, or a hub id owner/name[:file]",
) -> Path:
    """The local file behind `source`.

    Args:
        source: a file, a folder that holds `default_file`, or a hub id `owner/name` or `owner/name:file`.
        default_file: the file to take from a folder, or from a hub id without a file.
        revision: branch, tag or commit on the hub.
        accepted: the accepted sources, for the error message.
    Raises:
        UserError: there is no such file, and no such model on the hub (or the hub is unreachable and nothing is cached).
    """
    path = followed(Path(source))
    names_hub_file = ":" in source
    if path.is_dir():
        if not (path / default_file).is_file():
            raise UserError(_no_model_in(path, default_file, accepted))
        return path / default_file
    if path.is_file():
        return path
    match = _HUB_ID.fullmatch(source)
    if match is None or (not names_hub_file and (source.endswith(_FILE_ENDINGS) or path.parent.is_dir())):
        raise UserError(f"checkpoint {source} does not exist: give {accepted}")
    return _download(match["repo"], match["file"] or default_file, revision)


def followed(path: Path) -> Path:
    """The checkpoint that a run's `latest` or `best` points to; any other path is returned unchanged.

    They are symbolic links, or small files on file systems without links.
    """
    if path.name not in LINKS or path.parent.name != "checkpoints":
        return path
    if path.is_symlink():
        return path.parent / path.readlink()
    if not path.is_file():
        return path
    try:
        name = read_text(path).strip()
    except (OSError, ValueError):
        name = ""
    if not name or name != Path(name).name:
        raise UserError(f"{path} names no checkpoint beside it: remove it, or give the checkpoint's own folder")
    return path.parent / name


def adapters_only(source: Path) -> str:
    """The error message for adapters given in place of a whole model."""
    return (
        f"{source} holds adapters only, without their base: give the checkpoint folder of their run, continue that run with "
        "--resume, or give a merged checkpoint (runs/NAME/model, or a folder in runs/NAME/merges)"
    )


def _no_model_in(folder: Path, default_file: str, accepted: str) -> str:
    if (folder / "adapter").is_dir() or (folder / "adapter_config.json").is_file():
        return adapters_only(folder)
    names = sorted(entry.name for entry in folder.iterdir())
    content = f"only {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}" if names else "it is empty"
    return f"folder {folder} holds no {default_file} ({content}): give {accepted}"


def fetch_beside(source: str, folder: Path, name: str, revision: str | None = None) -> Path | None:
    """The file `name` in the `folder` of the file that `fetch(source, ...)` returned, or None if there is none.

    If that file came from the hub, `name` is fetched from there too, or from the cache if the hub is unreachable.
    """
    beside = folder / name
    if beside.is_file():
        return beside
    match = None if Path(source).exists() else _HUB_ID.fullmatch(source)
    if match is None:
        return None
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return _download(match["repo"], str(PurePosixPath(match["file"] or "").parent / name), revision)
    except UserError as error:
        if isinstance(error.__cause__, EntryNotFoundError):
            return None
        raise


def _download(repo: str, file: str, revision: str | None) -> Path:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub import errors as hub_errors

    # By default the library retries an unreachable hub six times, for half a minute in total.
    silence = None if constants.HF_HUB_OFFLINE else _silence(constants.ENDPOINT)
    try:
        return Path(hf_hub_download(repo, file, revision=revision, local_files_only=silence is not None))
    except Exception as error:  # The exception classes depend on the library's version and HTTP client.
        wanted = f"cannot get {file} of {repo} from {constants.ENDPOINT}"
        if silence is not None:
            raise UserError(
                f"{wanted} ({silence}), and it is not in the cache {constants.HF_HUB_CACHE}: check the network, set "
                "HF_HUB_OFFLINE=1 to use only the cache, or give a local file"
            ) from error
        missing = isinstance(error, hub_errors.LocalEntryNotFoundError)
        cause = error.__cause__ if missing and error.__cause__ else error
        # The first match counts: some classes are subclasses of others.
        reasons: dict[type[Exception], str] = {
            hub_errors.OfflineModeIsEnabled: "it is not in the cache, and HF_HUB_OFFLINE forbids downloads",
            hub_errors.GatedRepoError: "it is gated: request access on its page, and set HF_TOKEN",
            hub_errors.RepositoryNotFoundError: "there is no such repository, or it is private and needs HF_TOKEN",
            hub_errors.RevisionNotFoundError: f"it has no revision {revision}",
            hub_errors.EntryNotFoundError: f"revision {revision or 'main'} has no such file",
        }
        known = next((text for kind, text in reasons.items() if isinstance(cause, kind)), None)
        reason = known or first_line(cause)
        raise UserError(f"{wanted} ({reason}): check the id and the network, or give a local file") from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without the token of an HTTP header that it may quote."""
    return _BEARER.sub("Bearer ...", (str(error).strip() or type(error).__name__).splitlines()[0])


@lru_cache
def _silence(endpoint: str) -> str | None:
    """Why the hub does not answer, or None if it does, even with an error. Each process asks each hub once."""
    from huggingface_hub.utils import get_session

    session = get_session()
    failures: list[str] = []

    def ask() -> None:
        try:
            session.head(endpoint, timeout=ANSWER_SECONDS)
        except Exception as error:  # The classes depend on the library's HTTP client.
            failures.append(first_line(error))

    # A request's own timeout applies per address and excludes the DNS look-up.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(ANSWER_SECONDS)
    if asking.is_alive():
        return f"no answer within {ANSWER_SECONDS:g} s"
    return failures[0] if failures else None
