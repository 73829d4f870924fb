package plan_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
)

const (
	apiID      = "spiffe://demo.example/ns/payments/sa/api"
	frontendID = "spiffe://demo.example/ns/shop/sa/frontend"
)

// issuers are the nodes whose agents may issue an ID, by the entries that should exist.
func issuers(entries []snapshot.Entry, id string) []string {
	var out []string
	for _, node := range []string{"evil-1", "fra-1", "fra-2", "par-1"} {
		if slices.ContainsFunc(entries, func(e snapshot.Entry) bool { return e.SPIFFEID == id && e.ParentID == snapshottest.AgentID(node) }) {
			out = append(out, node)
		}
	}
	return out
}

// entryOperations are a plan's operations on entries of an ID, as "phase action".
func entryOperations(p plan.Plan, id string) []string {
	var out []string
	for _, o := range p.Operations {
		if o.Entry != nil && o.Entry.SPIFFEID == id {
			out = append(out, fmt.Sprintf("%s %s", o.Phase, o.Action))
		}
	}
	return out
}

// TestAnIdentityIsIssuedWhereItRuns: by the agents of nodes that run such a pod, or are bound to, and meet what it asks.
func TestAnIdentityIsIssuedWhereItRuns(t *testing.T) {
	for name, c := range map[string]struct {
		change func(w *world)
		want   []string
	}{
		"pods on both trusted nodes": {func(*world) {}, []string{"fra-1", "par-1"}},
		"no pod on par-1": {func(w *world) {
			w.Pods = slices.DeleteFunc(w.Pods, func(p *corev1.Pod) bool { return p.Spec.NodeName == "par-1" })
		}, []string{"fra-1"}},
		"no pod at all": {func(w *world) {
			w.Pods = slices.DeleteFunc(w.Pods, func(p *corev1.Pod) bool { return p.Namespace == "shop" })
		}, nil},
		"the pod on par-1 has ended":            {func(w *world) { w.podNamed("shop/frontend-par-1").Status.Phase = corev1.PodSucceeded }, []string{"fra-1"}},
		"the pod on par-1 is not scheduled yet": {func(w *world) { w.podNamed("shop/frontend-par-1").Spec.NodeName = "" }, []string{"fra-1"}},
		"the pod on par-1 is bound, and nothing of it runs yet": {func(w *world) {
			w.podNamed("shop/frontend-par-1").Status = corev1.PodStatus{Phase: corev1.PodPending}
		}, []string{"fra-1", "par-1"}},
		"the pod on par-1 is being deleted": {func(w *world) {
			now := metav1.NewTime(w.At)
			w.podNamed("shop/frontend-par-1").DeletionTimestamp = &now
		}, []string{"fra-1", "par-1"}},
		"the pod on par-1 is another account's": {func(w *world) { w.podNamed("shop/frontend-par-1").Spec.ServiceAccountName = "other" }, []string{"fra-1"}},
		"a country is asked for":                {func(w *world) { w.Policies[1].Spec.Require.Node.Tags = map[string][]string{"country": {"FR"}} }, []string{"par-1"}},
		"another reference set is asked for":    {func(w *world) { w.Policies[1].Spec.Require.Node.References = []string{"canary"} }, nil},
		"the proof of par-1 has ended":          {func(w *world) { w.NodeTrusts[1].Spec.ValidUntil = metav1.NewMicroTime(w.At) }, []string{"fra-1"}},
		"par-1 is another machine now":          {func(w *world) { w.nodeNamed("par-1").UID = "another" }, []string{"fra-1"}},
		"the namespace is not enrolled":         {func(w *world) { w.Namespaces[1].Labels = nil }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := demo()
			c.change(w)
			if got := issuers(mustMake(t, w.Snapshot).Entries(), frontendID); !slices.Equal(got, c.want) {
				t.Errorf("issued by the agents of %v, want %v", got, c.want)
			}
		})
	}
}

