"""Errors of the hub as one line with the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

LOG_IN = "log in with `hf auth login`, set HF_TOKEN, or give token=..."
CLIENTS = ("httpx", "httpcore", "requests", "urllib3")  # of versions of huggingface_hub


@contextmanager
def hub_errors(repo: str, *, revision: str | None = None) -> Iterator[None]:
    """Turn what huggingface_hub raises into an ``OSError`` of one line that names the remedy.

    Raises:
        PermissionError: the token is absent, not valid, or may not do this.
        OSError: the hub is switched off or cannot be reached, or there is no such repository.

    Example:
        >>> from huggingface_hub.errors import OfflineModeIsEnabled
        >>> with hub_errors("me/repo"):
        ...     raise OfflineModeIsEnabled("...")
        Traceback (most recent call last):
        OSError: me/repo: the hub is switched off (HF_HUB_OFFLINE), and the local cache has no ...
    """
    try:
        yield
    except (OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        if isinstance(error, OfflineModeIsEnabled) or "HF_HUB_OFFLINE" in str(error):
            raise OSError(
                f"{repo}: the hub is switched off (HF_HUB_OFFLINE), and the local cache has no "
                "copy: unset it, or name a folder on this machine"
            ) from error
        raise _unreachable(repo, error) from error
    except HfHubHTTPError as error:
        raise _refused(repo, revision, error) from error
    except Exception as error:
        # huggingface_hub raises a RuntimeError from what has stopped the upload of a large file.
        if isinstance(error, RuntimeError) and isinstance(error.__cause__, HfHubHTTPError):
            raise _refused(repo, revision, error.__cause__) from error
        if type(error.__cause__ or error).__module__.startswith(CLIENTS):
            raise _unreachable(repo, error) from error
        raise


def _unreachable(repo: str, error: Exception) -> OSError:
    return OSError(
        f"{repo}: the hub cannot be reached ({type(error).__name__}): try again, or name a folder "
        "on this machine"
    )


def _refused(repo: str, revision: str | None, error: HfHubHTTPError) -> OSError:
    status = getattr(error.response, "status_code", None)
    if isinstance(error, GatedRepoError):
        return PermissionError(f"{repo}: its owner grants access on its page on the hub: {LOG_IN}")
    if isinstance(error, RevisionNotFoundError):
        return OSError(f"{repo} has no branch, tag or commit {revision!r}")
    if isinstance(error, RepositoryNotFoundError):
        return OSError(
            f"there is no repository {repo} on the hub, or it is private: check the name, and "
            f"{LOG_IN}"
        )
    if status == 401:
        return PermissionError(f"{repo}: the hub did not accept the token: {LOG_IN}")
    if status == 403:
        return PermissionError(f"{repo}: the token may not write there: {LOG_IN}")
    if status in (409, 412):
        return OSError(f"{repo} has changed since it was read, so nothing was uploaded: try again")
    said = str(error.server_message or error).split("\n")[0][:200]
    return OSError(f"{repo}: the hub answered {status}: {said}")
