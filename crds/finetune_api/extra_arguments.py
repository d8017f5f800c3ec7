"""`training.extraArguments`: which names of the trainer's configuration a user may not set, and why."""

from finetune_api.training import Training

OPERATOR_OWNED = frozenset({
    "output_dir", "deepspeed", "fsdp", "fsdp_config", "report_to", "push_to_hub", "hub_model_id",
    "hub_token", "resume_from_checkpoint", "accelerator_config", "parallelism_config",
    "model_init_kwargs", "dataset_kwargs", "shuffle_dataset", "skip_memory_metrics", "use_cpu",
    "local_rank", "ddp_backend", "max_length", "packing", "packing_strategy", "padding_free",
    "save_strategy", "eval_strategy", "save_only_model", "enable_jit_checkpoint", "logging_dir",
    "load_best_model_at_end", "average_tokens_across_devices", "ignore_data_skip", "full_determinism",
    "remove_unused_columns", "dataloader_drop_last", "trust_remote_code", "chat_template_path",
    "eval_packing", "assistant_only_loss", "completion_only_loss", "restore_callback_states_from_checkpoint",
    "logging_nan_inf_filter", "train_sampling_strategy", "save_total_limit", "do_train", "do_eval",
})  # fmt: skip

FIELD_OF = {
    "num_train_epochs": "epochs", "max_steps": "maxSteps", "learning_rate": "learningRate",
    "per_device_train_batch_size": "perDeviceBatchSize",
    "per_device_eval_batch_size": "perDeviceBatchSize",
    "gradient_accumulation_steps": "gradientAccumulationSteps", "lr_scheduler_type": "scheduler",
    "warmup_steps": "warmupRatio", "optim": "optimizer", "bf16": "precision", "fp16": "precision",
    "max_grad_norm": "maxGradNorm", "weight_decay": "weightDecay", "seed": "seed",
    "data_seed": "seed", "logging_steps": "loggingSteps", "eval_steps": "evalSteps",
    "gradient_checkpointing": "activationCheckpointing",
    "activation_checkpointing": "activationCheckpointing",
}  # fmt: skip

RETIRED = {
    "warmup_ratio": "`training.warmupRatio`",
    "save_steps": "`checkpoint.everySteps`",
    "overwrite_output_dir": "`output.overwrite`",
    "group_by_length": "nothing: rows are balanced by length already",
    "no_cuda": "`workers.gpusPerNode: 0`",
    "save_safetensors": "nothing: weights are always safetensors",
    "include_tokens_per_second": "nothing: `status.progress.tokensPerSecond` always tells",
    "neftune_noise_alpha": "nothing yet",
    "half_precision_backend": "`training.precision`",
}
"""Arguments of older trainers, with what to write instead."""


def refused_arguments(training: Training) -> list[str]:
    """Return what is wrong with `extraArguments`, as far as names tell without the libraries."""
    found = []
    for name in training.extra_arguments or {}:
        path = f"`spec.training.extraArguments.{name}`"
        if name in OPERATOR_OWNED:
            found.append(f"{path} belongs to the operator, which sets it itself; remove it")
        elif name in FIELD_OF:
            found.append(f"{path} has a field of its own; set `spec.training.{FIELD_OF[name]}`")
        elif name in RETIRED:
            found.append(f"{path} is no argument of this trainer; use {RETIRED[name]}")
    return found
