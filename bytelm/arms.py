"""What a comparison compares: arms as people write them, the budget that is equal for all, and the settings of each.

    byte:k=8                     a byte model with 8 prediction heads
    bpe:4096:k=1                 a BPE baseline of 4096 ids with one
    byte:k=4:family=causal       another head family; curriculum=… likewise
    byte:k=8:train.learning_rate=0.003     any setting, as --set has it
    run=runs/a                   a run that is there already: it is measured, not trained
    hf=models/gpt2               a folder of Hugging Face transformers, measured as well

All arms have the same preset, so the same trunk, trainer, windows and context in bytes. The budget makes one axis
equal: bytes read, operations, seconds, or parameters (through the inner width of the feed-forward layers, with the
preset's own training). What that leaves unequal is told, not hidden.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self

from bytelm.config import RunConfig
from bytelm.errors import ConfigError
from bytelm.vocab import BYTE_VOCABULARY, ids_of

BudgetKind = Literal["parameters", "flops", "bytes", "seconds"]

LEAST_STEPS: Final = 10
"""Steps that an arm must make within the budget: fewer are no training."""
_NUMBER: Final = re.compile(r"(\d+(?:\.\d+)?(?:e\d+)?)\s*([kmgtp]?)", re.IGNORECASE)
_BETWEEN_ARMS: Final = re.compile(r"[,;](?![^\[\]]*\])")
"""Commas and semicolons, but for those within a list, such as model.ngram_sizes=[2,3]."""
_SET_HERE: Final = {
    "model.vocabulary": "byte or bpe:SIZE at its beginning says that",
    "model.bytes_per_id": "it is found when the vocabulary is made",
    "train.seed": "each arm is trained with the same seeds, from --seeds",
    "train.steps": "the budget says that",
    "train.bytes": "the budget says that",
    "train.time_budget_s": "the budget says that",
}
"""Settings that no arm has of its own, and why."""
_SHARED: Final = {
    "data.window_bytes": "all arms have the same context in bytes",
    "train.device": "all arms are trained and measured on the same device",
    "train.threads": "all arms are trained with the same threads",
}
"""Settings that the arms must share, and why."""
_LARGEST_BUDGET: Final = 1e30
_POWERS: Final = {"": 0, "k": 3, "m": 6, "g": 9, "t": 12, "p": 15}
_SHORT: Final = {"k": "heads.count", "family": "heads.family", "curriculum": "heads.curriculum"}
_LEAST_INNER_WIDTH: Final = 8
_SECONDS_SHARE: Final = 0.02
_LAST_STEP_S: Final = 0.5
"""What a last step, and a validation before it, may take beyond a budget of seconds."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What is equal for all arms.

    Attributes:
        kind: The axis.
        amount: How much of it.
    """

    kind: BudgetKind
    amount: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """A budget as people write it.

        Raises:
            ConfigError: Written otherwise.

        Example:
            >>> Budget.parse("flops:1e13"), Budget.parse("bytes:20M").amount, Budget.parse("seconds:90").kind
            (Budget(kind='flops', amount=10000000000000.0), 20000000.0, 'seconds')
        """
        kind, _, written = text.partition(":")
        found = _NUMBER.fullmatch(written.strip())
        amount = 0.0 if found is None else float(found[1]) * 10.0 ** _POWERS[found[2].lower()]
        if kind not in ("parameters", "flops", "bytes", "seconds") or not 0.0 < amount <= _LARGEST_BUDGET:
            raise ConfigError(f"{text!r} is no budget; write parameters:1M, flops:1e13, bytes:50M or seconds:600")
        return cls(kind=kind, amount=amount)

    @property
    def written(self) -> str:
        """The amount, short where that is exact: two amounts are never written alike."""
        short = f"{self.amount:g}"
        return short if float(short) == self.amount else repr(self.amount)

    def __str__(self) -> str:
        return f"{self.kind}:{self.written}"


def parse_budgets(text: str) -> tuple[Budget, ...]:
    """Budgets of one kind as people write them, the smallest first.

    Args:
        text: The kind once, then amounts with commas: ``seconds:60,240``.

    Raises:
        ConfigError: Written otherwise, of two kinds, or with an amount twice.

    Example:
        >>> [str(budget) for budget in parse_budgets("seconds:240,60")]
        ['seconds:60', 'seconds:240']
    """
    kind, _, amounts = text.partition(":")
    found: list[Budget] = []
    for amount in amounts.split(","):
        other = amount.partition(":")[0].strip()
        if ":" in amount and other != kind:
            raise ConfigError(f"--budget {text} has two kinds, {kind} and {other}; one kind alone is made equal")
        found.append(Budget.parse(amount.strip() if ":" in amount else f"{kind}:{amount}"))
        if found[-1] in found[:-1]:
            raise ConfigError(f"--budget {text} names {found[-1]} twice; name each amount once")
    return tuple(sorted(found, key=lambda budget: budget.amount))


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One thing that is compared.

    Attributes:
        name: As it was written, in one spelling.
        changes: To the preset, in the form of ``--set``.
        run: What is measured as it is; None where the arm is trained.
        foreign: Whether that is a folder of Hugging Face transformers and no run of bytelm.
    """

    name: str
    changes: tuple[str, ...]
    run: Path | None = None
    foreign: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """An arm as people write it.

        Raises:
            ConfigError: Written otherwise.

        Example:
            >>> Arm.parse("bpe:4k:k=2")
            Arm(name='bpe:4096:k=2', changes=('model.vocabulary=bpe:4096', 'heads.count=2'), run=None, foreign=False)
        """
        written = text.strip()
        for before in ("run=", "hf="):
            if written.startswith(before):
                place = Path(written.removeprefix(before))
                return cls(name=written, changes=(), run=place, foreign=before == "hf=")
        kind, *words = written.split(":")
        if kind == "byte":
            vocabulary = BYTE_VOCABULARY
        elif kind == "bpe" and words:
            vocabulary = f"bpe:{ids_of(f'bpe:{words.pop(0)}')}"
        else:
            raise ConfigError(f"{text!r} is no arm; write byte:k=8, bpe:4096:k=1, run=FOLDER or hf=FOLDER")
        settings: dict[str, str] = {}
        for word in words:
            key, separator, value = word.partition("=")
            if not (separator and value and (key in _SHORT or "." in key)):
                raise ConfigError(
                    f"{word!r} in the arm {text!r} is unknown; use k=…, family=…, curriculum=… or section.key=value"
                )
            name = _SHORT.get(key, key)
            if name in settings:
                raise ConfigError(
                    f"the arm {text!r} names {name} twice; name it once, and write a comma between two arms"
                )
            if name in _SET_HERE:
                raise ConfigError(f"{word!r} in the arm {text!r} has no effect: {_SET_HERE[name]}; leave it out")
            if name in _SHARED:
                raise ConfigError(
                    f"{word!r} in the arm {text!r} cannot differ between arms: {_SHARED[name]}; give --set "
                    f"{name}={value} for all"
                )
            settings[name] = value
        settings = {"heads.count": "1", **settings}
        shown = [f"k={settings['heads.count']}"]
        names = {long: short for short, long in _SHORT.items()}
        shown += [f"{names.get(key, key)}={value}" for key, value in settings.items() if key != "heads.count"]
        name = ":".join([*(("byte",) if vocabulary == BYTE_VOCABULARY else (vocabulary,)), *shown])
        changes = (f"model.vocabulary={vocabulary}", *(f"{key}={value}" for key, value in settings.items()))
        return cls(name=name, changes=changes)

    @property
    def folder(self) -> str:
        """A name for files."""
        return re.sub(r"[^A-Za-z0-9.=]+", "-", self.name).strip("-")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is compared and how it is measured.

    Attributes:
        arms: In the order of the report.
        budgets: Budgets of one kind, the smallest first. Every trained arm has a run at each.
        seeds: Seeds of initial weights and window order. Every arm is trained with each seed at each budget.
        base: Settings that all arms share.
        scored_bytes: Held-out bytes that are scored, at most; the same ones for all.
        stride_bytes: Bytes between the starts of two scored windows.
        prompts: Held-out prompts that are continued to measure speed.
        generated_bytes: Bytes of each continuation.
        tune_arms: Whether learning rate and batch are chosen for each arm; see ``bytelm.comparison_tuning``.
    """

    arms: tuple[Arm, ...]
    budgets: tuple[Budget, ...]
    seeds: tuple[int, ...]
    base: RunConfig
    scored_bytes: int = 1 << 20
    stride_bytes: int
    prompts: int = 8
    generated_bytes: int = 256
    tune_arms: bool = False


def parse_arms(texts: str) -> list[Arm]:
    """Arms with commas or semicolons between them, each with a name and a folder of its own.

    Raises:
        ConfigError: One is unknown, or one stands there twice.
    """
    arms = [Arm.parse(text) for text in _BETWEEN_ARMS.split(texts) if text.strip()]
    if not arms:
        raise ConfigError("there is no arm to compare; write --arms byte:k=1,byte:k=8,bpe:4096:k=1")
    for place, arm in enumerate(arms):
        for other in arms[:place]:
            if arm.name == other.name or sorted(arm.changes) == sorted(other.changes) != []:
                raise ConfigError(f"the arm {arm.name} is there twice; leave one out")
            if arm.folder.casefold() == other.folder.casefold():
                raise ConfigError(
                    f"the arms {other.name} and {arm.name} would be kept in the same folder, {arm.folder}; write the "
                    "path of one of them in another way, or rename it"
                )
    return arms


def ablation_arms(heads: str, families: str, curricula: str) -> list[Arm]:
    """Byte arms that differ in their heads: one for each number, family and curriculum, and next-byte prediction first.

    Args:
        heads: Numbers with commas, such as ``1,2,4,8``.
        families: Names with commas.
        curricula: Names with commas.

    Raises:
        ConfigError: A name is unknown; impossible numbers are refused with the settings.
    """
    counts, kinds, rises = ([word.strip() for word in words.split(",")] for words in (heads, families, curricula))
    found = [Arm.parse("byte:k=1")]
    for count in counts:
        for kind in kinds:
            for rise in rises:
                family = "" if kind == "linear" else f":family={kind}"
                curriculum = "" if rise == "none" else f":curriculum={rise}"
                arm = Arm.parse(f"byte:k={count}{family}{curriculum}")
                if arm not in found and count != "1":
                    found.append(arm)
    return found


def settings_of(arm: Arm, base: RunConfig, budget: Budget, *, bytes_per_id: float, seed: int) -> RunConfig:
    """All settings of a trained arm.

    Args:
        arm: Which.
        base: Settings that all arms share.
        budget: Becomes the arm's own budget in bytes or seconds; with ``parameters`` the base's stays.
        bytes_per_id: Of the arm's vocabulary.
        seed: Of weights and windows.

    Raises:
        ConfigError: A setting is impossible, or the arm cannot meet the budget.
    """
    try:
        config = base.with_changes([*arm.changes, f"train.seed={seed}", f"model.bytes_per_id={bytes_per_id!r}"])
    except ConfigError as error:
        raise ConfigError(f"the arm {arm.name}: {error}") from None
    step_bytes = bytes_of_a_step(config)
    if budget.kind == "seconds":
        return config.with_changes([f"train.time_budget_s={budget.amount!r}"])
    if budget.kind == "parameters":
        return _with_parameters(arm, config, round(budget.amount))
    flops_per_byte = flops_of(config)[0]
    size = budget.amount if budget.kind == "bytes" else budget.amount / flops_per_byte
    steps = round(size / step_bytes)
    if steps < LEAST_STEPS:
        raise ConfigError(
            f"the arm {arm.name} cannot meet the budget {budget}: a step reads {step_bytes:,} bytes for "
            f"{step_bytes * flops_per_byte:.3g} operations, so that {steps} fit and {LEAST_STEPS} are the least; "
            "give more, or a smaller model or step"
        )
    return config.with_changes([f"train.steps={steps}"])


def bytes_of_a_step(config: RunConfig) -> int:
    """Bytes that a step reads."""
    return config.train.batch_windows * config.train.accumulation * config.data.window_bytes


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Parameters of a model by what they cost: rows of tables are looked up, the others are multiplied with.

    Attributes:
        total: All of them.
        embedding: Parameters of the embedding and the unembedding, which grow with the vocabulary.
        ngram_tables: Rows of the n-gram tables.
    """

    total: int
    embedding: int
    ngram_tables: int

    @property
    def inner(self) -> int:
        """All that are neither embedding, unembedding nor n-gram table."""
        return self.total - self.embedding - self.ngram_tables


