"""Models that were made elsewhere, as arms of a comparison: folders of Hugging Face transformers, measured as they are.

Bits per byte are counted over raw bytes here too. A tokenizer is asked through its own file, ``tokenizer.json``, and
what its ids stand for must be the document, byte for byte: text that looks like a special token is text, bytes that are
no UTF-8 are written with the tokens of single bytes, and a tokenizer that changes or loses bytes is refused. So
tokenizers must be byte-level BPE, as those of GPT-2, Llama 3, Qwen, Pythia, OLMo and SmolLM are.
"""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from bytelm.bpe import tokenizers_library
from bytelm.errors import CheckpointError, ConfigError, CorpusError
from bytelm.evaluate import BitsPerByte, Counted
from bytelm.scoring import Window, batches, check_stride, windows
from bytelm.vocab import BYTE_COUNT, EOD, Vocab

_OWN: Final = EOD + 1
"""The first id of ours that is one of the tokenizer's: below are the bytes and ``EOD``, as in every vocabulary."""
_TOKENIZER: Final = "tokenizer.json"


def byte_characters() -> dict[str, int]:
    """The character by which byte-level tokenizers write each byte.

    Source: Radford et al. 2019 (GPT-2), ``encoder.py``.
    """
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [value for value in range(BYTE_COUNT) if value not in shown]
    return {chr(value): value for value in shown} | {chr(256 + place): value for place, value in enumerate(hidden)}


class ForeignVocab(Vocab):
    """The ids of a tokenizer, each 257 higher than there.

    Args:
        tokenizer: Of the ``tokenizers`` library.
        name: For messages.

    Raises:
        ConfigError: It has no token for some byte.
    """

    bytes_per_id = 1.0

    def __init__(self, tokenizer: Any, name: str) -> None:
        self.name = name
        self._tokenizer = tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True  # as the text that they are
        characters = byte_characters()
        known = tokenizer.get_vocab(with_added_tokens=True)
        missing = [value for character, value in characters.items() if character not in known]
        if missing:
            raise ConfigError(
                f"the tokenizer of {name} is no byte-level BPE: it has no token for {len(missing)} of 256 bytes, so "
                "that bits per byte cannot be counted over raw bytes; leave this arm out"
            )
        self._single = [0] * BYTE_COUNT
        for character, value in characters.items():
            self._single[value] = known[character]
        added = tokenizer.get_added_tokens_decoder()
        self._bytes = [b""] * (1 + max(known.values()))
        for text, identifier in known.items():
            if identifier in added:
                self._bytes[identifier] = b"" if added[identifier].special else added[identifier].content.encode()
            elif all(character in characters for character in text):
                self._bytes[identifier] = bytes(characters[character] for character in text)
        self.count = _OWN + len(self._bytes)
        self.sizes = np.array([1] * BYTE_COUNT + [0] + [len(one) for one in self._bytes], np.int64)

    def encode(self, data: bytes) -> npt.NDArray[np.int64]:
        """See ``Vocab``.

        Raises:
            ConfigError: What the tokenizer's ids stand for is not ``data``.
        """
        ids: list[int] = []
        for piece, is_text in _stretches(data):
            if is_text:
                ids += self._tokenizer.encode(piece.decode("utf-8"), add_special_tokens=False).ids
            else:
                ids += [self._single[value] for value in piece]
        if b"".join([self._bytes[identifier] for identifier in ids]) != data:
            raise ConfigError(
                f"the tokenizer of {self.name} changes or loses bytes of the held-out data, so that bits per byte "
                "cannot be counted over raw bytes; leave this arm out"
            )
        return np.array(ids, np.int64) + _OWN

    def bytes_of(self, identifier: int) -> bytes:
        """See ``Vocab``."""
        if identifier < _OWN:
            return bytes((identifier,)) if identifier < BYTE_COUNT else b""
        return self._bytes[identifier - _OWN] if identifier < self.count else b""


@dataclass(frozen=True, kw_only=True)
class Written:
    """A continuation.

    Attributes:
        data: Its bytes.
        ids: How many were generated.
        elapsed_s: Seconds, prompt included.
    """

    data: bytes
    ids: int
    elapsed_s: float


