"""A folder to the Hub: checked before anything leaves, then sent in one commit, or not at all."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.utils import httpx

from unclip_hub.hub import shims
from unclip_hub.hub.agreement import absent
from unclip_hub.hub.card import REPOSITORY
from unclip_hub.hub.card_check import CARD, card_problems
from unclip_hub.hub.faults import HubError, one_line
from unclip_hub.hub.inspect import PICKLES, Checkpoint, Problem


UNTOUCHED = "nothing was published"
_PICTURES = (".png", ".jpg", ".jpeg", ".webp")
_TEXTS = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "metrics.json", "conversion_report.json")
_STEMS = "diffusion_pytorch_model|pytorch_model|model"


class NotReady(ValueError):
    """A folder that is not fit to be published, and why."""

    def __init__(self, problems: list[Problem]) -> None:
        said = "; ".join(f"{problem.where}: {problem.what} -> {problem.remedy}" for problem in problems)
        super().__init__(f"{UNTOUCHED}: {said}")
        self.problems = problems


@dataclass(frozen=True)
class Plan:
    """What is to be sent: path in the repository → file or bytes; and what lies in the folder and is not."""

    files: Mapping[str, Path | bytes]
    left_out: list[str] = field(default_factory=list)
    variant: str | None = None

    def size(self, path: str) -> int:
        """Bytes of one file."""
        source = self.files[path]
        return len(source) if isinstance(source, bytes) else source.stat().st_size

    def read(self, path: str) -> bytes:
        """What is in one file."""
        source = self.files[path]
        return source if isinstance(source, bytes) else source.read_bytes()

    @property
    def total(self) -> int:
        """Bytes of all files."""
        return sum(map(self.size, self.files))


@dataclass(frozen=True)
class Pushed:
    """Where it went: the commit or pull request, and whether there was anything to send."""

    url: str
    commit: str
    changed: bool


def prepare(checkpoint: Checkpoint, *, variant: str | None = None) -> Plan:
    """What of a checkpoint is published: the files that were examined, the card, its pictures and the licence's text.

    Args:
        checkpoint: of ``inspect``, its components compared with their classes by ``models.examine``.
        variant: the one that was examined.

    Raises:
        NotReady: something is wrong with the checkpoint or its card, or weights are pickles.
    """
    folder, components = checkpoint.folder, checkpoint.components
    alone = "prior" in components and "decoder" not in components  # a prior may be published by itself
    needless = list(absent(checkpoint.pipeline, components)) if alone else []
    problems = [one for one in checkpoint.problems if one.level == "error" and one not in needless]
    for component in components.values():
        for path in component.files:
            if path.suffix in PICKLES:
                remedy = "save it anew with save_pretrained, which writes safetensors"
                problems.append(Problem("error", component.name, f"{path.name} is a pickle", remedy))
    problems += card_problems(folder)
    if problems:
        raise NotReady(problems)
    files: dict[str, Path | bytes] = {CARD: folder / CARD}
    files |= {name: folder / name for name in _TEXTS if (folder / name).is_file()}
    pictures = sorted(path for path in (folder / "images").glob("*") if path.suffix.lower() in _PICTURES)
    files |= {f"images/{path.name}": path for path in pictures}
    for component in components.values():
        texts = [path for path in sorted((folder / component.name).glob("*")) if _is_text(path)]
        files |= {f"{component.name}/{path.name}": path for path in [*component.files, *texts]}
    try:
        files |= shims.published(checkpoint.index)
    except ValueError as error:
        remedy = "open it with one of its pipelines and save it anew"
        raise NotReady([Problem("error", "model_index.json", str(error), remedy)]) from None
    return Plan(files, _left_out(folder, files), variant)


def push(
    plan: Plan,
    repo_id: str,
    *,
    api: HfApi | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
) -> Pushed:
    """Send everything in one commit on top of what is there now, or in a pull request.

    A second call with the same files finds nothing to send. Files of weights that the model no longer has are deleted
    in the same commit. The repository is created if need be, and the branch ``revision``, from main.

    Raises:
        HubError: it could not be done; the repository is as it was, unless only the answer was lost.
        ValueError: arguments that exclude one another.
    """
    if create_pr and revision not in (None, "main"):
        raise ValueError(f"a pull request is made against main: leave out revision, got {revision!r}")
    api = api or HfApi()
    card = plan.read(CARD).replace(REPOSITORY.encode(), repo_id.encode())
    with one_line(repo_id, state=lambda: UNTOUCHED):
        api.create_repo(repo_id, private=private, exist_ok=True)
        there = api.model_info(repo_id)
        if private and not there.private:
            what = f"{repo_id}: the repository exists and is public; make it private in its settings first, "
            raise HubError(f"{what}or leave --private out; {UNTOUCHED}")
        if revision is not None:
            if revision not in [branch.name for branch in api.list_repo_refs(repo_id).branches]:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            there = api.model_info(repo_id, revision=revision)
    remote = [sibling.rfilename for sibling in there.siblings or []]
    with one_line(repo_id, state=lambda: _state(api, repo_id, revision, before=there.sha, create_pr=create_pr)):
        made = api.create_commit(
            repo_id,
            operations=[
                *(CommitOperationDelete(path) for path in outdated(plan, remote)),
                *(CommitOperationAdd(path, source) for path, source in {**plan.files, CARD: card}.items()),
            ],
            commit_message=message or "Upload an unCLIP model with unclip_hub",
            revision=revision,
            create_pr=create_pr,
            parent_commit=there.sha,
        )
    return Pushed(made.pr_url or str(made.commit_url), made.oid, changed=made.oid != there.sha)


def outdated(plan: Plan, remote: list[str]) -> list[str]:
    """Weights in the repository that a loader could take for the plan's: same component, same variant, not in it."""
    dot = f".{re.escape(plan.variant)}" if plan.variant else ""
    kinds = rf"({_STEMS}){dot}(-\d+-of-\d+)?\.(safetensors|bin)|({_STEMS})\.(safetensors|bin)\.index{dot}\.json"
    folders = {path.rpartition("/")[0] for path in plan.files} - {""}
    named = [(path, *path.rpartition("/")[::2]) for path in remote if path not in plan.files]
    return [path for path, folder, name in named if folder in folders and re.fullmatch(kinds, name)]


def _state(api: HfApi, repo_id: str, revision: str | None, *, before: str | None, create_pr: bool) -> str:
    """Whether a commit that failed changed anything after all: its answer may have been lost."""
    if create_pr:
        return f"{revision or 'main'} is as it was; see whether a pull request was opened"
    try:
        unchanged = api.model_info(repo_id, revision=revision).sha == before
    except (OSError, httpx.TransportError):
        return "whether it was published is not known; nothing is sent twice"
    return UNTOUCHED if unchanged else "there is a new commit, this one or another's: a second run tells"


def _is_text(path: Path) -> bool:
    """Settings beside the weights; not the index of a variant's shards, which is examined if it is wanted."""
    return path.suffix in (".json", ".txt") and ".index." not in path.name


def _left_out(folder: Path, files: Mapping[str, Path | bytes]) -> list[str]:
    here = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    return [path.as_posix() for path in here if path.as_posix() not in files and not path.parts[0].startswith(".")]
