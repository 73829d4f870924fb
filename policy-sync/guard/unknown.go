package guard

import (
	"fmt"
	"reflect"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

// policyGuards: the API keeps fields of a TrustPolicy that its schema does not know, because a field that the API drops without a
// word makes a policy weaker than its author wrote it. This guard refuses them by name, whether or not the client asked the API
// for strict validation. policy-sync does not accept a policy that has any while the guard is off.
//
// Only fields that an update adds are refused, so that an object that has one from before can still be labelled and deleted.
func policyGuards() []check {
	spec := reflect.TypeFor[v1alpha1.TrustPolicySpec]()
	list := func(name, object string) admissionv1.Variable {
		return admissionv1.Variable{Name: name, Expression: fmt.Sprintf("%[1]s != null && has(%[1]s.spec) ? %[2]s : []", object, unknownFields(spec, object+".spec", "spec", 0))}
	}
	return []check{{
		name: "trustpolicy-unknown-fields", why: "a field that nobody reads would leave a TrustPolicy weaker than its author wrote it",
		rules:     []admissionv1.NamedRuleWithOperations{on(v1alpha1.Group, writes, "trustpolicies")},
		variables: []admissionv1.Variable{list("before", "oldObject"), list("after", "object"), {Name: "added", Expression: "variables.after.filter(f, !(f in variables.before))"}},
		validations: []admissionv1.Validation{{
			Expression:        "size(variables.added) == 0",
			Message:           "a TrustPolicy has fields that this version does not know and would not check: correct their names or remove them",
			MessageExpression: `"unknown field " + variables.added.join(", ") + ": this version does not know it and would not check it; correct the name or remove it"`,
			Reason:            ptr(metav1.StatusReasonInvalid),
		}},
	}}
}

// unknownFields is a CEL expression: the list of the fields of an object that its Go type does not know, each as its path. Elements
// of lists are told by their list alone ("spec.ingress.port"): CEL's lists have no index here.
func unknownFields(t reflect.Type, expression, path string, depth int) string {
	var known, parts []string
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "-" || name == "" {
			continue
		}
		known = append(known, name)
		within := f.Type
		if within.Kind() == reflect.Pointer {
			within = within.Elem()
		}
		at, in := path+"."+name, expression+"."+name
		switch {
		case within.Kind() == reflect.Struct && within.PkgPath() != "k8s.io/apimachinery/pkg/runtime":
			parts = append(parts, fmt.Sprintf("(has(%s) ? %s : [])", in, unknownFields(within, in, at, depth)))
		case within.Kind() == reflect.Slice && within.Elem().Kind() == reflect.Struct:
			element := fmt.Sprintf("e%d", depth)
			parts = append(parts, fmt.Sprintf("(has(%s) ? %s.map(%s, %s).flatten() : [])", in, in, element, unknownFields(within.Elem(), element, at, depth+1)))
		}
	}
	own := fmt.Sprintf("%s.filter(k, !(k in %s)).map(k, %q + k)", expression, cel(known), path+".")
	return "(" + strings.Join(append([]string{own}, parts...), " + ") + ")"
}
