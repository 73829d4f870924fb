package plan_test

import (
	"fmt"
	"strconv"
	"testing"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/desired"
	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

// steady is a cluster of so many pods, twenty on a node and a hundred of a policy and namespace, with
// everything written that policy-sync wants.
func steady(b *testing.B, pods int) snapshot.Snapshot {
	b.Helper()
	s := snapshottest.Demo()
	s.Nodes, s.NodeTrusts, s.Pods, s.Policies, s.Namespaces = nil, nil, nil, nil, nil
	nodes := pods / 20
	for i := range nodes {
		name := fmt.Sprintf("node-%d", i)
		s.Nodes = append(s.Nodes, snapshottest.Node(name, fmt.Sprintf("10.%d.%d.0/24", i/250, i%250)))
		s.NodeTrusts = append(s.NodeTrusts, snapshottest.Trust(name, "DE"))
	}
	for i := range pods / 100 {
		ns := fmt.Sprintf("team-%d", i)
		s.Namespaces = append(s.Namespaces, snapshottest.Namespace(ns, v1alpha1.ModeEnforce))
		p := snapshottest.API()
		p.Namespace = ns
		p.Spec.Require.Runtime = ""
		p.Spec.Ingress[0].From[0].Namespace, p.Spec.Ingress[0].From[0].ServiceAccount = fmt.Sprintf("team-%d", (i+1)%(pods/100)), "api"
		s.Policies = append(s.Policies, p)
		for j := range 100 {
			at := (i*100 + j) % nodes
			s.Pods = append(s.Pods, snapshottest.Pod(ns, fmt.Sprintf("api-%d", j), "api", fmt.Sprintf("node-%d", at), fmt.Sprintf("10.%d.%d.%d", at/250, at%250, (i*100+j)/nodes+2)))
		}
	}
	snapshottest.Verify(&s)
	s.SPIRE = &snapshot.SPIRE{}
	r := mustMake(b, s)
	s.SPIRE.Entries = r.Entries()
	for _, o := range r.Objects {
		live := o.DeepCopy()
		live.SetUID("u")
		live.SetResourceVersion("1")
		s.Objects = append(s.Objects, live)
	}
	for _, in := range desired.Urgent(r.Graph).Nodes {
		for i := range s.Nodes {
			if s.Nodes[i].Name == in.Name {
				s.Nodes[i].Labels, s.Nodes[i].Spec.Taints = in.Labels, nil
			}
		}
	}
	labels := map[string]map[string]string{}
	for _, in := range desired.Urgent(r.Graph).Pods {
		labels[in.Namespace+"/"+in.Name] = in.Labels
	}
	for _, p := range s.Pods {
		for k, v := range labels[snapshot.Key(p)] {
			p.Labels[k] = v
		}
	}
	s.Attested = r.Graph.Attested
	if again := mustMake(b, s); !again.Plan.Empty() {
		b.Fatalf("not settled: %.2000s", again.Plan)
	}
	return s
}

// pass is what a pass works out, apart from reading and writing.
func pass(b *testing.B, e *trustgraph.Engine, r *plan.Renderer, s *snapshot.Snapshot) plan.Plan {
	b.Helper()
	spire := s.SPIRE
	s.SPIRE = nil
	g, err := e.Build(*s)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := r.Urgent(*s, g); err != nil {
		b.Fatal(err)
	}
	s.SPIRE = spire
	if g, err = e.Join(spire); err != nil {
		b.Fatal(err)
	}
	out, err := r.Decide(*s, g)
	if err != nil {
		b.Fatal(err)
	}
	s.Attested = g.Attested
	return out.Plan
}

// BenchmarkOnePodChanges measures what one changed pod costs, in clusters of different sizes.
func BenchmarkOnePodChanges(b *testing.B) {
	for _, pods := range []int{2_000, 20_000, 100_000} {
		b.Run(strconv.Itoa(pods), func(b *testing.B) {
			s := steady(b, pods)
			e, r := &trustgraph.Engine{}, &plan.Renderer{}
			pass(b, e, r, &s)
			n := 0
			for b.Loop() {
				i := n * 7919 % len(s.Pods)
				p := s.Pods[i].DeepCopy()
				n++
				p.Annotations = map[string]string{"touched": strconv.Itoa(n)}
				s.Pods[i] = p
				if got := pass(b, e, r, &s); !got.Empty() {
					b.Fatalf("%s", got)
				}
			}
		})
	}
}

// BenchmarkOneVerdict measures what a node that turns bad costs, and that turns good again.
func BenchmarkOneVerdict(b *testing.B) {
	for _, pods := range []int{2_000, 20_000, 100_000} {
		b.Run(strconv.Itoa(pods), func(b *testing.B) {
			s := steady(b, pods)
			e, r := &trustgraph.Engine{}, &plan.Renderer{}
			pass(b, e, r, &s)
			n := 0
			for b.Loop() {
				t := &s.NodeTrusts[n/2*7919%len(s.NodeTrusts)]
				if n++; t.Spec.Verdict == v1alpha1.VerdictTrusted {
					t.Spec.Verdict = v1alpha1.VerdictUntrusted
				} else {
					t.Spec.Verdict = v1alpha1.VerdictTrusted
				}
				pass(b, e, r, &s)
			}
		})
	}
}
