package trustgraph

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// nodeAlias reports whether an entry stands for nodes: SPIRE takes an entry under the server's own ID for one
// (pkg/server/authorizedentries, isNodeAlias, v1.15.3).
func nodeAlias(e snapshot.Entry) bool { return pathOf(e.ParentID) == "spire/server" }

// pathOf is the path of a SPIFFE ID, without the slash at its beginning.
func pathOf(id string) string {
	_, path, _ := strings.Cut(strings.TrimPrefix(id, "spiffe://"), "/")
	return path
}

// Issuers returns the IDs of the agents that SPIRE lets issue an identity (a whole SPIFFE ID), sorted. An agent that has not attested and
// is the parent of an entry is one of them.
func Issuers(s *snapshot.SPIRE, id string) []string {
	var out []string
	for _, i := range newIssuable(s).of(id) {
		out = append(out, i.agent.ID)
	}
	return out
}

// issuable works out which agents SPIRE lets issue a SPIFFE ID, as the server does (pkg/server/authorizedentries, v1.15.3): an
// agent may issue what is parented to itself, to a node alias all of whose selectors the agent has, and to whatever it may issue.
type issuable struct {
	byID    map[string][]snapshot.Entry
	aliases map[string][]snapshot.Entry
	agents  []snapshot.Agent
}

func newIssuable(s *snapshot.SPIRE) issuable {
	out := issuable{byID: map[string][]snapshot.Entry{}, aliases: map[string][]snapshot.Entry{}, agents: s.Agents}
	for _, e := range s.Entries {
		if nodeAlias(e) {
			out.aliases[e.SPIFFEID] = append(out.aliases[e.SPIFFEID], e)
		} else {
			out.byID[e.SPIFFEID] = append(out.byID[e.SPIFFEID], e)
		}
	}
	return out
}

// issuer is an agent that may issue an ID.
type issuer struct {
	agent snapshot.Agent
	// entry is the ID of the entry that is parented to the agent, or of the node alias that it belongs to.
	entry string
	// known is false for an agent that is the parent of an entry and that the server does not know: it may attest at any time.
	known bool
}

// of returns the agents that may be issued the ID, sorted, each once. It follows the chain of parents upwards, each ID once, so
// that a circle ends.
func (i issuable) of(id string) []issuer {
	found := map[string]issuer{}
	add := func(a snapshot.Agent, entry string, known bool) {
		if have, ok := found[a.ID]; !ok || entry < have.entry {
			found[a.ID] = issuer{a, entry, known}
		}
	}
	known := map[string]snapshot.Agent{}
	for _, a := range i.agents {
		known[a.ID] = a
	}
	seen, next := map[string]bool{}, slices.Clone(i.byID[id])
	for len(next) > 0 {
		entry := next[0]
		next = next[1:]
		parent := entry.ParentID
		if a, ok := known[parent]; ok {
			add(a, entry.ID, true)
		} else if strings.HasPrefix(pathOf(parent), "spire/agent/") {
			add(snapshot.Agent{ID: parent}, entry.ID, false)
		}
		if seen[parent] {
			continue
		}
		seen[parent] = true
		for _, alias := range i.aliases[parent] {
			for _, a := range i.agents {
				if hasAll(a.Selectors, alias.Selectors) {
					add(a, alias.ID, true)
				}
			}
		}
		next = append(next, i.byID[parent]...)
	}
	out := make([]issuer, 0, len(found))
	for _, key := range sortedKeys(found) {
		out = append(out, found[key])
	}
	return out
}

func hasAll(have, want []snapshot.Selector) bool {
	return len(want) > 0 && !slices.ContainsFunc(want, func(s snapshot.Selector) bool { return !slices.Contains(have, s) })
}

