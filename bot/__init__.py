"""FokaBot: it reads along, and answers those who speak to it."""
