"""Verifier keys as the command line takes them."""

from __future__ import annotations

import click

from eventstore.transparency.notes import BadKey, VerifierKey


def verifier_key(text: str) -> VerifierKey:
    """The key that an option gives, as click wants a type; raises `click.BadParameter`."""
    try:
        return VerifierKey.parse(text)
    except BadKey as error:
        raise click.BadParameter(str(error)) from None
