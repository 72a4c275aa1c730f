"""A model's files from the Hugging Face hub, or quickly a clear reason why not."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from pathlib import Path

from ...core.errors import Code, Error, invalid_field

_PROBE_SECONDS = 5.0
"""Longest wait to learn whether the hub answers at all, name resolution included."""

_YES = {"1", "ON", "YES", "TRUE"}
_WANTED = ["*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer.model"]
# Subfolders and `consolidated` files repeat the weights in other layouts.
_UNWANTED = ["*/*", "consolidated*"]
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def reachable() -> bool:
    """Whether the hub may be asked at all: huggingface_hub's own words for no, without its import."""
    return (os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or "").upper() not in _YES


def download(repo: str, revision: str | None) -> tuple[Path, str]:
    """Folder of the repository's files in the hub's own cache, and the commit that all of them are from.

    A revision is turned into a commit once, and every file is asked for by that commit. HF_HOME, HF_TOKEN,
    HF_ENDPOINT and HF_HUB_OFFLINE hold as everywhere. Raises INVALID_ARGUMENT on ``model`` where the hub says no,
    UNAVAILABLE where it does not answer and the cache has no copy.
    """
    from huggingface_hub import is_offline_mode, snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    reason = "HF_HUB_OFFLINE is set"
    try:
        commit = None
        if not is_offline_mode():
            commit, reason = _probe(repo, revision)
        path = snapshot_download(
            repo,
            revision=commit or revision,
            allow_patterns=_WANTED,
            ignore_patterns=_UNWANTED,
            local_files_only=commit is None,
        )
    except GatedRepoError as error:
        raise invalid_field(
            "model",
            f"{repo} is gated on the hub: accept its terms at https://huggingface.co/{repo} and set HF_TOKEN to a "
            "token of that account",
        ) from error
    except RepositoryNotFoundError as error:
        raise invalid_field(
            "model",
            f"the hub has no model {repo!r} that this machine may read: check the spelling and, if it is private, "
            "set HF_TOKEN",
        ) from error
    except LocalEntryNotFoundError as error:
        raise Error(
            Code.UNAVAILABLE,
            f"{repo} is not in the hub's cache on this machine and the hub cannot be asked: {reason}",
            reason="HUB_UNREACHABLE",
        ) from error
    folder = Path(path)
    if folder.name != (commit or folder.name) or not is_commit(folder.name):
        raise invalid_field("model", f"the hub gave {repo} as {folder.name[:80]!r}, which is not the commit asked for")
    return folder, folder.name


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a whole commit hash, which means the same files for ever."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def verify(folder: Path) -> None:
    """Compare each file of a downloaded folder with the hash that its commit has for it.

    The hub's client keeps a file under that hash (SHA-256 of large files, git's of small ones) and checks only its
    size. Reads everything once. Raises DATA_LOSS naming the file.
    """
    for file in sorted(folder.iterdir()):
        blob = file.resolve()
        if file.is_symlink() and not _holds(blob, blob.name):
            raise Error(
                Code.DATA_LOSS,
                f"{file.name} is not what commit {folder.name} has: delete {blob} and start again, which fetches it "
                "anew",
                reason="BASE_BROKEN",
            )


def _holds(blob: Path, name: str) -> bool:
    """Whether a file of the hub's cache has the content that its name says; True where the name says nothing."""
    with blob.open("rb") as file:
        if _SHA256.fullmatch(name):
            return hashlib.file_digest(file, "sha256").hexdigest() == name
        if _COMMIT.fullmatch(name):
            digest = hashlib.sha1(f"blob {os.fstat(file.fileno()).st_size}\0".encode(), usedforsecurity=False)
            while data := file.read(1 << 20):
                digest.update(data)
            return digest.hexdigest() == name
    return True


def _probe(repo: str, revision: str | None) -> tuple[str | None, str]:
    """(commit, "") if the hub answers, (None, why) if it does not; raises what the hub says no with.

    One request and no retries, in a thread of its own: a resolver that hangs must not hold the start.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    answer: list[str] = []
    failure: list[Exception] = []

    def ask() -> None:
        try:
            answer.append(HfApi().model_info(repo, revision=revision, timeout=_PROBE_SECONDS / 2).sha or "")
        except Exception as error:  # judged by the caller: the client's network errors share no base class
            failure.append(error)

    thread = threading.Thread(target=ask, name="hub-probe", daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    if answer and answer[0]:
        return answer[0], ""
    if not failure:
        return None, f"no answer in {_PROBE_SECONDS:g} s{by_proxy()}"
    error = failure[0]
    if isinstance(error, RepositoryNotFoundError):
        raise error
    if isinstance(error, RevisionNotFoundError):
        raise invalid_field("model", f"{repo} has no revision {revision!r} on the hub") from error
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return None, f"it answered HTTP {error.response.status_code}"
    return None, (str(error).splitlines()[0] if str(error) else type(error).__name__) + by_proxy()


def by_proxy() -> str:
    """Names the variable with the proxy by which the hub is asked, after what went wrong; empty: there is none."""
    names = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
    found = next((name for name in names if os.environ.get(name)), "")
    return f" (by the proxy of {found})" if found else ""