def parameters_of(config: RunConfig) -> Parameters:
    """Count the parameters of a model."""
    import torch

    from bytelm.model import ByteLM

    with torch.device("meta"):
        model = ByteLM(config.model, config.heads)
    return Parameters(
        total=model.parameter_counts()["total"],
        embedding=model.embedding.numel() + math.prod(model.heads.get_parameter("unembedding.weight").shape),
        ngram_tables=0 if model.ngrams is None else model.ngrams.tables.numel(),
    )


def flops_of(config: RunConfig) -> tuple[float, float]:
    """Operations for a byte: in training, and in plain decoding, where only head 0 is computed.

    The latter is the mean over the positions of a window, as in training.
    """
    import torch

    from bytelm.model import ByteLM

    window_bytes = config.data.window_bytes
    one_head = config.heads.model_copy(update={"count": 1, "keep_parameters_equal": False})
    if config.heads.family == "anticausal":  # head 0 is the end of the whole chain
        one_head = config.heads
    alone = config.model.model_copy(update={"layers": config.trunk_layers})
    with torch.device("meta"):
        training = ByteLM(config.model, config.heads).flops_per_byte(window_bytes, training=True)
        decoding = ByteLM(alone, one_head).flops_per_byte(window_bytes, training=False)
    return training, decoding


