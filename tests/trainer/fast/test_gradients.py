"""Losses and gradients of the fast path are those of stock autograd."""

from typing import Any

import pytest
import torch

from finetune_trainer.fast.patch import patch
from finetune_trainer.fast.recompute import ALL
from tests.trainer.fast.families import FAMILIES, family

LENGTHS = (13, 5, 21)


def documents() -> list[torch.Tensor]:
    chance = torch.Generator().manual_seed(3)
    return [torch.randint(3, 96, (length,), generator=chance) for length in LENGTHS]


def packed(rows: list[torch.Tensor]) -> dict[str, Any]:
    """Lay rows end to end as TRL's collator does."""
    lengths = torch.tensor([0, *map(len, rows)])
    ends = lengths.cumsum(0).int()
    longest = int(lengths.max())
    return {
        "input_ids": torch.cat(rows)[None],
        "position_ids": torch.cat([torch.arange(len(row)) for row in rows])[None],
        "cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest,
    }  # fmt: skip


def padded(rows: list[torch.Tensor]) -> dict[str, Any]:
    """Pad rows on the left."""
    longest = max(map(len, rows))
    ids = torch.stack(
        [torch.cat([torch.zeros(longest - len(r), dtype=torch.long), r]) for r in rows]
    )
    mask = torch.stack([(torch.arange(longest) >= longest - len(r)).long() for r in rows])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


def loss_of(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return a loss that looks at every token but the last."""
    return torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="sum")


def stock(model: Any, rows: list[torch.Tensor]) -> tuple[float, dict[str, torch.Tensor]]:
    total = sum(loss_of(model(row[None], use_cache=False).logits[0], row) for row in rows)
    return gradients(model, total)


def fast(
    model: Any, rows: list[torch.Tensor], layout: str
) -> tuple[float, dict[str, torch.Tensor]]:
    given = packed(rows) if layout == "packed" else padded(rows)
    logits = model(**given, use_cache=False).logits
    each = (
        logits[0].split(list(map(len, rows)))
        if layout == "packed"
        else [line[-len(row) :] for line, row in zip(logits, rows, strict=True)]
    )
    total = sum(loss_of(one, row) for one, row in zip(each, rows, strict=True))
    return gradients(model, total)


def gradients(model: Any, total: Any) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    total.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return total.item(), found


def worst(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    assert found.keys() == wanted.keys()
    return max(float((found[n] - g).norm() / g.norm()) for n, g in wanted.items())


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_at_every_level(name: str, layout: str) -> None:
    model, rows = family(name), documents()
    wanted_loss, wanted = stock(model, rows)
    done = patch(model)
    assert not done.stock, done.summary
    for level in range(ALL + 1):
        for layer in done.shared.layers:
            layer.level = level
        loss, found = fast(model, rows, layout)
        assert loss == pytest.approx(wanted_loss, rel=1e-6)
        assert worst(found, wanted) < 1e-5, level