// TestAMirrorPodHasNoIdentity: a kubelet makes one by itself, so it must not choose its node's identities by it.
func TestAMirrorPodHasNoIdentity(t *testing.T) {
	w := demo()
	w.Policies[1].Spec.Workloads.ServiceAccount = "default"
	p := snapshottest.Pod("shop", "mirror", "", "par-1", "10.2.0.20")
	p.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"}
	w.Pods = append(w.Pods, p)
	if got := issuers(mustMake(t, w.Snapshot).Entries(), "spiffe://demo.example/ns/shop/sa/default"); got != nil {
		t.Errorf("issued by %v", got)
	}
}

// TestAnIdentityMovesWithItsPods: a pod that comes opens, one that goes closes, and neither touches the entries of other nodes.
func TestAnIdentityMovesWithItsPods(t *testing.T) {
	w := settled(t)
	p := w.podNamed("shop/frontend-par-1")
	p.Status.Phase = corev1.PodFailed
	if got := entryOperations(mustMake(t, w.Snapshot).Plan, frontendID); !slices.Equal(got, []string{"tighten delete-entry"}) {
		t.Errorf("the pod of par-1 has ended: %v", got)
	}
	w.settle(t, nil)
	w.podNamed("shop/frontend-par-1").Status.Phase = corev1.PodRunning
	if got := entryOperations(mustMake(t, w.Snapshot).Plan, frontendID); !slices.Equal(got, []string{"program create-entry"}) {
		t.Errorf("it runs again: %v", got)
	}
}

// TestANewReferenceSetOrTagTouchesNoEntry: what a requirement resolves to is no part of an entry.
func TestANewReferenceSetOrTagTouchesNoEntry(t *testing.T) {
	for name, change := range map[string]func(w *world){
		"the first node of a new reference set": func(w *world) {
			trust := snapshottest.Trust("fra-2", "DE")
			trust.Spec.Reference = "prod-2026-12"
			w.Nodes, w.NodeTrusts = append(w.Nodes, snapshottest.Node("fra-2", "10.4.0.0/24")), append(w.NodeTrusts, trust)
		},
		"the policy accepts one more set":        func(w *world) { w.Policies[0].Spec.Require.Node.References = []string{"canary", "prod"} },
		"the policy accepts one more tag value":  func(w *world) { w.Policies[0].Spec.Require.Node.Tags["country"] = []string{"AT", "DE"} },
		"the policy asks for no set any more":    func(w *world) { w.Policies[0].Spec.Require.Node.References = nil },
		"the policy asks for the node it has":    func(w *world) { w.Policies[1].Spec.Require.Node.References = []string{"prod"} },
		"a node proves another set, as accepted": func(w *world) { w.NodeTrusts[1].Spec.Reference = "prod-2026-12" },
	} {
		t.Run(name, func(t *testing.T) {
			w := settled(t)
			change(w)
			for _, o := range mustMake(t, w.Snapshot).Plan.Operations {
				if o.Entry != nil {
					t.Errorf("%s", o)
				}
			}
		})
	}
}

// TestARequirementOfTheWorkloadChangesEntriesWhereTheyAre: tighter at once, looser with what opens, another alternative beside the
// one that it replaces.
func TestARequirementOfTheWorkloadChangesEntriesWhereTheyAre(t *testing.T) {
	for name, c := range map[string]struct {
		change func(r *v1alpha1.Requirements)
		want   []string
	}{
		"runtime restricted no more": {func(r *v1alpha1.Requirements) { r.Runtime = "" }, []string{"program update-entry"}},
		"another verifier will do": {func(r *v1alpha1.Requirements) { r.Image.VerifiedBy = []string{"release-key", "team-key"} },
			[]string{"program create-entry"}},
		"only another verifier will do": {func(r *v1alpha1.Requirements) { r.Image.VerifiedBy = []string{"team-key"} },
			[]string{"tighten delete-entry", "program create-entry"}},
		"no verifier is asked for": {func(r *v1alpha1.Requirements) { r.Image.VerifiedBy = nil },
			[]string{"program create-entry", "retire delete-entry"}},
		"a digest is asked for": {func(r *v1alpha1.Requirements) { r.Image.Digests = []string{snapshottest.Digest("api")} },
			[]string{"tighten delete-entry", "program create-entry"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := settled(t)
			c.change(&w.Policies[0].Spec.Require)
			if got := entryOperations(mustMake(t, w.Snapshot).Plan, apiID); !slices.Equal(got, c.want) {
				t.Errorf("%v, want %v", got, c.want)
			}
			w.settle(t, nil)
		})
	}
	t.Run("runtime restricted", func(t *testing.T) {
		w := settled(t)
		w.Policies[1].Spec.Require.Runtime = v1alpha1.RuntimeRestricted
		if got := entryOperations(mustMake(t, w.Snapshot).Plan, frontendID); !slices.Equal(got, []string{"tighten update-entry", "tighten update-entry"}) {
			t.Errorf("%v", got)
		}
	})
}

