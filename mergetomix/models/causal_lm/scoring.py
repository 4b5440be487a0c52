"""Log-likelihoods of tokens, with logits only where they are scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mergetomix.models.causal_lm.sequences import Scored, TokenBatch

if TYPE_CHECKING:
    import torch

PIECE = {"cpu": 2**20}
"""Logits whose logarithms are taken at once: 4 MiB in float32 on a CPU, which its cache holds."""
OTHER_PIECE = 2**26


def quiet_routers(model: Any) -> dict[str, Any]:
    """Returns the argument that keeps a mixture of experts from a loss of its routers.

    Its configuration may ask for one, which fails where a batch is padded or logits are left out.
    """
    has_routers = hasattr(model.config.get_text_config(), "output_router_logits")
    return {"output_router_logits": False} if has_routers else {}


def token_losses(model: Any, batch: TokenBatch) -> torch.Tensor:
    """Returns -log p of every scored token of a batch, in nats, with its graph.

    float32 on the model's device, shape (K,).
    """
    logits_PV = logits_at(model, batch.scored.places_P, batch.inputs(model.dtype))
    return _losses(logits_PV, batch.scored)[0]


def sums(losses: Sequence[torch.Tensor], batches: Sequence[TokenBatch]) -> torch.Tensor:
    """Returns the losses of tokens, summed for every line of the batches in turn.

    float64 on the CPU.
    """
    import torch

    owners, num = [], 0
    for batch in batches:
        owners.append(batch.scored.owners_K + num)
        num += len(batch.rows)
    losses_K = torch.cat(list(losses)).cpu().double()
    return torch.zeros(num, dtype=torch.float64).index_add(0, torch.cat(owners), losses_K)


def losses_in_order(model: Any, batches: Sequence[TokenBatch]) -> list[float]:
    """Returns the sum over scored tokens of -log p, in nats, in the original order of the rows."""
    import torch

    with torch.inference_mode():
        found = sums([token_losses(model, batch) for batch in batches], batches).tolist()
    rows = [row for batch in batches for row in batch.rows]
    return [value for _, value in sorted(zip(rows, found, strict=True))]


def answers_in_order(model: Any, batches: Sequence[TokenBatch]) -> list[tuple[float, bool]]:
    """Returns log p of each row's scored tokens, in nats, and whether each is the likeliest there.

    Rows are in their original order.
    """
    import torch

    losses, others = [], []
    with torch.inference_mode():
        for batch in batches:
            logits_PV = logits_at(model, batch.scored.places_P, batch.inputs(model.dtype))
            losses_K, is_top_K = _losses(logits_PV, batch.scored, with_tops=True)
            losses.append(losses_K)
            others.append((~is_top_K).float())
        found = sums(losses, batches).tolist(), sums(others, batches).tolist()
    rows = [row for batch in batches for row in batch.rows]
    by_row = sorted(zip(rows, *found, strict=True))
    return [(-loss, num_others == 0) for _, loss, num_others in by_row]


def logits_at(model: Any, places_P: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Returns the model's logits at some places of a batch, row * width + column; shape (P, V).

    The head gets the hidden states of these places alone. It is a hook on the head that hands them
    over, so the model's own forward does all the rest, whatever it makes of its logits (scaling,
    soft caps), under adapters too. The argument `logits_to_keep`, which many models have, takes
    columns common to all rows in some versions of transformers, and is not there in all models.
    A model that does not say what its head is computes all its logits.
    """
    shape = inputs["input_ids"].shape

    def hand_over(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not args or args[0].shape[:2] != shape:
            return None
        return (args[0].flatten(0, 1)[places_P][None], *args[1:])

    head = getattr(model, "get_output_embeddings", lambda: None)()
    hook = None if head is None else head.register_forward_pre_hook(hand_over)
    try:
        logits: torch.Tensor = model(**inputs, **quiet_routers(model), use_cache=False).logits
    finally:
        if hook is not None:
            hook.remove()
    # one row all of whose places are wanted has one shape either way, and is the same either way
    return logits.flatten(0, 1)[places_P] if logits.shape[:2] == shape else logits[0]


def _losses(
    logits_PV: torch.Tensor, scored: Scored, with_tops: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns -log p of the wanted tokens and, if asked, whether each is the likeliest.

    Without a graph it is taken a piece at a time, so that the logarithms take little memory beside
    the logits; with one they are all kept for the gradient anyway.
    """
    import torch

    device, num = logits_PV.device, len(scored.picks_K)
    step = PIECE.get(device.type, OTHER_PIECE) // logits_PV.shape[-1]
    step = max(1, num if logits_PV.requires_grad else step)
    pieces = [logits_PV.new_zeros(0, dtype=torch.float32)]
    tops = [logits_PV.new_zeros(0, dtype=torch.bool)]
    for start in range(0, num, step):
        picks_N = scored.picks_K[start : start + step]
        logp_NV = logits_PV[int(picks_N[0]) : int(picks_N[-1]) + 1].log_softmax(
            dim=-1, dtype=torch.float32
        )
        wanted_N, own_N = scored.wanted_K[start : start + step], (picks_N - picks_N[0]).to(device)
        pieces.append(-logp_NV[own_N, wanted_N])
        if with_tops:
            tops.append(logp_NV.argmax(dim=-1)[own_N] == wanted_N)
    return torch.cat(pieces), torch.cat(tops)
