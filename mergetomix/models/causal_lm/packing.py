"""Whether a model keeps sequences apart that stand one behind the other in a row."""

from __future__ import annotations

from typing import Any

LENGTHS = (5, 7)
TOLERANCE = 1e-3
"""By how much of its largest logit a model may differ, packed against alone, in float32."""


def keeps_apart(model: Any) -> bool:
    """Returns whether packed sequences have the logits that they have alone.

    Two sequences of made-up tokens are read in one row, with positions that begin anew, as TRL
    packs them. Models that look back in another way (state-space models, ALiBi,
    OPT's own positions) mix them.
    """
    import torch

    vocabulary = model.config.get_text_config().vocab_size
    draw = torch.Generator().manual_seed(0)
    rows = [torch.randint(vocabulary, (1, length), generator=draw) for length in LENGTHS]
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None].to(model.device)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            alone = [model(input_ids=row.to(model.device), use_cache=False).logits for row in rows]
            packed = torch.cat(rows, dim=1).to(model.device)
            found = model(input_ids=packed, position_ids=positions, use_cache=False).logits
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError):
        return False  # a model that takes no such positions says so in its own way
    finally:
        model.train(was_training)
    wanted = torch.cat(alone, dim=1).float()
    eps = torch.finfo(model.dtype).eps
    bound = max(TOLERANCE, 64 * eps) * float(wanted.abs().max())
    return bool((found.float() - wanted).abs().max() <= bound)
