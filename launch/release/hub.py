"""Upload a release with its model card to the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.release.card import model_card, samples_picture
from stylevar.checkpoint import ModelWeights
from stylevar.errors import UserError


@dataclass(frozen=True)
class Upload:
    """Where a release goes, and under which words."""

    repo: str
    branch: str | None = None
    private: bool = False
    message: str | None = None
    licence: str = "apache-2.0"


def check_access(repo: str) -> None:
    """Find out before any work whether an upload can succeed. UserError for a bad name, no token, a refused one, no net."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        if repo.count("/") != 1:
            raise HFValidationError("it has the form owner/name")
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"--push {repo}: no name of a repository ({str(error).splitlines()[0]})") from error
    if get_token() is None:
        raise UserError("--push needs a token that may write: set HF_TOKEN, or log in with `hf auth login`")
    with _explained(repo):
        HfApi().whoami()


def read_summary(path: Path) -> dict[str, Any]:
    """The summary of an evaluation. UserError if it is missing or no JSON object."""
    try:
        summary = json.loads(path.read_text())
    except OSError as error:
        raise UserError(
            f"--eval {path} cannot be read ({error.strerror}): give the summary.json of an evaluation"
        ) from error
    except ValueError as error:
        raise UserError(f"--eval {path} is no JSON ({error}): give the summary.json of an evaluation") from error
    if not isinstance(summary, dict):
        raise UserError(f"--eval {path} holds no object: give the summary.json of an evaluation")
    return summary


def push(folder: Path, release: ModelWeights, upload: Upload, summary: dict[str, Any] | None = None) -> str:
    """Upload `folder`, which holds the written release, with a card and a picture of samples; says where it now lies."""
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
    """Turn what the hub or the way to it refuses into one line."""
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
            401: "it does not know the token: set HF_TOKEN to one that is valid, or `hf auth login` again",
            403: f"the token may not write there: create one with write access to {repo.partition('/')[0]}",
            404: "there is no such repository or branch, or the token may not see it",
        }.get(code, (str(error).strip() or type(error).__name__).splitlines()[0])
        raise UserError(f"the hub refused {repo} (HTTP {code}): {reason}") from error
    except Exception as error:  # Which classes a broken connection raises depends on the library's HTTP client.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"cannot reach the hub at {constants.ENDPOINT} ({reason}): check the network, or write files with --out"
        ) from error
