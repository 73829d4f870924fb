package cutter

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/keelson-project/keelson/policy-sync/flows"
)

// shownFlows bounds how many flows a message names.
const shownFlows = 5

// sweep cuts what is open now, and says what came of it.
func (c *Cutter) sweep() {
	begun := c.o.Now()
	var opened, standing int
	var shown []string
	swept, err := c.o.Table.Sweep(func(e *flows.Entry) bool {
		if !c.targets.Match(e) {
			return false
		}
		if c.targets.Opener(e) {
			opened++
		}
		if c.targets.Stands(e, c.local) {
			if standing++; len(shown) < shownFlows {
				shown = append(shown, describe(e))
			}
		}
		return true
	})
	end := c.o.Now()
	c.o.Metrics.sweep(swept, opened, end.Sub(begun), err)
	failure := ""
	if err != nil {
		failure = err.Error()
	}
	c.problem(kernel, failure)
	if c.settled() {
		c.judge(standing, shown)
	}
	attributes := []any{"addresses", c.targets.Len(), "cut", swept.Cut, "entries", swept.Entries,
		"took", end.Sub(begun).Round(time.Microsecond).String(), "sinceChange", end.Sub(c.since).Round(time.Microsecond).String()}
	switch {
	case c.first, swept.Cut > 0 && !c.settled():
		c.o.Log.Info("swept", attributes...)
	default:
		c.o.Log.Debug("swept", attributes...)
	}
	c.first = c.first && err != nil
}

// cleanSweeps is how many slow sweeps in a row find nothing before the drop counts as in place: what is opened again now and
// then is said once.
const cleanSweeps = 6

// judge says, once, that flows of revoked addresses are still let through long after the change, and once that they are not any
// more.
func (c *Cutter) judge(standing int, shown []string) {
	c.o.Metrics.stand(standing)
	if standing == 0 {
		if c.clean++; c.clean >= cleanSweeps {
			c.calm()
		}
		return
	}
	c.clean = 0
	c.mu.Lock()
	said := c.state.warnings[drop] != ""
	c.mu.Unlock()
	if !said {
		c.warning(drop, fmt.Sprintf("flows of revoked addresses are opened again after they were cut (%s): Felix has not programmed the drop here, "+
			"or the other end is in a namespace that is not enrolled", strings.Join(shown, ", ")))
	}
}

// calm takes back that anything stands.
func (c *Cutter) calm() {
	c.clean = 0
	c.o.Metrics.stand(0)
	c.warning(drop, "")
}

func describe(e *flows.Entry) string {
	end := func(a netip.Addr, port uint16) string { return netip.AddrPortFrom(a, port).String() }
	return fmt.Sprintf("protocol %d, %s to %s", e.Protocol, end(e.Original.Source, e.Original.SourcePort), end(e.Reply.Source, e.Reply.SourcePort))
}

// Names of conditions: the values of a metric's label, and the first word of a line of the health endpoints.
const (
	api       = "api"       // what is revoked is not known, or may be old
	kernel    = "kernel"    // the table could not be read, or entries not deleted
	namespace = "namespace" // it is not the host's
	dataPlane = "dataplane" // Calico's eBPF
	drop      = "drop"      // Felix lets through what is revoked
)

func conditions() []string { return []string{api, kernel, namespace, dataPlane, drop} }

func (c *Cutter) problem(name, text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.condition(c.state.problems, "not cutting open flows", name, text)
}

func (c *Cutter) warning(name, text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.condition(c.state.warnings, "cutting open flows, but", name, text)
}

// condition sets one condition, and logs it when it changes.
func (c *Cutter) condition(set map[string]string, message, name, text string) {
	before := set[name]
	if before == text {
		return
	}
	if text == "" {
		delete(set, name)
		c.o.Log.Info("condition is over", "condition", name, "was", before)
	} else {
		set[name] = text
		c.o.Log.Warn(message, "condition", name, "why", text)
	}
	c.o.Metrics.condition(name, c.state.problems[name] != "" || c.state.warnings[name] != "")
}

// lines are the conditions as sorted lines of text.
func lines(set map[string]string) []string {
	var out []string
	for name, text := range set {
		out = append(out, name+": "+text)
	}
	slices.Sort(out)
	return out
}
