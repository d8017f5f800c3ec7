"""`finetune submit`: checked here, tried there, and then applied: all of the documents or none."""

from collections.abc import Iterator
from typing import Any

from finetune_api.errors import Refusal
from finetune_api.objects import parse, without_nulls
from finetune_cli.cluster.connection import APPLY_PATCH, MANAGER, Cluster
from finetune_cli.cluster.objects import path_of_kind
from finetune_cli.cluster.refusals import Refused
from finetune_cli.manifests import Manifest

SET_BY_SERVER = (
    "managedFields", "resourceVersion", "uid", "creationTimestamp", "generation", "selfLink",
)  # fmt: skip
FILE = "file://"
ADVICE = {
    "output": "write to a claim: pvc://claim/path",
    "destination": "write to a claim: pvc://claim/path",
    "source": "put the data on a claim (pvc://claim/path) or the hub (hf://datasets/org/name), or"
    " write it into `spec.source.inline`",
}
ELSE = "put it on a claim (pvc://claim/path) or the hub (hf://org/name)"
READS_FILES = "`finetune local run` reads files"


def submit(cluster: Cluster, manifests: list[Manifest], *, dry_run: bool) -> list[Manifest]:
    """Apply documents and say what became of each; return them as they were sent.

    Raises:
        Refusal: one of them is wrong; then none was applied.
    """
    refused: list[str] = []
    ready = []
    for manifest in manifests:
        try:
            ready.append(_checked(cluster, manifest))
        except Refusal as refusal:
            refused += _labelled(manifest, refusal)
    if refused:
        raise Refusal(refused)
    tried = []
    for manifest in ready:
        try:
            tried.append(_apply(cluster, manifest.body, dry_run=True))
        except Refused as refusal:
            refused += _labelled(manifest, refusal)
    if refused:
        raise Refusal(refused)
    for manifest, done in zip(ready, tried, strict=True):
        if not dry_run:
            done = _apply(cluster, manifest.body, dry_run=False)
        name = f"{manifest.body['kind'].lower()}/{manifest.body['metadata']['name']}"
        print(f"{name} {done}{' (dry run)' if dry_run else ''}", flush=True)
    return ready


def _labelled(manifest: Manifest, refusal: Refusal) -> list[str]:
    return [f"{manifest.path}: {manifest.label}: {problem}" for problem in refusal.problems]


def _checked(cluster: Cluster, manifest: Manifest) -> Manifest:
    """Return a document as it is sent: with its namespace, without what only the server sets.

    Raises:
        Refusal: it is wrong, or means what a cluster does not have.
    """
    problems = [_advice(path, uri) for path, uri in _files(manifest.body.get("spec"), "spec")]
    try:
        parse(manifest.body)
    except Refusal as refusal:
        raise Refusal([*refusal.problems, *problems]) from refusal
    body = without_nulls({k: v for k, v in manifest.body.items() if k != "status"})
    given = body["metadata"].get("namespace")
    if given and cluster.is_namespace_given and given != cluster.namespace:
        problems.append(
            f"`metadata.namespace`: the document says '{given}', -n says '{cluster.namespace}';"
            " leave one of them out"
        )
    if problems:
        raise Refusal(problems)
    metadata = {k: v for k, v in body["metadata"].items() if k not in SET_BY_SERVER}
    metadata["namespace"] = given or cluster.namespace
    return Manifest({**body, "metadata": metadata}, manifest.path)


def _files(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield the path and text of each location on this computer."""
    if isinstance(value, dict):
        for name, part in value.items():
            if name == "uri" and isinstance(part, str) and part.startswith(FILE):
                yield f"{path}.{name}", part
            else:
                yield from _files(part, f"{path}.{name}")
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _files(part, f"{path}[{index}]")


def _advice(path: str, uri: str) -> str:
    is_data = path == "spec.source.uri"
    block = path.split(".")[1]
    what = ADVICE[block] if is_data or block in ("output", "destination") else ELSE
    return f"`{path}`: {uri} is on this computer, no cluster can read it; {what}; {READS_FILES}"


def _apply(cluster: Cluster, body: dict[str, Any], *, dry_run: bool) -> str:
    """Apply one document; return what became of its object."""
    metadata = body["metadata"]
    path = path_of_kind(body["kind"], metadata["namespace"], metadata["name"])
    before = _content(_existing(cluster, path))
    query = {"fieldManager": MANAGER, "fieldValidation": "Strict"}
    if dry_run:
        query["dryRun"] = "All"
    after = cluster.call("PATCH", path, query=query, body=body, content_type=APPLY_PATCH)
    if before is None:
        return "created"
    return "unchanged" if before == _content(after) else "configured"


def _existing(cluster: Cluster, path: str) -> dict[str, Any] | None:
    try:
        return cluster.get(path)
    except Refused as refused:
        if refused.status == 404:
            return None
        raise


def _content(body: dict[str, Any] | None) -> Any:
    """Return what a user writes of an object; None if there is none."""
    if body is None:
        return None
    metadata = {k: v for k, v in body["metadata"].items() if k not in SET_BY_SERVER}
    return metadata, body["spec"]
