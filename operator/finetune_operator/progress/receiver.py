"""The HTTPS server that running steps report to. Every replica has one; it never needs to lead.

Whoever asks is a tenant's pod: what it may send is small, seldom, and about itself alone.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable

from aiohttp import web

from finetune_operator.cluster.cache import Cache
from finetune_operator.cluster.records import Pod
from finetune_operator.manifests import labels
from finetune_operator.manifests.reporting import PATH
from finetune_operator.plan import Key
from finetune_operator.progress import wire
from finetune_operator.progress.budget import Budget
from finetune_operator.progress.tokens import PodIdentity, Refused, Tokens
from finetune_operator.progress.writer import NotRunning, ProgressWriter, Reporter
from finetune_operator.steps import train

MOST_BYTES = 64 << 10
BODY_SECONDS = 10.0
REPORTS_A_SECOND, REPORTS_AT_ONCE = 2.0, 10.0
KEPT = 20_000


class Receiver:
    """Takes reports of pods, and hands them to the writer."""

    def __init__(
        self, cache: Cache, tokens: Tokens, writer: ProgressWriter, count: Callable[[str], None]
    ) -> None:
        """Take nothing yet; `count` is told what became of each report."""
        self._cache, self._tokens, self._writer, self._count = cache, tokens, writer, count
        self._budgets: OrderedDict[str, Budget] = OrderedDict()

    async def take(self, request: web.BaseRequest) -> web.Response:
        """Answer one report."""
        if (request.method, request.path) != ("POST", PATH):
            return self._answer(404, f"reports go to POST {PATH}")
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return self._answer(401, "a bearer token is needed")
        try:
            pod = await self._tokens.pod_of(token.strip())
        except Refused as refused:
            return self._answer(503 if refused.again else 401, str(refused))
        reporter = self._reporter(pod)
        if reporter is None:
            return self._answer(403, f"pod {pod.name} trains no job")
        if not self._may_report(pod.uid):
            return self._answer(429, "this pod reports too often")
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await _body(request)
            if body is None:
                return self._answer(413, f"a report has at most {MOST_BYTES} bytes")
            self._writer.offer(reporter, wire.read(body))
        except TimeoutError:
            return self._answer(408, f"the body did not come within {BODY_SECONDS:.0f} s")
        except wire.BadReport as error:
            return self._answer(422, f"no report: {error}")
        except NotRunning as error:
            return self._answer(409, str(error))
        return self._answer(200, "taken")

    def _answer(self, status: int, message: str) -> web.Response:
        self._count(str(status))
        wait = {"Retry-After": "5"} if status in (429, 503) else {}
        return web.json_response({"message": message}, status=status, headers=wait)

    def _reporter(self, identity: PodIdentity) -> Reporter | None:
        """Return the attempt of a pod that is there, by its own name and UID."""
        pod = self._cache.pod(identity.namespace, identity.name)
        if pod is None or pod.metadata.uid != identity.uid:
            return None
        return reporter_of(pod)

    def _may_report(self, uid: str) -> bool:
        budget = self._budgets.pop(uid, None) or Budget(REPORTS_A_SECOND, REPORTS_AT_ONCE)
        self._budgets[uid] = budget
        while len(self._budgets) > KEPT:
            self._budgets.popitem(last=False)
        return budget.take()


async def _body(request: web.BaseRequest) -> bytes | None:
    """Return a body; None: it is too large, and no more of it was read."""
    if (request.content_length or 0) > MOST_BYTES:
        return None
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > MOST_BYTES:
            return None
    return bytes(body)


def reporter_of(pod: Pod) -> Reporter | None:
    """Return the attempt at training that a pod is of, by the labels that the operator gave it."""
    marks = pod.metadata.labels
    numbers = [marks.get(name, "") for name in (labels.RUN, labels.ATTEMPT)]
    if marks.get(labels.STEP) != train.STEP or not all(map(str.isdecimal, numbers)):
        return None
    key = Key(marks.get(labels.KIND, ""), pod.metadata.namespace, marks.get(labels.NAME, ""))
    return Reporter(key, marks.get(labels.UID, ""), *map(int, numbers))
