"""An adapter for lm-evaluation-harness: ``python -m bytelm.harness --model bytelm --model_args run=runs/a --tasks …``.

The harness asks for three things, and ``Scorer`` gives them without it: log-probabilities of continuations, of whole
texts, and text written up to a stop. They are exact and additive, ll(a, bc) = ll(a, b) + ll(ab, c), for the context of
a byte depends on its place alone; no text is turned into tokens, so nothing depends on where a prompt is cut.
"""

import importlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

from bytelm.api import GenerateOptions, LanguageModel, load
from bytelm.arguments import bytes_of, settings_from, shown
from bytelm.errors import BytelmError, ConfigError, GenerationError
from bytelm.likelihood import likelihoods

NAME: Final = "bytelm"
_MAX_BYTES: Final = 1024
_LIMITS: Final = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_PASSED_ON: Final = ("top_k", "top_p", "min_p", "repetition_penalty", "seed")
_NEUTRAL: Final[dict[str, tuple[Any, ...]]] = {
    "top_k": (0, -1),
    "top_p": (1.0,),
    "min_p": (0.0,),
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "length_penalty": (1.0,),
    "presence_penalty": (0.0,),
    "frequency_penalty": (0.0,),
    "no_repeat_ngram_size": (0,),
    "typical_p": (1.0,),
    "early_stopping": (False,),
    "use_cache": (False, True),
}
"""Values with which a setting asks for nothing: what other models have by default, or what changes no text."""
_HARNESS_DEVICE: Final = "cuda:0"  # what the harness passes on where nobody has said --device, GPU or not


class Scorer:
    """What the harness asks a model.

    Args:
        model: Ready to decode.
        max_bytes: Of an answer, where a task does not say.
    """

    def __init__(self, model: LanguageModel, max_bytes: int = _MAX_BYTES) -> None:
        self.model = model
        self.max_bytes = max_bytes

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """For each context and continuation: nats, at most 0, and whether greedy decoding would write it."""
        as_bytes = [(bytes_of("a context", before), bytes_of("a continuation", after)) for before, after in pairs]
        found = likelihoods(self.model.model, as_bytes, context_bytes=self.model.context_bytes)
        return [(one.total, one.is_greedy) for one in found]

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[float]:
        """For each text its nats, from its first byte on."""
        return [nats for nats, _ in self.loglikelihood([("", text) for text in texts])]

    def generate_until(self, requests: Iterable[tuple[str, dict[str, Any] | None]]) -> list[str]:
        """For each prompt with its settings what is written; all settings are looked at before the first is.

        ``settings_of`` says what they mean. Prompt n has noise of its own, whatever the seed.

        Raises:
            GenerationError: A setting is impossible or cannot be honoured.
        """
        asked = [
            (prompt, settings_of(given or {}, self.max_bytes, number))
            for number, (prompt, given) in enumerate(requests)
        ]
        return [self.model.generate(prompt, **options).text for prompt, options in asked]


def settings_of(given: Mapping[str, Any], max_bytes: int, number: int) -> GenerateOptions:
    """What the settings of a request mean here, as lm-evaluation-harness 0.4.13 documents them; null is left out.

    ``until`` and ``stop`` end the text, each a string or a list. ``max_gen_toks`` limits it, in bytes; its other names
    are ``max_new_tokens``, ``max_tokens`` and ``max_completion_tokens``, and the first of these counts. ``do_sample``
    says whether the text is drawn: without it a temperature above 0 says so, and with it alone the temperature is 1.
    ``temperature``, ``top_k``, ``top_p``, ``min_p``, ``repetition_penalty`` and ``seed`` are those of ``generate``.

    Args:
        given: The task's settings by name.
        max_bytes: The most bytes of an answer, where the task sets no limit.
        number: Number of the request; its noise is drawn with it.

    Raises:
        GenerationError: There is another setting, or one that has no effect.
    """
    asked = {name: value for name, value in given.items() if value is not None and not _asks_nothing(name, value)}
    known = (*_LIMITS, "until", "stop", "do_sample", "temperature", *_PASSED_ON)
    for name, value in asked.items():
        if name not in known:
            hint = "; give max_gen_toks instead" if name == "max_length" else ""
            raise GenerationError(
                f"the setting {name} = {shown(value)} of a task cannot be honoured{hint}; known: {', '.join(known)}"
            )
    temperature, do_sample = asked.get("temperature"), asked.get("do_sample")
    if do_sample is not None and not isinstance(do_sample, bool):
        raise GenerationError(f"do_sample = {shown(do_sample)} is neither true nor false; give one of them")
    if do_sample and temperature == 0:
        raise GenerationError(f"do_sample = True, and temperature = {temperature} is greedy; leave one of them out")
    if do_sample is None:
        do_sample = temperature is not None and temperature != 0
    limits = [asked[name] for name in _LIMITS if name in asked]
    options: dict[str, Any] = {name: asked[name] for name in _PASSED_ON if name in asked}
    options |= {
        "max_bytes": _whole(limits[0]) if limits else max_bytes,
        "temperature": (1.0 if temperature is None else temperature) if do_sample else 0.0,
        "stop": [stop for name in ("until", "stop") for stop in _stops(name, asked.get(name, ()))],
    }
    # Without a seed of the task each request has one of its own; with it, a sequence of its own.
    options |= {"sequence": number} if "seed" in asked else {"seed": number}
    settings_from("generate", options)
    return cast(GenerateOptions, options)