def _with_parameters(arm: Arm, config: RunConfig, wanted: int) -> RunConfig:
    """The inner width at which the parameters in all come nearest to those wanted."""

    def at(width: int) -> int:
        return parameters_of(config.with_changes([f"model.d_ff={width}"])).total

    least = at(_LEAST_INNER_WIDTH)
    slope = (at(2 * _LEAST_INNER_WIDTH) - least) / _LEAST_INNER_WIDTH
    width = _LEAST_INNER_WIDTH + round((wanted - least) / slope)
    if width < _LEAST_INNER_WIDTH:
        raise ConfigError(
            f"the arm {arm.name} cannot meet the budget of {wanted:,} parameters: it has {least:,} with the thinnest "
            "layers; give more, or lower model.d_model or the vocabulary"
        )
    return config.with_changes([f"model.d_ff={width}"])


def tolerance_of(config: RunConfig, budget: Budget) -> float:
    """Share of the budget by which an arm may miss it: what cannot be divided further."""
    if budget.kind == "parameters":
        wider = config.with_changes([f"model.d_ff={config.model.d_ff + 1}"])
        return (parameters_of(wider).total - parameters_of(config).total) / budget.amount
    if budget.kind == "seconds":
        return _SECONDS_SHARE + _LAST_STEP_S / budget.amount
    flops_per_byte = flops_of(config)[0] if budget.kind == "flops" else 1.0
    # A step of operations may hold nothing but ids of one byte.
    most = config.model.bytes_per_id if budget.kind == "flops" else 1.0
    return most * bytes_of_a_step(config) * flops_per_byte / budget.amount
