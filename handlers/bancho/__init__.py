"""Bancho API v1: every endpoint by its name in the path."""

from __future__ import annotations

from handlers.bancho import internal, public
from handlers.bancho.call import Endpoint

# The function of `/api/v1/<name>` is called what it does; the names in the path are the document's.
ENDPOINTS: dict[str, Endpoint] = {
    "isOnline": public.is_online,
    "onlineUsers": public.online_users,
    "serverStatus": public.server_status,
    "ciTrigger": internal.ci_trigger,
    "fokabotMessage": internal.fokabot_message,
    "verifiedStatus": internal.verified_status,
}