// TestANodeOnHoldKeepsItsIdentitiesAndGetsNone: the brake keeps what is there.
func TestANodeOnHoldKeepsItsIdentitiesAndGetsNone(t *testing.T) {
	w := demo()
	w.Config.MaxHold = time.Hour
	w.settle(t, nil)
	w.NodeTrusts[1].Spec.ValidUntil = metav1.NewMicroTime(w.At.Add(-time.Second))
	w.Pods = append(w.Pods, snapshottest.Pod("payments", "api-par-2", "api", "par-1", "10.2.0.30"))
	w.Policies[0].Spec.Require.Node = v1alpha1.NodeRequirement{}
	for _, o := range mustMake(t, w.Snapshot).Plan.Operations {
		if o.Entry != nil {
			t.Errorf("%s", o)
		}
	}
	w.Config.MaxHold = 0
	if got := entryOperations(mustMake(t, w.Snapshot).Plan, frontendID); !slices.Equal(got, []string{"tighten delete-entry"}) {
		t.Errorf("the hold is over: %v", got)
	}
}

// TestTwoClustersShareASPIREServer: neither touches what the other made, whatever it asks for itself.
func TestTwoClustersShareASPIREServer(t *testing.T) {
	system := func(uid string) corev1.Namespace {
		ns := snapshottest.Namespace("kube-system", "")
		ns.UID = snapshottest.UID("cluster", uid)
		return ns
	}
	for name, tell := range map[string]func(a, b *world){
		"told by the UID of kube-system": func(a, b *world) {
			a.Namespaces, b.Namespaces = append(a.Namespaces, system("a")), append(b.Namespaces, system("b"))
		},
		"told by configuration": func(a, b *world) { a.Config.ClusterName, b.Config.ClusterName = "blue", "green" },
	} {
		t.Run(name, func(t *testing.T) {
			a, b := demo(), demo()
			tell(a, b)
			a.settle(t, nil)
			b.Policies = b.Policies[1:]
			b.SPIRE.Entries = slices.Clone(a.SPIRE.Entries)
			for _, o := range mustMake(t, b.Snapshot).Plan.Operations {
				if o.Entry != nil && o.Action != plan.CreateEntry {
					t.Errorf("the other cluster's: %s", o)
				}
			}
			if !plansNothing(t, a) {
				t.Error("the first cluster is not at rest")
			}
		})
	}
}

func plansNothing(t *testing.T, w *world) bool {
	t.Helper()
	return mustMake(t, w.Snapshot).Plan.Empty()
}

// TestAnUnnamedClusterLeavesStrangersEntries: an entry that could be another cluster's is left, and reported.
func TestAnUnnamedClusterLeavesStrangersEntries(t *testing.T) {
	w := settled(t)
	stranger := snapshot.Entry{ID: "keelson.workload.0123", SPIFFEID: "spiffe://demo.example/ns/elsewhere/sa/x",
		ParentID: snapshottest.AgentID("a node of another cluster"), Selectors: []snapshot.Selector{{Type: "keelson", Value: "ns:elsewhere"}}}
	w.SPIRE.Entries = append(w.SPIRE.Entries, stranger)
	r := mustMake(t, w.Snapshot)
	if !r.Plan.Empty() || !strings.Contains(strings.Join(r.Graph.Reports, "\n"), stranger.ID) {
		t.Errorf("plan:\n%sreports %q", r.Plan, r.Graph.Reports)
	}
}

