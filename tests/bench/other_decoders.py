"""What bytelm's decoder is measured beside: Hugging Face ``generate`` and llama.cpp, with a Llama of a given shape.

Both get the same random weights: bytelm's layers normalise queries and keys, which a Llama's do not, so that trained
weights of one would mean nothing in the other. Speed of plain decoding does not depend on what the weights say; that
of prompt lookup does, and a random model repeats itself sooner than a trained one.

llama.cpp reads them from GGUF files, in float32, float16 and q8_0, and has to agree with Hugging Face before it is
timed. Both packages are optional, and are imported here when they are asked for.
"""

import ctypes
import importlib
import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from llama import llama

from bytelm.config import ModelConfig

GGUF_PRECISIONS: Final = ("f32", "f16", "q8_0")
_CONTEXT: Final = 4096
_LARGEST_DIFFERENCE: Final = {"f32": 1e-4, "f16": 2e-2, "q8_0": 0.2}
"""Of logits, over the largest of them; a mistake in the order of rows makes it 1."""
_TOKENS_OF: Final = {  # llama.cpp's names of a layer's tensors
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


def absent(packages: Sequence[str]) -> list[str]:
    """Those that are not installed."""
    return [name for name in packages if importlib.util.find_spec(name) is None]


def random_llama(shape: ModelConfig) -> Any:
    """A Llama of Hugging Face with random weights in float32, of the size of ours that a plain step reads."""
    torch.manual_seed(0)
    return llama(
        shape,
        context_ids=_CONTEXT,
        rms_norm_eps=shape.norm_epsilon,
        # So that attention is far from even, and a mistake in it is seen.
        initializer_range=shape.d_model**-0.5,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=0,
    ).eval()


class _Begin:
    """Takes the ids that ``generate`` streams: looks at the clock when the prompt has been read and the first is out.

    Attributes:
        time: Then.
        first: Ids that were out by then.
    """

    def __init__(self, now: Clock) -> None:
        self._now, self._prompt = now, True
        self.time, self.first = 0.0, 0

    def put(self, value: torch.Tensor) -> None:
        if self._prompt:
            self._prompt = False
        elif not self.first:
            self.time, self.first = self._now(), value.numel()

    def end(self) -> None:
        """Nothing is held back."""


@torch.inference_mode()
def hugging_face(llama: Any, prompts: Sequence[bytes], max_bytes: int, now: Clock, **options: Any) -> dict[str, float]:
    """Bytes and seconds of ``generate`` after the first step, as ours are counted."""
    seconds, done = 0.0, 0
    for prompt in prompts:
        ids = torch.tensor([list(prompt)], device=llama.device)
        begin = _Begin(now)
        out = llama.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_bytes,
            do_sample=False,
            streamer=begin,
            **options,
        )
        seconds += now() - begin.time
        assert begin.first
        done += out.shape[1] - ids.shape[1] - begin.first
    return {"bytes": done, "seconds": seconds}


