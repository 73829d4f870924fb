package guard

import (
	"fmt"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

// ownGuards keep policy-sync's account to what policy-sync does. It may patch every pod and every node, which RBAC cannot narrow to
// labels: whoever stole its token could change the image of a pod in kube-system otherwise. On pods it writes trust labels alone,
// on nodes their verdict, reference and tags and the one taint.
func ownGuards(p Params) []check {
	only := []admissionv1.MatchCondition{users("policy-sync", []string{p.PolicySync})}
	updates := []admissionv1.OperationType{admissionv1.Update}
	forbidden := func(expression, message string) admissionv1.Validation {
		return admissionv1.Validation{Expression: expression, Message: message, Reason: ptr(metav1.StatusReasonForbidden)}
	}
	variables := func(ours string) []admissionv1.Variable {
		return []admissionv1.Variable{
			keys("before", "oldObject", "!("+ours+")"), keys("after", "object", "!("+ours+")"),
			{Name: "was", Expression: "has(oldObject.spec) ? oldObject.spec : {}"}, {Name: "is", Expression: "has(object.spec) ? object.spec : {}"},
		}
	}
	const pods, nodes = "policy-sync writes trust labels on pods, and nothing else of them", "policy-sync writes its own labels and its one taint on nodes, and nothing else of them"
	// Taints under node.kubernetes.io/ follow a node's conditions: who takes one off sees it put on again.
	const others = `(has(variables.%[1]s.taints) ? variables.%[1]s.taints.filter(t, !(t.key == "` + v1alpha1.UntrustedTaint + `" && t.effect == "NoSchedule")) : [])`
	is, was := fmt.Sprintf(others, "is"), fmt.Sprintf(others, "was")
	sameTaints := is + ".all(t, t in " + was + ") && " + was + ".all(t, t in " + is + ` || t.key.startsWith("node.kubernetes.io/"))`
	const restOfSpec = `%[1]s.all(k, k == "taints" || (k in %[2]s && %[1]s[k] == %[2]s[k]))`
	return []check{
		{
			name: "own-pods", why: "a stolen token of policy-sync changes nothing of a pod but its trust labels",
			rules: []admissionv1.NamedRuleWithOperations{on("", updates, "pods")}, when: only, variables: variables(trustKey),
			validations: []admissionv1.Validation{unchanged(pods), forbidden(sameMetadata, pods), forbidden("variables.is == variables.was", pods)},
		},
		{
			name: "own-nodes", why: "a stolen token of policy-sync changes nothing of a node but its verdict",
			rules: []admissionv1.NamedRuleWithOperations{on("", updates, "nodes")}, when: only,
			variables: variables(fmt.Sprintf("k.startsWith(%q)", v1alpha1.NodeLabelPrefix)),
			validations: []admissionv1.Validation{
				unchanged(nodes), forbidden(sameMetadata, nodes),
				forbidden(sameTaints, nodes),
				forbidden(fmt.Sprintf(restOfSpec, "variables.is", "variables.was")+" && "+fmt.Sprintf(restOfSpec, "variables.was", "variables.is"), nodes),
			},
		},
		{
			name: "own-subresources", why: "policy-sync writes no status, binds no pod and adds no container to one",
			rules: []admissionv1.NamedRuleWithOperations{on("", writes, "pods/status", "pods/ephemeralcontainers", "pods/resize", "pods/binding", "bindings", "nodes/status"),
				on("", []admissionv1.OperationType{admissionv1.Connect}, "pods/exec", "pods/attach", "pods/portforward", "pods/proxy", "nodes/proxy")},
			when:        only,
			validations: []admissionv1.Validation{forbidden("false", "policy-sync writes labels of pods and nodes, and uses none of their subresources")},
		},
	}
}

// sameMetadata demands that annotations, finalizers and owners are as they were.
const sameMetadata = `has(object.metadata) == has(oldObject.metadata) && (!has(object.metadata) ||
(has(object.metadata.annotations) ? object.metadata.annotations : {}) == (has(oldObject.metadata.annotations) ? oldObject.metadata.annotations : {}) &&
(has(object.metadata.finalizers) ? object.metadata.finalizers : []) == (has(oldObject.metadata.finalizers) ? oldObject.metadata.finalizers : []) &&
(has(object.metadata.ownerReferences) ? object.metadata.ownerReferences : []) == (has(oldObject.metadata.ownerReferences) ? oldObject.metadata.ownerReferences : []))`