class ForeignModel:
    """A causal language model of transformers, with its vocabulary.

    Args:
        model: Called with ``input_ids`` and ``attention_mask``, it answers with ``logits``; in evaluation mode.
        vocabulary: Of its ids.
        begin: Its id that begins a document.
        longest: Ids that it can read at most; None where it does not say.
    """

    def __init__(self, model: Any, vocabulary: ForeignVocab, *, begin: int, longest: int | None) -> None:
        self.model = model
        self.vocabulary = vocabulary
        self.begin = begin
        self.longest = longest

    def parameters(self) -> tuple[int, int]:
        """All parameters, and those that are neither embedding nor unembedding; shared ones count once."""
        total = {id(one): one.numel() for one in self.model.parameters()}
        ends = (self.model.get_input_embeddings(), self.model.get_output_embeddings())
        outer = {id(end.weight): end.weight.numel() for end in ends if end is not None}
        return sum(total.values()), sum(total.values()) - sum(outer.values())

    def check(self, ids: int) -> None:
        """Refuse what does not fit.

        Raises:
            ConfigError: The model cannot read so many ids.
        """
        if self.longest is not None and ids > self.longest:
            raise ConfigError(
                f"{self.vocabulary.name} reads {self.longest} ids at most, and windows and continuations may have "
                f"{ids}; lower data.window_bytes or --max-bytes, or leave this arm out"
            )

    @torch.no_grad()
    def bits_per_byte(self, documents: Iterable[bytes], *, context_bytes: int, stride: int) -> BitsPerByte:
        """Score documents by the rule of ``bytelm.scoring``, which is that of all other arms.

        Args:
            documents: Raw bytes.
            context_bytes: Bytes of a window.
            stride: Bytes that a window advances.

        Raises:
            ConfigError: The tokenizer changes bytes, or the model cannot read such windows.
            CorpusError: There is not one byte.
        """
        self.check(context_bytes)
        check_stride(stride, context_bytes)
        counted = Counted(documents)
        nats, scored_bytes, scored_ids = 0.0, 0, 0
        for batch in batches(windows(counted, self.vocabulary, context=context_bytes, stride=stride, heads=1)):
            found = self._nats(batch)
            for row, window in enumerate(batch):
                nats += float(found[row, window.first : window.reads].sum())
                targets = window.ids[window.first + 1 : window.reads + 1]
                scored_bytes += int(self.vocabulary.sizes[targets].sum())
                scored_ids += len(targets)
        if not counted.raw_bytes:
            raise CorpusError(f"there is no byte to score in {counted.documents} documents; choose another split")
        assert scored_bytes == counted.raw_bytes, "a byte was scored twice or not at all"
        return BitsPerByte(
            by_head=(nats / math.log(2) / scored_bytes,),
            scored_bytes=scored_bytes,
            scored_ids=scored_ids,
            documents=counted.documents,
            context_bytes=context_bytes,
            stride=stride,
            agreement_by_head=(1.0,),
        )

    @torch.no_grad()
    def flops_per_byte(self, documents: Iterable[bytes], *, context_bytes: int) -> float:
        """Operations of a forward pass over one window, as torch counts them, for a byte of it."""
        self.check(context_bytes)
        window = next(windows(documents, self.vocabulary, context=context_bytes, stride=context_bytes, heads=1))
        with FlopCounterMode(display=False) as counter:
            self._logits([window])
        size = int(self.vocabulary.sizes[window.ids[1 : window.reads + 1]].sum())
        return counter.get_total_flops() / size

    def write(self, prompt: bytes, *, ids: int, temperature: float, seed: int) -> Written:
        """Continue a prompt with the decoder of transformers, id by id.

        Args:
            prompt: Beginning of a document.
            ids: To generate.
            temperature: Above 0; nothing else shapes the law.
            seed: Of what is drawn.
        """
        begun_s = time.perf_counter()
        given = torch.tensor([[self.begin, *(self.vocabulary.encode(prompt) - _OWN).tolist()]], device=self._device())
        with torch.random.fork_rng(devices=[] if given.device.type == "cpu" else None):
            torch.manual_seed(seed)
            found = self.model.generate(
                given,
                attention_mask=torch.ones_like(given),
                max_new_tokens=ids,
                min_new_tokens=ids,
                do_sample=True,
                temperature=temperature,
                top_k=0,
                top_p=1.0,
                pad_token_id=self.begin,
            )
        written = (found[0, given.shape[1] :] + _OWN).tolist()
        elapsed_s = time.perf_counter() - begun_s
        return Written(data=self.vocabulary.decode(written), ids=len(written), elapsed_s=elapsed_s)

    def _device(self) -> torch.device:
        return next(iter(self.model.parameters())).device

    def _nats(self, batch: Sequence[Window]) -> torch.Tensor:
        """-log of what the model gave the id behind each input, (B, L); meaningless behind a window's end."""
        logits_BLV = self._logits(batch)
        target_BL = torch.full(logits_BLV.shape[:2], self.begin)
        for row, window in enumerate(batch):
            target_BL[row, : window.reads] = torch.from_numpy(window.ids[1 : window.reads + 1] - _OWN)
        nats = F.cross_entropy(logits_BLV.flatten(0, 1), target_BL.flatten().to(logits_BLV.device), reduction="none")
        return nats.view(target_BL.shape).double()

    def _logits(self, batch: Sequence[Window]) -> torch.Tensor:
        length = max(window.reads for window in batch)
        ids_BL, seen_BL = torch.full((len(batch), length), self.begin), torch.zeros(len(batch), length).long()
        for row, window in enumerate(batch):
            inputs = torch.from_numpy(window.ids[: window.reads])
            ids_BL[row, : window.reads] = torch.where(inputs == EOD, self.begin, inputs - _OWN)
            seen_BL[row, : window.reads] = 1
        device = self._device()
        return self.model(input_ids=ids_BL.to(device), attention_mask=seen_BL.to(device)).logits.float()


