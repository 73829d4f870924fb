// Command workload-attestor shows the workload attestor at work: a real containerd, a registry, a real SPIRE server and agent with
// the plugin, and every step that an operator takes, with the commands.
//
//	go run ./examples/workload-attestor          # shows it, and leaves nothing behind
//	go run ./examples/workload-attestor -hold    # keeps everything running until Ctrl-C
//
// It needs root on Linux, because containers do. What else it needs beyond Go and a C compiler it builds, once. README.md explains
// the steps.
package main

import "github.com/keelson-project/keelson/examples/walkthrough"

func main() { walkthrough.Main(run) }
