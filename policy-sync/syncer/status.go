package syncer

import (
	"errors"
	"time"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/kube"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

// Statuses says per policy what was made of it. A failure at an object of another policy is not this one's; every other
// failure is everybody's, for the default denies and the identities are.
func Statuses(g trustgraph.Graph, failed []Failure, spire error) []kube.PolicyStatus {
	out := make([]kube.PolicyStatus, 0, len(g.Policies))
	for _, p := range g.Policies {
		applied := spire
		for _, f := range failed {
			source, ok := kube.Source(f.Operation)
			if !ok || source.Namespace == p.Namespace && source.Name == p.Name {
				applied = errors.Join(applied, f.Err)
			}
		}
		out = append(out, kube.PolicyStatus{Namespace: p.Namespace, Name: p.Name, UID: p.UID, Status: g.Status(p, applied)})
	}
	return out
}

// nodeTrusts are the NodeTrusts whose status is to change.
func nodeTrusts(g trustgraph.Graph) []kube.NodeTrustStatus {
	var out []kube.NodeTrustStatus
	for _, n := range g.NodeTrusts {
		out = append(out, kube.NodeTrustStatus(n))
	}
	return out
}

// attested is when the evidence of each node's verdict came in.
func attested(trusts []v1alpha1.NodeTrust) map[string]time.Time {
	out := make(map[string]time.Time, len(trusts))
	for i := range trusts {
		out[trusts[i].Name] = trusts[i].Spec.AttestedAt.Time
	}
	return out
}

// nextExpiry is the first moment after the snapshot at which something in it expires; zero when nothing does. A verdict that
// is not renewed closes its doors then, though nobody triggers a pass.
func nextExpiry(s snapshot.Snapshot) time.Time {
	var next time.Time
	consider := func(t time.Time) {
		if t.After(s.At) && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	for i := range s.NodeTrusts {
		spec := s.NodeTrusts[i].Spec
		if spec.Verdict == v1alpha1.VerdictTrusted {
			consider(spec.ValidUntil.Time)
			consider(spec.ValidUntil.Add(s.Config.MaxHold))
		}
	}
	for _, image := range s.Images {
		for _, v := range image.Verifiers {
			if v.Accepted {
				consider(v.ValidUntil)
			}
		}
	}
	return next
}

// tell logs findings and verdicts: each once, when it is new.
func (s *Syncer) tell(g trustgraph.Graph) {
	now := map[string]bool{}
	for _, r := range g.Reports {
		now["finding "+r] = true
		if !s.said["finding "+r] {
			s.o.Log.Warn("finding", "what", r)
		}
	}
	counts := map[v1alpha1.Verdict]int{}
	for _, n := range g.Nodes {
		counts[n.Verdict]++
		key := "node " + n.Name + " " + n.UID + " " + string(n.Verdict)
		now[key] = true
		if !s.said[key] {
			s.o.Log.Info("node", "node", n.Name, "verdict", string(n.Verdict), "reference", n.Reference, "why", n.Why)
		}
	}
	s.said = now
	s.o.Metrics.nodes(counts)
}
