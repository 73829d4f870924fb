package workloadplugin

import (
	"errors"
	"sync"

	"github.com/keelson-project/keelson/workloadattestor/procinfo"
)

// podWithoutClaims identifies a pod's container that gets no claims, by its ID or its cgroup. It is "" for processes of the host.
// A workload chooses neither.
func (o outcome) podWithoutClaims() string {
	var cgroup *procinfo.PodCgroup
	if errors.As(o.notOurs, &cgroup) {
		return cgroup.Cgroup
	}
	return o.container
}

// maxTold bounds what once remembers. A node runs a few hundred containers at most.
const maxTold = 1024

// once remembers what was reported. It is safe for concurrent use.
type once struct {
	mu   sync.Mutex
	seen map[string]bool
	ring []string // of seen, the oldest at next once it is full
	next int
}

// first reports whether key is new. The empty key never is. A new key takes the place of the oldest one when there are maxTold.
func (o *once) first(key string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if key == "" || o.seen[key] {
		return false
	}
	if o.seen == nil {
		o.seen = map[string]bool{}
	}
	if len(o.ring) < maxTold {
		o.ring = append(o.ring, key)
	} else {
		delete(o.seen, o.ring[o.next])
		o.ring[o.next] = key
		o.next = (o.next + 1) % maxTold
	}
	o.seen[key] = true
	return true
}
