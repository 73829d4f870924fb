package plan_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// world is a cluster to which plans are applied, with the rules that API servers have:
// UIDs are preconditions, a resourceVersion that has passed is a conflict.
type world struct {
	snapshot.Snapshot
	version int
}

func (w *world) next() string {
	w.version++
	return strconv.Itoa(1000 + w.version)
}

// clone makes a world that shares nothing with w that apply changes.
func (w *world) clone() *world {
	out := *w
	out.Nodes, out.Pods = nil, nil
	for i := range w.Nodes {
		out.Nodes = append(out.Nodes, *w.Nodes[i].DeepCopy())
	}
	for i := range w.Pods {
		out.Pods = append(out.Pods, w.Pods[i].DeepCopy())
	}
	out.Objects = slices.Clone(w.Objects) // replaced, never changed in place
	if w.SPIRE != nil {
		out.SPIRE = &snapshot.SPIRE{Entries: slices.Clone(w.SPIRE.Entries), Agents: slices.Clone(w.SPIRE.Agents)}
	}
	return &out
}

func (w *world) apply(o plan.Operation) error {
	switch o.Action {
	case plan.Create:
		obj := o.Object.DeepCopy()
		if w.find(o.Target) >= 0 {
			return fmt.Errorf("%s exists", o.Target)
		}
		obj.SetUID(types.UID(w.next()))
		obj.SetResourceVersion(w.next())
		w.Objects = append(w.Objects, obj)
	case plan.Update, plan.Delete:
		i := w.find(o.Target)
		if i < 0 || string(w.Objects[i].GetUID()) != o.Target.UID || w.Objects[i].GetResourceVersion() != o.Target.ResourceVersion {
			return fmt.Errorf("%s: conflict", o.Target)
		}
		if o.Action == plan.Delete {
			w.Objects = slices.Delete(slices.Clone(w.Objects), i, i+1)
			return nil
		}
		obj := o.Object.DeepCopy()
		obj.SetResourceVersion(w.next())
		w.Objects[i] = obj
	case plan.Patch:
		return w.patch(o)
	case plan.CreateEntry:
		w.SPIRE.Entries = append(w.SPIRE.Entries, *o.Entry)
	case plan.UpdateEntry, plan.DeleteEntry:
		w.SPIRE.Entries = slices.DeleteFunc(w.SPIRE.Entries, func(e snapshot.Entry) bool { return e.ID == o.Entry.ID })
		if o.Action == plan.UpdateEntry {
			w.SPIRE.Entries = append(w.SPIRE.Entries, *o.Entry)
		}
	case plan.DeleteAgent:
		w.SPIRE.Agents = slices.DeleteFunc(w.SPIRE.Agents, func(a snapshot.Agent) bool { return a.ID == o.AgentID })
	}
	return nil
}

func (w *world) find(t plan.Target) int {
	return slices.IndexFunc(w.Objects, func(o *unstructured.Unstructured) bool {
		return o.GroupVersionKind() == t.GroupVersionKind && o.GetNamespace() == t.Namespace && o.GetName() == t.Name
	})
}

func (w *world) patch(o plan.Operation) error {
	if o.Target.Kind == "Node" {
		for i := range w.Nodes {
			if w.Nodes[i].Name == o.Target.Name {
				return merge(w, &w.Nodes[i], o.MergePatch)
			}
		}
	}
	for i := range w.Pods {
		if w.Pods[i].Namespace == o.Target.Namespace && w.Pods[i].Name == o.Target.Name {
			p := w.Pods[i].DeepCopy() // replaced, never changed in place
			err := merge(w, p, o.MergePatch)
			w.Pods[i] = p
			return err
		}
	}
	return fmt.Errorf("%s is not there", o.Target)
}

type object[T any] interface {
	*T
	GetUID() types.UID
	GetResourceVersion() string
	SetResourceVersion(string)
}

func merge[T any, P object[T]](w *world, live P, patch []byte) error {
	var head struct {
		Metadata struct{ UID, ResourceVersion string }
	}
	if err := json.Unmarshal(patch, &head); err != nil {
		return err
	}
	if head.Metadata.UID != string(live.GetUID()) {
		return fmt.Errorf("patch without the object's UID: %s", patch)
	}
	if rv := head.Metadata.ResourceVersion; rv != "" && rv != live.GetResourceVersion() {
		return fmt.Errorf("conflict: %s", patch)
	}
	before, err := json.Marshal(live)
	if err != nil {
		return err
	}
	after, err := jsonpatch.MergePatch(before, patch)
	if err != nil {
		return err
	}
	*live = *new(T)
	if err := json.Unmarshal(after, live); err != nil {
		return err
	}
	live.SetResourceVersion(w.next())
	return nil
}

// settle applies plans until there is nothing to do and calls step after each operation.
func (w *world) settle(t tb, step func(phase plan.Phase)) []plan.Plan {
	t.Helper()
	var plans []plan.Plan
	for range 8 {
		r := mustMake(t, w.Snapshot)
		if r.Plan.Empty() {
			return plans
		}
		plans = append(plans, r.Plan)
		for _, o := range r.Plan.Operations {
			if err := w.apply(o); err != nil {
				t.Fatal(fmt.Sprintf("%s: %v", o, err))
			}
			if step != nil {
				step(o.Phase)
			}
		}
	}
	t.Fatal("not settled after 8 plans; the last one:\n" + plans[len(plans)-1].String())
	return nil
}

type tb interface {
	Helper()
	Fatal(args ...any)
}

func mustMake(t tb, s snapshot.Snapshot) plan.Result {
	t.Helper()
	r, err := plan.Make(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}
