"""The exceptions a step ends with, and the exit code each stands for.

StepError
├── UserError        the manifest asks for something that cannot work
├── DataError        the rows do
├── OutOfMemory      the device or the computer ran out of memory
├── Infrastructure   a disk, a network, another process
└── Evicted          we were told to stop, and saved
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
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
MEMORY_FAILURES = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "cublas_status_alloc_failed",
)
DEVICE_FAILURES = ("ECC error", "no CUDA-capable device", "CUDA driver", "busy or unavailable")
LONGEST_REASON = 300
VANISHED = (FileNotFoundError, NotADirectoryError, IsADirectoryError, FileExistsError)


def _failed_to_write(error: BaseException | None) -> bool:
    """Tell whether an error, or one it came from, means that a file could not be written."""
    while error is not None:
        if getattr(error, "errno", None) == errno.ENOSPC:
            return True
        if any(words in str(error) for words in WRITE_FAILURES):
            return True
        error = error.__cause__ or error.__context__
    return False


def _ran_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in MEMORY_FAILURES)


def classify(error: BaseException) -> StepError | None:
    """Return the class of failure that a library's exception means; None: a defect of ours."""
    if isinstance(error, StepError):
        return error
    text = next(iter(str(error).splitlines()), type(error).__name__)
    if _ran_out_of_memory(error):
        return OutOfMemory(
            f"memory ran out ({text}); lower `spec.training.perDeviceBatchSize` or"
            " `spec.data.maxLength`"
        )
    if _failed_to_write(error):
        return Infrastructure(
            f"a file could not be written ({text}); is the disk full? free space, or use a larger claim"
        )
    if isinstance(error, PermissionError):
        return UserError(
            f"permission denied: {error.filename or text}; make it accessible to this user"
        )
    if isinstance(error, VANISHED) and error.filename:
        return Infrastructure(
            f"{error.filename}: {error.strerror}; something else changed the cache, the work folder or"
            " a claim while the job ran; raise `spec.rerun` to begin again"
        )
    if type(error).__module__.startswith("pyarrow"):
        return Infrastructure(
            f"the prepared data cannot be read ({text}); raise `spec.rerun` to prepare it again"
        )
    return _classify_surroundings(error, text)


def _classify_surroundings(error: BaseException, text: str) -> StepError | None:
    """Return what a failure of a device, a network or another process means."""
    if any(words in text for words in DEVICE_FAILURES):
        return Infrastructure(f"the device failed ({text}); another one may do: look at the node")
    if "DataLoader worker" in text:
        return Infrastructure(
            f"a process that loads data was killed ({text}); lower"
            " `spec.training.extraArguments.dataloader_num_workers`, or give more memory"
        )
    if (
        isinstance(error, (ConnectionError, TimeoutError))
        or "NCCL" in text
        or "gloo" in text.lower()
    ):
        return Infrastructure(
            f"a connection failed ({text}); see the logs of the other processes, and the network"
        )
    return None


def one_line(error: BaseException) -> str:
    """Return a library's message without its line breaks, and the beginning of what may be pages."""
    return " ".join(str(error).split())[:LONGEST_REASON] or type(error).__name__


@contextmanager
def reading(what: str, advice: str) -> Iterator[None]:
    """Turn what libraries say of a user's files or values into a refusal: they raise anything.

    Raises:
        UserError: they are not what they should be. StepError: memory, disk, permission.
    """
    try:
        yield
    except Exception as error:
        raise classify(error) or UserError(f"{what} ({one_line(error)}); {advice}") from error
