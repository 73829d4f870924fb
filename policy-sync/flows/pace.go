package flows

import "time"

// After a change the table is swept often, with growing pauses, and then slowly as long as an address is revoked.
const (
	// FastPhase is how long after a change Felix is given to program the drop. What stands after it is reported.
	FastPhase = 10 * time.Second
	// SlowPeriod is the pause between later sweeps.
	SlowPeriod = 5 * time.Second

	shortest = 20 * time.Millisecond
	longest  = time.Second
)

// Pause is how long to wait after a sweep that ended so long after the last change and took so long. In the fast phase it is a
// quarter of the time since the change: when the drop comes, what it lets nobody open again is cut no later than a quarter of
// Felix's own time after it. A sweep that takes long waits as long as it took, so that sweeping never takes more than half a core.
func Pause(sinceChange, took time.Duration) time.Duration {
	if sinceChange >= FastPhase {
		return max(SlowPeriod, took)
	}
	return max(min(max(sinceChange/4, shortest), longest), took)
}
