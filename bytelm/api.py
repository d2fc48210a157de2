"""The Python interface: load a trained model, then generate, stream and score.

    import bytelm

    model = bytelm.load("runs/a")
    for piece in model.stream(b"def main(", max_bytes=256):
        print(piece.text, end="", flush=True)

A prompt is the beginning of a document, as bytes or as text, which is encoded in UTF-8. What the model says is bytes
first; text is decoded from them with a stated policy for invalid ones.
"""

import dataclasses
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, get_args

import numpy as np
import numpy.typing as npt

from bytelm.arguments import KEYWORDS, Text, bytes_of, kind_of, settings_from, several_of, shown
from bytelm.calls import checked_call
from bytelm.checkpoint_files import ModelFiles, find_model, read_config
from bytelm.decode import DecodePlan, Request, context_start, decode_batch, decode_steps, generate, slid_start
from bytelm.device import choose_decoding_threads, choose_device, means_cpu
from bytelm.drafting import DraftPolicy
from bytelm.engine import NOT_FINITE, Engine
from bytelm.engine.library import unavailable_reason
from bytelm.engine.weights import engine_from_file, matrix_parameters
from bytelm.errors import ConfigError, GenerationError
from bytelm.generation import Exactness, GenerateSettings, Generation, Step
from bytelm.plans import find_plan
from bytelm.utf8 import InvalidBytes, TextDecoder
from bytelm.vocab import BYTES, EOD, Vocab

if TYPE_CHECKING:
    from bytelm.config import RunConfig
    from bytelm.model import ByteLM

WeightPrecision = Literal["auto", "float32", "bfloat16", "int8"]


class GenerateOptions(TypedDict, total=False):
    """Keywords of ``generate`` and ``stream``; ``GenerateSettings`` says what they mean and holds the defaults."""

    max_bytes: int
    draft: DraftPolicy
    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float
    seed: int
    sequence: int
    stop: Text | Iterable[Text] | None
    utf8: bool
    logprobs: bool
    exact: Exactness


@dataclass(frozen=True, slots=True)
class Piece:
    """What became certain at once while streaming.

    Attributes:
        data: The next bytes of the output.
        text: The characters that these bytes made whole. Over all pieces the texts join to the text of all bytes.
        sources: For each byte who proposed it: 0 chosen by the trunk itself, k >= 1 drafted by head k, -1 by prompt
            lookup.
        logprobs: For each byte the logarithm of its probability, nats; empty unless ``logprobs`` is asked for.
    """

    data: bytes
    text: str
    sources: tuple[int, ...]
    logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class DecodedBy:
    """What decodes a model.

    Attributes:
        name: ``compiled`` is the engine.
        isa: Its instruction set; None of torch.
        precision: Of the matrices.
        threads: On the CPU; None elsewhere.
        reason: Why it is torch; "" of the engine.
    """

    name: Literal["compiled", "torch"]
    isa: str | None
    precision: str
    threads: int | None
    reason: str

    def __str__(self) -> str:
        """For people."""
        threads = "" if self.threads is None else f", {self.threads} thread{'s' if self.threads > 1 else ''}"
        if self.name == "compiled":
            return f"the engine ({self.isa}, {self.precision}{threads})"
        return f"torch ({self.precision}{threads}), for {self.reason}"


