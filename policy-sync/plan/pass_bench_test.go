package plan_test

import (
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

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
	for _, want := range r.Graph.NodeTrusts {
		i := slices.IndexFunc(s.NodeTrusts, func(t v1alpha1.NodeTrust) bool { return t.Name == want.Name })
		s.NodeTrusts[i].Status = want.Status
	}
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

// sizes are how many pods the clusters of a benchmark have.
var sizes = []int{2_000, 20_000, 100_000}

// processor is the processor time that the program has used.
func processor(b *testing.B) time.Duration {
	b.Helper()
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// measure runs one step again and again, in clusters of each size, and reports how much processor time
// one takes beside that in the smallest cluster.
func measure(b *testing.B, prepare func(*testing.B, int) func(*testing.B)) {
	var first float64
	for _, pods := range sizes {
		b.Run(strconv.Itoa(pods), func(b *testing.B) {
			step := prepare(b, pods)
			runtime.GC()
			begun := processor(b)
			for b.Loop() {
				step(b)
			}
			each := float64(processor(b)-begun) / float64(b.N)
			if pods == sizes[0] {
				first = each
			}
			b.ReportMetric(each/1e6, "cpu-ms/op")
			if first > 0 {
				b.ReportMetric(each/first, "x")
			}
		})
	}
}

// replaced is the snapshot as a cache would show it after one of its pods was replaced by another: the
// lists of other namespaces are the same.
func replaced(s snapshot.Snapshot, namespace string, i int, pod *corev1.Pod) snapshot.Snapshot {
	s.PodChanges = &snapshot.PodChanges{Before: s.PodLists, Namespaces: []string{namespace}}
	s.PodLists = maps.Clone(s.PodLists)
	list := slices.Clone(s.PodLists[namespace])
	list[i] = pod
	s.PodLists[namespace] = list
	return s
}

// listed is a settled cluster with its pods by namespace.
func listed(b *testing.B, pods int) snapshot.Snapshot {
	b.Helper()
	s := steady(b, pods)
	return new(snapshottest.Lists).Read(s)
}

// BenchmarkOnePodChanges measures what one changed pod costs, in clusters of different sizes.
func BenchmarkOnePodChanges(b *testing.B) {
	measure(b, func(b *testing.B, pods int) func(*testing.B) {
		s := listed(b, pods)
		e, r, n := &trustgraph.Engine{}, &plan.Renderer{}, 0
		pass(b, e, r, &s)
		return func(b *testing.B) {
			namespace, i := fmt.Sprintf("team-%d", n*7919%(pods/100)), n%100
			n++
			p := s.PodLists[namespace][i].DeepCopy()
			p.Annotations = map[string]string{"touched": strconv.Itoa(n)}
			s = replaced(s, namespace, i, p)
			if got := pass(b, e, r, &s); !got.Empty() {
				b.Fatalf("%s", got)
			}
		}
	})
}

// BenchmarkOneVerdict measures what a node that turns bad costs, and that turns good again.
func BenchmarkOneVerdict(b *testing.B) {
	measure(b, func(b *testing.B, pods int) func(*testing.B) {
		s := listed(b, pods)
		e, r, n := &trustgraph.Engine{}, &plan.Renderer{}, 0
		pass(b, e, r, &s)
		return func(b *testing.B) {
			s.NodeTrusts = slices.Clone(s.NodeTrusts)
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
