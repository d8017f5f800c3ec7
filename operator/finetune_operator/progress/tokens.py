"""Whose token it is: the API server is asked once, and believed for a few minutes."""

import hashlib
import time
from collections import OrderedDict
from dataclasses import dataclass

import orjson

from finetune_operator.cluster.client import ApiError, ApiServer
from finetune_operator.manifests.reporting import AUDIENCE
from finetune_operator.progress.budget import Budget

REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"
ACCOUNT = "system:serviceaccount:"
POD_NAME, POD_UID = "authentication.kubernetes.io/pod-name", "authentication.kubernetes.io/pod-uid"
BELIEVED_SECONDS = 300.0
KEPT = 20_000
LONGEST_TOKEN = 8_000
REVIEWS_A_SECOND, REVIEWS_AT_ONCE = 50.0, 1000.0


class Refused(Exception):
    """A token is nobody's, or nothing can be said of it now (`again`)."""

    def __init__(self, message: str, *, again: bool = False) -> None:
        """Keep whether asking again later may help."""
        super().__init__(message)
        self.again = again


@dataclass(frozen=True)
class PodIdentity:
    """The pod that a token was made for."""

    namespace: str
    name: str
    uid: str


class Tokens:
    """Verifies tokens. What is believed is bounded in time and number, what is asked in rate."""

    def __init__(self, api: ApiServer) -> None:
        """Believe nothing yet."""
        self._api = api
        self._known: OrderedDict[bytes, tuple[float, PodIdentity | None]] = OrderedDict()
        self._reviews = Budget(REVIEWS_A_SECOND, REVIEWS_AT_ONCE)

    async def pod_of(self, token: str) -> PodIdentity:
        """Return the pod that a token was made for.

        Whether that pod is still there is for the caller to look up: it is asked for each report.

        Raises:
            Refused: it is not valid for us, was made for no pod, or could not be verified now.
        """
        if not token or len(token) > LONGEST_TOKEN:
            raise Refused("no token of a pod")
        digest = hashlib.sha256(token.encode()).digest()
        at, pod = self._known.get(digest, (0.0, None))
        if time.monotonic() - at >= BELIEVED_SECONDS or at == 0.0:
            if not self._reviews.take():
                raise Refused("too many new tokens at once", again=True)
            pod = await self._reviewed(token)
            self._known[digest] = (time.monotonic(), pod)
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
        if pod is None:
            raise Refused("the API server does not know this token, or not for us")
        return pod

    async def _reviewed(self, token: str) -> PodIdentity | None:
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [AUDIENCE]},
        }
        try:
            status = orjson.loads(await self._api.create(REVIEWS, body)).get("status", {})
        except ApiError as error:
            raise Refused(f"the token could not be verified: {error}", again=True) from error
        user = status.get("user", {})
        extra, name = user.get("extra") or {}, str(user.get("username", ""))
        is_ours = status.get("authenticated") is True and AUDIENCE in status.get("audiences", [])
        if (
            not is_ours
            or not name.startswith(ACCOUNT)
            or not (extra.get(POD_NAME) and extra.get(POD_UID))
        ):
            return None
        namespace = name.removeprefix(ACCOUNT).split(":", 1)[0]
        return PodIdentity(namespace, extra[POD_NAME][0], extra[POD_UID][0])