class LanguageModel:
    """A model with the settings of its run, ready to decode.

    Args:
        decoder: An engine, or a torch model in evaluation mode, on its device.
        config: Of the run that trained it; read from the checkpoint when it is asked for where None.
        path: What it was loaded from, to find what ``bytelm tune`` has measured; None for nothing.
        files: Of the checkpoint, verified; None for a model that was not loaded.
        reason: Why torch decodes.
        reload: Keywords with which ``load`` loads it again.

    Attributes:
        decoder: As given: what ``bytelm.decode`` takes.
        engine: The engine; None where torch decodes.
        engine_reason: Why torch decodes; "" where the engine does.
        context_bytes: Slots of the context, in generation and in scoring: the window that the model was trained with.
        refused: Why the plan that is there is not used; "" where it is, or there is none. Known after ``plan``.
    """

    @checked_call()
    def __init__(
        self,
        decoder: "ByteLM | Engine",
        config: "RunConfig | None" = None,
        path: Path | None = None,
        *,
        files: ModelFiles | None = None,
        reason: str = "it was made from a torch model",
        reload: dict[str, Any] | None = None,
    ) -> None:
        assert config is not None or files is not None
        self.decoder = decoder
        self.engine = decoder if isinstance(decoder, Engine) else None
        self.engine_reason = "" if self.engine is not None else reason
        self.context_bytes = files.shape.window_bytes if files is not None else _window_bytes(config)
        self.refused = ""
        self._config, self._path, self._files, self._reload = config, path, files, reload
        self._torch_model = None if isinstance(decoder, Engine) else decoder
        self._plan: DecodePlan | None = None
        self._looked = False

    @property
    def model(self) -> "ByteLM":
        """The torch model, on the CPU in float32 where the engine decodes; loaded when it is first asked for.

        Raises:
            GenerationError: The engine was made from something else than a path.
            CheckpointError: The checkpoint is not there any more.
        """
        if self._torch_model is None:
            if self._files is None:
                raise GenerationError("this model is an engine alone, without a torch model; load one from a path")
            from bytelm.checkpoint import load_model

            self._torch_model, _ = load_model(self._files.checkpoint)
        return self._torch_model

    @property
    def config(self) -> "RunConfig":
        """The settings of the run that trained it."""
        if self._config is None:
            assert self._files is not None
            self._config = read_config(self._files.checkpoint)
        return self._config

    @property
    def vocabulary(self) -> Vocab:
        """What ids stand for."""
        return self.decoder.vocabulary

    @property
    def head_count(self) -> int:
        """K."""
        return self.decoder.heads.count

    @property
    def decoded_by(self) -> DecodedBy:
        """What decodes, for people and for ``--json``."""
        if self.engine is not None:
            return DecodedBy("compiled", self.engine.isa, self.engine.kind, self.engine.threads, "")
        import torch

        tensor = self.model.embedding
        threads = torch.get_num_threads() if tensor.device.type == "cpu" else None
        return DecodedBy("torch", None, str(tensor.dtype).removeprefix("torch."), threads, self.engine_reason)

    @checked_call()
    def plan(self) -> DecodePlan | None:
        """What ``bytelm tune`` measured here; looked for once, with the threads and the precision of that moment."""
        if not self._looked and self._path is not None:
            self._plan, self.refused = find_plan(self._path, self.decoder)
        self._looked = True
        return self._plan

    def __reduce__(self) -> tuple[Any, ...]:
        if self._path is None or self._reload is None:
            raise TypeError("a LanguageModel that was not loaded from a path cannot be pickled; load it from one")
        path = self._path.absolute() if self._path.exists() else self._path  # a name means a shipped model
        return _load_again, (str(path), self._reload)

    @checked_call(KEYWORDS)
    def generate(self, prompt: Text, **options: Unpack[GenerateOptions]) -> Generation:
        """Continue a prompt and return the whole output with its statistics.

        Args:
            prompt: Beginning of a document; empty for a document from its first byte.
            **options: Keywords of ``GenerateSettings``; ``stop`` may be one string or several, text or bytes.

        Raises:
            GenerationError: A setting is impossible or has no effect, or the model's logits are not finite.

        Example:
            ``model.generate("def ", max_bytes=64, stop="\\n\\n").text``
        """
        settings = settings_from("generate", options)
        return generate(
            self.decoder, bytes_of("prompt", prompt), settings, context_bytes=self.context_bytes, tuned=self.plan()
        )

    @checked_call(KEYWORDS)
    def generate_batch(
        self, prompts: Iterable[Text], *, slots: int = 8, **options: Unpack[GenerateOptions]
    ) -> list[Generation]:
        """Continue several prompts side by side; each gets the bytes that it would get alone.

        Args:
            prompts: Beginnings of documents, of any lengths; all are looked at before the first is continued.
            slots: Prompts at a time, at least 1.
            **options: As of ``generate``; prompt n is sequence ``sequence`` + n, so that each has noise of its own.

        Returns:
            As many generations, in the order of the prompts; ``elapsed_s`` is that of all.

        Raises:
            GenerationError: As ``generate``.
        """
        first = settings_from("generate_batch", options)
        given = several_of("prompts", prompts)
        if isinstance(slots, bool) or not isinstance(slots, Integral) or slots < 1:
            raise GenerationError(f"slots = {shown(slots)} is no number of prompts at a time; give 1 or more")
        settings = [dataclasses.replace(first, sequence=first.sequence + place) for place in range(len(given))]
        asked = [Request(prompt, one) for prompt, one in zip(given, settings, strict=True)]
        steps: list[list[Step]] = [[] for _ in asked]
        begin = time.perf_counter()
        for index, step in decode_batch(
            self.decoder, asked, context_bytes=self.context_bytes, slots=int(slots), tuned=self.plan()
        ):
            steps[index].append(step)
        elapsed_s = time.perf_counter() - begin
        return [Generation.of(one, prediction_heads=self.head_count, elapsed_s=elapsed_s) for one in steps]

    @checked_call(KEYWORDS)
    def stream(
        self, prompt: Text, *, invalid: InvalidBytes = "replace", **options: Unpack[GenerateOptions]
    ) -> Iterator[Piece]:
        """Continue a prompt and hand out bytes as they are accepted: together, the bytes of ``generate``.

        Args:
            prompt: Beginning of a document; empty for a document from its first byte.
            invalid: What bytes that are no UTF-8 become in the text.
            **options: Keywords of ``GenerateSettings``; ``stop`` may be one string or several, text or bytes.

        Returns:
            An iterator of pieces, each with at least one byte or one character.

        Raises:
            GenerationError: At the call, if a setting is impossible or has no effect; while iterating, if the model's
                logits are not finite or bytes are invalid and ``invalid`` is ``strict``.
        """
        settings = settings_from("stream", options)
        if not isinstance(invalid, str):
            known = ", ".join(get_args(InvalidBytes))
            raise GenerationError(f"invalid = {shown(invalid)} is no name of a policy; known: {known}")
        return self._pieces(bytes_of("prompt", prompt), settings, TextDecoder(invalid))

    @checked_call()
    def score(self, prompt: Text, continuation: Text) -> npt.NDArray[np.float64]:
        """Log-probability of each byte of a continuation, every byte before it being given.

        The distribution is head 0's softmax over all V ids, as in training; sampling at temperature 1 leaves out the
        ids that are never used. The context is the one that generation would have had at each byte.

        Args:
            prompt: Beginning of a document.
            continuation: What follows.

        Returns:
            Nats, at most 0, one for each byte of the continuation.

        Example:
            ``-model.score("", data).sum() / math.log(2) / len(data)`` is bits per byte.
        """
        if self.vocabulary is not BYTES:
            raise GenerationError(
                f"the probability of a byte was asked for, and ids of {self.vocabulary.name} stand for several; "
                "bytelm eval --task bpb scores whole documents"
            )
        given, wanted = bytes_of("prompt", prompt), bytes_of("continuation", continuation)
        if self.engine is None:
            return _score(self.model, given, wanted, self.context_bytes)
        from bytelm.decoding import engine_score

        return engine_score.score(self.engine, given, wanted, self.context_bytes)

    def _pieces(self, prompt: bytes, settings: GenerateSettings, decoder: TextDecoder) -> Iterator[Piece]:
        for step in decode_steps(self.decoder, prompt, settings, context_bytes=self.context_bytes, tuned=self.plan()):
            text = decoder.feed(step.data)
            if step.finish_reason is not None:
                text += decoder.finish()
            if step.data or text:
                yield Piece(step.data, text, step.sources, step.logprobs)


