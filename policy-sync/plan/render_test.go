package plan_test

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/calico"
	"github.com/keelson-project/keelson/policy-sync/desired"
	"github.com/keelson-project/keelson/policy-sync/istio"
	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

func bytesOf(t *testing.T, objects []desired.Object) []string {
	t.Helper()
	var out []string
	for _, o := range objects {
		text, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, string(text))
	}
	slices.Sort(out)
	return out
}

// several is the demo with two policies on the same pods, callers of callers, and a namespace in audit mode.
func several() snapshot.Snapshot {
	s := snapshottest.Demo()
	second := snapshottest.API()
	second.Name, second.UID = "metrics", "metrics"
	second.Spec.Ingress = []v1alpha1.IngressRule{{From: []v1alpha1.Peer{{Namespace: "shop", ServiceAccount: "prometheus"}}, Ports: []int32{9090}}}
	audited := snapshottest.API()
	audited.Namespace, audited.UID = "lab", "lab"
	s.Namespaces = append(s.Namespaces, snapshottest.Namespace("lab", v1alpha1.ModeAudit))
	s.Policies = append(s.Policies, second, audited)
	return s
}

// TestPoliciesRenderedOneByOneAreThoseRenderedTogether: what a policy's objects are rendered from is its own workload and nothing
// else, so that they can be remembered.
func TestPoliciesRenderedOneByOneAreThoseRenderedTogether(t *testing.T) {
	for name, s := range map[string]snapshot.Snapshot{"demo": snapshottest.Demo(), "several policies": several()} {
		t.Run(name, func(t *testing.T) {
			r := mustMake(t, s)
			c, err := calico.Render(r.Intents)
			if err != nil {
				t.Fatal(err)
			}
			i, err := istio.Render(r.Intents)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := bytesOf(t, r.Objects), bytesOf(t, append(c, i...)); !slices.Equal(got, want) {
				t.Errorf("one by one:\n%s\ntogether:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		})
	}
}

// TestARememberedRenderingIsAFreshOne: over a sequence of changes, one Renderer decides what a new one would, to the byte.
func TestARememberedRenderingIsAFreshOne(t *testing.T) {
	w := &world{Snapshot: several()}
	r := new(plan.Renderer)
	steps := map[int]func(){
		1: func() { w.Policies[0].Spec.Ingress = nil },
		2: func() { w.Policies[1].Spec.Ingress = snapshottest.API().Spec.Ingress },
		3: func() { w.Namespaces[0].Labels[v1alpha1.ModeLabel] = v1alpha1.ModeAudit },
		4: func() { w.Namespaces[0].Labels["istio.io/dataplane-mode"] = "ambient" },
		5: func() { w.Policies = slices.Delete(slices.Clone(w.Policies), 1, 2) },
		6: func() { w.Config.TrustDomain = "other.example" },
		7: func() { w.NodeTrusts[0].Spec.Verdict = v1alpha1.VerdictUntrusted },
		8: func() { w.Config.Istio = false },
	}
	for step := range 10 {
		if change := steps[step]; change != nil {
			change()
		}
		for range 2 {
			g, err := trustgraph.Build(w.Snapshot)
			if err != nil {
				t.Fatal(err)
			}
			got, err := r.Decide(w.Snapshot, g)
			if err != nil {
				t.Fatal(err)
			}
			want := mustMake(t, w.Snapshot)
			if got.Plan.String() != want.Plan.String() || !slices.Equal(bytesOf(t, got.Objects), bytesOf(t, want.Objects)) {
				t.Fatalf("step %d: remembered:\n%s\nfresh:\n%s", step, got.Plan, want.Plan)
			}
			for _, o := range got.Plan.Operations {
				if err := w.apply(o); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

// TestAPolicyIsRenderedOnce: what did not change is not rendered again.
func TestAPolicyIsRenderedOnce(t *testing.T) {
	s := several()
	rendered := map[string]int{}
	r := &plan.Renderer{Render: func(_ snapshot.Config, in desired.Intents) ([]desired.Object, error) {
		for _, w := range in.Workloads {
			rendered[w.Namespace+"/"+w.Policy]++
		}
		return calico.Render(in)
	}}
	decide := func() {
		g, err := trustgraph.Build(s)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Decide(s, g); err != nil {
			t.Fatal(err)
		}
	}
	decide()
	s.Pods = append(s.Pods, snapshottest.Pod("payments", "new", "api", "fra-1", "10.1.0.99"))
	decide()
	s.Policies[0].Spec.Ingress = nil
	decide()
	changed := s.Policies[0].Namespace + "/" + s.Policies[0].Name
	for key, n := range rendered {
		if key == changed && n != 2 || key != changed && n > 2 {
			t.Errorf("%s was rendered %d times", key, n)
		}
	}
}

// TestARoundOfRenderingEnds: with more to render than there is time for, the rest waits for the next round, and in the end all is there.
func TestARoundOfRenderingEnds(t *testing.T) {
	s := snapshottest.Demo()
	for i := range 20 {
		p := snapshottest.Frontend()
		p.Name, p.UID = fmt.Sprintf("p%d", i), snapshottest.UID("TrustPolicy", fmt.Sprint(i))
		s.Policies = append(s.Policies, p)
	}
	g, err := trustgraph.Build(s)
	if err != nil {
		t.Fatal(err)
	}
	r := &plan.Renderer{Round: 20 * time.Millisecond, Now: time.Now, Render: func(_ snapshot.Config, in desired.Intents) ([]desired.Object, error) {
		if len(in.Workloads) > 0 {
			time.Sleep(5 * time.Millisecond)
		}
		return calico.Render(in)
	}}
	first, err := r.Decide(s, g)
	if err != nil {
		t.Fatal(err)
	}
	if len(first.Unfinished) == 0 || first.Unfinished["payments/api"] {
		t.Errorf("unfinished: %v; the policies of shop wait, and payments' one policy has its turn before them", first.Unfinished)
	}
	rounds := 1
	for d := first; len(d.Unfinished) > 0; rounds++ {
		if d, err = r.Decide(s, g); err != nil || rounds > 20 {
			t.Fatalf("%v after %d rounds", err, rounds)
		}
	}
}

// TestAnObjectThatNobodyCanStoreIsRefused names the limit.
func TestAnObjectThatNobodyCanStoreIsRefused(t *testing.T) {
	s := snapshottest.Demo()
	g, err := trustgraph.Build(s)
	if err != nil {
		t.Fatal(err)
	}
	r := &plan.Renderer{Render: func(_ snapshot.Config, in desired.Intents) ([]desired.Object, error) {
		objects, err := calico.Render(in)
		for _, o := range objects {
			if o.GetNamespace() == "payments" && len(in.Workloads) > 0 {
				o.SetLabels(map[string]string{"long": strings.Repeat("x", plan.MaxObject)})
			}
		}
		return objects, err
	}}
	d, err := r.Decide(s, g)
	if err != nil {
		t.Fatal(err)
	}
	why := d.Plan.Missing[plan.Part{Kind: plan.Policy, Name: "payments/api"}]
	if !strings.Contains(why, "etcd takes 1.5 MiB") || len(d.Plan.Missing) != 1 {
		t.Errorf("missing: %v", d.Plan.Missing)
	}
}

// TestUrgentIsPartOfThePlan: what is done first is what the whole plan would do, and only closes.
func TestUrgentIsPartOfThePlan(t *testing.T) {
	w := settled(t)
	w.NodeTrusts[0].Spec.Verdict = v1alpha1.VerdictUntrusted
	w.NodeTrusts[1].Spec.Tags = nil
	w.Nodes = append(w.Nodes, *w.Nodes[0].DeepCopy())
	w.Nodes[len(w.Nodes)-1].Name, w.Nodes[len(w.Nodes)-1].Spec = "new", corev1.NodeSpec{}
	g, err := trustgraph.Build(w.Snapshot)
	if err != nil {
		t.Fatal(err)
	}
	urgent, err := plan.Urgent(w.Snapshot, g)
	if err != nil {
		t.Fatal(err)
	}
	whole := mustMake(t, w.Snapshot).Plan.String()
	kinds := map[string]bool{}
	for _, o := range urgent.Operations {
		if kinds[o.Target.Kind] = true; !o.Phase.Closing() || !strings.Contains(whole, o.String()+"\n") {
			t.Errorf("%s is not in the plan:\n%s", o, whole)
		}
	}
	if !kinds["Node"] || !kinds["Pod"] || !kinds["GlobalNetworkSet"] || !kinds[""] {
		t.Errorf("only %v", kinds)
	}
}

// TestALongListIsComparedInLittleTime: twice as many elements cost about twice as much.
func TestALongListIsComparedInLittleTime(t *testing.T) {
	took := func(n int) time.Duration {
		s := snapshottest.Demo()
		s.Config.Istio = false
		in := desired.Intents{Config: s.Config}
		for i := range n {
			in.Revoked = append(in.Revoked, trustgraph.Revoked{Address: fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255), Node: "n"})
		}
		objects, err := calico.Render(in)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range objects {
			live := o.DeepCopy()
			live.SetUID("u")
			s.Objects = append(s.Objects, live)
		}
		fastest := time.Duration(math.MaxInt64) // what else the machine does only adds
		for range 5 {
			began := time.Now()
			if p, err := plan.Diff(s, in, objects, nil); err != nil || !p.Empty() && n == 0 {
				t.Fatal(err, p)
			}
			fastest = min(fastest, time.Since(began))
		}
		return fastest
	}
	took(1000)
	small, large := took(4000), took(32000)
	t.Logf("4,000 addresses: %s, 32,000: %s", small, large)
	if large > 24*small+50*time.Millisecond { // eight times as many; sixty-four times would be n times n
		t.Errorf("4,000 addresses take %s, 32,000 take %s", small, large)
	}
}
