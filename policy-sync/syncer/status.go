package syncer

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/kube"
	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

// Statuses says per policy what was made of it: what failed or waits among its own objects, labels and identities and among what
// closes its namespace or the cluster. What failed of another policy or namespace is not this one's, unless something of this one
// waits for it.
func Statuses(g trustgraph.Graph, failed []Failure, spire error) []kube.PolicyStatus {
	return new(statuses).of(g, failed, spire)
}

// statuses keeps what was said of policies. While nothing fails, what was said of a namespace's policies
// stands until its part of the graph is another.
type statuses struct {
	parts    []*trustgraph.Part
	policies [][]trustgraph.Policy
	// clean is true when nothing had failed.
	clean bool
	said  [][]kube.PolicyStatus
	list  []kube.PolicyStatus
}

func (k *statuses) of(g trustgraph.Graph, failed []Failure, spire error) []kube.PolicyStatus {
	of := map[plan.Part][]Failure{}
	for _, f := range failed {
		for _, part := range parts(f.Operation) {
			of[part] = append(of[part], f)
		}
	}
	now := statuses{parts: g.Parts, policies: g.ByNamespace, clean: len(of) == 0 && spire == nil, said: make([][]kube.PolicyStatus, len(g.Parts))}
	another := len(k.parts) != len(g.Parts)
	for i, part := range g.Parts {
		if k.clean && now.clean && i < len(k.parts) && k.parts[i] == part && snapshot.Same(k.policies[i], g.ByNamespace[i]) {
			now.said[i] = k.said[i]
			continue
		}
		another = true
		for _, p := range g.ByNamespace[i] {
			now.said[i] = append(now.said[i], status(g, p, of, spire))
		}
	}
	if now.list = k.list; another || !k.clean {
		now.list = slices.Concat(now.said...)
	}
	*k = now
	return now.list
}

// status is one policy's. Of are the failures by what they concern.
func status(g trustgraph.Graph, p trustgraph.Policy, of map[plan.Part][]Failure, spire error) kube.PolicyStatus {
	var concerned []Failure
	if len(of) > 0 {
		mine := []plan.Part{{Kind: plan.Cluster}, {Kind: plan.Namespace, Name: p.Namespace}}
		for _, kind := range []plan.PartKind{plan.Policy, plan.Leaving, plan.Labels} {
			mine = append(mine, plan.Part{Kind: kind, Name: p.Key()})
		}
		for _, account := range p.ServiceAccounts {
			mine = append(mine, plan.Part{Kind: plan.Identity, Name: trustgraph.SPIFFEID(g.Config.TrustDomain, p.Namespace, account)})
		}
		for _, part := range mine {
			concerned = append(concerned, of[part]...)
		}
	}
	return kube.PolicyStatus{Namespace: p.Namespace, Name: p.Name, UID: p.UID, Status: g.Status(p, errors.Join(spire, summary(concerned)))}
}

// nodeTrusts are the NodeTrusts whose status is to change.
func nodeTrusts(g trustgraph.Graph) []kube.NodeTrustStatus {
	var out []kube.NodeTrustStatus
	for _, n := range g.NodeTrusts {
		out = append(out, kube.NodeTrustStatus(n))
	}
	return out
}

// parts are whose an operation is. One that says nothing is its policy's, and everybody's without one.
func parts(o plan.Operation) []plan.Part {
	if len(o.Domain.Parts) > 0 {
		return o.Domain.Parts
	}
	if source, ok := kube.Source(o); ok {
		return []plan.Part{{Kind: plan.Policy, Name: source.Namespace + "/" + source.Name}}
	}
	return []plan.Part{{Kind: plan.Cluster}}
}

// summary joins failures: each that failed, and once per cause how many wait for it.
func summary(failures []Failure) error {
	var texts []error
	waiting, causes := map[string]int{}, []string{}
	for _, f := range failures {
		var waits *plan.WaitsError
		if !errors.As(f.Err, &waits) {
			texts = append(texts, f.Err)
			continue
		}
		cause := waits.Root()
		if waiting[cause]++; waiting[cause] == 1 {
			causes = append(causes, cause)
		}
	}
	for _, cause := range causes {
		texts = append(texts, fmt.Errorf("withheld: %s for %s", plural(waiting[cause], "operation waits", "operations wait"), cause))
	}
	return errors.Join(texts...)
}