// olderEntries are what an earlier version had made for the demo: a node class, and a workload under it.
func olderEntries(id string, class string) []snapshot.Entry {
	_, path, _ := strings.Cut(strings.TrimPrefix(id, "spiffe://"), "/ns/")
	ns, sa, _ := strings.Cut(path, "/sa/")
	parent := "spiffe://demo.example/keelson/nodeclass/" + class
	return []snapshot.Entry{
		{ID: "keelson.class." + class, SPIFFEID: parent, ParentID: "spiffe://demo.example/spire/server", Selectors: []snapshot.Selector{{Type: "keelson_tpm", Value: "ref:prod"}}},
		{ID: "keelson.workload." + class, SPIFFEID: id, ParentID: parent, X509SVIDTTL: time.Minute, Selectors: []snapshot.Selector{
			{Type: "keelson", Value: "ns:" + ns}, {Type: "keelson", Value: "sa:" + sa}, {Type: "keelson", Value: "signed-by:release-key"}}},
	}
}

// TestEntriesOfAnEarlierVersionGoWhenTheNewOnesStand: no workload is without its identity in between, and another cluster's stay.
func TestEntriesOfAnEarlierVersionGoWhenTheNewOnesStand(t *testing.T) {
	for _, cluster := range []string{"", "blue"} {
		t.Run("cluster "+cluster, func(t *testing.T) {
			w := demo()
			w.Config.ClusterName = cluster
			others := olderEntries("spiffe://demo.example/ns/elsewhere/sa/x", "0002")
			w.SPIRE.Entries = append(olderEntries(frontendID, "0001"), others...)
			w.settle(t, func(plan.Phase) {
				if len(svids(w.Snapshot, w.podNamed("shop/frontend-fra-1"))) == 0 {
					t.Error("a workload has lost its identity on the way")
				}
			})
			var left []string
			for _, e := range w.SPIRE.Entries {
				if !strings.Contains(e.ParentID, "/spire/agent/") {
					left = append(left, e.ID)
				}
			}
			if want := []string{others[0].ID, others[1].ID}; !slices.Equal(left, want) {
				t.Errorf("left are %v, want %v", left, want)
			}
		})
	}
}

// TestARefusedPolicyTakesNoStrangersIdentity: a policy that was never accepted is as if it were not there, whomever it chooses.
func TestARefusedPolicyTakesNoStrangersIdentity(t *testing.T) {
	for name, c := range map[string]struct {
		workloads v1alpha1.Workloads
		taken     bool
	}{
		"it chooses nobody":           {v1alpha1.Workloads{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "nobody-has-this"}}}, false},
		"it chooses the account":      {v1alpha1.Workloads{ServiceAccount: "api"}, false},
		"it chooses pods of it":       {v1alpha1.Workloads{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "api"}}}, false},
		"its labels cannot be read":   {v1alpha1.Workloads{Selector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "app", Operator: "in"}}}}, false},
		"it chooses another account":  {v1alpha1.Workloads{ServiceAccount: "other"}, false},
		"it says nothing of its pods": {v1alpha1.Workloads{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := settled(t)
			other := snapshottest.API()
			other.Name, other.UID, other.Spec.Workloads = "other", "other", c.workloads
			other.Spec.Ingress[0].HTTP[0].Methods = []string{"post"}
			w.Policies = append(w.Policies, other)
			if got := len(entryOperations(mustMake(t, w.Snapshot).Plan, apiID)) > 0; got != c.taken {
				t.Errorf("the identity of api is taken: %t, want %t", got, c.taken)
			}
		})
	}
}

