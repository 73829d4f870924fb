package plan

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	utiljson "k8s.io/apimachinery/pkg/util/json"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/desired"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

func key(o *unstructured.Unstructured) string {
	return o.GroupVersionKind().String() + " " + snapshot.Key(o)
}

func target(o *unstructured.Unstructured) Target {
	return Target{
		GroupVersionKind: o.GroupVersionKind(), Namespace: o.GetNamespace(), Name: o.GetName(),
		UID: string(o.GetUID()), ResourceVersion: o.GetResourceVersion(),
	}
}

// surplusObject deletes an object of ours. Deletes touch only what bears our owner label.
func (d *differ) surplusObject(o *unstructured.Unstructured) {
	op := Operation{Phase: Tighten, Action: Delete, Target: target(o), Reason: "nothing asks for it any more"}
	if closes(o) {
		op.Phase = Retire
	}
	op.Domain = deleteDomain(o, op.Phase)
	d.rail.delete(o.GetNamespace())
	d.add(op)
}

// object brings one object from its live state to the wanted one. A live object with the very name of
// ours that somebody else made is taken over: under those names stands what closes, and
// leaving a stranger's object there would leave it open. First it goes to what
// both have open (and to all that either closes), in a closing phase; from there to the
// wanted state, in an opening phase of a later plan.
func (d *differ) object(live *unstructured.Unstructured, want desired.Object) error {
	closing := [...]Phase{desired.Barrier: DefaultDeny, desired.Gate: Tighten, desired.Blacklist: Revoke}[want.Class]
	opening := [...]Phase{desired.Barrier: Retire, desired.Gate: Program, desired.Blacklist: Retire}[want.Class]
	proved := want.Class == desired.Blacklist
	if live == nil && d.terminating(want.GetNamespace()) {
		// The API server would refuse it, and a refused closing operation holds up every opening one, of all namespaces.
		d.withhold("%s: its namespace is being deleted and takes no new objects", target(want.Unstructured))
		return nil
	}
	if live == nil {
		op := Operation{Phase: closing, Action: Create, Target: target(want.Unstructured), Object: want.DeepCopy(), Proved: proved, Reason: want.Reason}
		if want.Class == desired.Gate {
			op.Phase = Program
		}
		op.Domain = d.objectDomain(nil, want, op.Phase)
		d.add(op)
		return nil
	}
	live, err := plain(live)
	if err != nil {
		return fmt.Errorf("plan: %s: %w", target(want.Unstructured), err)
	}
	middle, err := meet(live, want)
	if err != nil {
		return fmt.Errorf("plan: %s: %w", target(want.Unstructured), err)
	}
	atMiddle, err := alike(live, middle, want)
	if err != nil {
		return fmt.Errorf("plan: %s: %w", target(want.Unstructured), err)
	}
	switch {
	case same(live, want.Unstructured):
	case atMiddle:
		d.add(Operation{Phase: opening, Action: Update, Target: target(live), Object: merge(live, want.Unstructured),
			Domain: d.objectDomain(live, want, opening), Reason: want.Reason})
	default:
		d.add(Operation{Phase: closing, Action: Update, Target: target(live), Object: merge(live, middle), Proved: proved,
			Domain: d.objectDomain(live, want, closing), Reason: want.Reason})
		d.p.Again = d.p.Again || !same(middle, want.Unstructured)
	}
	return nil
}

// terminating tells whether a namespace is being deleted. What closes it is still there in part: the global default deny is by
// its label, and it lets no pod in any more.
func (d *differ) terminating(namespace string) bool {
	if d.ending == nil {
		d.ending = map[string]bool{}
		for i := range d.s.Namespaces {
			if n := &d.s.Namespaces[i]; n.DeletionTimestamp != nil {
				d.ending[n.Name] = true
			}
		}
	}
	return d.ending[namespace]
}

// plain brings numbers into one form, whatever decoded the live object.
func plain(o *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	data, err := o.MarshalJSON()
	if err != nil {
		return nil, err
	}
	out := &unstructured.Unstructured{}
	return out, utiljson.Unmarshal(data, &out.Object)
}

// dryRun switches an Istio policy off: on one that closes it opens, on one that opens it
// closes.
const dryRun = "istio.io/dry-run"

