package syncer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/keelson-project/keelson/policy-sync/kube"
	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
)

// fakeWorld is a cluster and a SPIRE server in memory that carry out operations and keep the order.
type fakeWorld struct {
	t   *testing.T
	mu  sync.Mutex
	s   snapshot.Snapshot // SPIRE apart
	now time.Time
	ops []plan.Operation
	// cache shows s to the syncer.
	cache snapshottest.Cache

	readErr  error
	applyErr func(plan.Operation) error
	hangs    func(plan.Operation) bool
	takes    func(plan.Operation) time.Duration // how long Kubernetes takes; nil is no time
	batches  [][]plan.Operation                 // calls of the SPIRE server
	reports  []kube.Report

	spire    snapshot.SPIRE
	spireErr error
	// spireReads counts readings.
	spireReads int
	hang       chan struct{} // SPIRE's answers wait until it is closed; nil does not
}

func newFake(t *testing.T) *fakeWorld {
	s := snapshottest.Demo()
	snapshottest.WithoutHTTP(&s)
	for i := range s.NodeTrusts {
		s.NodeTrusts[i].Spec.ValidUntil = metav1.NewMicroTime(s.At.Add(time.Hour))
	}
	for _, image := range s.Images {
		for name, v := range image.Verifiers {
			v.ValidUntil = s.At.Add(time.Hour)
			image.Verifiers[name] = v
		}
	}
	w := &fakeWorld{t: t, s: s, now: s.At, spire: *s.SPIRE}
	w.s.SPIRE = nil
	return w
}

func (w *fakeWorld) syncer() *Syncer {
	return New(Options{Kubernetes: fakeKube{w}, SPIRE: fakeSPIRE{w}, Log: slog.New(slog.DiscardHandler),
		Images: func([]snapshot.ImageQuestion) map[snapshot.ImageKey]snapshot.Image { return w.s.Images },
		Now:    w.clock, Resync: time.Hour, Timeout: time.Second, Patience: 100 * time.Millisecond, WarmUp: time.Minute})
}

func (w *fakeWorld) clock() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

// sync runs passes until one has nothing to do, and returns what was done.
func (w *fakeWorld) sync(s *Syncer) []plan.Operation {
	w.t.Helper()
	w.mu.Lock()
	w.ops = nil
	w.mu.Unlock()
	for range 6 {
		w.mu.Lock()
		before := len(w.ops)
		w.mu.Unlock()
		if _, err := s.Sync(w.t.Context()); err != nil {
			w.t.Fatal(err)
		}
		w.mu.Lock()
		done := len(w.ops) == before
		w.mu.Unlock()
		if done {
			return w.ops
		}
	}
	w.t.Fatalf("still writing after six passes: %v", w.ops[len(w.ops)-1])
	return nil
}

type fakeKube struct{ *fakeWorld }

func (k fakeKube) Read(context.Context) (snapshot.Snapshot, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.readErr != nil {
		return snapshot.Snapshot{}, k.readErr
	}
	s := k.s
	s.Nodes, s.Pods, s.Objects = slices.Clone(s.Nodes), slices.Clone(s.Pods), slices.Clone(s.Objects)
	s.NodeTrusts, s.Policies, s.Images = slices.Clone(s.NodeTrusts), slices.Clone(s.Policies), nil
	return k.cache.Read(s), nil
}

func (k fakeKube) Apply(ctx context.Context, o plan.Operation) error {
	k.mu.Lock()
	hangs, takes := k.hangs, k.takes
	k.mu.Unlock()
	if takes != nil {
		time.Sleep(takes(o))
	}
	if hangs != nil && hangs(o) {
		<-ctx.Done()
		return ctx.Err()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.applyErr != nil {
		if err := k.applyErr(o); err != nil {
			return err
		}
	}
	k.ops = append(k.ops, o)
	switch o.Action {
	case plan.Create:
		k.s.Objects = append(k.s.Objects, o.Object.DeepCopy())
	case plan.Update, plan.Delete:
		k.s.Objects = slices.DeleteFunc(k.s.Objects, func(x *unstructured.Unstructured) bool {
			return x.GetKind() == o.Target.Kind && x.GetNamespace() == o.Target.Namespace && x.GetName() == o.Target.Name
		})
		if o.Action == plan.Update {
			k.s.Objects = append(k.s.Objects, o.Object.DeepCopy())
		}
	case plan.Patch:
		k.patch(o)
	default:
		return fmt.Errorf("not on Kubernetes: %s", o)
	}
	return nil
}

func (k fakeKube) patch(o plan.Operation) {
	var body struct {
		Metadata struct{ Labels map[string]*string }
		Spec     struct{ Taints *[]corev1.Taint }
	}
	if err := json.Unmarshal(o.MergePatch, &body); err != nil {
		k.t.Error(err)
	}
	merge := func(labels map[string]string) map[string]string {
		out := maps.Clone(labels)
		if out == nil {
			out = map[string]string{}
		}
		for key, v := range body.Metadata.Labels {
			if delete(out, key); v != nil {
				out[key] = *v
			}
		}
		return out
	}
	for i := range k.s.Nodes {
		if n := &k.s.Nodes[i]; o.Target.Kind == "Node" && n.Name == o.Target.Name {
			if n.Labels = merge(n.Labels); body.Spec.Taints != nil {
				n.Spec.Taints = *body.Spec.Taints
			}
		}
	}
	for i := range k.s.Pods {
		if p := k.s.Pods[i]; o.Target.Kind == "Pod" && p.Name == o.Target.Name && p.Namespace == o.Target.Namespace {
			p.Labels = merge(p.Labels)
		}
	}
}

func (k fakeKube) Report(_ context.Context, r kube.Report) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.reports = append(k.reports, r)
	return nil
}

type fakeSPIRE struct{ *fakeWorld }

var errGone = errors.New("connection refused")

func (f fakeSPIRE) Read(ctx context.Context) (*snapshot.SPIRE, error) {
	f.mu.Lock()
	f.spireReads++
	hang := f.hang
	f.mu.Unlock()
	if hang != nil {
		select {
		case <-hang:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.spireErr != nil {
		return nil, f.spireErr
	}
	return &snapshot.SPIRE{Entries: slices.Clone(f.spire.Entries), Agents: slices.Clone(f.spire.Agents)}, nil
}

func (f fakeSPIRE) Apply(_ context.Context, operations []plan.Operation) []error {
	f.mu.Lock()
	takes := f.takes
	f.mu.Unlock()
	if takes != nil {
		time.Sleep(takes(operations[0]))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.batches = append(f.batches, slices.Clone(operations))
	out := make([]error, len(operations))
	for i, o := range operations {
		if f.applyErr != nil {
			if out[i] = f.applyErr(o); out[i] != nil {
				continue
			}
		}
		f.ops = append(f.ops, o)
		switch o.Action {
		case plan.CreateEntry:
			f.spire.Entries = append(f.spire.Entries, *o.Entry)
		case plan.DeleteEntry:
			f.spire.Entries = slices.DeleteFunc(f.spire.Entries, func(e snapshot.Entry) bool { return e.ID == o.Entry.ID })
		case plan.DeleteAgent:
			f.spire.Agents = slices.DeleteFunc(f.spire.Agents, func(a snapshot.Agent) bool { return a.ID == o.AgentID })
		default:
			out[i] = fmt.Errorf("not on SPIRE: %s", o)
		}
	}
	return out
}
