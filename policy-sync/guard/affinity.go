package guard

import (
	"fmt"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

const (
	required = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution"

	// selects is whether a TrustPolicy (params) is for the pod: service account and label selector, as
	// metav1.LabelSelectorAsSelector reads one. The API server has put a pod's account in by then.
	selects = `(!has(params.spec.workloads.serviceAccount) || params.spec.workloads.serviceAccount == "" ||
  params.spec.workloads.serviceAccount == (has(object.spec.serviceAccountName) && object.spec.serviceAccountName != "" ? object.spec.serviceAccountName : "default")) &&
(!has(params.spec.workloads.selector) || (
  (!has(params.spec.workloads.selector.matchLabels) || params.spec.workloads.selector.matchLabels.all(k, k in variables.labels && variables.labels[k] == params.spec.workloads.selector.matchLabels[k])) &&
  (!has(params.spec.workloads.selector.matchExpressions) || params.spec.workloads.selector.matchExpressions.all(e,
    e.operator == "In" ? e.key in variables.labels && variables.labels[e.key] in e.values :
    e.operator == "NotIn" ? !(e.key in variables.labels) || !(variables.labels[e.key] in e.values) :
    e.operator == "Exists" ? e.key in variables.labels :
    e.operator == "DoesNotExist" ? !(e.key in variables.labels) : false))))`

	// labelled is whether every one of a list of texts can be the value of a label. What cannot is on no node.
	labelled = `%[1]s.size() > 0 && %[1]s.all(v, v != "" && !format.labelValue().validate(v).hasValue())`

	// one is one requirement of a node affinity. dyn: the values of a map literal have one type.
	one = `{"key": dyn(%s), "operator": dyn("In"), "values": dyn(%s)}`
)

// requirements are what a node's labels must say: its verdict, its reference set, its tags. What a label cannot say is left to
// policy-sync, which refuses the pod where it stands.
var requirements = fmt.Sprintf(`[`+one+`] +
(has(params.spec.require) && has(params.spec.require.node) && has(params.spec.require.node.references) && `+fmt.Sprintf(labelled, "params.spec.require.node.references")+` ?
  [`+one+`] : []) +
(has(params.spec.require) && has(params.spec.require.node) && has(params.spec.require.node.tags) ?
  params.spec.require.node.tags.map(k, `+fmt.Sprintf(labelled, "params.spec.require.node.tags[k]")+` && !format.qualifiedName().validate(%q + k).hasValue(), `+one+`) : [])`,
	fmt.Sprintf("%q", v1alpha1.NodeVerdictLabel), fmt.Sprintf("[%q]", v1alpha1.VerdictTrusted),
	fmt.Sprintf("%q", v1alpha1.NodeReferenceLabel), "params.spec.require.node.references",
	v1alpha1.NodeTagPrefix, fmt.Sprintf("%q + k", v1alpha1.NodeTagPrefix), "params.spec.require.node.tags[k]")

// addRequirements adds the requirements to every term, for terms are alternatives (core/v1: "the terms are ORed"); a term that is
// empty matches no node, and stays so.
const addRequirements = `!has(object.spec.affinity) ?
[JSONPatch{op: "add", path: "/spec/affinity", value: {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": variables.requirements}]}}}}] :
!has(object.spec.affinity.nodeAffinity) ?
[JSONPatch{op: "add", path: "/spec/affinity/nodeAffinity", value: {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": variables.requirements}]}}}] :
!has(object.spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution) ?
[JSONPatch{op: "add", path: "` + required + `", value: {"nodeSelectorTerms": [{"matchExpressions": variables.requirements}]}}] :
object.spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms.transformList(i, t,
  has(t.matchExpressions) && size(t.matchExpressions) > 0 ?
    variables.requirements.map(r, JSONPatch{op: "add", path: "` + required + `/nodeSelectorTerms/" + string(i) + "/matchExpressions/-", value: r}) :
  has(t.matchFields) && size(t.matchFields) > 0 ?
    [JSONPatch{op: "add", path: "` + required + `/nodeSelectorTerms/" + string(i) + "/matchExpressions", value: variables.requirements}] : []).flatten()`

// affinityOnCreate keeps the scheduler from placing a pod where it could get no identity and no label: each TrustPolicy that
// selects the pod adds what it requires of the node, as a node affinity over the labels that policy-sync writes.
//
// It is a convenience of the scheduler and no lock: a pod without it is shut out where it stands. So it is the one policy
// here that does not fail closed: an API server that cannot evaluate it makes the pod as its author wrote it.
func affinityOnCreate() []runtime.Object {
	const name, why = "pod-node-affinity", "a pod is placed where it can be trusted"
	m := check{rules: []admissionv1.NamedRuleWithOperations{on("", creates, "pods")}, enrolled: []string{v1alpha1.ModeEnforce}}.match()
	policy := &admissionv1.MutatingAdmissionPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: admissionv1.SchemeGroupVersion.String(), Kind: "MutatingAdmissionPolicy"},
		ObjectMeta: meta(name, why),
		Spec: admissionv1.MutatingAdmissionPolicySpec{
			FailurePolicy: ptr(admissionv1.Ignore), ReinvocationPolicy: admissionv1.NeverReinvocationPolicy, MatchConstraints: m,
			ParamKind: &admissionv1.ParamKind{APIVersion: v1alpha1.GroupVersion.String(), Kind: "TrustPolicy"},
			Variables: []admissionv1.Variable{
				{Name: "labels", Expression: `has(object.metadata.labels) ? object.metadata.labels : {}`},
				{Name: "selected", Expression: selects},
				{Name: "requirements", Expression: requirements},
			},
			Mutations: []admissionv1.Mutation{{PatchType: admissionv1.PatchTypeJSONPatch, JSONPatch: &admissionv1.JSONPatch{
				Expression: "!variables.selected ? [] :\n" + addRequirements}}},
		},
	}
	binding := &admissionv1.MutatingAdmissionPolicyBinding{
		TypeMeta:   metav1.TypeMeta{APIVersion: admissionv1.SchemeGroupVersion.String(), Kind: "MutatingAdmissionPolicyBinding"},
		ObjectMeta: meta(name, why),
		Spec: admissionv1.MutatingAdmissionPolicyBindingSpec{PolicyName: prefix + name, ParamRef: &admissionv1.ParamRef{
			// Every TrustPolicy of the pod's namespace.
			Selector: &metav1.LabelSelector{}, ParameterNotFoundAction: ptr(admissionv1.AllowAction),
		}},
	}
	return []runtime.Object{policy, binding}
}
