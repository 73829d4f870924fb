// Command janitor is the other life of package fleet: it waits until the program that made a cluster is gone, which ends its
// standard input, and removes what is left unless it was told that nothing is.
package main

import (
	"fmt"
	"io"
	"os"

	"github.com/keelson-project/keelson/test/cluster/fleet"
)

func main() {
	if len(os.Args) != 3 {
		_, _ = fmt.Fprintln(os.Stderr, "usage: janitor DIR BRIDGE (started by package fleet)")
		os.Exit(2)
	}
	said, err := io.ReadAll(os.Stdin)
	if err == nil && string(said) == fleet.Done {
		return
	}
	if err := fleet.Remove(os.Args[1], os.Args[2]); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "janitor:", err)
		os.Exit(1)
	}
}
