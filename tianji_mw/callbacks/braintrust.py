"""Braintrust: every call as an event of a project's log; attempts are spans of it where there were several.

Source: Braintrust's API reference (`POST /v1/project`, `POST /v1/project_logs/{id}/insert`), and what its SDK sends.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final
from urllib.parse import quote, urlsplit

import orjson
from pydantic import PrivateAttr

from tianji_mw.callbacks._groups import ODD, Delivery, Item, Limits, built, groups, joined
from tianji_mw.callbacks.base import NotDelivered, Record
from tianji_mw.callbacks.braintrust_events import events_of
from tianji_mw.callbacks.record import content
from tianji_mw.callbacks.service import HttpCallback

#: Older gateways of theirs take 6 MB.
_LIMITS: Final = Limits(1000, 5_900_000)
_PROJECTS: Final = 1000
_ID: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class Braintrust(HttpCallback):
    """Sends calls to Braintrust.

    >>> Braintrust(api_key="sk-...", project="gateway")
    """

    title: ClassVar[str] = "Braintrust"
    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "api_key": ("BRAINTRUST_API_KEY",),
        "api_base": ("BRAINTRUST_API_BASE", "BRAINTRUST_API_URL"),
        "project": ("BRAINTRUST_PROJECT",),
    }
    aliases: ClassVar[Mapping[str, str]] = {
        "braintrust_api_key": "api_key",
        "braintrust_api_base": "api_base",
        "braintrust_project": "project",
        "project_name": "project",
    }

    #: `/v1` is added where it has no path. Europe: https://api-eu.braintrust.dev/v1.
    api_base: str = "https://api.braintrust.dev/v1"
    #: Its name: it is made where there is none. A request's metadata may name another one, or its id.
    project: str = "litellm"
    #: The id goes before the name.
    project_id: str = ""

    _projects: dict[str, str] = PrivateAttr(default_factory=dict)

    async def write(self, batch: Sequence[Record]) -> None:
        items, refused = await built(batch, _build, _LIMITS)
        delivery = Delivery(self.title, refused)
        for (name, project_id), members in self._by_project(items).items():
            if delivery.halted:
                delivery.failed += [item.record for item in members]
                continue
            try:
                found = project_id or await self._resolved(name)
            except NotDelivered as problem:
                delivery.missed([item.record for item in members], problem)
                continue
            url = self._url(f"/project_logs/{quote(found, safe='')}/insert")

            async def send(group: list[Item], url: str = url) -> None:
                await self.post(url, b'{"events":[%b]}' % joined(group), self._login())

            await delivery.send(groups(members, _LIMITS), send)
        delivery.done()

    def _by_project(self, items: Sequence[Item]) -> dict[tuple[str, str], list[Item]]:
        """The items by name and id of their project; one of both is empty."""
        found: dict[tuple[str, str], list[Item]] = {}
        for item in items:
            asked = content.requester_metadata(item.record)
            named = content.word(asked.get("project_id"))
            if named is not None and _ID.fullmatch(named):
                key = ("", named.lower())
            elif (name := content.word(asked.get("project_name"))) is not None:
                key = (name[:255], "")
            else:
                key = ("", self.project_id) if self.project_id else (self.project, "")
            found.setdefault(key, []).append(item)
        return found

    async def _resolved(self, name: str) -> str:
        """The id of the project of this name; asked for once. Raises NotDelivered."""
        if (known := self._projects.get(name)) is not None:
            return known
        answer = await self.post(self._url("/project"), {"name": name}, self._login())
        try:
            found = orjson.loads(answer.content)["id"]
        except ODD:
            found = None
        if not isinstance(found, str) or not found:
            raise NotDelivered(f"{self.title} answered without the id of the project")
        while len(self._projects) >= _PROJECTS:
            del self._projects[next(iter(self._projects))]
        self._projects[name] = found
        return found

    def failure(self, response: Any) -> NotDelivered:
        if response.status_code == 404:
            self._projects.clear()  # a project that was deleted is made anew
        return super().failure(response)

    def _login(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.api_key.reveal()}"} if self.api_key is not None else {}

    def _url(self, path: str) -> str:
        base = self.api_base.rstrip("/")
        return f"{base}{'' if urlsplit(base).path else '/v1'}{path}"


def _build(record: Record) -> list[bytes]:
    events = [orjson.dumps(event) for event in events_of(record)]
    if len(events) > _LIMITS.count or sum(map(len, events)) + len(events) > _LIMITS.size:
        events = [orjson.dumps(event) for event in events_of(record, brief=True)]
    return events
