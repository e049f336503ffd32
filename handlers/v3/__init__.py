"""Button API V3: every endpoint by its path, with the type of its body."""

from __future__ import annotations

from typing import Any

from handlers.v3 import accounts, channels, discord, dms, messages
from handlers.v3.bodies import (
    AddUser,
    Body,
    Credentials,
    DeleteMessage,
    MakeChannel,
    ReadChannel,
    ReadNewest,
    ReadSent,
    SendDirectMessage,
    SendMessage,
    SendToDiscord,
    SendToSomebodyOnDiscord,
    WithToken,
)
from handlers.v3.call import Endpoint

# The function of `/api/v3/<name>/` is called as the path is.
ENDPOINTS: dict[str, tuple[type[Body], Endpoint[Any]]] = {
    "register": (Credentials, accounts.register),
    "login": (Credentials, accounts.login),
    "generatetoken": (Credentials, accounts.generatetoken),
    "gettoken": (Credentials, accounts.gettoken),
    "senddcmsgwithtoken": (SendToDiscord, discord.senddcmsgwithtoken),
    "getmessagesforeveryone": (ReadNewest, messages.getmessagesforeveryone),
    "getmysentmessages": (ReadSent, messages.getmysentmessages),
    "readmessagesfromchannel": (ReadChannel, channels.readmessagesfromchannel),
    "deletemessage": (DeleteMessage, messages.deletemessage),
    "makechannel": (MakeChannel, channels.makechannel),
    "addusertochannel": (AddUser, channels.addusertochannel),
    "sendmessage": (SendMessage, channels.sendmessage),
    "getchannels": (WithToken, channels.getchannels),
    "getdms": (ReadNewest, dms.getdms),
    "senddm": (SendDirectMessage, dms.senddm),
    "senddcmsg": (SendToSomebodyOnDiscord, discord.senddcmsg),
    "linkdiscord": (WithToken, discord.linkdiscord),
}
# What is asked for by GET, with the token in a header.
QUERIES: dict[str, tuple[type[Body], Endpoint[Any]]] = {
    "deliveries": (ReadSent, discord.deliveries),
}
