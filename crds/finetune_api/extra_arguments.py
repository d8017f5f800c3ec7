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
    "ddp_find_unused_parameters", "dataloader_pin_memory", "disable_tqdm", "logging_strategy",
    "auto_find_batch_size", "use_liger_kernel", "eos_token", "pad_token", "hub_strategy",
    "hub_private_repo", "hub_always_push", "hub_revision", "save_on_each_node", "eval_on_start",
})  # fmt: skip

WITHOUT_EFFECT = frozenset({
    "loss_type", "label_smoothing_factor", "router_aux_loss_coef", "liger_kernel_config",
    "pad_to_multiple_of", "dataset_text_field", "dataset_num_proc", "truncation_mode",
    "length_column_name", "label_names", "dataloader_persistent_workers", "dataloader_in_order",
    "dataloader_prefetch_factor", "dataloader_multiprocessing_context", "prediction_loss_only",
    "include_for_metrics", "batch_eval_metrics", "eval_accumulation_steps", "do_predict",
    "eval_do_concat_batches", "eval_use_gather_object", "bf16_full_eval", "fp16_full_eval",
    "metric_for_best_model", "greater_is_better", "run_name", "project", "trackio_space_id",
    "trackio_bucket_id", "trackio_static_space_id",
})  # fmt: skip
"""Arguments that the library takes, but that our own loss, loader and evaluation never read."""

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
    "warmup_ratio": "set `training.warmupRatio`",
    "save_steps": "set `checkpoint.everySteps`",
    "overwrite_output_dir": "set `output.overwrite`",
    "group_by_length": "remove it: rows are balanced by length already",
    "no_cuda": "set `workers.gpusPerNode: 0`",
    "save_safetensors": "remove it: weights are always safetensors",
    "include_tokens_per_second": "remove it: `status.progress.tokensPerSecond` always tells",
    "neftune_noise_alpha": "remove it: it is not supported yet",
    "half_precision_backend": "set `training.precision`",
}
"""Arguments of older trainers, with what to do instead."""


def refused_arguments(training: Training) -> list[str]:
    """Return what is wrong with `extraArguments`, as far as names tell without the libraries."""
    found = []
    for name in training.extra_arguments or {}:
        path = f"`spec.training.extraArguments.{name}`"
        if name in OPERATOR_OWNED:
            found.append(f"{path} belongs to the operator, which sets it itself; remove it")
        elif name in WITHOUT_EFFECT:
            found.append(
                f"{path} would change nothing here: this trainer never reads it; remove it"
            )
        elif name in FIELD_OF:
            found.append(f"{path} has a field of its own; set `spec.training.{FIELD_OF[name]}`")
        elif name in RETIRED:
            found.append(f"{path} is no argument of this trainer; {RETIRED[name]}")
    return found
