package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/desired"
	"github.com/keelson-project/keelson/policy-sync/kube"
	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/spireapi"
	"github.com/keelson-project/keelson/policy-sync/syncconfig"
	"github.com/keelson-project/keelson/policy-sync/syncer"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

// taker takes everything away that policy-sync wrote: it reads what is there as policy-sync does, makes the plan of a world in
// which nothing is wanted, and applies it, until the plan is empty.
type taker struct {
	store        *kube.Store
	spire        *spireapi.Server
	withoutSPIRE bool
	timeout      time.Duration
	say          func(format string, args ...any) error
}

func newTaker(access *rest.Config, served discovery.DiscoveryInterface, config syncconfig.Config, c *cleanup) (*taker, error) {
	// What is served counts, not what the configuration wants: it may have wanted more once.
	found, err := kube.Discover(served)
	if err != nil {
		return nil, err
	}
	for name, there := range map[string]bool{"Calico": found.Calico, "Istio": found.Istio} {
		if !there {
			if err := c.say("%s's API is not served: objects that policy-sync wrote there, if there are any, stay\n", name); err != nil {
				return nil, err
			}
		}
	}
	config.Snapshot.Calico, config.Snapshot.Istio = found.Calico, found.Istio
	config.Snapshot.Absent = found.Absent
	config.Snapshot.MaxDeletePercent = 0 // deleting all of it is the intent
	scheme, err := kube.Scheme()
	if err != nil {
		return nil, fmt.Errorf("kubernetes: %w", err)
	}
	api, err := client.New(access, client.Options{Scheme: scheme})
	if err != nil {
		return nil, fmt.Errorf("kubernetes: %w", err)
	}
	t := &taker{store: kube.New(api, api, nil, config.Snapshot), withoutSPIRE: c.withoutSPIRE, timeout: config.SPIRE.Timeout, say: c.say}
	t.spire, err = spireapi.Open(spireapi.Options{TrustDomain: config.SPIRE.TrustDomain, Socket: config.SPIRE.Socket,
		Address: config.SPIRE.Address, WorkloadAPI: config.SPIRE.WorkloadAPI, MaxRead: config.SPIRE.MaxRead})
	return t, err
}

func (t *taker) close() error { return t.spire.Close() }

// show says what take would do first.
func (t *taker) show(ctx context.Context) error {
	_, p, err := t.plan(ctx)
	if err != nil {
		return err
	}
	return t.say("%s", p)
}

// maxRounds bounds how often the world may move on under a plan before it is an error. Kubelets write their Nodes all the time.
const maxRounds = 50

// take applies plans until nothing of policy-sync's is left.
func (t *taker) take(ctx context.Context) error {
	var err error
	for range maxRounds {
		var s snapshot.Snapshot
		var p plan.Plan
		if s, p, err = t.plan(ctx); err != nil {
			return err
		}
		if p.Empty() {
			return errors.Join(t.store.Report(ctx, kube.Report{Policies: nothingDone(s.Policies)}), t.say("nothing that policy-sync wrote is left\n"))
		}
		if err = t.apply(ctx, p); err != nil && !syncer.IsStale(err) {
			return fmt.Errorf("cleanup: stopped halfway, with what keeps out still in place as far as it was; try again: %w", err)
		}
	}
	return fmt.Errorf("cleanup: something of policy-sync's is still there after %d rounds: does a policy-sync run elsewhere? %w", maxRounds, err)
}

// plan compares what is there with nothing.
func (t *taker) plan(ctx context.Context) (snapshot.Snapshot, plan.Plan, error) {
	s, err := t.store.Read(ctx)
	if err != nil {
		return s, plan.Plan{}, fmt.Errorf("cleanup: nothing is taken away: %w", err)
	}
	s.At = time.Now()
	s.SPIRE = &snapshot.SPIRE{}
	if !t.withoutSPIRE {
		within, cancel := context.WithTimeout(ctx, t.timeout)
		defer cancel()
		if s.SPIRE, err = t.spire.Read(within); err != nil {
			return s, plan.Plan{}, fmt.Errorf("cleanup: nothing is taken away, since the SPIRE server could not be read; if it is gone for good, say --without-spire: %w", err)
		}
	}
	p, err := plan.Diff(s, nothing(s), nil, nil)
	return s, p, err
}

// nothing is what is wanted: no object, no entry, no label, no taint.
func nothing(s snapshot.Snapshot) desired.Intents {
	const reason = "Keelson is taken away"
	in := desired.Intents{Config: s.Config, OwnEntries: entriesOf(s)}
	for i := range s.Nodes {
		in.Nodes = append(in.Nodes, desired.Node{Name: s.Nodes[i].Name, UID: string(s.Nodes[i].UID), Taint: new(bool), Reason: reason})
	}
	for i := range s.Pods {
		in.Pods = append(in.Pods, desired.Pod{Namespace: s.Pods[i].Namespace, Name: s.Pods[i].Name, UID: string(s.Pods[i].UID), Reason: reason})
	}
	return in
}

// entriesOf are the IDs of the SPIRE entries that this cluster's policy-sync made. Those of an earlier version are told by what
// policies still ask for; where the graph cannot be made, they stay.
func entriesOf(s snapshot.Snapshot) []string {
	var out []string
	if g, err := trustgraph.Build(s); err == nil {
		out = g.OwnEntries
	}
	for _, e := range s.SPIRE.Entries {
		if cluster, ok := snapshot.EntryCluster(e); ok && cluster == s.ClusterName() || s.ClusterName() == "" && snapshot.OwnedEntry(e) {
			out = append(out, e.ID)
		}
	}
	return out
}

// apply does what closes, each even when another fails, and then, if all of it succeeded, what opens, in order.
func (t *taker) apply(ctx context.Context, p plan.Plan) error {
	var failed []error
	for _, o := range p.Closing() {
		failed = append(failed, t.one(ctx, o))
	}
	if err := errors.Join(failed...); err != nil {
		return err
	}
	for _, o := range p.Opening() {
		if err := t.one(ctx, o); err != nil {
			return err
		}
	}
	return nil
}

func (t *taker) one(ctx context.Context, o plan.Operation) error {
	within, cancel := context.WithTimeout(ctx, t.timeout)
	defer cancel()
	var err error
	if o.Entry != nil {
		err = errors.Join(t.spire.Apply(within, []plan.Operation{o})...)
	} else {
		err = t.store.Apply(within, o)
	}
	if err != nil {
		return err
	}
	return t.say("%s\n", o)
}

// nothingDone are statuses that say that policies are not acted on any more: "Programmed" would go on looking true for ever.
func nothingDone(policies []v1alpha1.TrustPolicy) []kube.PolicyStatus {
	out := make([]kube.PolicyStatus, 0, len(policies))
	for i := range policies {
		p := &policies[i]
		out = append(out, kube.PolicyStatus{Namespace: p.Namespace, Name: p.Name, UID: string(p.UID), Status: v1alpha1.TrustPolicyStatus{
			ObservedGeneration: p.Generation,
			Conditions: []metav1.Condition{{Type: v1alpha1.ConditionProgrammed, Status: metav1.ConditionFalse, ObservedGeneration: p.Generation,
				Reason: "Uninstalled", Message: "Keelson was taken away; nothing of this policy is enforced"}}}})
	}
	return out
}
