"""The specification of decoding, slow on purpose: a whole forward pass for each byte, no cache, no drafts.

Every decoder must give these bytes: through torch up to rounding, which a float64 model makes as good as nothing.
"""

import torch

from bytelm.decode import context_start, slid_start
from bytelm.generation import FinishReason, GenerateSettings
from bytelm.model import ByteLM
from bytelm.vocab import EOD


@torch.no_grad()
def specified_bytes(
    model: ByteLM, prompt: bytes, settings: GenerateSettings, *, context_bytes: int
) -> tuple[bytes, FinishReason]:
    """Continue a prompt, as ``bytelm.decode`` promises to.

    Args:
        model: Of bytes, in evaluation mode.
        prompt: Any bytes.
        settings: Of the continuation; ``draft`` and ``exact`` have no effect on what is specified.
        context_bytes: Slots of the context.

    Returns:
        The output and why it ends.
    """
    next_byte = settings.next_byte()
    context, ids, output = next_byte.first_context(prompt), [EOD, *prompt], b""
    start = context_start(len(ids), context_bytes)
    while len(output) < settings.max_bytes:
        if len(ids) - start > context_bytes:
            start = slid_start(len(ids), context_bytes)
        inputs_1T = torch.tensor([ids[start:]], device=model.embedding.device)
        logits_V = model.heads.logits(model.trunk(inputs_1T), heads=range(1))[0, -1, 0]
        chosen = next_byte.choose(logits_V.float().cpu().numpy(), context)
        if chosen == EOD:
            return output, "end_of_document"
        ids.append(chosen)
        context = context.after(chosen)
        output += bytes((chosen,))
        if ends := [stop for stop in settings.stop if output.endswith(stop)]:
            return output[: -max(map(len, ends))], "stop"
    return output, "max_bytes"
