"""From an API server's refusals, and from silence, to sentences with the object and what to do."""

import json
import re
from typing import Any

from finetune_api.base import GROUP
from finetune_api.errors import Refusal
from finetune_cli.cluster.kubeconfig import Login
from finetune_cli.words import Problem, one_line, program

NOT_INSTALLED = (
    "the operator is not installed on {server}: it does not know finetune.dev/v1alpha1; let an"
    " administrator install the chart (charts/finetune-operator), or train on this computer:"
    " {program} local run FILE"
)
NOT_KNOWN = (
    "the cluster at {server} does not know you ({status}): the kubeconfig's credentials are missing,"
    " wrong or expired; log in to it again"
)
ANONYMOUS = 'User "system:anonymous"'


class Refused(Refusal):
    """The server refused what was asked, for reasons that lie in it."""

    def __init__(self, status: int, problems: list[str]) -> None:
        """Keep the status code."""
        super().__init__(problems)
        self.status = status


class Unreachable(Problem):
    """The server does not answer."""


def unreachable(error: Exception, *, server: str) -> Unreachable:
    """Return why a server cannot be reached, in one line."""
    text = f"{error} {error.__cause__ or ''}"
    if "CERTIFICATE" in text.upper() or "SSL" in text.upper():
        found = re.search(r"certificate verify failed: ([^(]+)", text)
        said = found[1].strip() if found else one_line(text, limit=200)
        why = f"no trusted connection: {said}"
    elif found := re.search(r"\[Errno -?\d+\] ([^'\")\[]+)", text):
        why = found[1].strip()
    elif "timed out" in text.lower() or "timeout" in type(error).__name__.lower():
        why = "no answer in time"
    else:
        why = one_line(str(error), limit=200)
    return Unreachable(
        f"cannot reach the cluster at {server}: {why}; check the network and the kubeconfig"
        f" (--context, KUBECONFIG), or train on this computer: {program()} local run FILE"
    )


def refuse(status: int, content: bytes, *, asked: str, login: Login) -> Problem | Refused:
    """Return what a refusal of the server means for the user."""
    answer = _answer(content)
    message = str(answer.get("message", ""))
    if status == 404 and not answer and f"/apis/{GROUP}/" in asked:
        return Problem(NOT_INSTALLED.format(server=login.server, program=program()))
    if status == 401 or (status == 403 and ANONYMOUS in message):
        said = f"; {'; '.join(login.complaints)}" if login.complaints else ""
        return Problem(NOT_KNOWN.format(server=login.server, status=status) + said)
    if status == 403:
        return Problem(_forbidden(message, asked))
    if status == 429 or status >= 500:
        said = message or one_line(content.decode(errors="replace"), limit=200)
        return Problem(f"the server failed at {asked} ({status}: {said}); try again in a moment")
    return Refused(status, _causes(answer) or [message or f"{asked}: {status}"])


def _answer(content: bytes) -> dict[str, Any]:
    """Return a refusal as the server structures it; nothing if it did not (an unknown path)."""
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) and found.get("kind") == "Status" else {}


def _forbidden(message: str, asked: str) -> str:
    found = re.search(r'cannot (\S+) resource "([^"]+)"(?: in API group "([^"]*)")?', message)
    if found is None:  # an admission plugin refuses (a quota, a policy), not the lack of a role
        return f"the server forbids {asked} (403): {one_line(message)}"
    verb, resource = found[1], f"{found[2]}.{found[3]}" if found[3] else found[2]
    where = re.search(r'in the namespace "([^"]+)"', message)
    scope = f"in namespace '{where[1]}'" if where else "in all namespaces"
    return (
        f"you may not {verb} {resource} {scope} (403); ask an administrator for a role with"
        f" that verb: {one_line(message)}"
    )


def _causes(answer: dict[str, Any]) -> list[str]:
    """Return each cause with its path, as the server says it."""
    if answer.get("reason") == "Conflict":
        return _conflicts(answer)
    causes = (answer.get("details") or {}).get("causes") or []
    problems = []
    for cause in causes:
        field = str(cause.get("field", ""))
        where = "object" if field in ("", "<nil>") else field
        problems.append(f"`{where}`: {one_line(str(cause.get('message', '')))}")
    return problems


def _conflicts(answer: dict[str, Any]) -> list[str]:
    causes = (answer.get("details") or {}).get("causes") or []
    return [
        f"`{str(cause.get('field', '')).lstrip('.')}`: {cause.get('message', '')}: that value was set"
        " otherwise than by this command and differs; leave the field out, set the same value, or"
        " take it over: kubectl apply --server-side --force-conflicts --field-manager=finetune -f FILE"
        for cause in causes
    ] or [str(answer.get("message", "")) + "; try again"]
