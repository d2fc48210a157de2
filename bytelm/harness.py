"""An adapter for lm-evaluation-harness: ``python -m bytelm.harness --model bytelm --model_args run=runs/a --tasks …``.

The harness asks for three things, and ``Scorer`` gives them without it: log-probabilities of continuations, of whole
texts, and text written up to a stop. They are exact and additive, ll(a, bc) = ll(a, b) + ll(ab, c), for the context of
a byte depends on its place alone; no text is turned into tokens, so nothing depends on where a prompt is cut.
"""

import importlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from bytelm.api import LanguageModel, load
from bytelm.errors import BytelmError, ConfigError
from bytelm.likelihood import likelihoods

NAME: Final = "bytelm"
_MAX_BYTES: Final = 1024
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
        as_bytes = [(before.encode(), after.encode()) for before, after in pairs]
        found = likelihoods(self.model.model, as_bytes, context_bytes=self.model.context_bytes)
        return [(one.total, one.is_greedy) for one in found]

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[float]:
        """For each text its nats, from its first byte on."""
        return [nats for nats, _ in self.loglikelihood([("", text) for text in texts])]

    def generate_until(self, requests: Iterable[tuple[str, dict[str, Any]]]) -> list[str]:
        """For each prompt with its settings (``until``, ``max_gen_toks`` in bytes, ``temperature``) what is written.

        Raises:
            GenerationError: A setting is impossible.
        """
        answers = []
        for number, (prompt, asked) in enumerate(requests):
            until = asked.get("until") or ()
            stops = [until] if isinstance(until, str) else [stop for stop in until if stop]
            sampled = bool(asked.get("do_sample", float(asked.get("temperature", 0.0)) > 0))
            found = self.model.generate(
                prompt,
                max_bytes=int(asked.get("max_gen_toks", self.max_bytes)),
                temperature=float(asked.get("temperature", 0.0)) if sampled else 0.0,
                seed=number,
                stop=stops,
            )
            answers.append(found.text)
        return answers


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
            device: str = "auto",
            max_bytes: int = _MAX_BYTES,
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
            place = "auto" if device == _HARNESS_DEVICE else device
            self._scorer = Scorer(load(Path(run), device=place, precision="float32"), int(max_bytes))

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
