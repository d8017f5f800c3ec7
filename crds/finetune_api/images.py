"""Which image runs a step."""

from urllib.parse import urlsplit

from finetune_api.finetunejob import FineTuneJobSpec

GGUF_SUFFIX = ".gguf"


def prepare_needs_torch(spec: FineTuneJobSpec) -> bool:
    """Tell whether a job's `prepare` needs PyTorch, and so the trainer's image, to do its work.

    A folder of safetensors is looked at by its headers and needs none. What needs it: a GGUF file, to
    be dequantised; pickle weights, to be read; a model's own Python code, to be run; extra arguments
    of the trainer, which its libraries judge. Decided by what the job says, before anything is
    fetched: `prepare` refuses what turns out otherwise.
    """
    model, training = spec.model, spec.training
    return (
        urlsplit(model.uri).path.lower().endswith(GGUF_SUFFIX)
        or model.allow_pickle
        or model.trust_remote_code
        or bool(training and training.extra_arguments)
    )
