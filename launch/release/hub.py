"""Upload a release with its model card to the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.release.card import model_card, samples_picture
from stylevar.checkpoint import ModelWeights
from stylevar.errors import UserError
from stylevar.hub import first_line
from stylevar.text_files import read_record


@dataclass(frozen=True)
class Upload:
    """Where a release goes, and how it is described there."""

    repo: str
    branch: str | None = None
    private: bool = False
    message: str | None = None
    licence: str = "apache-2.0"


def check_access(repo: str) -> None:
    """Check before any work that an upload can succeed. Raises UserError for a bad name, a bad token or no network."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        if repo.count("/") != 1:
            raise HFValidationError("it has the form owner/name")
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"--push {repo}: not the name of a repository ({str(error).splitlines()[0]})") from error
    if get_token() is None:
        raise UserError("--push needs a token with write access: set HF_TOKEN, or log in with `hf auth login`")
    with _explained(repo):
        HfApi().whoami()


def read_summary(path: Path) -> dict[str, Any]:
    """The summary of an evaluation. Raises UserError if it is missing or not a JSON object."""
    try:
        return read_record(path, "give the summary.json of an evaluation")
    except UserError as error:
        raise UserError(f"--eval {error}") from error


def push(folder: Path, release: ModelWeights, upload: Upload, summary: dict[str, Any] | None = None) -> str:
    """Upload `folder`, which holds the written release, with a card and a picture of samples. Returns where it is now."""
    from huggingface_hub import HfApi

    picture = samples_picture(release)
    if picture is not None:
        (folder / "samples.png").write_bytes(picture)
    files = sorted(path.name for path in folder.iterdir())
    (folder / "README.md").write_text(model_card(release, upload.repo, upload.licence, files, summary), encoding="utf-8")
    message = upload.message or f"Add {Path(release.files.name).name} of a StyleVAR run"
    api = HfApi()
    with _explained(upload.repo):
        # Without --private an existing repository stays what it is, and a new one is public.
        api.create_repo(upload.repo, private=upload.private or None, exist_ok=True)
        if upload.private and not api.repo_info(upload.repo).private:
            raise UserError(f"--private: {upload.repo} exists and is public; make it private on the hub, or choose another")
        if upload.branch is not None and upload.branch != "main":
            api.create_branch(upload.repo, branch=upload.branch, exist_ok=True)
        commit = api.upload_folder(repo_id=upload.repo, folder_path=folder, commit_message=message, revision=upload.branch)
    names = ", ".join(["README.md", *files])
    vae = upload.repo if "vqvae.safetensors" in files else "OWNER/VQVAE"
    return f"{api.endpoint}/{upload.repo}: {names}\nuse it with: --init {upload.repo} --vae {vae} --revision {commit.oid}"


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """Turn errors of the hub or the network into a UserError of one line."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except UserError:
        raise
    except OfflineModeIsEnabled as error:
        raise UserError("HF_HUB_OFFLINE is set, and an upload needs the network: unset it") from error
    except HfHubHTTPError as error:
        code = error.response.status_code
        reason = {
            401: "the token is unknown: set HF_TOKEN to a valid one, or run `hf auth login` again",
            403: f"the token may not write there: create one with write access to {repo.partition('/')[0]}",
            404: "there is no such repository or branch, or the token may not see it",
        }.get(code, first_line(error))
        raise UserError(f"the hub refused {repo} (HTTP {code}): {reason}") from error
    except Exception as error:  # The classes of connection errors depend on the library's HTTP client.
        reason = first_line(error)
        raise UserError(
            f"cannot reach the hub at {constants.ENDPOINT} ({reason}): check the network, or write files with --out"
        ) from error
