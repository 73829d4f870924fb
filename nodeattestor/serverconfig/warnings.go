package serverconfig

import (
	"strings"

	"github.com/keelson-project/keelson/nodeattestor/ek"
)

// Warning is what a person should know of a configuration that works: a line for a log, and its details as keys and values.
type Warning struct {
	Message string
	Details []any
}

// maxUnread bounds how many files a warning names.
const maxUnread = 20

// Warnings are all of a configuration.
func (c *Config) Warnings() []Warning {
	var out []Warning
	if c.Kube == nil && c.StateDir == "" && len(c.Policy.Tag.Signers) > 0 {
		out = append(out, Warning{"without state_dir or kubernetes, an older asset tag that is put back is believed after the server has started again", nil})
	}
	var weak []string // sets whose bank is a broken hash
	for _, s := range c.Policy.References {
		if s.Bank().Weak() {
			weak = append(weak, s.Name())
		}
	}
	if len(weak) > 0 {
		out = append(out, Warning{"these reference sets rest on SHA-1, whose collisions are practical; capture them anew with another bank", []any{"sets", weak}})
	}
	for _, s := range c.Policy.References { // as sets captured before 2026-11-29 may
		if why := s.KernelWarning(); why != "" {
			out = append(out, Warning{"reference set pins no kernel", []any{"set", s.Name(), "why", why}})
		}
	}
	if n := len(c.Unread); n > 0 { // a node of a maker that is left out is refused
		out = append(out, Warning{"these files beside certificates are not read: name them " + strings.Join(ek.CertificateFiles, ", "),
			[]any{"files", c.Unread[:min(n, maxUnread)], "count", n}})
	}
	return out
}
