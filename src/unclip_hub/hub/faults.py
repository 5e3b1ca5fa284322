"""What went wrong with the Hub, in one line that says what to do."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx


LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


class HubError(OSError):
    """The Hub could not do it; the message holds the remedy."""


@contextmanager
def one_line(repo_id: str, *, state: Callable[[], str]) -> Iterator[None]:
    """Turn the client's errors into a `HubError`; ``state`` then says how things were left.

    Raises:
        HubError: whatever the Hub, the network or the client's cache refused.
    """
    try:
        yield
    except HubError:
        raise
    # RuntimeError and ConnectionError: an upload of LFS's or xet's; they wrap what happened, or lost it
    except (HfHubHTTPError, httpx.TransportError, HFValidationError, OSError, RuntimeError) as error:
        raise HubError(f"{repo_id}: {' '.join(_explain(error, repo_id).split())}; {state()}") from error


def _explain(error: BaseException, repo_id: str) -> str:
    cause = _root(error)
    if isinstance(cause, GatedRepoError):
        return f"its authors grant access one by one: ask at {constants.ENDPOINT}/{repo_id}, then {LOG_IN}"
    if isinstance(cause, RevisionNotFoundError):
        return f"it has no such revision: see which it has at {constants.ENDPOINT}/{repo_id}, or leave it out"
    if isinstance(cause, RemoteEntryNotFoundError):
        return f"a file is missing there: {_last_line(cause)}"
    if isinstance(cause, HfHubHTTPError):
        return _status(cause, repo_id)
    if isinstance(cause, OfflineModeIsEnabled):
        return "offline mode is on: unset HF_HUB_OFFLINE"
    if isinstance(cause, IncompleteSnapshotError):
        return "the cache holds only a part of it: run it again with a connection"
    if isinstance(cause, LocalEntryNotFoundError):
        return "it is not in the cache, and the Hub was not asked or did not answer: run it again with a connection"
    if isinstance(cause, (httpx.ConnectError, httpx.TimeoutException)):
        return f"{constants.ENDPOINT} does not answer: check the network, then run it again"
    if isinstance(cause, (httpx.TransportError, ConnectionError)):
        return "the connection broke: run it again"
    return str(cause)


def _status(error: HfHubHTTPError, repo_id: str) -> str:
    status, said = error.response.status_code, error.server_message or _last_line(error)
    if status == 401:
        return f"the Hub does not know who asks, which is also its answer where there is no such repository: {LOG_IN}"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such repository, or it is private: check the name, or log in as someone who may see it"
    if status == 403:
        tokens = f"{constants.ENDPOINT}/settings/tokens"
        return f"this token may not do that: give it the right at {tokens}, or propose a change with --create-pr"
    if status == 409:
        return "another change is under way there: wait a moment and run it again"
    if status == 412:
        return "it was changed while this was under way: look at the change, then run it again"
    if status == 429:
        wait = error.response.headers.get("Retry-After")
        return f"too many requests: wait {f'{wait} s' if wait else 'some minutes'} and run it again"
    if status >= 500:
        return f"the Hub has a fault (error {status}): run it again in some minutes"
    return f"the Hub refused (error {status}): {said}"


def _root(error: BaseException) -> BaseException:
    """What the client wrapped; what came from the Hub wins over what the client made of it."""
    found, seen = error, error
    while seen.__cause__ is not None:
        seen = seen.__cause__
        if isinstance(seen, (HfHubHTTPError, httpx.TransportError, OfflineModeIsEnabled)):
            found = seen
    return error if isinstance(error, HfHubHTTPError) else found


def _last_line(error: BaseException) -> str:
    return next(iter(reversed(str(error).strip().splitlines())), type(error).__name__)
