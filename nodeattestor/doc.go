// Package nodeattestor proves which machine a SPIRE agent runs on, and in what state
// that machine booted. This page is the protocol; the code is in the packages below.
//
// # Parties
//
// The agent plugin (agentplugin) stands on the node and is trusted for nothing: root
// there controls every byte that it sends. The node's TPM is trusted for what it signs.
// The server plugin (serverplugin) carries messages to package verify, which decides.
//
// # Messages
//
// All four kinds are versioned, strict CBOR of at most 1 MiB (package evidence).
//
//	agent -> server  Payload    EK certificate chain (or EK public area), AK public area,
//	                            banks, which logs and tag there are
//	server -> agent  Challenge  credential for (EK, AK name), 32-byte nonce, exact PCR
//	                            selection per bank, tag index, where the IMA log goes on
//	agent -> server  Response   activated secret; per bank a quote over the nonce and the
//	                            value of every selected PCR; NV_Certify of the tag index
//	                            over the same nonce, with the tag document; first chunk of the event log and the IMA log
//	server -> agent  Continue   which log, from which byte
//	agent -> server  Chunk      a piece of that log, zstd-compressed
//	  … until the event log is complete, and that of user space where there is one, and
//	    the IMA log has reached quoted PCR 10
//
// # What proves what
//
//   - EK certificate under a configured root (or EK hash in the inventory): this is a TPM
//     that the operator trusts. The EK is taken from what was verified, never from a
//     field beside it; its template comes from the TCG profile, never from the agent.
//   - Activation: TPM2_ActivateCredential gives the secret only to the TPM that has the
//     EK, and only if it holds an object with the AK's name. The name covers the AK's
//     attributes, so the AK is a restricted signing key of that TPM.
//   - Quote: a restricted key signs a TPMS_ATTEST only if the TPM made it. Nonce, exact
//     selection and composite tie the PCR values to this challenge.
//   - Event log and IMA log: each must replay to the quoted values; a fact counts only
//     where a digest in the replayed log confirms it. Event types are not hashed and decide nothing.
//     systemd's log of user space is replayed after the firmware's, and trusted no more than that.
//   - The TPM's reset counters, in the quote: none may be lower than it was for this AK.
//   - NV_Certify: the TPM itself says what the tag's NV index holds and which attributes
//     the index has, locked among them; the document's signature says what that means and for which EK.
//   - The agent's sessions with its TPM are salted with the EK that it presents, so that
//     the EK which a server believes in is also what protects the bus (package tpmdev).
//   - Inventory and NodeTrust: which Kubernetes node the EK stands for. The binding is
//     immutable without an administrator's act. The inventory says too of which class a
//     machine is: which reference sets may accept it.
//
// # Outcomes
//
// Trusted; proved bad (refused by evidence that is proved to be the node's own: the only
// thing that lowers a verdict); inconclusive (everything else: the standing verdict is
// left to expire). A refusal before the proof is an audit line and nothing more.
//
// # What it does not prove
//
// That the TPM is not attacked physically, beyond listening and writing on its bus. That the machine which answers is the one that
// asks: a relay to a good machine's TPM gives the relaying machine that node's agent
// identity, for SPIRE does not tell an attestor which key it attests; node binding keeps
// it from being any other node. What the IMA policy does not measure. That resets did not
// happen: the TPM's counters are compared with those seen last, which tells of resets in between, but a machine
// that starts anew resets its TPM too.
package nodeattestor
