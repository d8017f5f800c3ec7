"""The exceptions a step ends with, and the exit code each stands for.

StepError
├── UserError        the manifest asks for something that cannot work
├── DataError        the rows do
├── OutOfMemory      the device or the computer ran out of memory
├── Infrastructure   a disk, a network, another process
└── Evicted          we were told to stop, and saved
"""

import errno
from typing import ClassVar

from finetune_api.contract import ExitCode


class StepError(Exception):
    """A step cannot go on; the message is for the user."""

    exit_code: ClassVar[ExitCode] = ExitCode.BUG


class UserError(StepError):
    """The manifest asks for something that cannot work."""

    exit_code = ExitCode.USER_ERROR


class DataError(StepError):
    """The rows cannot be used."""

    exit_code = ExitCode.DATA_ERROR


class OutOfMemory(StepError):
    """Memory ran out."""

    exit_code = ExitCode.OUT_OF_MEMORY


class Infrastructure(StepError):
    """Something around us failed; trying again may help."""

    exit_code = ExitCode.INFRASTRUCTURE


class Evicted(StepError):
    """We were told to stop; what was done is saved."""

    exit_code = ExitCode.EVICTED


# torch writes archives in C++ and says no more than this when the device is full.
WRITE_FAILURES = (
    "No space left on device",
    "PytorchStreamWriter",
    "iostream error",
    "inline_container",
)


def _failed_to_write(error: BaseException | None) -> bool:
    """Tell whether an error, or one it came from, means that a file could not be written."""
    while error is not None:
        if getattr(error, "errno", None) == errno.ENOSPC:
            return True
        if any(words in str(error) for words in WRITE_FAILURES):
            return True
        error = error.__cause__ or error.__context__
    return False


def classify(error: BaseException) -> StepError | None:
    """Return the class of failure that a library's exception means; None: a defect of ours."""
    if isinstance(error, StepError):
        return error
    text = str(error)
    if (
        isinstance(error, MemoryError)
        or "out of memory" in text.lower()
        or "can't allocate memory" in text
    ):
        return OutOfMemory(
            f"memory ran out ({text.splitlines()[0] if text else 'MemoryError'}); lower"
            " `training.perDeviceBatchSize` or `data.maxLength`"
        )
    if _failed_to_write(error):
        return Infrastructure(
            f"a file could not be written ({text.splitlines()[0]}); is the disk full? free space, or use a"
            " larger claim"
        )
    if isinstance(error, PermissionError):
        return UserError(
            f"permission denied: {error.filename or text}; make it accessible to this user"
        )
    if (
        isinstance(error, (ConnectionError, TimeoutError))
        or "NCCL" in text
        or "gloo" in text.lower()
    ):
        return Infrastructure(f"a connection failed: {text.splitlines()[0] if text else error!r}")
    return None
