// Package plugintest runs the two node attestor plugins against each other as SPIRE
// does: over real go-plugin gRPC, on a real TPM's commands, with the logs of real boots,
// and with verdicts written to a real Kubernetes API. Its tests change messages on the
// way, as an attacker would, and look at everything that a refusal must leave untouched.
package plugintest
