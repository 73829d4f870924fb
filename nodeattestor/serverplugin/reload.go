package serverplugin

import (
	"github.com/keelson-project/keelson/nodeattestor/machinestate"
	"github.com/keelson-project/keelson/spireplugin/watchfile"
)

// reload reads the files of the configuration in force again. What cannot be read or is
// wrong changes nothing: the last good files stay in force, and the log says why. It returns what it has looked at.
// Attestations go on meanwhile, by the files read before.
func (p *Plugin) reload() watchfile.Sighting {
	p.mu.RLock()
	run := p.run
	p.mu.RUnlock()
	if run == nil {
		return watchfile.Sighting{}
	}
	b := builder{now: p.clock.Now().Valid}
	c := b.config(run.text, run.trustDomain.Name())
	if err := b.problems.Err(); err != nil {
		p.metrics.reloads.Inc("refused")
		p.log.Error("files changed, but are not usable: the last good ones stay in force", "error", err)
		return b.Sighting
	}
	if p.exchange(run.config, c) {
		p.warnOfKernels(c)
		p.warnOfUnread(c)
		p.metrics.reloads.Inc("ok")
		p.log.Info("files read anew", "references", len(c.policy.References), "machines", len(c.policy.Anchors.Inventory),
			"roots", len(c.policy.Anchors.Roots), "revoked", len(c.policy.Revoked), "revokedTags", len(c.policy.Tag.Revoked))
	}
	return b.Sighting
}

// exchange puts a configuration in place of the one whose files it has read anew. One that came meanwhile has read them
// itself, and stays.
func (p *Plugin) exchange(old, anew *config) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.run == nil || p.run.config != old {
		return false
	}
	next := *p.run
	next.config, next.states = anew, machinestate.NextStates(p.run.states)
	p.run = &next
	return true
}