// guardOwnID reports agents that could be issued the identity with which policy-sync administers the SPIRE server and that are not
// of the machines named for it, and withholds "programmed" from every policy meanwhile: who holds that identity can give any
// workload's identity away. SPIRE's server looks at the agent alone, since the selectors of the workload are the agent's own
// affair, so root on such a machine holds the identity.
func (w *whole) guardOwnID() {
	if w.s.SPIRE == nil {
		return
	}
	i := w.spire.issuable
	if own := cmp.Or(w.s.Config.OwnID, w.s.SPIRE.OwnID); own != "" {
		if others := w.unnamed(i.of(own)); others != "" {
			w.block("", fmt.Sprintf("%s could be issued %s, which administers the SPIRE server: %s", others, own, w.namesAdmins()))
		}
	}
	said := map[string]bool{}
	for _, e := range w.s.SPIRE.Entries {
		if !e.Admin || said[e.SPIFFEID] {
			continue
		}
		said[e.SPIFFEID] = true
		if others := w.unnamed(i.of(e.SPIFFEID)); others != "" {
			w.report("%s could be issued %s, to which an entry gives rights over the SPIRE server (admin or downstream): %s", others, e.SPIFFEID, w.namesAdmins())
		}
	}
}

func (w *whole) namesAdmins() string {
	if len(w.s.Config.AdminNodes) == 0 {
		return "name the machines that may hold it (spire.adminNodes), and parent its entry to them alone (selector keelson_tpm:node:<name>)"
	}
	return fmt.Sprintf("parent its entry to the machines that spire.adminNodes names (%s) alone (selector keelson_tpm:node:<name>)", list(sorted(slices.Clone(w.s.Config.AdminNodes))))
}

// unnamed says which of the agents are not of a named machine, or nothing.
func (w *whole) unnamed(issuers []issuer) string {
	named := map[string]bool{}
	for _, name := range w.s.Config.AdminNodes {
		named[nodeSelector(name).Value] = true
		for i := range w.s.NodeTrusts {
			if t := &w.s.NodeTrusts[i]; t.Name == name && t.Spec.Verdict == v1alpha1.VerdictTrusted {
				named[t.Spec.AgentID] = true
			}
		}
	}
	var others []string
	for _, i := range issuers {
		ours := ownAttestor(w.s.Config.TrustDomain, i.agent.ID)
		isNamed := func(s snapshot.Selector) bool { return s.Type == nodeclaim.PluginName && named[s.Value] }
		if ours && (named[i.agent.ID] || slices.ContainsFunc(i.agent.Selectors, isNamed)) || i.agent.Banned {
			continue
		}
		others = append(others, fmt.Sprintf("%s (by entry %s)", machine(i), i.entry))
	}
	switch n := len(others); {
	case n == 0:
		return ""
	case n > maxOthers:
		return fmt.Sprintf("%s and %d more agents", strings.Join(others[:maxOthers], ", "), n-maxOthers)
	default:
		return strings.Join(others, ", ")
	}
}

// maxOthers is how many agents a sentence names.
const maxOthers = 3

// machine names an agent by its node, where it has one.
func machine(i issuer) string {
	for _, s := range i.agent.Selectors {
		if name, ok := strings.CutPrefix(s.Value, nodeSelectorKind); ok && s.Type == nodeclaim.PluginName {
			return "the agent of node " + name
		}
	}
	return "agent " + i.agent.ID
}

// nodeSelectorKind starts the selector that names an agent's node (nodeclaim).
const nodeSelectorKind = "node:"

// nodeSelector is what the node attestor gives the agent of a node; its selectors are lower case.
func nodeSelector(name string) snapshot.Selector {
	return snapshot.Selector{Type: nodeclaim.PluginName, Value: nodeSelectorKind + strings.ToLower(name)}
}

// ownAttestor reports whether Keelson's node attestor admitted the agent.
func ownAttestor(trustDomain, agent string) bool {
	return strings.HasPrefix(agent, "spiffe://"+trustDomain+"/spire/agent/"+nodeclaim.PluginName+"/")
}
