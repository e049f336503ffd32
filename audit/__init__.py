"""The operators' and auditors' tools: the `minutebook` command line."""
