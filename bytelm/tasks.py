"""All tasks of ``bytelm eval`` by name, and the file that keeps what they found."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import bytelm
from bytelm.api import LanguageModel
from bytelm.checkpoint import FOLDER as CHECKPOINTS
from bytelm.errors import ConfigError, StorageError
from bytelm.files import refusals_named, write_file
from bytelm.names import hint
from bytelm.sampling import Sampler
from bytelm.shipped import is_shipped
from bytelm.task import PAPER_PASS_AT, Request, Result
from bytelm.task_acceptance import acceptance
from bytelm.task_bpb import bpb
from bytelm.task_choices import CHOICE_SETS, choices, lambada, one_set
from bytelm.task_cute import cute
from bytelm.task_probes import arithmetic, induction
from bytelm.task_programs import humaneval, mbpp
from bytelm.task_utf8 import utf8
from bytelm.vocab import BYTE_VOCABULARY

TASKS: Final[dict[str, Callable[[Request], Result]]] = {
    "bpb": bpb,
    "acceptance": acceptance,
    "humaneval": humaneval,
    "mbpp": mbpp,
    "lambada": lambada,
    "choices": choices,
    **{name: one_set(name) for name in CHOICE_SETS},
    "cute": cute,
    "utf8": utf8,
    "induction": induction,
    "arithmetic": arithmetic,
}

FOLDER: Final = "eval"


def parse_tasks(text: str) -> list[str]:
    """Names of tasks, separated by commas.

    Raises:
        ConfigError: A name is unknown or stands there twice.
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in TASKS:
            raise ConfigError(f"unknown task {name!r}; {hint(name, TASKS)}")
    if len(set(names)) < len(names):
        raise ConfigError(f"--task {text} names a task twice; leave one out")
    return names


def parse_pass_at(text: str | None, samples: int) -> tuple[tuple[int, float], ...]:
    """For each k of pass@k the temperature.

    Args:
        text: ``k:temperature``, separated by commas; where None, those of the paper up to the number of samples.
        samples: Programs for each problem.

    Raises:
        ConfigError: Written otherwise, a k is larger than the number of samples, or a temperature impossible.

    Example:
        >>> parse_pass_at("1:0.2,10:0.8", 20), parse_pass_at(None, 20)
        (((1, 0.2), (10, 0.8)), ((1, 0.1), (10, 0.8)))
    """
    if text is None:
        return tuple((k, temperature) for k, temperature in PAPER_PASS_AT if k <= samples)
    found = []
    for word in text.split(","):
        match = re.fullmatch(r"(\d+):(\d+(?:\.\d+)?)", word.strip())
        if match is None or int(match[1]) < 1:
            raise ConfigError(f"--pass-at {word!r} is not k:temperature; write it like 1:0.1,10:0.8")
        if int(match[1]) > samples:
            raise ConfigError(f"pass@{match[1]} needs {match[1]} programs a problem, found --programs {samples}")
        Sampler(temperature=float(match[2]))
        found.append((int(match[1]), float(match[2])))
    return tuple(found)


def check_vocabulary(task: str, model: LanguageModel) -> None:
    """Refuse a task on a run whose ids are not bytes; ``bpb`` alone counts the bytes of any ids.

    Raises:
        ConfigError: It cannot be done.
    """
    vocabulary = model.config.model.vocabulary
    if task != "bpb" and vocabulary != BYTE_VOCABULARY:
        raise ConfigError(
            f"task {task} is for models of bytes, and the run has model.vocabulary = {vocabulary}; use --task bpb"
        )


def results_folder(checkpoint: Path) -> Path:
    """Where results of a checkpoint are kept: ``eval`` in its run, or beside a checkpoint that stands alone.

    Those of a model that ships with bytelm are kept in the present folder.
    """
    if is_shipped(checkpoint):
        return Path(FOLDER)
    inside = checkpoint.parent.name == CHECKPOINTS
    return (checkpoint.parent.parent if inside else checkpoint.parent) / FOLDER


def keep(folder: Path, checkpoint: Path, task: str, facts: dict[str, Any], samples: tuple[dict[str, Any], ...]) -> Path:
    """Write what a task found, whole or not at all.

    Args:
        folder: From ``results_folder``.
        checkpoint: What was evaluated; its name is part of the file's.
        task: Name of the task.
        facts: Of the result.
        samples: One object for each example; none where they were not asked for.

    Returns:
        The file.

    Raises:
        StorageError: The disk refuses.
    """
    try:
        with refusals_named(folder):
            folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise StorageError(f"cannot write into {folder}: it is a file, not a folder; move it away") from error
    place = folder / f"{task}-{checkpoint.name}.json"
    content = {"task": task, "checkpoint": str(checkpoint), "bytelm": bytelm.__version__, **facts}
    if samples:
        content["samples"] = list(samples)
    write_file(place, json.dumps(content, ensure_ascii=False, indent=1).encode("utf-8", "surrogatepass"))
    return place
