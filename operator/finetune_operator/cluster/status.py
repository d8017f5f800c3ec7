"""Writing a status: exactly what differs, on exactly the object that was looked at."""

from typing import Any

import orjson

from finetune_operator.cluster.cache import Cache
from finetune_operator.cluster.client import FIELD_MANAGER, ApiServer, path_of_kind
from finetune_operator.cluster.records import Custom
from finetune_operator.plan import Key


def difference(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return the merge patch (RFC 7386) that makes `new` of `old`."""
    patch: dict[str, Any] = {name: None for name in old.keys() - new.keys()}
    for name, value in new.items():
        there = old.get(name)
        if isinstance(value, dict) and isinstance(there, dict):
            if changed := difference(there, value):
                patch[name] = changed
        elif value != there:
            patch[name] = value
    return patch


async def write_status(
    api: ApiServer,
    cache: Cache,
    key: Key,
    record: Custom,
    status: dict[str, Any],
    *,
    manager: str = FIELD_MANAGER,
) -> bool:
    """Make `status` the status of an object; return whether there was anything to write.

    Raises:
        Changed: it is not the object, or no longer the version, that `record` is a copy of.
    """
    changes = difference(orjson.loads(record.status), status)
    if not changes:
        return False
    meta = record.metadata
    # With the version: what was decided on an old copy must not be written.
    body = {
        "metadata": {"uid": meta.uid, "resourceVersion": meta.resource_version},
        "status": changes,
    }
    path = f"{path_of_kind(key.kind, key.namespace, key.name)}/status"
    cache.learn_custom(key.kind, await api.patch(path, body, manager=manager))
    return True
