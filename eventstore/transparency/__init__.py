"""What lets others hold the log to its word: the Merkle tree, signed checkpoints, tiles and proofs (RFC 6962, C2SP).

`tree`, `notes` and `proofs` are pure; `checkpoints` and `tiles` keep and read the tree in the database.
"""
