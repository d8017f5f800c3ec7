"""An API server in memory: objects by path, refusals by script; enough for what the operator calls."""

from typing import Any

import orjson

from finetune_operator.cluster.client import ApiError, Changed


class FakeApiServer:
    """Objects by their path, and every write that was asked for."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.refusals: dict[str, ApiError] = {}
        self.writes: list[tuple[str, str]] = []
        self.version = 100

    async def get(self, path: str, **parameters: str) -> bytes:
        if parameters:
            return orjson.dumps({"items": []})
        if path not in self.objects:
            raise ApiError(404, f"{path} not found")
        return orjson.dumps(self.objects[path])

    async def create(self, path: str, body: dict[str, Any]) -> bytes:
        name = f"{path}/{body['metadata']['name']}"
        self.writes.append(("POST", name))
        for part, error in self.refusals.items():
            if part in name:
                raise error
        if name in self.objects:
            raise Changed(409, "there already", reason="AlreadyExists")
        return self._stored(name, body)

    async def apply(self, path: str, body: dict[str, Any]) -> bytes:
        self.writes.append(("APPLY", path))
        name = path.removesuffix("/status")
        if name not in self.objects:
            raise ApiError(404, f"{name} not found")
        return self._stored(name, {**self.objects[name], "status": body["status"]})

    async def patch(self, path: str, body: dict[str, Any]) -> bytes:
        self.writes.append(("PATCH", path))
        there = self.objects[path]
        meta = {**there["metadata"], "finalizers": body["metadata"]["finalizers"]}
        return self._stored(path, {**there, "metadata": meta})

    async def delete(self, path: str, **options: Any) -> None:
        self.writes.append(("DELETE", path))
        self.objects.pop(path, None)

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