func plural(n int, one, several string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, several)
}

// evidence is when the evidence of each node's verdict came in. It is looked up with the first question.
type evidence struct {
	trusts []v1alpha1.NodeTrust
	at     map[string]time.Time
}

func (e *evidence) of(node string) (time.Time, bool) {
	if e.at == nil {
		e.at = make(map[string]time.Time, len(e.trusts))
		for i := range e.trusts {
			e.at[e.trusts[i].Name] = e.trusts[i].Spec.AttestedAt.Time
		}
	}
	at, ok := e.at[node]
	return at, ok
}

// expiries is when the next verdict ends of a list of NodeTrusts.
type expiries struct {
	trusts []v1alpha1.NodeTrust
	next   time.Time
}

// verdicts is the first moment after the snapshot at which a verdict or its grace period ends; zero when none does.
func (e *expiries) verdicts(s snapshot.Snapshot) time.Time {
	if len(e.trusts) > 0 && snapshot.Same(e.trusts, s.NodeTrusts) && s.At.Before(e.next) {
		return e.next
	}
	*e = expiries{trusts: s.NodeTrusts}
	for i := range s.NodeTrusts {
		if spec := &s.NodeTrusts[i].Spec; spec.Verdict == v1alpha1.VerdictTrusted {
			e.next = soonest(s.At, e.next, spec.ValidUntil.Time)
			e.next = soonest(s.At, e.next, spec.ValidUntil.Add(s.Config.MaxHold))
		}
	}
	return e.next
}

// soonest is t where it lies after now and before the next moment; zero is none.
func soonest(now, next, t time.Time) time.Time {
	if t.After(now) && (next.IsZero() || t.Before(next)) {
		return t
	}
	return next
}

// of is the first moment after the snapshot at which something in it expires; zero when nothing does. A verdict that
// is not renewed closes its doors then, though nobody triggers a pass.
func (e *expiries) of(s snapshot.Snapshot) time.Time {
	next := e.verdicts(s)
	for _, image := range s.Images {
		for _, v := range image.Verifiers {
			if v.Accepted {
				next = soonest(s.At, next, v.ValidUntil)
			}
		}
	}
	return next
}

// tell logs findings and verdicts: each once, when it is new.
func (s *Syncer) tell(g trustgraph.Graph) {
	if s.toldNodes != nil && snapshot.Same(s.toldNodes, g.Nodes) && snapshot.Same(s.toldReports, g.Reports) {
		return
	}
	s.toldNodes, s.toldReports = g.Nodes, g.Reports
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

// broken notes a failure of a pass as a whole.
func (s *Syncer) broken(err error) error {
	s.tellFailures(nil, err)
	return err
}

// tellFailures logs each failure once while it lasts, and once that it is over.
func (s *Syncer) tellFailures(p *progress, whole error) {
	s.health.note(p, whole)
	now := map[string]bool{}
	note := func(key string, args ...any) {
		if now[key] = true; !s.failing[key] {
			s.o.Log.Error("failed; what is closed stays closed", args...)
		}
	}
	if whole != nil && !IsStale(whole) {
		note("pass "+whole.Error(), "err", whole)
	}
	if p == nil {
		for key := range s.failing {
			now[key] = true // nothing is known of the others
		}
		s.failing = now
		return
	}
	for _, f := range p.failed {
		if !IsStale(f.Err) {
			note("operation "+string(f.Operation.Action)+" "+subject(f.Operation)+": "+f.Err.Error(), "phase", f.Operation.Phase.String(), "action", string(f.Operation.Action),
				"subject", subject(f.Operation), "of", whose(f.Operation), "err", f.Err)
		}
	}
	for key := range s.failing {
		if !now[key] {
			s.o.Log.Info("fails no longer", "what", key)
		}
	}
	s.failing = now
}

// whose names the parts of an operation.
func whose(o plan.Operation) string {
	var out []string
	for _, p := range parts(o) {
		out = append(out, p.String())
	}
	return strings.Join(out, ", ")
}
