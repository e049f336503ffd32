"""An HTTP/1.1 server for Tornado's applications that parses with llhttp, and Tornado's own beside it.

Knows no chat, no database and no other package of the house: what it must know of them is handed in.
"""