def open_foreign(folder: Path, *, device: torch.device) -> ForeignModel:
    """A model out of a folder that ``save_pretrained`` of transformers wrote, its tokenizer beside it.

    Nothing is fetched, and no code of the folder is run.

    Args:
        folder: Holds ``config.json``, weights and ``tokenizer.json``.
        device: Where it computes, in float32.

    Raises:
        CheckpointError: The folder is not there, or is no such folder.
        ConfigError: transformers is missing, or the tokenizer is not byte-level.
    """
    if not (folder / "config.json").is_file() or not (folder / _TOKENIZER).is_file():
        raise CheckpointError(
            f"{folder} is no folder of a Hugging Face model (config.json, weights and {_TOKENIZER}); save one with "
            "save_pretrained of model and tokenizer, or write run=FOLDER for a run of bytelm"
        )
    library = tokenizers_library()
    try:
        import transformers  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            f"hf={folder} needs transformers, which is not installed; pip install 'bytelm[hf]', or leave this arm out"
        ) from error
    try:
        tokenizer = library.Tokenizer.from_file(str(folder / _TOKENIZER))
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            str(folder), local_files_only=True, dtype=torch.float32
        )
    except Exception as error:  # transformers, safetensors and tokenizers each raise kinds of their own
        said = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{folder} cannot be opened ({said}); save the model again") from error
    vocabulary = ForeignVocab(tokenizer, str(folder))
    embedded = model.get_input_embeddings().weight.shape[0]
    if vocabulary.count - _OWN > embedded:
        raise CheckpointError(
            f"the tokenizer of {folder} has {vocabulary.count - _OWN:,} ids and the model {embedded:,}: they are not "
            "of one model"
        )
    begin = model.config.bos_token_id if model.config.bos_token_id is not None else model.config.eos_token_id
    begin = begin[0] if isinstance(begin, list) else begin
    if begin is None or not 0 <= begin < embedded:
        raise CheckpointError(f"{folder}/config.json names no id that begins a document; set bos_token_id")
    longest = getattr(model.config, "max_position_embeddings", None)
    return ForeignModel(model.to(device).eval(), vocabulary, begin=int(begin), longest=longest)


def _stretches(data: bytes) -> Iterator[tuple[bytes, bool]]:
    """What is UTF-8 and what is not, in turn."""
    while data:
        try:
            data.decode("utf-8")
            yield data, True
            return
        except UnicodeDecodeError as error:
            if error.start:
                yield data[: error.start], True
            yield data[error.start : error.end], False
            data = data[error.end :]
