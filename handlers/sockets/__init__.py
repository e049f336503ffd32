"""Chat over Socket.IO: registration, events of the followed log, commands, recovery, and the auditors' stream."""
