"""TRL's SFTTrainer driven by a batch plan: one item of its dataloader is one optimizer step.

The micro-batches of a step run inside `training_step`, so that the Trainer's own counts, schedules,
epochs and resume positions need no change. No private method of it is overridden.
"""

from collections.abc import Iterator
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from finetune_trainer.batch_plan import BatchPlan
from finetune_trainer.data.saved import IGNORED
from finetune_trainer.loss import scored, summed_loss

StepIndex = tuple[int, int]


class PlanRows(torch.utils.data.Dataset[dict[str, Any]]):
    """Loads the rows of one step for one rank."""

    def __init__(self, rows: Dataset, plan: BatchPlan, rank: int) -> None:
        """Keep the rows; nothing is loaded yet."""
        self._rows, self._plan, self._rank = rows, plan, rank

    def __getitems__(self, index: StepIndex) -> dict[str, Any]:
        """Return the micro-batches of step `(epoch, index)`."""
        step = self._plan.step(*index)
        micro = [self._load(rows) for rows in step.micro_batches[self._rank]]
        return {"micro": micro, "trained_tokens": step.trained_tokens, "tokens": step.tokens}

    def _load(self, rows: list[int]) -> list[dict[str, list[int]]]:
        if rows:
            return [self._rows[row] for row in rows]
        # A rank without rows computes one without loss: all ranks must meet in the reduction.
        row = self._rows[int(self._plan.lengths.argmin())]
        return [{"input_ids": row["input_ids"], "labels": [IGNORED] * len(row["labels"])}]


class PlanSampler:
    """Yields `(epoch, step)`; the Trainer sets the epoch and skips what was done."""

    def __init__(self, plan: BatchPlan) -> None:
        """Start at epoch 0."""
        self._plan, self._epoch = plan, 0
        # accelerate's skipping wraps this sampler, and the Trainer then looks for set_epoch here.
        self.batch_sampler = self
        self.batch_size = None
        self.drop_last = False

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._plan.steps_per_epoch

    def __iter__(self) -> Iterator[StepIndex]:
        return ((self._epoch, step) for step in range(len(self)))


class StepCollator:
    """Lays the rows of each micro-batch end to end, or pads them."""

    def __init__(self, pad_token_id: int, *, packed: bool) -> None:
        """Use TRL's own collator for either layout."""
        self._collate = DataCollatorForLanguageModeling(pad_token_id, padding_free=packed)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Return the item with tensors for each micro-batch. Shapes: [B, T], packed [1, T]."""
        return {**item, "micro": [self._batch(rows) for rows in item["micro"]]}

    def _batch(self, rows: list[dict[str, list[int]]]) -> dict[str, Any]:
        batch = dict(self._collate(rows))
        return {**batch, **scored(batch["labels"])}


def step_loader(
    rows: Dataset, plan: BatchPlan, *, rank: int, pad_token_id: int, workers: int = 0
) -> DataLoader[Any]:
    """Return the loader of one rank's steps."""
    return DataLoader(
        PlanRows(rows, plan, rank),
        batch_sampler=PlanSampler(plan),
        collate_fn=StepCollator(pad_token_id, packed=plan.packed),
        generator=torch.Generator(),
        num_workers=workers,
    )


class PlanTrainer(SFTTrainer):
    """SFTTrainer whose steps come from a plan and whose loss is exact over all ranks."""

    def __init__(
        self,
        *,
        plan: BatchPlan,
        eval_plan: BatchPlan | None,
        train_dataset: Dataset,
        eval_dataset: Dataset | None,
        **parts: Any,
    ) -> None:
        """Build the trainer; `parts` are SFTTrainer's own arguments."""
        self._plan, self._eval_plan = plan, eval_plan
        super().__init__(train_dataset=train_dataset, eval_dataset=eval_dataset, **parts)
        self.trained_tokens = self.tokens = 0

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of steps; not through accelerate, which would deal them out again."""
        return self._loader(self.train_dataset, self._plan)

    def _loader(self, rows: Dataset, plan: BatchPlan) -> DataLoader[Any]:
        return step_loader(
            rows,
            plan,
            rank=self.accelerator.process_index,
            pad_token_id=self.processing_class.pad_token_id,
            workers=self.args.dataloader_num_workers,
        )

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Run the micro-batches of one optimizer step; return its loss on this rank."""
        del num_items_in_batch  # of one micro-batch; the plan knows the whole step's
        # Dropout depends on seed, step and rank only: a resumed run goes on bit for bit.
        step_seed = self.args.seed * 1_000_003 + self.state.global_step * 1009
        torch.manual_seed((step_seed + self.accelerator.process_index) % 2**63)
        micro = inputs["micro"]
        total = torch.zeros((), device=self.args.device)
        for number, batch in enumerate(micro):
            last = number == len(micro) - 1
            # DeepSpeed steps whenever this flag is set, so it may be set on the last one only.
            self.accelerator.gradient_state._set_sync_gradients(last)
            if last:
                total += super().training_step(model, batch, inputs["trained_tokens"])
            else:
                with self.accelerator.no_sync(model):
                    total += super().training_step(model, batch, inputs["trained_tokens"])
        self.trained_tokens += inputs["trained_tokens"]
        self.tokens += inputs["tokens"]
        return total

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return this micro-batch's share of the step's mean loss, times the world size.

        The reduction averages over ranks; the factor makes it a sum again.
        """
        assert not return_outputs, "the plan's own evaluation needs losses only"
        share = summed_loss(model, inputs, scores=self.scores) / max(int(num_items_in_batch), 1)
        return share * self.accelerator.num_processes

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Return the mean loss over the trained tokens of the evaluation rows."""
        assert self._eval_plan is not None, "evaluation is scheduled only with data"
        del eval_dataset, ignore_keys
        total = torch.zeros((), dtype=torch.float64, device=self.args.device)
        tokens = 0
        self.model.eval()
        for step in self._loader(self.eval_dataset, self._eval_plan):
            tokens += step["trained_tokens"]
            for batch in step["micro"]:
                with torch.no_grad(), self.compute_loss_context_manager():
                    loss = summed_loss(self.model, self._prepare_inputs(batch), scores=self.scores)
                    total += loss.double()
            if self.on_evaluation_step:
                self.on_evaluation_step()
        total = self.accelerator.reduce(total, reduction="sum")
        metrics = {f"{metric_key_prefix}_loss": float(total) / max(tokens, 1)}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    scores = False
    """Whether the model scores positions itself, see `finetune_trainer.fast.head`."""
    control: Any
    on_evaluation_step: Any = None
    """Called after each step of an evaluation, so that a watchdog sees it move."""

    def get_total_train_batch_size(self, args: SFTConfig) -> int:
        """Return the dataset rows of an optimizer step over all ranks."""
        del args
        return self._plan.batch

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return the operations of a step, as the Trainer estimates them."""
        return sum(
            int(super(PlanTrainer, self).floating_point_ops(batch)) for batch in inputs["micro"]
        )
