"""What can go wrong on the way: chosen requests fail, wait, or lose their connection."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from aiohttp import web


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Fault:
    """
    One way to fail, for the next requests that match.

    Args:
        match (`str`): regular expression that is searched in `"METHOD /path"`.
        status (`int`, *optional*): answer with this status instead.
        retry_after (`int`, *optional*): the answer's `Retry-After`, in seconds.
        cut (`bool`): close the connection when half of the body has arrived, without an answer.
        wait (`float`): answer so many seconds later than usual.
        after (`int`): matching requests that pass unharmed before the first that fails.
        times (`int`): requests that fail; the default is more than any client tries.
    """

    match: str
    status: int | None = None
    retry_after: int | None = None
    cut: bool = False
    wait: float = 0.0
    after: int = 0
    times: int = 1_000


@dataclass
class Faults:
    """The faults that are armed, in the order in which they are tried, as an aiohttp middleware."""

    armed: list[Fault] = field(default_factory=list)

    def middleware(self) -> Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]:
        """What aiohttp calls around every handler."""

        @web.middleware
        async def fail(request: web.Request, handler: Handler) -> web.StreamResponse:
            fault = self._due(f"{request.method} {request.path}")
            if fault is None:
                return await handler(request)
            await asyncio.sleep(fault.wait)
            if fault.cut:
                await _cut(request)
            if fault.status is None:
                return await handler(request)
            headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
            return web.json_response({"error": "as told"}, status=fault.status, headers=headers)

        return fail

    def _due(self, said: str) -> Fault | None:
        for fault in self.armed:
            if re.search(fault.match, said):
                if fault.after > 0:
                    fault.after -= 1
                elif fault.times > 0:
                    fault.times -= 1
                    return fault
        return None


async def _cut(request: web.Request) -> None:
    await request.content.read((request.content_length or 2) // 2)
    if request.transport is not None:
        request.transport.abort()
