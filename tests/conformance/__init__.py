"""Two servers on `realtime/` as the protocol authors' test suites for Engine.IO 4 and Socket.IO 5 expect them.

    python -m tests.conformance engineio --port 3000
    python -m tests.conformance socketio --port 3000

The suites lie in the repository socketio/socket.io on GitHub, in `docs/engine.io-protocol/v4-test-suite` and
`docs/socket.io-protocol/v5-test-suite`; `npm ci` and `npm test` there run them against a server on port 3000.
"""
