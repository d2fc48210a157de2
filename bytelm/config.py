"""All settings of a run: frozen, checked at load, each default in one place.

Four sections, which are also the prefixes of ``--set``: ``model`` (the trunk), ``heads`` (the K prediction heads),
``data`` (windows) and ``train`` (optimizer, schedule, saving). A preset is a set of changes to the defaults. A key
that does not exist, a value that cannot be, or two settings that contradict each other raise ``ConfigError`` here
and never at step 10 000.
"""

import tomllib
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, Self

import pydantic
import tomli_w
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from bytelm.calls import checked_call
from bytelm.errors import ConfigError
from bytelm.model_shape import PATH_OF_CONFIG, AttentionKind, HeadFamily, TrunkShape, trunk_layers
from bytelm.names import hint, nearest
from bytelm.presets import PRESETS
from bytelm.vocab import BYTE_VOCABULARY, ids_of

BackwardMode = Literal["auto", "naive", "sequential", "checkpoint"]
Curriculum = Literal["none", "forward", "reverse"]
Precision = Literal["auto", "float32", "bfloat16"]
Packing = Literal["stream", "document"]
OnDamage = Literal["stop", "replace"]
AttentionBackend = Literal["torch", "flex", "xformers", "reference"]
AttentionSetting = Literal["auto", "torch", "flex", "xformers", "reference"]
OptimizerKind = Literal["adamw", "muon"]
Schedule = Literal["cosine", "wsd"]
CompileSetting = Literal["auto", "on", "off"]
Frozen = Literal["nothing", "trunk", "language_model"]
Parallel = Literal["auto", "ddp", "fsdp"]

_FAMILIES_OF_LAYERS: Final = ("transformer", "causal", "anticausal")
MAX_PREDICTION_HEADS: Final = 32
BUDGETS: Final = ("steps", "bytes", "time_budget_s")
_BYTES_OF_A_WORD: Final = 24
_BYTES_OF_A_TARGET: Final = 8


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)


