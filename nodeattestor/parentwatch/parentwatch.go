// Package parentwatch tells a plugin that the SPIRE that started it is gone. A SPIRE that ends in order ends its
// plugins; one that is killed leaves them behind, and a server plugin that is left behind holds the audit log and
// the pending verdicts that the next one needs.
package parentwatch

import (
	"os"
	"time"
)

// pause is how often the parent is looked at. The next SPIRE takes longer than that to come to its plugins.
const pause = 100 * time.Millisecond

// Start calls gone, once and from another goroutine, when the process that started this one has ended: the kernel
// then gives it another parent.
func Start(gone func()) { watch(os.Getppid, pause, gone) }

func watch(parent func() int, pause time.Duration, gone func()) {
	born := parent()
	go func() {
		for parent() == born {
			time.Sleep(pause)
		}
		gone()
	}()
}
