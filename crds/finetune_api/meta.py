"""Object metadata, as far as we read it."""

from pydantic import ConfigDict

from finetune_api.base import GROUP, Model

BASE_FOLDER_ANNOTATION = f"{GROUP}/base-folder"
"""Under `finetune local`: the folder that relative `file://` locations of the object start from."""


class Metadata(Model):
    """Metadata of an object; what we do not read is kept by whoever stores the object."""

    model_config = ConfigDict(extra="ignore")

    name: str
    namespace: str = "default"
    uid: str = ""
    generation: int = 1
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"