class ModelConfig(TrunkShape, _Section):
    """Shape of the trunk: pre-norm, rotary, grouped-query attention with QK-norm, SwiGLU."""

    d_model: int = Field(default=128, ge=8, le=65_536, description="width of the trunk")
    layers: int = Field(
        default=4, ge=1, le=512, description="transformer layers, heads of the transformer family included"
    )
    attention_heads: int = Field(default=4, ge=1, le=1024, description="query heads of each attention layer")
    kv_heads: int = Field(default=2, ge=1, le=1024, description="key and value heads, shared by groups of query heads")
    d_ff: int = Field(default=344, ge=8, le=262_144, description="inner width of each SwiGLU")
    attention_pattern: tuple[AttentionKind, ...] = Field(
        default=("local", "local", "local", "global"),
        min_length=1,
        description="kinds of attention, repeated over the layers",
    )
    local_window_bytes: int = Field(
        default=128, ge=1, description="bytes that a local layer sees, the present one included"
    )
    ngram_sizes: tuple[int, ...] = Field(
        default=(), max_length=7, description="lengths of the n-grams that have embeddings of their own, like [2, 3, 4]"
    )
    ngram_rows: int = Field(
        default=32_768, ge=1, le=1 << 26, description="rows of each table of n-grams, which share them by a hash"
    )
    ngram_width: int = Field(default=64, ge=1, le=65_536, description="width of a row in the tables of n-grams")
    rope_base: float = Field(default=10_000.0, gt=1.0, description="base of the rotary angles")
    norm_epsilon: float = Field(default=1e-6, gt=0.0, lt=0.1, description="added to the mean square in every RMSNorm")
    vocabulary: str = Field(
        default=BYTE_VOCABULARY, description="what ids stand for: bytes, or bpe:SIZE for a baseline of so many ids"
    )
    bytes_per_id: float = Field(
        default=1.0, ge=1.0, description="mean bytes that an id stands for; found when a bpe vocabulary is made"
    )

    @field_validator("vocabulary")
    @classmethod
    def _known_vocabulary(cls, name: str) -> str:
        try:
            count = ids_of(name)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return name if name == BYTE_VOCABULARY else f"bpe:{count}"

    @field_validator("ngram_sizes")
    @classmethod
    def _ascending_sizes(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if any(size < 2 or size > 8 for size in sizes) or list(sizes) != sorted(set(sizes)):
            raise ValueError(f"model.ngram_sizes = {list(sizes)}; give lengths from 2 to 8, ascending, like [2, 3, 4]")
        return sizes

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.vocabulary == BYTE_VOCABULARY and self.bytes_per_id != 1.0:
            raise ValueError(f"model.bytes_per_id = {self.bytes_per_id}, and an id of bytes is one; leave it out")
        if self.d_model % self.attention_heads:
            raise ValueError(
                f"model.d_model = {self.d_model} is not divisible by model.attention_heads = {self.attention_heads}"
            )
        if self.head_channels % 2:
            raise ValueError(
                f"model.d_model / model.attention_heads = {self.head_channels} is odd; "
                "rotary positions need an even number"
            )
        if self.attention_heads % self.kv_heads:
            raise ValueError(
                f"model.attention_heads = {self.attention_heads} is not divisible by model.kv_heads = {self.kv_heads}"
            )
        return self


class HeadsConfig(_Section):
    """The K prediction heads: head k reads position t and predicts byte t + 1 + k."""

    family: HeadFamily = Field(default="linear", description="what a head is made of")
    count: int = Field(
        default=8, ge=1, le=MAX_PREDICTION_HEADS, description="K, the number of future bytes predicted at once"
    )
    backward: BackwardMode = Field(
        default="auto",
        description="how the heads are back-propagated, at equal gradients; auto is sequential",
    )
    keep_parameters_equal: bool = Field(
        default=False,
        description="take K - 1 layers off the trunk for the K layers of the heads, as the paper does",
    )
    weight_ratio: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="weight of each head in the loss over that of the head before it: 1 is constant, 0.8 decays",
    )
    row_share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="share of a batch's bytes from which heads 1 to K - 1 learn; head 0 learns from all",
    )
    curriculum: Curriculum = Field(
        default="none",
        description="heads that learn over the budget: all, forward from one to all of them, or reverse",
    )
    z_loss: float = Field(
        default=0.0, ge=0, le=1, description="factor of the squared log denominator of each softmax; 0 is off"
    )


class DataConfig(_Section):
    """Windows that are read from a corpus."""

    window_bytes: int = Field(
        default=512, ge=2, le=1 << 20, description="context in bytes, in training and in generation"
    )
    loader_threads: int = Field(default=1, ge=1, le=64, description="threads that decode frames ahead of the model")
    packing: Packing = Field(
        default="stream",
        description="stream cuts windows across documents; document begins each with one and fills it with whole ones",
    )
    on_damage: OnDamage = Field(
        default="stop",
        description="a damaged shard: stop there, or replace its windows by others of the corpus, counted",
    )
    cache_bytes: int = Field(
        default=10 << 30, ge=1 << 20, description="most bytes of a remote corpus that are kept on this machine's disk"
    )


