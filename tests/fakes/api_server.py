"""An API server in memory: objects by path, refusals by script; enough for what the operator calls."""

from typing import Any

import orjson

from finetune_operator.cluster.client import ApiError, Changed


def merged_patch(there: Any, patch: Any) -> Any:
    """Return an object with a merge patch on it."""
    if not isinstance(patch, dict):
        return patch
    old = there if isinstance(there, dict) else {}
    both = {**old, **{name: merged_patch(old.get(name), value) for name, value in patch.items()}}
    return {name: value for name, value in both.items() if value is not None}


class FakeApiServer:
    """Objects by their path, and every write that was asked for."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.refusals: dict[str, ApiError] = {}
        self.writes: list[tuple[str, str]] = []
        self.version = 100

    async def get(self, path: str, **parameters: str) -> bytes:
        if parameters:
            return orjson.dumps({"metadata": {"resourceVersion": "1"}, "items": []})
        if path not in self.objects:
            raise ApiError(404, f"{path} not found")
        return orjson.dumps(self.objects[path])

    async def create(self, path: str, body: dict[str, Any]) -> bytes:
        name = f"{path}/{body['metadata']['name']}"
        self.writes.append(("POST", name))
        self._refuse(name)
        if name in self.objects:
            raise Changed(409, "there already", reason="AlreadyExists")
        return self._stored(name, body)

    async def patch(self, path: str, body: dict[str, Any], *, manager: str = "") -> bytes:
        """Merge (RFC 7386), on the version that is named if one is."""
        self.writes.append(("PATCH", path))
        self._refuse(path)
        name = path.removesuffix("/status")
        if name not in self.objects:
            raise ApiError(404, f"{name} not found")
        there = self.objects[name]
        wanted = body["metadata"].get("resourceVersion", there["metadata"]["resourceVersion"])
        if wanted != there["metadata"]["resourceVersion"]:
            raise Changed(409, "the object has been modified", reason="Conflict")
        return self._stored(name, merged_patch(there, body))

    async def delete(self, path: str, **options: Any) -> None:
        self.writes.append(("DELETE", path))
        self.objects.pop(path, None)

    def _refuse(self, path: str) -> None:
        for part, error in self.refusals.items():
            if part in path:
                raise error

    def _stored(self, name: str, body: dict[str, Any]) -> bytes:
        self.version += 1
        meta = {
            "uid": f"uid-{self.version}",
            **body["metadata"],
            "resourceVersion": str(self.version),
        }
        self.objects[name] = {**body, "metadata": meta}
        return orjson.dumps(self.objects[name])

    def made(self, resource: str) -> list[str]:
        """Return the names of a resource."""
        return [name.rsplit("/", 1)[1] for name in self.objects if f"/{resource}/" in name]