def write_gguf(llama: Any, path: Path, precision: str) -> None:
    """Write a Llama's weights for llama.cpp.

    Args:
        llama: Of Hugging Face, float32.
        path: Of the file.
        precision: Of the matrices; norms are float32.
    """
    gguf = importlib.import_module("gguf")
    config = llama.config
    kind = {"f32": "F32", "f16": "F16", "q8_0": "Q8_0"}[precision]
    quantization = getattr(gguf.GGMLQuantizationType, kind)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(getattr(gguf.LlamaFileType, "ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"))
    writer.add_tokenizer_model("none")  # ids go in and come out
    weights = {name: tensor.numpy() for name, tensor in llama.state_dict().items()}

    def add(name: str, value: Any) -> None:
        if value.ndim == 1 or kind == "F32":
            writer.add_tensor(name, value)
        elif kind == "F16":
            writer.add_tensor(name, value.astype(np.float16))
        else:
            writer.add_tensor(name, gguf.quants.quantize(value, quantization), raw_dtype=quantization)

    add("token_embd.weight", weights["model.embed_tokens.weight"])
    for layer in range(config.num_hidden_layers):
        for theirs, name in _TOKENS_OF.items():
            value = weights[f"model.layers.{layer}.{name}.weight"]
            if theirs in ("attn_q", "attn_k"):
                heads = config.num_attention_heads if theirs == "attn_q" else config.num_key_value_heads
                value = neighbours_turn(value, heads)
            add(f"blk.{layer}.{theirs}.weight", value)
    add("output_norm.weight", weights["model.norm.weight"])
    add("output.weight", weights["lm_head.weight"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def neighbours_turn(weight_OI: "np.ndarray[Any, Any]", heads: int) -> "np.ndarray[Any, Any]":
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
        exact: Keys and values in float32 and no flash attention, which adds in float16. Otherwise what llama.cpp takes
            of itself.
    """

    def __init__(self, path: Path, *, exact: bool = False) -> None:
        self._cpp = cpp = importlib.import_module("llama_cpp")
        importlib.import_module("llama_cpp._logger").set_verbose(False)
        settings = cpp.llama_model_default_params()
        settings.n_gpu_layers = 0
        self._model = cpp.llama_model_load_from_file(str(path).encode(), settings)
        assert self._model, f"llama.cpp cannot read {path}"
        settings = cpp.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = _CONTEXT, 512, 512
        settings.n_threads = settings.n_threads_batch = 1  # its threads wait by spinning: more than cores take forever
        if exact:
            settings.type_k = settings.type_v = cpp.GGML_TYPE_F32
            settings.flash_attn_type = cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = cpp.llama_init_from_model(self._model, settings)
        assert self._context, "llama.cpp cannot make a context"
        self._memory = cpp.llama_get_memory(self._context)
        self._vocabulary = cpp.llama_vocab_n_tokens(cpp.llama_model_get_vocab(self._model))
        self._greedy = cpp.llama_sampler_init_greedy()

    def close(self) -> None:
        """Give the memory back."""
        self._cpp.llama_sampler_free(self._greedy)
        self._cpp.llama_free(self._context)
        self._cpp.llama_model_free(self._model)

    def logits(self, ids: Sequence[int]) -> "np.ndarray[Any, Any]":
        """After each id, (T, V)."""
        self._cpp.llama_memory_clear(self._memory, True)
        rows = []
        for one in ids:
            self._decode([one])
            row = self._cpp.llama_get_logits_ith(self._context, -1)
            rows.append(np.ctypeslib.as_array(row, (self._vocabulary,)).copy())
        return np.stack(rows)

    def generate(self, prompts: Sequence[bytes], max_bytes: int, threads: int, now: Clock) -> dict[str, float]:
        """Bytes and seconds of greedy decoding after the first step, as ours are counted."""
        self._cpp.llama_set_n_threads(self._context, threads, threads)
        seconds, done = 0.0, 0
        for prompt in prompts:
            self._cpp.llama_memory_clear(self._memory, True)
            self._decode(list(prompt))
            chosen = self._cpp.llama_sampler_sample(self._greedy, self._context, -1)
            begin = now()
            for _ in range(max_bytes - 1):
                self._decode([chosen])
                chosen = self._cpp.llama_sampler_sample(self._greedy, self._context, -1)
            seconds += now() - begin
            done += max_bytes - 1
        return {"bytes": done, "seconds": seconds}

    def _decode(self, ids: Sequence[int]) -> None:
        array = (ctypes.c_int32 * len(ids))(*ids)
        if self._cpp.llama_decode(self._context, self._cpp.llama_batch_get_one(array, len(ids))):
            raise SystemExit("llama.cpp could not decode")


@torch.inference_mode()
def differences(llama: Any, files: dict[str, Path], prompt: bytes) -> dict[str, float]:
    """How far llama.cpp's logits are from Hugging Face's, over the largest of them.

    Raises:
        SystemExit: They differ by more than rounding explains: it is another model that would be timed.
    """
    ids = list(prompt)
    expected = llama(torch.tensor([ids])).logits[0].numpy()
    found = {}
    for precision, path in files.items():
        model = LlamaCpp(path, exact=True)
        found[precision] = float(np.abs(model.logits(ids) - expected).max() / np.abs(expected).max())
        model.close()
    if any(not one <= _LARGEST_DIFFERENCE[precision] for precision, one in found.items()):
        raise SystemExit(f"llama.cpp and Hugging Face disagree, so their models are not the same: {json.dumps(found)}")
    return found
