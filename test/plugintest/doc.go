// Package plugintest runs the two node attestor plugins against each other as SPIRE
// does: over real go-plugin gRPC, on a real TPM's commands, with the logs of real boots,
// and with verdicts written to a real Kubernetes API. Its tests change messages on the
// way, as an attacker would, and look at everything that a refusal must leave untouched. Where it matters what SPIRE makes
// of the plugins (a server that is killed, its telemetry, validation, reconfiguration), they run in a real SPIRE server and agents.
package plugintest
