"""What is plainly wrong with a command's words, said before anything large is imported.

Every fault found here is found later, too, by whoever owns the name; but torch takes seconds to import, and a typo
should not. A name that cannot be judged without reading more is let through.
"""

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bytelm.cli.quantities import parse_duration, parse_size
from bytelm.data.index import INDEX
from bytelm.device import check_device_name
from bytelm.errors import BytelmError, CheckpointError, ConfigError, SourceError
from bytelm.names import hint, nearest
from bytelm.presets import PRESETS
from bytelm.shipped import shipped_model, shipped_models

TASKS: Final = (
    *("bpb", "acceptance", "humaneval", "mbpp", "lambada", "choices", "hellaswag", "arc_easy", "arc_challenge"),
    *("piqa", "cute", "utf8", "induction", "arithmetic"),
)
"""Names of ``bytelm.tasks``; a test holds them equal."""

_MODELS: Final = {"eval": "run", "generate": "run", "tune": "run", "export": "run", "report": "runs"}
"""Which argument of a command is a model, or several."""


_WRITTEN: Final[dict[str, Callable[[str], object]]] = {
    "size": parse_size,
    "limit_bytes": parse_size,
    "scored_bytes": parse_size,
    "time_budget": parse_duration,
    "device": check_device_name,
}
"""Parameters that are words with a form of their own, and what refuses another form."""
_READ: Final = {"eval": ("file", "data"), "tune": ("file",), "quickstart": ("corpus",)}
"""Parameters that are files to be read."""


def check(command: str, given: Mapping[str, Any]) -> None:
    """Refuse what no command could do anything with.

    Args:
        command: Its name.
        given: Its parameters as they were parsed.

    Raises:
        BytelmError: A model, a task, a preset or a setting does not exist; with the nearest name.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return  # of several processes one says what is wrong
    if command == "eval":
        for word in str(given["task"]).split(","):
            if word.strip() not in TASKS:
                raise ConfigError(f"unknown task {word.strip()!r}; {hint(word.strip(), TASKS)}")
    for name, parse in _WRITTEN.items():
        if isinstance(given.get(name), str):
            parse(given[name])
    for name in _READ.get(command, ()):
        if name == "file" and given.get("corpus") is not None:
            continue
        paths = given.get(name)
        for path in paths if isinstance(paths, list) else [paths]:
            if isinstance(path, Path) and not path.exists():
                raise SourceError(f"cannot read {path}: there is no such file")
    found = given.get(_MODELS.get(command, ""))
    models = list(found) if isinstance(found, list | tuple) else [found]
    for model in models:
        if isinstance(model, Path):
            _check_model(command, model, given.get("prompt"))
    if command == "report":
        _check_runs(given["runs"])
    if isinstance(begun_with := given.get("init_from"), Path):
        _check_model(command, begun_with, None)
    if command in ("compare", "ablate", "quickstart", "probe") or (command == "train" and not given["settings"]):
        _check_settings(given)
    if command == "train" and not given["settings"]:
        _check_places(given)
    if command == "compare":
        _check_comparison(given)
    if given.get("file") is None:  # who gives both is told to leave one out
        _check_corpora(given.get("corpus"))


def _check_model(command: str, model: Path, prompt: str | None) -> None:
    if model.exists() or shipped_model(model) is not None:
        return
    if prompt is not None and is_model(prompt):
        raise ConfigError(
            f"{str(model)!r} is no model, but {prompt!r} is: the model comes first: "
            f"bytelm {command} {shlex.quote(prompt)} {shlex.quote(str(model))}"
        )
    raise no_model(model)


def no_model(model: Path) -> BytelmError:
    """The error for a model that does not exist, with the nearest name: a shipped model, or what lies beside it."""
    beside = model.parent
    names = [path.name for path in beside.iterdir() if path.is_dir()] if beside.is_dir() else []
    near = nearest(model.name, [*names, *(shipped_models() if len(model.parts) == 1 else ())])
    remedy = f"did you mean {str(model.with_name(near))!r}?" if near else "give the folder of a run, or a checkpoint"
    return CheckpointError(f"{model} does not exist; {remedy}")


def is_model(word: str) -> bool:
    """Whether a word is the name of a shipped model, or of a folder."""
    path = Path(word)
    try:
        return path.is_dir() or shipped_model(path) is not None
    except (OSError, ValueError):  # a prompt is no path: too long, or with a zero byte
        return False


def _check_places(given: Mapping[str, Any]) -> None:
    if given["out"] is None:
        raise ConfigError("no place for the run; give --out RUN")
    if not given["corpus"] and not given["out"].exists():
        raise ConfigError("nothing to train on; give --corpus CORPUS (bytelm ingest makes one)")


def _check_runs(runs: Sequence[Path]) -> None:
    from bytelm.run_log import PATH_OF_LOG

    for run in runs:
        if not (run / PATH_OF_LOG).exists():
            raise CheckpointError(f"{run} has no {PATH_OF_LOG}; is it the folder of a run?")


def _check_corpora(given: Any) -> None:
    """Look for the index of each corpus of this machine, and at the weights."""
    if not given or isinstance(given, Path):
        return
    from bytelm.data.schedule import whole_weights
    from bytelm.data.storage import is_remote, parse_weighted

    pairs = [parse_weighted(text) for text in ([given] if isinstance(given, str) else given)]
    whole_weights([weight for _, weight in pairs])
    for address, _ in pairs:
        if not is_remote(address) and not (Path(address) / INDEX).exists():
            from bytelm.data.shards import Corpus

            Corpus.open(address)  # it knows what is wrong, and the remedy


def _check_comparison(given: Mapping[str, Any]) -> None:
    from bytelm.arms import parse_arms, parse_budgets

    parse_budgets(given["budget"])
    parse_arms(given["arms"])


def _check_settings(given: Mapping[str, Any]) -> None:
    """Check names and values of settings, where they stand alone and not on top of those of a run."""
    preset, out = given.get("preset"), given.get("out")
    if preset is not None and preset not in PRESETS:
        raise ConfigError(f"unknown preset {preset!r}; {hint(preset, PRESETS)}")
    resumes = isinstance(out, Path) and out.is_dir()
    if given.get("init_from") is not None or (resumes and preset is None) or not given.get("changes"):
        return
    from bytelm.config import RunConfig

    RunConfig.build(preset or "tiny", given.get("changes") or [])
