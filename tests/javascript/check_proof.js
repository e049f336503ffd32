// Checks a tlog-proof by code that is not ours: Sigstore's, which knows signed notes and inclusion proofs.
//
//   node check_proof.js VKEY < {"proof": <text>, "entry": <the leaf's entry>}
//
// It prints the checkpoint's size, and fails if anything does not hold. What is read here is what C2SP's tlog-proof and
// signed-note say of the text's form; the hashes and the signature are Sigstore's to check.

import { createPublicKey } from "node:crypto";
import { readFileSync } from "node:fs";
import { verifyCheckpoint } from "@sigstore/verify/dist/tlog/checkpoint.js";
import { verifyMerkleInclusion } from "@sigstore/verify/dist/tlog/merkle.js";

const SPKI_OF_ED25519 = Buffer.from("302a300506032b6570032100", "hex");

const { proof, entry } = JSON.parse(readFileSync(0, "utf8"));
const [name, keyId, ...key] = process.argv[2].split("+");
const publicKey = createPublicKey({
  key: Buffer.concat([SPKI_OF_ED25519, Buffer.from(key.join("+"), "base64").subarray(1)]),
  format: "der",
  type: "spki",
});

const [head] = proof.split("\n\n", 1);
const [version, index, ...hashes] = head.split("\n");
if (version !== "c2sp.org/tlog-proof@v1") throw new Error(version);

const logged = {
  canonicalizedBody: Buffer.from(entry),
  inclusionProof: {
    logIndex: index.replace("index ", ""),
    hashes: hashes.map((hash) => Buffer.from(hash, "base64")),
    checkpoint: { envelope: proof.slice(head.length + 2) },
  },
};
const checkpoint = verifyCheckpoint(logged, [{ logID: Buffer.from(keyId, "hex"), baseURL: name, publicKey }]);
if (checkpoint.origin !== name) throw new Error(checkpoint.origin);
verifyMerkleInclusion(logged, checkpoint);
console.log(String(checkpoint.logSize));
