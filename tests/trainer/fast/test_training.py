"""A run on the fast path ends with the losses and weights of any other."""

from typing import Any

import pytest

from finetune_api.status import Resolved
from finetune_trainer import train
from finetune_trainer.fast.apply import choose_levels, kept_by
from finetune_trainer.fast.patch import FastModel, patch
from finetune_trainer.fast.recompute import ALL
from tests.trainer.layouts import Finished, Lab, assert_same, lab, reference, run_here

__all__ = ["lab", "reference"]

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[FastModel]:
    """Let runs take the fast path on a CPU too, where memory allows one layer to keep all."""
    found: list[FastModel] = []

    def speed_up(model: Any, resolved: Resolved) -> FastModel:
        done = patch(model)
        one = kept_by(done.shared.layers[0], resolved.tokens_per_micro_batch or 500)
        least = 2 * (one.kept - one.saved[ALL])
        chosen = resolved.model_copy(update={"tokens_per_micro_batch": 500})
        monkeypatch.setattr("finetune_trainer.fast.apply.needed_beside", lambda *_: 0)
        choose_levels(model, done, chosen, free=least + one.saved[ALL])
        found.append(done)
        return done

    monkeypatch.setattr(train, "speed_up", speed_up)
    return found


@pytest.mark.parametrize("layout", ["packed", "packed, accumulated", "padded"])
def test_runs_agree(lab: Lab, reference: Finished, made: list[FastModel], layout: str) -> None:
    file = lab.job_file(f"fast-{layout.replace(', ', '-')}", layout=layout)
    assert_same(run_here(lab, file), reference)
    (done,) = made
    assert done.summary == "2 of 2 layers"


def test_what_is_recomputed_changes_nothing(
    lab: Lab, reference: Finished, made: list[FastModel]
) -> None:
    training = {"activationCheckpointing": "full"}
    file = lab.job_file("fast-recomputed", layout="packed", training=training)
    assert_same(run_here(lab, file), reference)
    (done,) = made
    assert [layer.level for layer in done.shared.layers] == [ALL, ALL]
