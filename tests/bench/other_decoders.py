"""What bytelm's decoder is measured beside: llama.cpp, and Hugging Face ``generate``, with a Llama of a given shape.

Both get the same random weights: bytelm's layers normalise queries and keys, which a Llama's do not, so that trained
weights of one would mean nothing in the other. Speed of plain decoding does not depend on what the weights say; that
of prompt lookup does, and a random model repeats itself sooner than a trained one.

llama.cpp reads them from GGUF files, in float32, float16 and q8_0. Where transformers is installed too, llama.cpp has
to agree with it before it is timed. All are optional, and imported when they are asked for.
"""

import ctypes
import importlib
import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bytelm.model_shape import TrunkShape

GGUF_PRECISIONS: Final = ("f32", "f16", "q8_0")
_CONTEXT: Final = 4096
_BATCH: Final = 512
_LARGEST_DIFFERENCE: Final = {"f32": 1e-4, "f16": 2e-2, "q8_0": 0.2}
"""Of logits, over the largest of them; a mistake in the order of rows makes it 1."""
_NAMES: Final = {  # llama.cpp's names of a layer's tensors
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

Clock = Callable[[], float]
Floats = npt.NDArray[np.float32]


def absent(packages: Sequence[str]) -> list[str]:
    """Those that are not installed."""
    return [name for name in packages if importlib.util.find_spec(name) is None]


def llama_weights(shape: TrunkShape) -> dict[str, Floats]:
    """Random weights of a Llama, by the names that Hugging Face gives them, large enough for uneven attention."""
    rng, width, channels = np.random.default_rng(0), shape.d_model, shape.head_channels

    def matrix(outputs: int, inputs: int) -> Floats:
        return rng.standard_normal((outputs, inputs), np.float32) * np.float32(width**-0.5)

    weights = {"model.embed_tokens.weight": matrix(shape.vocabulary_size, width)}
    for layer in range(shape.layers):
        of_layer = {
            "attn_norm": np.ones(width, np.float32),
            "attn_q": matrix(width, width),
            "attn_k": matrix(shape.kv_heads * channels, width),
            "attn_v": matrix(shape.kv_heads * channels, width),
            "attn_output": matrix(width, width),
            "ffn_norm": np.ones(width, np.float32),
            "ffn_gate": matrix(shape.d_ff, width),
            "ffn_up": matrix(shape.d_ff, width),
            "ffn_down": matrix(width, shape.d_ff),
        }
        weights |= {f"model.layers.{layer}.{_NAMES[name]}.weight": value for name, value in of_layer.items()}
    weights["model.norm.weight"] = np.ones(width, np.float32)
    weights["lm_head.weight"] = matrix(shape.vocabulary_size, width)
    return weights


def write_gguf(shape: TrunkShape, weights: dict[str, Floats], path: Path, precision: str) -> None:
    """Write a Llama for llama.cpp.

    Args:
        shape: Of our trunk, whose n-grams and local windows a Llama does not have.
        weights: Of ``llama_weights``.
        path: Of the file.
        precision: Of the matrices; norms are float32.
    """
    gguf = importlib.import_module("gguf")
    kind = {"f32": "F32", "f16": "F16", "q8_0": "Q8_0"}[precision]
    quantization = getattr(gguf.GGMLQuantizationType, kind)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(_CONTEXT)
    writer.add_embedding_length(shape.d_model)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.d_ff)
    writer.add_head_count(shape.attention_heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.head_channels)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    writer.add_vocab_size(shape.vocabulary_size)
    writer.add_file_type(getattr(gguf.LlamaFileType, "ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"))
    writer.add_tokenizer_model("none")  # ids go in and come out

    def add(name: str, value: Floats) -> None:
        if value.ndim == 1 or kind == "F32":
            writer.add_tensor(name, value)
        elif kind == "F16":
            writer.add_tensor(name, value.astype(np.float16))
        else:
            writer.add_tensor(name, gguf.quants.quantize(value, quantization), raw_dtype=quantization)

    add("token_embd.weight", weights["model.embed_tokens.weight"])
    for layer in range(shape.layers):
        for name, theirs in _NAMES.items():
            value = weights[f"model.layers.{layer}.{theirs}.weight"]
            if name in ("attn_q", "attn_k"):
                value = neighbours_turn(value, shape.attention_heads if name == "attn_q" else shape.kv_heads)
            add(f"blk.{layer}.{name}.weight", value)
    add("output_norm.weight", weights["model.norm.weight"])
    add("output.weight", weights["lm_head.weight"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def neighbours_turn(weight_OI: Floats, heads: int) -> Floats:
    """Rows of queries or keys as llama.cpp wants them: it turns channels 2c and 2c + 1 together, not c and c + C / 2.

    Example:
        >>> neighbours_turn(np.arange(4)[:, None], 1)[:, 0].tolist()
        [0, 2, 1, 3]
    """
    outputs, inputs = weight_OI.shape
    split = weight_OI.reshape(heads, 2, outputs // heads // 2, inputs)
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(outputs, inputs)


class LlamaCpp:
    """A model of llama.cpp, from a GGUF file, on the CPU.

    Args:
        path: Of the file.
        flash: Flash attention, with keys and values in float16, which llama.cpp takes of itself; without it they are
            float32.

    Attributes:
        flash: As given.
    """

    def __init__(self, path: Path, *, flash: bool) -> None:
        self.flash = flash
        self._cpp = cpp = importlib.import_module("llama_cpp")
        importlib.import_module("llama_cpp._logger").set_verbose(False)
        settings = cpp.llama_model_default_params()
        settings.n_gpu_layers = 0
        self._model = cpp.llama_model_load_from_file(str(path).encode(), settings)
        assert self._model, f"llama.cpp cannot read {path}"
        settings = cpp.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = _CONTEXT, _BATCH, _BATCH
        settings.n_threads = settings.n_threads_batch = 1  # its threads wait by spinning: more than cores take forever
        settings.flash_attn_type = cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash else cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if not flash:
            settings.type_k = settings.type_v = cpp.GGML_TYPE_F32
        self._context = cpp.llama_init_from_model(self._model, settings)
        assert self._context, "llama.cpp cannot make a context"
        self._memory = cpp.llama_get_memory(self._context)
        self._vocabulary = cpp.llama_vocab_n_tokens(cpp.llama_model_get_vocab(self._model))
        self._greedy = cpp.llama_sampler_init_greedy()
        self._one = (ctypes.c_int32 * 1)()
        self._batch_of_one = cpp.llama_batch_get_one(self._one, 1)

    def close(self) -> None:
        """Give the memory back."""
        self._cpp.llama_sampler_free(self._greedy)
        self._cpp.llama_free(self._context)
        self._cpp.llama_model_free(self._model)

    def logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """After each id, (T, V)."""
        self._cpp.llama_memory_clear(self._memory, True)
        rows = []
        for one in ids:
            self._step(one)
            row = self._cpp.llama_get_logits_ith(self._context, -1)
            rows.append(np.ctypeslib.as_array(row, (self._vocabulary,)).copy())
        return np.stack(rows)

    def prefill_seconds(self, prompt: bytes, threads: int, now: Clock) -> float:
        """Of reading a prompt into an empty context."""
        self._cpp.llama_set_n_threads(self._context, threads, threads)
        self._cpp.llama_memory_clear(self._memory, True)
        begin = now()
        self._read(prompt)
        return now() - begin

    def rate(self, prompts: Sequence[bytes], max_bytes: int, threads: int, now: Clock) -> float:
        """Bytes a second of greedy decoding, prompts having been read."""
        decode, sample = self._cpp.llama_decode, self._cpp.llama_sampler_sample
        context, one, batch, greedy = self._context, self._one, self._batch_of_one, self._greedy
        self._cpp.llama_set_n_threads(context, threads, threads)
        seconds = 0.0
        for prompt in prompts:
            self._cpp.llama_memory_clear(self._memory, True)
            self._read(prompt[:-1])
            one[0] = prompt[-1]
            begin = now()
            for _ in range(max_bytes):
                assert decode(context, batch) == 0, "llama.cpp could not decode"
                one[0] = sample(greedy, context, -1)
            seconds += now() - begin
        return max_bytes * len(prompts) / seconds

    def _step(self, identifier: int) -> None:
        self._one[0] = identifier
        assert self._cpp.llama_decode(self._context, self._batch_of_one) == 0, "llama.cpp could not decode"

    def _read(self, prompt: bytes) -> None:
        for start in range(0, len(prompt), _BATCH):
            piece = prompt[start : start + _BATCH]
            ids = (ctypes.c_int32 * len(piece))(*piece)
            batch = self._cpp.llama_batch_get_one(ids, len(ids))
            assert self._cpp.llama_decode(self._context, batch) == 0, "llama.cpp could not decode"


def hugging_face(shape: TrunkShape, weights: dict[str, Floats]) -> Any:
    """The same Llama in transformers."""
    import torch
    from llama import llama

    model = llama(
        shape,
        context_ids=_CONTEXT,
        rms_norm_eps=shape.norm_epsilon,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=0,
    )
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return model.eval()


def hugging_face_rate(model: Any, prompts: Sequence[bytes], max_bytes: int, now: Clock) -> float:
    """Bytes a second of its ``generate``, greedy, prompts having been read."""
    import torch

    seconds, done = 0.0, 0
    for prompt in prompts:
        ids = torch.tensor([list(prompt)])
        begin = _Begin(now)
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_bytes,
                do_sample=False,
                streamer=begin,
            )
        seconds += now() - begin.time
        assert begin.first
        done += out.shape[1] - ids.shape[1] - begin.first
    return done / seconds


class _Begin:
    """Takes the ids that ``generate`` streams: looks at the clock when the prompt has been read and the first is out.

    Attributes:
        time: Then.
        first: Ids that were out by then.
    """

    def __init__(self, now: Clock) -> None:
        self._now, self._prompt = now, True
        self.time, self.first = 0.0, 0

    def put(self, value: Any) -> None:
        if self._prompt:
            self._prompt = False
        elif not self.first:
            self.time, self.first = self._now(), value.numel()

    def end(self) -> None:
        """Nothing is held back."""


def differences(
    shape: TrunkShape, weights: dict[str, Floats], files: dict[str, Path], prompt: bytes
) -> dict[str, float]:
    """How far llama.cpp's logits are from Hugging Face's, over the largest of them.

    Raises:
        SystemExit: They differ by more than rounding explains: it is another model that would be timed.
    """
    import torch

    ids = list(prompt)
    with torch.inference_mode():
        expected = hugging_face(shape, weights)(torch.tensor([ids])).logits[0].numpy()
    found = {}
    for precision, path in files.items():
        model = LlamaCpp(path, flash=False)
        found[precision] = float(np.abs(model.logits(ids) - expected).max() / np.abs(expected).max())
        model.close()
    if any(not one <= _LARGEST_DIFFERENCE[precision] for precision, one in found.items()):
        raise SystemExit(f"llama.cpp and Hugging Face disagree, so their models are not the same: {json.dumps(found)}")
    return {precision: float(f"{one:.2g}") for precision, one in found.items()}
