r"""The task ``utf8``: how much of what a model writes by itself is well-formed UTF-8, by temperature and script.

Nothing constrains the output here: the model has to know. Prompts are beginnings of the texts that ship with bytelm, in
36 languages. An output is *valid* if strict decoding takes it; a character that the limit of bytes has cut off at the
end is no fault. ``valid_bytes`` is the share of bytes that belong to well-formed characters: nearly always high.
"""

import hashlib
import importlib.resources
import io
import tarfile
from typing import Any, Final

import numpy as np
import zstandard

from bytelm.labels import NOT_UTF8, main_script, scripts
from bytelm.task import Request, Result
from bytelm.task_data import drawn

TEMPERATURES: Final = (0.0, 0.8, 1.2)
_PROMPT_CHARACTERS: Final = 40
_PROMPTS_OF_A_TEXT: Final = 2
_OUTPUT_BYTES: Final = 128


def utf8(request: Request) -> Result:
    """Continue prompts in all scripts at three temperatures."""
    prompts = drawn(_prompts(), request.limit, request.seed)
    max_bytes = request.max_bytes or _OUTPUT_BYTES
    samples: list[dict[str, Any]] = []
    for temperature in TEMPERATURES:
        for number, prompt in enumerate(prompts):
            request.progress(len(samples), len(prompts) * len(TEMPERATURES))
            seed = hashlib.sha256(f"{request.seed} {temperature} {number}".encode()).digest()
            found = request.model.generate(
                prompt, max_bytes=max_bytes, temperature=temperature, seed=int.from_bytes(seed[:8], "big") >> 1
            )
            valid, share = judge(found.data, cut=found.finish_reason == "max_bytes")
            samples.append(
                {
                    "script": main_script(prompt.encode()),
                    "temperature": temperature,
                    "prompt": prompt,
                    "output": found.data.decode("utf-8", "backslashreplace"),
                    "valid": valid,
                    "valid_bytes": share,
                }
            )
    by_temperature = {f"{temperature:g}": _shares(samples, temperature) for temperature in TEMPERATURES}
    by_script = {
        script: {f"{t:g}": _shares([one for one in samples if one["script"] == script], t) for t in TEMPERATURES}
        for script in sorted({sample["script"] for sample in samples})
    }
    lines = [
        f"valid UTF-8 at temperature {t}: {shares['valid']:.3f} of {shares['outputs']} outputs, "
        f"{shares['valid_bytes']:.4f} of their bytes"
        for t, shares in by_temperature.items()
    ]
    worst = "; ".join(
        script + "".join(f" {shares['valid']:.2f}" for shares in of.values()) for script, of in by_script.items()
    )
    lines.append(f"by script, at temperatures {' '.join(by_temperature)}: {worst}")
    facts = {"by_temperature": by_temperature, "by_script": by_script, "output_bytes": max_bytes}
    return Result(facts=facts, lines=tuple(lines), samples=tuple(samples))


def judge(data: bytes, *, cut: bool) -> tuple[bool, float]:
    r"""Whether bytes are well-formed, and the share of them that belong to well-formed characters.

    Args:
        data: What was written.
        cut: It was ended by a limit, which may have cut its last character.

    Example:
        >>> judge("é".encode() + b"\xe2\x82", cut=True), judge(b"ab\xff\xe2", cut=False)
        ((True, 1.0), (False, 0.5))
    """
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        if not (cut and error.reason == "unexpected end of data"):
            codes, names = scripts(data)
            sound = sum(np.count_nonzero(codes == code) for code, name in enumerate(names) if name != NOT_UTF8)
            return False, int(sound) / len(data)
    return True, 1.0


def _shares(samples: list[dict[str, Any]], temperature: float) -> dict[str, Any]:
    here = [sample for sample in samples if sample["temperature"] == temperature]
    return {
        "outputs": len(here),
        "valid": sum(sample["valid"] for sample in here) / len(here),
        "valid_bytes": sum(sample["valid_bytes"] for sample in here) / len(here),
    }


def _prompts() -> list[str]:
    """Two beginnings of each text that ships with bytelm: of the text, and of its second half."""
    packed = importlib.resources.files("bytelm.data").joinpath("sample.tar.zst").read_bytes()
    tar = zstandard.ZstdDecompressor().decompressobj().decompress(packed)
    prompts = []
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            file = archive.extractfile(member)
            if file is not None:
                text = file.read().decode("utf-8")
                for part in range(_PROMPTS_OF_A_TEXT):
                    begin = len(text) * part // _PROMPTS_OF_A_TEXT
                    prompts.append(text[begin : begin + _PROMPT_CHARACTERS])
    return prompts