class TrainConfig(_Section):
    """Optimizer, schedule, budget, validation and saving. Just one of the three budgets is set."""

    steps: int | None = Field(default=None, ge=1, description="budget in steps")
    bytes: int | None = Field(default=None, ge=1, description="budget in bytes read")
    time_budget_s: float | None = Field(default=None, gt=0, description="budget in seconds of training")
    batch_windows: int = Field(default=8, ge=1, description="windows in one micro-batch, the most of a process")
    accumulation: int = Field(default=1, ge=1, description="micro-batches in one step, those of all processes together")
    optimizer: OptimizerKind = Field(
        default="adamw", description="what updates the matrices; AdamW updates all the rest in any case"
    )
    learning_rate: float = Field(default=3e-3, gt=0, le=1, description="peak learning rate, of AdamW and Muon alike")
    schedule: Schedule = Field(
        default="cosine", description="how the rate falls: by a cosine, or late (warm-up, stable, decay)"
    )
    final_learning_rate_ratio: float = Field(default=0.03, ge=0, le=1, description="last learning rate over the peak")
    warmup_fraction: float = Field(default=0.03, ge=0, lt=1, description="share of the budget in which the rate rises")
    decay_fraction: float = Field(
        default=0.2, gt=0, le=1, description="wsd: share of the budget, at its end, in which the rate falls"
    )
    weight_decay: float = Field(default=0.1, ge=0, lt=1, description="decay of the weights, on matrices alone")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="AdamW's decay of the mean gradient")
    beta2: float = Field(default=0.95, ge=0, lt=1, description="AdamW's decay of the mean squared gradient")
    muon_momentum: float = Field(default=0.95, ge=0, lt=1, description="Muon's decay of the mean gradient")
    clip_norm: float = Field(default=1.0, gt=0, description="gradients of a larger norm are scaled down to it")
    ema_decay: float = Field(
        default=0.0, ge=0, lt=1, description="decay of the average of the weights that is evaluated; 0 keeps none"
    )
    most_skipped_steps: int = Field(
        default=10, ge=1, description="steps in a row without a finite loss and gradient, before the run goes back"
    )
    most_rollbacks: int = Field(
        default=3,
        ge=0,
        description="times that a run goes back to its last checkpoint, at half the rate, then it stops",
    )
    seed: int = Field(default=0, ge=0, lt=1 << 63, description="seed of the initial weights and of the window order")
    init_from: str | None = Field(
        default=None, description="run or checkpoint whose trunk, and heads of the same family, a run begins with"
    )
    frozen: Frozen = Field(
        default="nothing",
        description="of train.init_from never changed: nothing, trunk, or language_model (trunk and head 0)",
    )
    precision: Precision = Field(default="auto", description="of the matrix products; auto is bfloat16 where it pays")
    device: str = Field(default="auto", description="torch device; auto takes CUDA where there is one")
    attention_backend: AttentionSetting = Field(
        default="auto", description="what computes attention in training; auto takes the fastest that the device has"
    )
    parallel: Parallel = Field(
        default="auto",
        description="under torchrun: a copy of the model on each process (ddp, auto), or a part of it (fsdp)",
    )
    compile: CompileSetting = Field(
        default="auto", description="compile the layers for training; auto does so on CUDA with Triton"
    )
    threads: int = Field(default=0, ge=0, le=1024, description="CPU threads of torch; 0 leaves torch's own choice")
    log_every_steps: int = Field(default=10, ge=1, description="steps between two lines of metrics.jsonl")
    validate_every_steps: int = Field(default=200, ge=1, description="steps between two validations")
    spread_validations: int = Field(
        default=0, ge=0, le=1000, description="further validations, spread evenly over the budget, whatever it counts"
    )
    validation_bytes: int = Field(
        default=81_920, ge=1, description="bytes scored in one validation, always the same ones"
    )
    sample_bytes: int = Field(
        default=64, ge=0, le=4096, description="bytes that the model writes after each validation, to be looked at"
    )
    save_every_steps: int = Field(default=500, ge=1, description="steps between two checkpoints")
    keep_checkpoints: int = Field(default=2, ge=1, description="newest checkpoints that are kept")
    keep_best: bool = Field(
        default=True, description="save at a validation that is the best so far, and keep that checkpoint too"
    )
    save_in_background: bool = Field(
        default=True, description="go on while a thread writes, from a copy in main memory as large as a checkpoint"
    )

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        named = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(named) > 1:
            raise ValueError(f"train.{' and train.'.join(named)} are both set; one budget decides, leave one")
        return self

    @model_validator(mode="after")
    def _takes_effect(self) -> Self:
        for key, owner, kind in (("decay_fraction", "schedule", "wsd"), ("muon_momentum", "optimizer", "muon")):
            if getattr(self, owner) != kind and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"train.{key} has an effect only with train.{owner} = {kind}; set that, or leave it")
        if self.schedule == "wsd" and self.warmup_fraction + self.decay_fraction > 1:
            raise ValueError(
                f"train.warmup_fraction = {self.warmup_fraction} and train.decay_fraction = {self.decay_fraction} "
                "are more than the budget together; lower one"
            )
        if self.frozen != "nothing" and self.init_from is None:
            raise ValueError(
                f"train.frozen = {self.frozen} would freeze random weights; give train.init_from (--init-from), or "
                "leave it"
            )
        return self