@checked_call()
def load(
    path: str | Path, *, device: str = "auto", precision: WeightPrecision = "auto", threads: int | None = None
) -> LanguageModel:
    """Load a trained model.

    On a CPU the compiled engine decodes, without torch; where it cannot, and on GPUs, torch does. ``decoded_by`` of
    the model says which, and why.

    Args:
        path: Folder of a run, whose newest checkpoint is taken, or of one checkpoint; or the name of a model that ships
            with bytelm.
        device: torch device; ``auto`` takes CUDA where there is one.
        precision: Of the matrices. ``auto`` gives the bits of float32 on a CPU: the engine holds matrices in bfloat16
            where the file does, else in float32; on CUDA it is bfloat16. ``int8`` is the engine's alone: a little
            another model, faster.
        threads: Of the CPU; where None, one for a small model, else as many as there are cores.

    Raises:
        KeywordError: There is no such keyword, or the path is missing; every call of this interface raises it.
        CheckpointError: No checkpoint is there, it is damaged, or a weight is not finite.
        ConfigError: The device cannot be used here, or int8 without the engine.
        GenerationError: There is not enough memory.
    """
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"path = {shown(path)} is {kind_of(path)}; give the folder of a run, as text or a Path")
    path = Path(path)
    if threads is not None:
        if isinstance(threads, bool) or not isinstance(threads, Integral) or threads < 1:
            raise ConfigError(f"threads = {shown(threads)} is none; give 1 or more, or leave it out")
        threads = int(threads)
    if type(device).__module__ == "torch" and type(device).__name__ == "device":
        device = str(device)
    if not isinstance(device, str):
        raise ConfigError(f"device = {shown(device)} is {kind_of(device)}; give the name of a torch device, or auto")
    if not isinstance(precision, str) or precision not in get_args(WeightPrecision):
        known = ", ".join(get_args(WeightPrecision))
        raise ConfigError(f"precision = {shown(precision)} is unknown; known: {known}")
    reload = {"device": device, "precision": precision, "threads": threads}
    on_cpu = means_cpu(device)
    reason = unavailable_reason() if on_cpu else f"the engine decodes on CPUs, and the device is {device}"
    if not reason:
        files = find_model(path)
        shape = files.shape
        threads = threads or choose_decoding_threads(matrix_parameters(shape.trunk, shape.heads))
        engine = engine_from_file(
            files.weights, shape.trunk, shape.heads, files.vocabulary, precision=precision, threads=threads
        )
        return LanguageModel(engine, path=path, files=files, reload=reload)
    if precision == "int8":
        raise ConfigError(f"precision int8 needs the engine, and torch decodes here: {reason}; use float32 or bfloat16")
    return _load_for_torch(path, device, precision, threads, reason, reload)


