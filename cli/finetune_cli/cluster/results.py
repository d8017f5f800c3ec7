"""What an object has made: where it lies, and which claims hold it."""

from finetune_api.finetunejob import FineTuneJob
from finetune_api.modelexport import ModelExport
from finetune_api.objects import Resource
from finetune_api.storage import Retain

CLAIM = "pvc://"
UNITS = ("B", "kB", "MB", "GB", "TB")


def size(number: int) -> str:
    """Return a number of bytes for people; nothing if it is not known."""
    if not number:
        return ""
    value, unit = float(number), 0
    while value >= 1000 and unit < len(UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.3g} {UNITS[unit]}"


def results(resource: Resource) -> list[tuple[str, str, int]]:
    """Return kind, location and bytes of each result."""
    if isinstance(resource, FineTuneJob):
        return [(a.kind, a.uri, a.size_bytes) for a in resource.status.artifacts]
    if isinstance(resource, ModelExport) and resource.status.uri:
        return [(resource.spec.format, resource.status.uri, resource.status.size_bytes)]
    return []


def result_lines(resource: Resource) -> list[str]:
    """Return a line for each result."""
    return [
        f"{kind:<12}{uri}{f'  {size(number)}' if number else ''}"
        for kind, uri, number in results(resource)
    ]


def claims(resource: Resource) -> list[str]:
    """Return the claims that hold the results."""
    found = [uri for _, uri, _ in results(resource) if uri.startswith(CLAIM)]
    return sorted({uri.removeprefix(CLAIM).split("/", 1)[0] for uri in found})


def is_retained(resource: Resource) -> bool:
    """Tell whether the results stay when the object is deleted."""
    if isinstance(resource, FineTuneJob):
        return resource.spec.output is None or resource.spec.output.retain is Retain.RETAIN
    return isinstance(resource, ModelExport) and resource.spec.retain is Retain.RETAIN
