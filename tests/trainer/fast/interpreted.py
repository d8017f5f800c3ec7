"""Each Triton kernel computes what the plain torch reference beside it does.

Run by `test_kernels` in a process of its own: Triton decides at its import whether it interprets.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from finetune_trainer.fast import head
from finetune_trainer.fast.kernels import gate, logprob, norm, rotary
from finetune_trainer.fast.kernels.gate import Activation
from finetune_trainer.fast.kernels.norm import Norm
from finetune_trainer.fast.kernels.rotary import Heads
from finetune_trainer.fast.patch import patch
from tests.trainer.fast.families import family
from tests.trainer.fast.test_gradients import documents, fast, stock, worst

ROOM, ROWS = 8, 5


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what calls a function by reference and by kernel, and compares."""

    def compare(function: Callable[..., Any], *arguments: Any, room: int = 0) -> None:
        wanted = function(*cloned(arguments), *([room] if room else []))
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        found = function(*cloned(arguments), *([room] if room else []))
        monkeypatch.delenv("TRITON_INTERPRET")
        for one, other in zip(parts(found), parts(wanted), strict=True):
            assert one.shape == other.shape
            width = one.shape[1] - room if one.dim() == 2 and room else one.shape[1]
            torch.testing.assert_close(one[:, :width], other[:, :width], rtol=2e-5, atol=2e-6)

    return compare


def cloned(arguments: tuple[Any, ...]) -> list[Any]:
    return [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]


def parts(found: Any) -> list[torch.Tensor]:
    return [found] if isinstance(found, torch.Tensor) else list(found)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def a_norm(width: int, offset: float = 0.0) -> Norm:
    return Norm(random(width), 1e-5, offset)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("width", [32, 40])
def test_norms(both: Callable[..., None], width: int, offset: float) -> None:
    rows, change, arriving = random(ROWS, width), random(ROWS, width) * 2, random(ROWS, width) - 1
    first, second = a_norm(width, offset), a_norm(width, offset)
    both(norm.normed, rows, first, room=ROOM)
    both(norm.add, rows, change)
    both(norm.add, rows, change, second)
    for of_change in (None, second):
        both(norm.add_normed, rows, change, of_change, first, room=ROOM)
    for residual in (None, change):
        both(lambda g, x, r: norm.norm_backward(g, x, first, r, ROOM)[1], arriving, rows, residual)
        both(
            lambda g, x, r: norm.norm_backward(g, x, first, r, ROOM)[0][:, :width],
            arriving, rows, residual,
        )  # fmt: skip


@pytest.mark.parametrize("turned", [8, 6])
@pytest.mark.parametrize("normed", [False, True])
def test_rotation(both: Callable[..., None], normed: bool, turned: int) -> None:
    norms = {"query_norm": a_norm(8), "key_norm": a_norm(8, 1.0)} if normed else {}
    heads = Heads(3, 2, 8, **norms)
    angles = random(ROWS, turned // 2).repeat(1, 2)
    tables = (angles.cos(), angles.sin())
    qkv = random(ROWS, heads.width)
    both(lambda x: rotary.rotate(x, tables, heads), qkv)
    gradients = (random(ROWS, 3, 8), random(ROWS, 2, 8), random(ROWS, 2, 8) + 1)
    both(lambda x: rotary.rotate_backward(gradients, x, tables, heads, ROOM)[:, : heads.width], qkv)


@pytest.mark.parametrize("activation", Activation)
def test_gates(both: Callable[..., None], activation: Activation) -> None:
    gate_up, arriving = random(ROWS, 2 * 1100) * 3, random(ROWS, 1100)
    both(gate.gated, gate_up, activation, room=ROOM)
    both(lambda g, x: gate.gated_backward(g, x, activation, ROOM)[1], arriving, gate_up)
    both(
        lambda g, x: gate.gated_backward(g, x, activation, ROOM)[0][:, : 2 * 1100],
        arriving, gate_up,
    )  # fmt: skip


@pytest.mark.parametrize("cap", [None, 5.0])
def test_scores(both: Callable[..., None], cap: float | None) -> None:
    logits, targets = random(ROWS, 5000) * 4, torch.tensor([0, 4999, 17, 4096, 4095])
    targets[2] = logits[2].argmax()

    def score(x: torch.Tensor, *, gradients: bool) -> list[torch.Tensor]:
        found = logprob.score(x, targets, soft_cap=cap, gradients=gradients)
        assert found.is_likeliest[2]
        each = [found.log_probabilities, found.entropies, found.is_likeliest.float()]
        return [*(one[:, None] for one in each), x]

    both(lambda x: score(x, gradients=False), logits)
    both(lambda x: score(x, gradients=True), logits)


@pytest.mark.parametrize("cap", [None, 5.0])
def test_the_head_is_differentiated(cap: float | None) -> None:
    weight, targets = random(50, 16), torch.randint(50, (7,))
    hidden = random(7, 16).requires_grad_()
    logits = hidden @ weight.t()
    bent = logits if cap is None else cap * torch.tanh(logits / cap)
    wanted = bent.log_softmax(1).gather(1, targets[:, None])[:, 0]
    shares = random(7)
    (gradient,) = torch.autograd.grad(wanted, hidden, shares)
    found = head.log_probabilities(hidden, head.Head(weight, cap), targets)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(torch.autograd.grad(found, hidden, shares)[0], gradient)


@pytest.mark.parametrize("name", ["phi3", "qwen3"])
def test_whole_layers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = family(name, layers=1), documents()[:2]
    wanted_loss, wanted = stock(model, rows)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert not patch(model).stock
    loss, found = fast(model, rows, "packed")
    assert loss == pytest.approx(wanted_loss, rel=1e-6)
    assert worst(found, wanted) < 1e-5