// TestEntriesAreBounded: a namespace that needs too many loses its largest identities, says so, and takes nothing from others.
func TestEntriesAreBounded(t *testing.T) {
	crowd := func(w *world, n int) {
		for i := range n {
			name := fmt.Sprintf("sa%02d", i)
			p := snapshottest.Frontend()
			p.Name, p.UID, p.Spec.Workloads.ServiceAccount = name, snapshottest.UID("TrustPolicy", name), name
			w.Policies = append(w.Policies, p)
			w.Pods = append(w.Pods, snapshottest.Pod("shop", name, name, "fra-1", fmt.Sprintf("10.1.1.%d", i)))
		}
	}
	for name, limit := range map[string]func(c *snapshot.Config){
		"of the namespace": func(c *snapshot.Config) { c.MaxNamespaceEntries = 10 },
		"in all":           func(c *snapshot.Config) { c.MaxEntries = 11 },
	} {
		t.Run(name, func(t *testing.T) {
			w := demo()
			limit(&w.Config)
			crowd(w, 20)
			r := mustMake(t, w.Snapshot)
			if len(r.Entries()) != 11 || len(issuers(r.Entries(), apiID)) != 1 {
				t.Errorf("%d entries, want 10 of shop and the one of payments", len(r.Entries()))
			}
			refused := 0
			for _, p := range r.Graph.Policies {
				if text := strings.Join(p.Blockers, "; "); strings.Contains(text, "SPIRE entries") {
					refused++
					if p.Namespace != "shop" || !strings.Contains(text, "namespace shop needs 22 in all") {
						t.Errorf("%s: %s", p.Key(), text)
					}
				}
			}
			if refused != 11 { // 20 accounts with an entry each, and frontend with two, which comes last
				t.Errorf("%d policies say that there is no room, want 11", refused)
			}
		})
	}
}

// TestOnlyTheNodesThatRunAWorkloadMayIssueItsIdentity holds random clusters, before, between and after changes, to SPIRE's own rule.
func TestOnlyTheNodesThatRunAWorkloadMayIssueItsIdentity(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := draw(rt)
		w.settle(rt, nil)
		change(rt, w)
		w.settle(rt, nil)
		for _, node := range nodeNames {
			for _, e := range issuedBy(w.Snapshot, node) {
				if !w.runs(node, e.SPIFFEID) {
					rt.Fatalf("the agent of %s, where no such pod is bound, may issue %s", node, e.SPIFFEID)
				}
				if why := w.unmetBy(node, e.SPIFFEID); why != "" {
					rt.Fatalf("the agent of %s may issue %s, though %s", node, e.SPIFFEID, why)
				}
			}
		}
	})
}

// runs tells whether a pod with an ID's namespace and account is bound to a node and has not ended.
func (w *world) runs(node, id string) bool {
	return slices.ContainsFunc(w.Pods, func(p *corev1.Pod) bool {
		return p.Spec.NodeName == node && !snapshot.Ended(p) && id == "spiffe://"+w.Config.TrustDomain+"/ns/"+p.Namespace+"/sa/"+snapshot.ServiceAccount(p)
	})
}

// unmetBy says what of a requirement of a policy for the account a node does not meet, in the simplest terms.
func (w *world) unmetBy(node, id string) string {
	i := slices.IndexFunc(w.NodeTrusts, func(t v1alpha1.NodeTrust) bool { return t.Name == node })
	if i < 0 || w.NodeTrusts[i].Spec.Verdict != v1alpha1.VerdictTrusted || !w.At.Before(w.NodeTrusts[i].Spec.ValidUntil.Time) {
		return "the node is not trusted"
	}
	for _, p := range w.Policies {
		if !strings.HasSuffix(id, "/ns/"+p.Namespace+"/sa/"+p.Spec.Workloads.ServiceAccount) {
			continue
		}
		for key, values := range p.Spec.Require.Node.Tags {
			if !slices.Contains(values, w.NodeTrusts[i].Spec.Tags[key]) {
				return fmt.Sprintf("policy %s asks for %s %v", p.Name, key, values)
			}
		}
	}
	return ""
}
