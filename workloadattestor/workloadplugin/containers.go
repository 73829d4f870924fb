package workloadplugin

import (
	"sync"
	"time"

	"github.com/keelson-project/keelson/workloadattestor/runtime"
)

// containerFresh is how long the runtime's word on a container that ran is used again. What is read of it is fixed when it is
// created, but for the names of its image; and that it still runs the kernel says, which has the asking process in its cgroup.
const containerFresh = 30 * time.Second

// maxContainers bounds the containers that are remembered; a node runs a few hundred at most.
const maxContainers = 4096

// containers remembers what the runtime said of containers that ran. It is safe for concurrent use.
type containers struct {
	now   func() time.Time
	mu    sync.Mutex
	known map[string]knownContainer // by ID
}

type knownContainer struct {
	container runtime.Container
	at        time.Time
}

func (c *containers) get(id string) (runtime.Container, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k, ok := c.known[id]
	return k.container, ok && c.now().Sub(k.at) < containerFresh
}

// put remembers a container, and makes room by forgetting any other: that only costs a question.
func (c *containers) put(container runtime.Container) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known == nil {
		c.known = map[string]knownContainer{}
	}
	for other := range c.known {
		if len(c.known) < maxContainers {
			break
		}
		delete(c.known, other)
	}
	c.known[container.ID] = knownContainer{container: container, at: c.now()}
}
