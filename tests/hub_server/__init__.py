"""A Hub on localhost: enough of its protocol that the real, unpatched clients complete a round trip against it."""

from __future__ import annotations

from hub_server.faults import Fault
from hub_server.server import HubServer


__all__ = ["Fault", "HubServer"]