def _load_for_torch(
    path: Path,
    device: str,
    precision: WeightPrecision,
    threads: int | None,
    reason: str,
    reload: dict[str, Any],
) -> LanguageModel:
    import torch

    from bytelm.checkpoint import load_model

    place = choose_device(device)
    model, config = load_model(path)
    if threads is not None and place.type == "cpu":
        torch.set_num_threads(threads)
    if precision == "auto":
        precision = "bfloat16" if place.type == "cuda" else "float32"
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    model = model.to(device=place, dtype=dtype).eval()
    return LanguageModel(model, config, path, reason=reason, reload=reload)


def _load_again(path: str, keywords: dict[str, Any]) -> LanguageModel:
    """For pickle: the same path, loaded as it was."""
    return load(path, **keywords)


def _window_bytes(config: "RunConfig | None") -> int:
    assert config is not None
    return config.data.window_bytes


def _score(model: "ByteLM", prompt: bytes, continuation: bytes, context_bytes: int) -> npt.NDArray[np.float64]:
    """``score`` through torch."""
    import torch

    ids = [EOD, *prompt, *continuation]
    row = len(prompt)  # place of the id after which the next byte is scored
    start = context_start(row + 1, context_bytes)
    scores = [np.empty(0)]
    with torch.inference_mode():
        while row < len(ids) - 1:
            if row - start == context_bytes:
                start = slid_start(row + 1, context_bytes)
            end = min(start + context_bytes, len(ids) - 1)
            inputs_1T = torch.tensor([ids[start:end]], device=model.embedding.device)
            logits_TV = model.heads.logits(model.trunk(inputs_1T), heads=range(1))[0, row - start :, 0]
            targets_T1 = torch.tensor(ids[row + 1 : end + 1], device=logits_TV.device).unsqueeze(1)
            if not bool(logits_TV.isfinite().all()):
                raise GenerationError(NOT_FINITE)
            scores.append(logits_TV.double().log_softmax(-1).gather(1, targets_T1).squeeze(1).cpu().numpy())
            row = end
    return np.concatenate(scores)
