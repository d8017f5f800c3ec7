"""The authorities in their Secret, shared by all replicas, and this replica's own certificate."""

import asyncio
import base64
import logging
import os
import ssl
from collections.abc import Callable
from datetime import datetime
from typing import Any

import orjson

from finetune_operator.cluster.client import ApiError, ApiServer, path_of
from finetune_operator.permissions import SECRET
from finetune_operator.progress import certificates
from finetune_operator.progress.certificates import Authority

CERTIFICATES, KEYS = "ca.crt", "ca.key"
REFRESH_SECONDS = 300.0

log = logging.getLogger(__name__)


class Identity:
    """Who the receiver is to those that report."""

    def __init__(
        self,
        api: ApiServer,
        namespace: str,
        host: str,
        clock: Callable[[], datetime] = certificates.utc_now,
    ) -> None:
        """Read nothing yet; `host` is what the certificates are for."""
        self._api, self._namespace, self._host, self._clock = api, namespace, host, clock
        self._authorities: list[Authority] = []
        self._signed_by: Authority | None = None
        self._renew_at = clock()
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.minimum_version = ssl.TLSVersion.TLSv1_2

    @property
    def bundle(self) -> str:
        """Certificates that a step is to trust; empty before `refresh`."""
        return certificates.bundle(self._authorities)

    async def keep(self) -> None:
        """Refresh now and then until cancelled."""
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            try:
                await self.refresh()
            except ApiError as error:
                log.warning("The receiver's authorities were not read: %s", error)

    async def refresh(self) -> None:
        """Read the authorities, make what is missing, serve with a certificate that lasts.

        Raises:
            ApiError: the Secret could be neither read nor written.
        """
        for _ in range(3):  # another replica may write at the same time
            secret = await self._secret()
            there = _authorities_of(secret)
            wanted = certificates.renewed(there, self._clock())
            if wanted == there or await self._written(secret, wanted):
                self._authorities = wanted
                break
        now, signer = self._clock(), certificates.signing(self._authorities, self._clock())
        if signer != self._signed_by or now >= self._renew_at:
            self._load(certificates.serving_certificate(signer, self._host, now))
            self._signed_by = signer
            self._renew_at = now + certificates.LEAF_LIFE / 3

    def _load(self, pem: bytes) -> None:
        """Serve new connections with a certificate; Python reads it from a file only."""
        file = os.memfd_create("certificate")
        try:
            os.write(file, pem)
            self.tls.load_cert_chain(f"/proc/self/fd/{file}")
        finally:
            os.close(file)

    async def _secret(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = orjson.loads(
                await self._api.get(path_of("secrets", self._namespace, SECRET))
            )
        except ApiError as error:
            if error.status == 404:
                return None
            raise
        return found

    async def _written(self, secret: dict[str, Any] | None, wanted: list[Authority]) -> bool:
        """Write the authorities; False: another replica did meanwhile."""
        texts = {
            CERTIFICATES: certificates.bundle(wanted),
            KEYS: certificates.keys(wanted),
        }
        data = {name: base64.b64encode(text.encode()).decode() for name, text in texts.items()}
        try:
            if secret is None:
                metadata = {"name": SECRET, "namespace": self._namespace}
                body = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data}
                await self._api.create(path_of("secrets", self._namespace), body)
            else:
                path = path_of("secrets", self._namespace, SECRET)
                await self._api.call("PUT", path, body={**secret, "data": data})
        except ApiError as error:
            if error.status in (404, 409):
                return False
            raise
        log.info("Authorities of the receiver: %d", len(wanted))
        return True


def _authorities_of(secret: dict[str, Any] | None) -> list[Authority]:
    """Return the authorities of a Secret; of a broken one none: new ones are made."""
    data = (secret or {}).get("data") or {}
    try:
        texts = [base64.b64decode(data.get(name, "")) for name in (CERTIFICATES, KEYS)]
        return certificates.read(*texts)
    except ValueError as error:
        log.warning("Secret %s is broken (%s); new authorities are made", SECRET, error)
        return []
