package serverplugin

import (
	"github.com/keelson-project/keelson/nodeattestor/machinestate"
	"github.com/keelson-project/keelson/nodeattestor/serverconfig"
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
	c, seen, problems := serverconfig.Read(run.Text, run.TrustDomain.Name(), p.clock.Now().Valid)
	if err := problems.Err(); err != nil {
		p.metrics.reloads.Inc("refused")
		p.log.Error("files changed, but are not usable: the last good ones stay in force", "error", err)
		return seen
	}
	if p.exchange(run.Config, c) {
		p.warn(c)
		p.metrics.reloads.Inc("ok")
		p.log.Info("files read anew", "references", len(c.Policy.References), "machines", len(c.Policy.Anchors.Inventory),
			"roots", len(c.Policy.Anchors.Roots), "revoked", len(c.Policy.Revoked), "revokedTags", len(c.Policy.Tag.Revoked))
	}
	return seen
}

// exchange puts a configuration in place of the one whose files it has read anew. One that came meanwhile has read them
// itself, and stays.
func (p *Plugin) exchange(old, anew *serverconfig.Config) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.run == nil || p.run.Config != old {
		return false
	}
	next := *p.run
	next.Config, next.states = anew, machinestate.NextStates(p.run.states)
	p.run = &next
	return true
}
