"""Optimizers and learning-rate schedules, in the spelling of the libraries."""

from enum import StrEnum


class Optimizer(StrEnum):
    """Optimizers of the trainer; names as in transformers' `optim`."""

    ADAMW_TORCH = "adamw_torch"
    ADAMW_TORCH_FUSED = "adamw_torch_fused"
    ADAFACTOR = "adafactor"
    SGD = "sgd"
    ADAGRAD = "adagrad"
    RMSPROP = "rmsprop"


class Scheduler(StrEnum):
    """Learning-rate schedules; names as in transformers' `lr_scheduler_type`."""

    LINEAR = "linear"
    COSINE = "cosine"
    COSINE_WITH_RESTARTS = "cosine_with_restarts"
    POLYNOMIAL = "polynomial"
    CONSTANT = "constant"
    CONSTANT_WITH_WARMUP = "constant_with_warmup"
    INVERSE_SQRT = "inverse_sqrt"