def _asks_nothing(name: str, value: Any) -> bool:
    neutral = _NEUTRAL.get(name, ())
    return any(isinstance(one, bool) == isinstance(value, bool) and one == value for one in neutral)


def _stops(name: str, value: Any) -> list[str]:
    """Strings that end a text; an empty one would end it before it begins, and the harness means none by it."""
    several = [value] if isinstance(value, str) else value
    if not isinstance(several, list | tuple) or not all(one is None or isinstance(one, str) for one in several):
        raise GenerationError(f"{name} = {shown(value)} is no text and no list of texts; give one of them")
    return [one for one in several if one]


def _whole(value: Any) -> Any:
    """A whole number, where a file of YAML may have it with a point."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def adapter() -> type:
    """The model class, registered with the harness as ``bytelm``; its arguments are ``run`` and ``max_bytes``.

    Raises:
        ConfigError: The harness is not installed.
    """
    try:
        base = importlib.import_module("lm_eval.api.model").LM
        register_model = importlib.import_module("lm_eval.api.registry").register_model
    except ImportError as error:
        raise ConfigError(
            f"lm-evaluation-harness cannot be imported ({error}); run pip install 'bytelm[lm-eval]'"
        ) from error

    class Adapter(base):
        """A run of bytelm, as the harness sees it."""

        def __init__(
            self,
            run: str = "",
            device: str | None = "auto",
            max_bytes: int | str = _MAX_BYTES,
            batch_size: Any = None,  # the harness passes these on, and batches here are as large as they may be
            max_batch_size: Any = None,
            **others: Any,
        ) -> None:
            super().__init__()
            del batch_size, max_batch_size
            if not run or others:
                unknown = f"it has no {', '.join(others)}" if others else "run is missing"
                raise ConfigError(
                    f"--model_args of the model bytelm: {unknown}; give run=FOLDER, and max_bytes=N if wanted"
                )
            most = int(max_bytes) if str(max_bytes).isdecimal() else 0
            if most < 1:
                raise ConfigError(
                    f"--model_args of the model bytelm: max_bytes = {max_bytes!r} is none; give 1 or more"
                )
            place = "auto" if device in (_HARNESS_DEVICE, None) else device
            self._scorer = Scorer(load(Path(run), device=place, precision="float32"), most)

        def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            """See ``Scorer``."""
            del disable_tqdm
            return self._scorer.loglikelihood([request.args for request in requests])

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
            """See ``Scorer``."""
            del disable_tqdm
            return self._scorer.loglikelihood_rolling([request.args[0] for request in requests])

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            """See ``Scorer``."""
            del disable_tqdm
            return self._scorer.generate_until(request.args for request in requests)

    return register_model(NAME)(Adapter)


def main() -> int:
    """Register, and let the harness read the command line."""
    from bytelm.cli import console

    try:
        adapter()
        importlib.import_module("lm_eval.__main__").cli_evaluate()
    except BytelmError as error:
        console.fail(str(error))
        return console.EXIT_CALLER
    return console.EXIT_OK


if __name__ == "__main__":
    raise SystemExit(main())
