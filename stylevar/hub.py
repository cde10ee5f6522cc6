"""Where a checkpoint comes from: a local file or folder, or a model on the Hugging Face hub."""

from __future__ import annotations

import os
import re
import threading
from functools import lru_cache
from pathlib import Path, PurePosixPath

from stylevar.errors import UserError

_HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?::(?P<file>[\w./-]+))?")
ANSWER_SECONDS = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or 5)
"""How long a hub may take to say that it is there."""
LINKS = ("latest", "best")
"""Names that a run gives to checkpoints."""
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
        default_file: what to take from a folder or a hub repository that names no file.
        revision: branch, tag or commit on the hub.
        accepted: what the error tells the user to give.
    Raises:
        UserError: no such file, and no such model on the hub (or the hub is out of reach and nothing is cached).
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
    """The checkpoint that a run's `latest` or `best` names; any other path as it is.

    They are symbolic links, or small files on file systems that have none.
    """
    if path.name not in LINKS or path.parent.name != "checkpoints":
        return path
    if path.is_symlink():
        return path.parent / path.readlink()
    return path.parent / path.read_text().strip() if path.is_file() else path


def adapters_only(source: Path) -> str:
    """What to tell a user who gave adapters where a whole model is needed."""
    return (
        f"{source} holds adapters only, without their base: give the checkpoint of the run that they lie in, continue that "
        "run with --resume, or give a merged checkpoint (runs/NAME/model, or a folder of runs/NAME/merges)"
    )


def _no_model_in(folder: Path, default_file: str, accepted: str) -> str:
    if (folder / "adapter").is_dir() or (folder / "adapter_config.json").is_file():
        return adapters_only(folder)
    names = sorted(entry.name for entry in folder.iterdir())
    found = f"only {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}" if names else "it is empty"
    return f"folder {folder} holds no {default_file} ({found}): give {accepted}"


def fetch_beside(source: str, fetched: Path, name: str, revision: str | None = None) -> Path | None:
    """The file `name` in the folder of the file that `fetch(source, ...)` returned, or None if there is none.

    Where that came from the hub, the hub (or, out of its reach, the cache) is asked for `name` too.
    """
    beside = fetched.parent / name
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

    # Left to itself, the library asks a hub that is out of reach six times, for half a minute in all.
    silence = None if constants.HF_HUB_OFFLINE else _silence(constants.ENDPOINT)
    try:
        return Path(hf_hub_download(repo, file, revision=revision, local_files_only=silence is not None))
    except Exception as error:  # Which classes it raises depends on its version and its HTTP client.
        wanted = f"cannot get {file} of {repo} from {constants.ENDPOINT}"
        if silence is not None:
            raise UserError(
                f"{wanted} ({silence}), and it is not in the cache {constants.HF_HUB_CACHE}: check the network, set "
                "HF_HUB_OFFLINE=1 to use the cache alone, or give a local file"
            ) from error
        missing = isinstance(error, hub_errors.LocalEntryNotFoundError)
        cause = error.__cause__ if missing and error.__cause__ else error
        # Of the classes, the first that fits: some are subclasses of others.
        reasons: dict[type[Exception], str] = {
            hub_errors.OfflineModeIsEnabled: "it is not in the cache, and HF_HUB_OFFLINE forbids to fetch it",
            hub_errors.GatedRepoError: "access to it has to be asked for on its page, and HF_TOKEN set",
            hub_errors.RepositoryNotFoundError: "there is no such repository, or HF_TOKEN is needed to see it",
            hub_errors.RevisionNotFoundError: f"it has no revision {revision}",
            hub_errors.EntryNotFoundError: f"revision {revision or 'main'} has no such file",
        }
        known = next((text for kind, text in reasons.items() if isinstance(cause, kind)), None)
        reason = known or (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise UserError(f"{wanted} ({reason}): check the id and the network, or give a local file") from error


@lru_cache
def _silence(endpoint: str) -> str | None:
    """Why the hub does not answer, or None if it does, be it with an error. A process asks each hub once."""
    from huggingface_hub.utils import get_session

    session = get_session()
    failures: list[str] = []

    def ask() -> None:
        try:
            session.head(endpoint, timeout=ANSWER_SECONDS)
        except Exception as error:  # Of whatever HTTP client the library has.
            failures.append((str(error).strip() or type(error).__name__).splitlines()[0])

    # The time limit of a request is one for each address and leaves out the look-up of the name.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(ANSWER_SECONDS)
    if asking.is_alive():
        return f"no answer within {ANSWER_SECONDS:g} s"
    return failures[0] if failures else None