class RunConfig(_Section):
    """Everything that is needed to make a run again, as ``config.toml`` holds it."""

    model: ModelConfig = Field(default_factory=ModelConfig, description="the trunk")
    heads: HeadsConfig = Field(default_factory=HeadsConfig, description="the prediction heads")
    data: DataConfig = Field(default_factory=DataConfig, description="the windows")
    train: TrainConfig = Field(default_factory=TrainConfig, description="the optimization")

    @property
    def ahead_bytes(self) -> int:
        """Bytes of a window behind its inputs, for the targets of the last ones."""
        if self.model.vocabulary == BYTE_VOCABULARY:
            return self.heads.count
        return _BYTES_OF_A_WORD + _BYTES_OF_A_TARGET * self.heads.count

    @property
    def trunk_layers(self) -> int:
        """Layers of the trunk itself, after ``heads.keep_parameters_equal``."""
        return trunk_layers(self.model, self.heads)

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.heads.keep_parameters_equal and self.heads.family not in _FAMILIES_OF_LAYERS:
            raise ValueError(
                f"heads.keep_parameters_equal needs a layer for each head: heads.family = "
                f"{', '.join(_FAMILIES_OF_LAYERS)}; found {self.heads.family}"
            )
        if self.trunk_layers < 1:
            raise ValueError(
                f"heads.keep_parameters_equal takes heads.count - 1 = {self.heads.count - 1} layers off "
                f"model.layers = {self.model.layers}, which leaves no trunk"
            )
        if self.model.vocabulary != BYTE_VOCABULARY and self.data.packing != "stream":
            raise ValueError(
                f"data.packing = {self.data.packing} counts bytes, and model.vocabulary = {self.model.vocabulary} has "
                "ids of several; set data.packing = stream"
            )
        if self.train.frozen == "language_model":
            self._leaves_heads_to_learn()
        if self.model.local_window_bytes > self.data.window_bytes and "local" in self.model.attention_pattern:
            raise ValueError(
                f"model.local_window_bytes = {self.model.local_window_bytes} is longer than "
                f"data.window_bytes = {self.data.window_bytes}; lower it, or make the pattern global"
            )
        return self

    def _leaves_heads_to_learn(self) -> None:
        heads = self.heads
        for wrong, found, remedy in (
            (heads.count == 1, "heads.count = 1, which leaves no head to learn", "set heads.count"),
            (
                heads.family in ("anticausal", "shared"),
                f"heads.family = {heads.family}, in which all heads make head 0",
                "set train.frozen = trunk",
            ),
            (
                heads.curriculum != "none",
                f"heads.curriculum = {heads.curriculum}, in which head 0 is alone at times",
                "set heads.curriculum = none",
            ),
        ):
            if wrong:
                raise ValueError(f"train.frozen = language_model (--heads-only) found {found}; {remedy}")

    @classmethod
    @checked_call()
    def build(cls, preset: str, changes: Iterable[str] = ()) -> Self:
        """Settings of a preset with changes in the form of ``--set``.

        Args:
            preset: A key of ``PRESETS``.
            changes: ``section.key=value`` strings, later ones win. A value is read as TOML (``8``, ``0.1``, ``true``,
                ``["local", "global"]``) and as plain text where it is no TOML; ``none`` clears an optional value.

        Raises:
            ConfigError: Unknown preset or key (the nearest is suggested), impossible or contradicting values.

        Example:
            >>> RunConfig.build("tiny", ["heads.count=4"]).heads.count
            4
        """
        if preset not in PRESETS:
            raise ConfigError(f"unknown preset {preset!r}; {hint(preset, PRESETS)}")
        return cls._changed(PRESETS[preset], changes)

    @checked_call()
    def with_changes(self, changes: Iterable[str]) -> Self:
        """These settings with changes in the form of ``--set``; a budget that is set replaces the one there was.

        Raises:
            ConfigError: Unknown key (the nearest is suggested), impossible or contradicting values.
        """
        return self._changed(self.model_dump(exclude_none=True), changes)

    @classmethod
    def _changed(cls, base: Mapping[str, Mapping[str, Any]], changes: Iterable[str]) -> Self:
        changed: dict[str, dict[str, Any]] = {}
        for change in changes:
            path, separator, text = change.partition("=")
            section, _, key = path.strip().rpartition(".")
            if not (separator and key):
                raise ConfigError(f"a setting is written section.key=value, found {change!r}")
            if section not in cls.model_fields:
                raise ConfigError(_unknown_setting(path.strip()))
            changed.setdefault(section, {})[key] = _value(text.strip())
        tree = {section: dict(values) for section, values in base.items()}
        if any(key in BUDGETS for key in changed.get("train", {})):  # a budget that was asked for replaces the old one
            tree["train"] = {key: value for key, value in tree["train"].items() if key not in BUDGETS}
        for section, values in changed.items():
            tree.setdefault(section, {}).update(values)
        return cls.from_tree(tree)

    @classmethod
    def from_tree(cls, tree: dict[str, Any]) -> Self:
        """Settings from nested dictionaries, with errors as one line.

        Raises:
            ConfigError: Unknown key (the nearest is suggested), impossible or contradicting values.
        """
        try:
            return cls.model_validate(tree)
        except pydantic.ValidationError as error:
            raise ConfigError(_first_fault(error)) from None

    @classmethod
    def from_toml(cls, text: str) -> Self:
        """Settings from the text of a ``config.toml``; its ``[made_by]`` table is not a setting and is skipped.

        Raises:
            ConfigError: Not TOML, unknown key, impossible or contradicting values.
        """
        try:
            tree = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{PATH_OF_CONFIG} is not valid TOML: {error}") from error
        tree.pop("made_by", None)
        return cls.from_tree(tree)

    def to_toml(self, **made_by: str | list[str]) -> str:
        """Text of ``config.toml``.

        Args:
            **made_by: Facts about the maker (bytelm's version, the corpus fingerprint), kept in ``[made_by]``.
        """
        tree = self.model_dump(mode="json", exclude_none=True)
        if made_by:
            tree = {"made_by": made_by, **tree}
        return tomli_w.dumps(tree)