// meet is the wanted object with only those opening elements that are live too, and with
// all closing elements that are live besides.
func meet(live *unstructured.Unstructured, want desired.Object) (*unstructured.Unstructured, error) {
	out := want.DeepCopy()
	for _, path := range want.Opens {
		have, wanted := elements(live, path), elements(want.Unstructured, path)
		if err := put(out, path, common(want, have, wanted)); err != nil {
			return nil, err
		}
	}
	for _, path := range want.Closes {
		have, wanted := elements(live, path), elements(want.Unstructured, path)
		if err := put(out, path, joined(want, have, wanted)); err != nil {
			return nil, err
		}
	}
	annotations := out.GetAnnotations()
	if value, off := live.GetAnnotations()[dryRun]; off && want.Class == desired.Gate {
		if annotations == nil {
			annotations = map[string]string{}
		}
		annotations[dryRun] = value
	} else if !off && want.Class != desired.Gate {
		delete(annotations, dryRun)
	}
	out.SetAnnotations(annotations)
	return out, nil
}

// elements are those of a list of an object; none of no object.
func elements(o *unstructured.Unstructured, path []string) []any {
	if o == nil {
		return nil
	}
	value, _, err := unstructured.NestedFieldNoCopy(o.Object, path...)
	list, isList := value.([]any)
	if err != nil || !isList {
		return nil // not a list: nothing that could be kept
	}
	return list
}

func put(o *unstructured.Unstructured, path []string, list []any) error {
	if len(list) == 0 {
		unstructured.RemoveNestedField(o.Object, path...)
		return nil
	}
	return unstructured.SetNestedSlice(o.Object, runtime.DeepCopyJSONValue(list).([]any), path...)
}

// same reports whether the live object says what the wanted one says: every field of its
// spec and of the metadata that has a meaning to policy. A field that somebody added
// makes a difference as much as one that was changed. What an API server adds elsewhere
// (labels and annotations of its own, empty values) does not.
func same(live, want *unstructured.Unstructured) bool {
	if !reflect.DeepEqual(normal(live.Object["spec"]), normal(want.Object["spec"])) {
		return false
	}
	return sameKeys(live.GetLabels(), want.GetLabels()) && sameKeys(live.GetAnnotations(), want.GetAnnotations())
}

func sameKeys(live, want map[string]string) bool {
	for k, v := range want {
		if have, ok := live[k]; !ok || have != v {
			return false
		}
	}
	for k := range live {
		if _, ok := want[k]; !ok && meaningful(k) {
			return false
		}
	}
	return true
}

// meaningful reports whether a label or annotation of that key changes what a policy
// does: Istio's dry-run annotation and revision label, trust labels.
func meaningful(key string) bool {
	domain, _, _ := strings.Cut(key, "/")
	return domain == "istio.io" || strings.HasSuffix(domain, ".istio.io") || domain == v1alpha1.Group || strings.HasSuffix(domain, "."+v1alpha1.Group)
}

// normal drops map members that hold nothing ({} and [] and "" and null), which API
// servers add or leave out as they like. Elements of lists stay: an empty rule is a rule.
func normal(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for k, e := range v {
			if n := normal(e); n != nil {
				out[k] = n
			}
		}
		if len(out) == 0 {
			return nil
		}
		return out
	case []any:
		if len(v) == 0 {
			return nil
		}
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = normal(e)
		}
		return out
	case string:
		if v == "" {
			return nil
		}
	case float64:
		if v == float64(int64(v)) {
			return int64(v)
		}
	}
	return v
}

// merge is the live object with our spec, labels and annotations.
func merge(live, want *unstructured.Unstructured) *unstructured.Unstructured {
	out := live.DeepCopy()
	out.SetOwnerReferences(nil) // an owner of a stranger's would take the object away with itself
	if spec, ok := want.Object["spec"]; ok {
		out.Object["spec"] = runtime.DeepCopyJSONValue(spec)
	} else {
		delete(out.Object, "spec")
	}
	out.SetLabels(mergeKeys(live.GetLabels(), want.GetLabels()))
	out.SetAnnotations(mergeKeys(live.GetAnnotations(), want.GetAnnotations()))
	return out
}

func mergeKeys(live, want map[string]string) map[string]string {
	out := map[string]string{}
	for k, v := range live {
		if !meaningful(k) {
			out[k] = v
		}
	}
	maps.Copy(out, want)
	if len(out) == 0 {
		return nil
	}
	return out
}

// closes reports whether an object of ours closes something by being there, so that it
// has to go last.
func closes(o *unstructured.Unstructured) bool {
	switch o.GetKind() {
	case "Tier", "GlobalNetworkSet", "PeerAuthentication":
		return true
	case "AuthorizationPolicy":
		action, _, _ := unstructured.NestedString(o.Object, "spec", "action")
		return action == "DENY" || len(elements(o, []string{"spec", "rules"})) == 0
	case "NetworkPolicy", "GlobalNetworkPolicy":
		for _, rule := range slices.Concat(elements(o, []string{"spec", "ingress"}), elements(o, []string{"spec", "egress"})) {
			if m, ok := rule.(map[string]any); ok && m["action"] == "Deny" {
				return true
			}
		}
	}
	return false
}
