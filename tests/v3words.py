"""What the document says: its endpoints, its requests that need a token, and its answers, copied from it by hand.

Nothing here is taken from the code that it is held against.
"""

from __future__ import annotations

import re
from typing import Any

Fields = dict[str, Any]
Said = tuple[int, dict[str, Any]]

# Which endpoints there are is the document's to say, not the code's.
ALL = [
    "register",
    "login",
    "generatetoken",
    "gettoken",
    "senddcmsgwithtoken",
    "getmessagesforeveryone",
    "getmysentmessages",
    "readmessagesfromchannel",
    "deletemessage",
    "makechannel",
    "addusertochannel",
    "sendmessage",
    "getchannels",
    "getdms",
    "senddm",
    "senddcmsg",
]
# And what it knows nothing of.
BEYOND_IT = ["linkdiscord"]
BY_PASSWORD = ["register", "login", "generatetoken", "gettoken"]
# Every request of the document that needs a token, with what else it takes.
WITH_TOKEN: list[tuple[str, Fields]] = [
    ("senddcmsgwithtoken", {"message": "your_message"}),
    ("getmessagesforeveryone", {"count": "5"}),
    ("getmysentmessages", {}),
    ("readmessagesfromchannel", {"message_id": "1"}),
    ("deletemessage", {"message_id": "1"}),
    ("makechannel", {"name": "your_channel_name"}),
    ("addusertochannel", {"name": "your channels name", "username": "username of person to add"}),
    ("readmessagesfromchannel", {"name": "channel name", "count": "5"}),
    ("sendmessage", {"message": "your message", "channel": "channel name"}),
    ("getchannels", {}),
    ("getdms", {"count": "5"}),
    ("senddm", {"username": "user_to_dm", "message": "message_to_send"}),
    ("senddcmsg", {"channel": "channel_to_send_to", "message": "message_to_send"}),
    ("senddcmsg", {"channel": "user_to_dm", "message": "message_to_send"}),
]
NEEDS_DISCORD = [(endpoint, fields) for endpoint, fields in WITH_TOKEN if endpoint.startswith("senddc")]

WEAK_PASSWORD: Said = (
    411,
    {
        "message": "Password needs to have 8-20 chars minimum one number minimum one capital letter "
        "minimum one special symbol no empty symbols!"
    },
)
BAD_USERNAME: Said = (411, {"message": "Username needs to be 3-20 chars long!"})
USER_EXISTS: Said = (401, {"message": "User exists!"})
WRONG_CREDENTIALS: Said = (401, {"message": "Invalid username or password!"})
INVALID_TOKEN: Said = (401, {"message": "Invalid token!"})
MESSAGE_NOT_FOUND: Said = (404, {"message": "Message not found!"})
CHANNEL_NOT_FOUND: Said = (404, {"message": "Channel not found!"})
USER_NOT_FOUND: Said = (404, {"message": "User not found!"})
NOT_IN_CHANNEL: Said = (401, {"message": "You are not in this channel!"})
NOT_ALLOWED: Said = (403, {"message": "Your not allowed to read this message!"})
CHANNEL_EXISTS: Said = (409, {"message": "Channel exists!"})
REGISTERED: Said = (201, {"message": "User registered successfully!"})
SENT: Said = (200, {"message": "Message sent!"})
DM_SENT: Said = (200, {"message": "Dm message sent!"})
SENT_TO_DISCORD: Said = (200, {"message": "Sent message!"})
NOT_REACHABLE: Said = (400, {"message": "Invalid input or user not in channel"})
NO_DISCORD: Said = (503, {"message": "Discord is not configured!"})
DELETED: Said = (200, {"message": "Message deleted!"})

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
NO_SUCH_TOKEN = "8e27530f-309d-44c6-93c9-650b6fddf025"
