// Package cutter keeps the open flows of revoked addresses cut on one node: it sweeps the kernel's table after each change, again
// and again until Felix's drop is in place, and slowly afterwards as long as an address is revoked.
//
// It closes and never opens. When the Kubernetes API is away it goes on with what was known; what it cannot do it says, in the
// log, in metrics and on its health endpoints, and it tries again.
package cutter

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/keelson-project/keelson/policy-sync/flows"
)

// Table is the kernel's connection tracking table.
type Table interface {
	// Sweep deletes the entries for which cut says so.
	Sweep(cut func(*flows.Entry) bool) (flows.Swept, error)
}

// Options are what a Cutter works with. All are needed but Metrics.
type Options struct {
	// Node is the name of this node's Node object, for messages.
	Node  string
	Table Table
	// Local reads the addresses of the network namespace whose table is swept.
	Local   func() ([]netip.Addr, error)
	Log     *slog.Logger
	Metrics *Metrics
	Now     func() time.Time
}

// Cutter sweeps. Update and the health handlers may be called from anywhere; all else is one goroutine's, Run's.
type Cutter struct {
	o       Options
	changed chan struct{}

	mu    sync.Mutex
	next  flows.World // the newest
	fresh bool        // next has not been adopted
	state state

	world   flows.World
	local   map[netip.Addr]struct{}
	targets flows.Targets
	refused []flows.Refusal
	since   time.Time // of the last change of targets
	first   bool      // the next sweep is the first after it
	clean   int       // sweeps since one last found a flow that stands
}

// state is what health and metrics show.
type state struct {
	beat time.Time // when the loop was last seen alive
	// problems keep the node from cutting; warnings do not.
	problems, warnings map[string]string
}

// New makes a Cutter that knows nothing yet.
func New(o Options) *Cutter {
	return &Cutter{o: o, changed: make(chan struct{}, 1), next: flows.World{Problem: "the Kubernetes API has not answered yet"}, fresh: true,
		state: state{beat: o.Now(), problems: map[string]string{}, warnings: map[string]string{}}}
}

// Update tells what the Kubernetes API says now. The world's parts are not changed afterwards.
func (c *Cutter) Update(w flows.World) {
	c.mu.Lock()
	c.next, c.fresh = w, true
	c.mu.Unlock()
	select {
	case c.changed <- struct{}{}:
	default: // it has been told and has not looked yet
	}
}

// Run sweeps until ctx ends.
func (c *Cutter) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.changed:
			if !c.adopt() {
				continue // a change of nothing that is cut is no reason to sweep
			}
		case <-timer.C:
			c.adopt()
		}
		timer.Reset(c.step())
	}
}

// step sweeps, where anything is revoked, and says when to do it again.
func (c *Cutter) step() time.Duration {
	begun := c.o.Now()
	if c.targets.Len() > 0 {
		c.sweep()
	} else {
		c.calm()
	}
	end := c.o.Now()
	c.mu.Lock()
	c.state.beat = end
	c.mu.Unlock()
	if c.targets.Len() == 0 {
		return flows.SlowPeriod
	}
	return flows.Pause(end.Sub(c.since), end.Sub(begun))
}

// maxNamed is how many addresses a line of the log names at most.
const maxNamed = 16

// adopt makes the newest world the one that is acted on, and tells whether that changed what is cut.
func (c *Cutter) adopt() bool {
	c.mu.Lock()
	world, fresh := c.next, c.fresh
	c.fresh = false
	c.mu.Unlock()
	moved := c.look()
	if !fresh && !moved {
		return false
	}
	c.world = world
	c.conditions()
	if !world.Known {
		return false
	}
	hosts := make(map[netip.Addr]string, len(world.Hosts)+len(c.local))
	maps.Copy(hosts, world.Hosts)
	for a := range c.local {
		hosts[a] = "this node"
	}
	targets, refused := flows.Judge(world.Nets, hosts)
	c.refuse(refused)
	if targets.Equal(c.targets) {
		return false
	}
	c.o.Log.Info("revoked addresses changed", "addresses", targets.Len(), "added", targets.Beyond(c.targets), "removed", c.targets.Beyond(targets), "refused", len(refused),
		"addedAddresses", targets.Some(c.targets, maxNamed), "removedAddresses", c.targets.Some(targets, maxNamed))
	c.targets, c.since, c.first = targets, c.o.Now(), true
	c.o.Metrics.revoked(targets.Len())
	return true
}

// look reads the namespace's own addresses, and tells whether they changed. The last known ones stay when they cannot be read.
func (c *Cutter) look() bool {
	if c.local != nil && !c.settled() {
		return false // not now: a sweep is more urgent
	}
	addresses, err := c.o.Local()
	if err != nil {
		c.problem(kernel, err.Error())
		return false
	}
	local := make(map[netip.Addr]struct{}, len(addresses))
	for _, a := range addresses {
		local[a] = struct{}{}
	}
	if len(local) == len(c.local) && !slices.ContainsFunc(addresses, func(a netip.Addr) bool { _, ok := c.local[a]; return !ok }) {
		return false
	}
	c.local = local
	return true
}

// settled tells whether the fast phase is over.
func (c *Cutter) settled() bool {
	return c.targets.Len() == 0 || c.o.Now().Sub(c.since) >= flows.FastPhase
}

// conditions sets what follows from the world alone.
func (c *Cutter) conditions() {
	w := c.world
	unknown, old := w.Problem, ""
	if w.Known {
		unknown, old = "", w.Problem
	}
	c.problem(api, unknown)
	c.warning(api, old)
	ebpf, elsewhere := "", ""
	if w.EBPF {
		ebpf = "Felix runs its eBPF data plane, which keeps its own table of connections: unsupported, open flows are not cut"
	}
	if len(w.Self) > 0 && len(c.local) > 0 && !slices.ContainsFunc(w.Self, func(a netip.Addr) bool { _, ok := c.local[a]; return ok }) {
		elsewhere = fmt.Sprintf("this network namespace has none of the addresses of node %s, so no pod's flows are in its table: set hostNetwork, and check --node", c.o.Node)
	}
	c.problem(dataPlane, ebpf)
	c.problem(namespace, elsewhere)
}

// loggedRefusals bounds how many entries are named in the log for one state of the set.
const loggedRefusals = 20

// refuse says which entries of the set are not acted on, once.
func (c *Cutter) refuse(refused []flows.Refusal) {
	if slices.Equal(refused, c.refused) {
		return
	}
	for i, r := range refused {
		if i == loggedRefusals {
			c.o.Log.Warn("further entries of the set of revoked addresses are refused", "entries", len(refused)-i)
			break
		}
		if !slices.Contains(c.refused, r) {
			c.o.Log.Warn("an entry of the set of revoked addresses is refused: flows of it are not cut", "entry", r.Net, "reason", r.Reason, "why", r.Why)
		}
	}
	c.refused = refused
	c.o.Metrics.refused(refused)
}