def describe_settings() -> list[tuple[str, str, str]]:
    """Every setting as (``section.key``, default, description), for help texts."""
    rows = []
    for section, field in RunConfig.model_fields.items():
        section_type = field.annotation
        assert isinstance(section_type, type)
        assert issubclass(section_type, _Section)
        for key, setting in section_type.model_fields.items():
            rows.append((f"{section}.{key}", str(setting.default), setting.description or ""))
    return rows


def _value(text: str) -> Any:
    if text.lower() == "none":
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _first_fault(error: pydantic.ValidationError) -> str:
    fault = error.errors()[0]
    place = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return _unknown_setting(place)
    if fault["type"] == "value_error" and "ctx" in fault:
        return str(fault["ctx"]["error"])
    return f"{place} = {fault['input']!r}: {fault['msg'][0].lower()}{fault['msg'][1:]}"


def _unknown_setting(place: str) -> str:
    keys = [name for name, _, _ in describe_settings()]
    # A right key in the wrong section is the likeliest slip: compare last parts as well as whole paths.
    key = place.rpartition(".")[2]
    same_key = [name for name in keys if name.rpartition(".")[2] == key]
    tails = {name.rpartition(".")[2]: name for name in keys}
    near = same_key[0] if same_key else nearest(place, keys) or tails.get(nearest(key, tails) or "")
    remedy = f"did you mean {near!r}?" if near else "bytelm train --settings lists all"
    return f"unknown setting {place!r}; {remedy}"
