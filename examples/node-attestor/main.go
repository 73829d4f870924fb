// Command node-attestor shows the node attestor at work: a real SPIRE server and agents with both plugins, TPMs in software into
// which recorded real boots are replayed, and every step that an operator takes, with the commands.
//
//	go run ./examples/node-attestor          # shows it, and leaves nothing behind
//	go run ./examples/node-attestor -hold    # keeps everything running until Ctrl-C
//
// What it needs beyond Go and a C compiler it builds, once. README.md explains the steps.
package main

import "github.com/keelson-project/keelson/examples/walkthrough"

func main() { walkthrough.Main(run) }
