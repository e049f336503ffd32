"""Engine.IO 4 and Socket.IO 5: pure protocol cores, a hub that fans out, Tornado transports, and an API on top.

Knows no chat and no database; `realtime.server` is what an application uses.
"""
