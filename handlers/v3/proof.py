"""The proof of a message, for those who may read it: `GET /api/v3/proof/<message_id>`."""

from __future__ import annotations

from chat.refusals import Reason, Refused
from eventstore.transparency.published import NotCovered, NothingToProve
from handlers.http import JsonHandler
from handlers.services import Services
from handlers.v3.answers import REFUSALS
from handlers.v3.bearer import bearer_token
from handlers.v3.bodies import whole_id

_NOT_YET = "No checkpoint covers the message yet, try again!"
_RETRY_SECONDS = "2"


class ProofHandler(JsonHandler):
    """Answers the proof (C2SP tlog-proof) and the opening of a message."""

    refusals = REFUSALS
    services: Services

    async def get(self, message_id: str) -> None:
        """Looks at the id, then at the token, then at the message and the right to read it, as all of V3 does."""
        with self.services.in_flight:
            number = whole_id(message_id)
            account = await self.services.commands.authenticate(bearer_token(self.request))
            message = await self.services.reading.message(account, number)
            try:
                proof, opening = await self.services.published.prove(message.message_id)
            except NotCovered:
                self.set_header("Retry-After", _RETRY_SECONDS)
                self.reply(503, {"message": _NOT_YET})
            except NothingToProve:
                # Erased since it was read.
                raise Refused(Reason.MESSAGE_NOT_FOUND) from None
            else:
                self.reply(200, {"proof": proof.text(), "opening": opening})
