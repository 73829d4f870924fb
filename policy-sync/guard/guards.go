package guard

import (
	"fmt"
	"slices"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

// trustKey is trustgraph.TrustKey in CEL, a little wider: every key of our domain.
const trustKey = `k.startsWith("` + v1alpha1.Group + `/") || k.contains("` + v1alpha1.PolicyLabelDomain + `/")`

// forgingKey are label keys that Calico gives to endpoints itself (see trustgraph).
const forgingKey = `k.startsWith("pcns.") || k.startsWith("pcsa.") || k.startsWith("projectcalico.org/")`

// podsOwnKey are those by which rules tell pods, and nothing else. Calico labels host endpoints that it makes itself with
// projectcalico.org/created-by, which says nothing of pods.
const podsOwnKey = `k.startsWith("pcns.") || k.startsWith("pcsa.") || k in ["projectcalico.org/orchestrator", "projectcalico.org/namespace", "projectcalico.org/serviceaccount"]`

const onlyPolicySync = "trust labels (" + v1alpha1.Group + "/…) are written by policy-sync alone: take them away, attested pods get theirs by themselves"

// podGuards: every way in which labels get onto a pod. A Binding's labels overwrite the
// pod's (Kubernetes 1.35 and later), so it counts as one. A pod template with a trust
// label could make no pod, since the pod's creation would be refused; it is refused
// itself so that its author is told at once. Kinds that we do not know and that make
// pods are left to the refusal of the pod.
func podGuards(p Params) []check {
	return []check{
		{
			name: "pod-trust-labels", why: "nobody but policy-sync puts trust labels on pods",
			rules:       []admissionv1.NamedRuleWithOperations{on("", writes, "pods", "pods/status", "pods/ephemeralcontainers", "pods/resize", "pods/binding", "bindings")},
			when:        []admissionv1.MatchCondition{notUsers("not-policy-sync", p.PolicySync)},
			variables:   []admissionv1.Variable{keys("before", "oldObject", trustKey), keys("after", "object", trustKey)},
			validations: []admissionv1.Validation{unchanged(onlyPolicySync)},
		},
		{
			name: "pod-calico-labels", why: "a pod's label of this form overrides what Calico knows of its namespace or service account",
			rules:     []admissionv1.NamedRuleWithOperations{on("", writes, "pods", "pods/status", "pods/ephemeralcontainers", "pods/resize", "pods/binding", "bindings")},
			enrolled:  []string{v1alpha1.ModeEnforce, v1alpha1.ModeAudit},
			variables: []admissionv1.Variable{keys("before", "oldObject", forgingKey), keys("after", "object", forgingKey)},
			validations: []admissionv1.Validation{{
				Expression: "variables.after.all(l, l in variables.before)",
				Message:    "labels pcns.…, pcsa.… and projectcalico.org/… are Calico's own: on a pod they would forge its namespace or service account",
				Reason:     ptr(metav1.StatusReasonForbidden),
			}},
		},
		{
			name: "pod-status-facts", why: "whoever writes a pod's addresses and images into its status decides who is let in; only its node knows them",
			rules:       []admissionv1.NamedRuleWithOperations{on("", writes, "pods/status")},
			when:        []admissionv1.MatchCondition{notGroups("not-a-kubelet", slices.Concat(p.Kubelets, p.Admins))},
			enrolled:    []string{v1alpha1.ModeEnforce, v1alpha1.ModeAudit},
			variables:   []admissionv1.Variable{facts("before", "oldObject"), facts("after", "object")},
			validations: []admissionv1.Validation{unchanged("a pod's addresses and the images of its containers are for its node's kubelet to report")},
		},
		templateGuard("template-trust-labels", "object.spec.template",
			on("apps", writes, "deployments", "daemonsets", "statefulsets", "replicasets"), on("batch", writes, "jobs"), on("", writes, "replicationcontrollers")),
		templateGuard("cronjob-trust-labels", "object.spec.jobTemplate.spec.template", on("batch", writes, "cronjobs")),
		templateGuard("podtemplate-trust-labels", "object.template", on("", writes, "podtemplates")),
	}
}

func templateGuard(name, path string, rules ...admissionv1.NamedRuleWithOperations) check {
	return check{
		name: name, why: "a pod template with trust labels could make no pod", rules: rules,
		validations: []admissionv1.Validation{{
			Expression: fmt.Sprintf(`!has(%[1]s.metadata) || !has(%[1]s.metadata.labels) || !%[1]s.metadata.labels.exists(k, %[2]s)`, path, trustKey),
			Message:    onlyPolicySync, Reason: ptr(metav1.StatusReasonForbidden),
		}},
	}
}

const tainted = `%[1]s != null && has(%[1]s.spec.taints) && %[1]s.spec.taints.exists(t, t.key == "` + v1alpha1.UntrustedTaint + `" && t.effect == "NoSchedule")`

// nodeGuards: NodeRestriction keeps kubelets off the verdict label; these keep everybody
// else off it, and everybody off taking the taint away, deleting and re-creating the
// Node included: creation puts it on (taintOnCreate) and is refused without it.
func nodeGuards(p Params) []check {
	nodeKey := fmt.Sprintf("k.startsWith(%q)", v1alpha1.NodeLabelPrefix)
	nodes := []admissionv1.NamedRuleWithOperations{on("", writes, "nodes", "nodes/status")}
	out := []check{{
		name: "node-trust-labels", why: "nobody but policy-sync writes a node's verdict and tags", rules: nodes,
		when:        []admissionv1.MatchCondition{notUsers("not-policy-sync", p.PolicySync)},
		variables:   []admissionv1.Variable{keys("before", "oldObject", nodeKey), keys("after", "object", nodeKey)},
		validations: []admissionv1.Validation{notBadFor(p.Admins, unchanged("labels "+v1alpha1.NodeLabelPrefix+"… are written by policy-sync alone"))},
	}}
	if !p.Taint {
		return out
	}
	return append(out, check{
		name: "node-taint", why: "nobody but policy-sync takes the taint off a node", rules: nodes,
		when: []admissionv1.MatchCondition{notUsers("not-policy-sync", p.PolicySync)},
		variables: []admissionv1.Variable{
			{Name: "before", Expression: fmt.Sprintf(tainted, "oldObject")},
			{Name: "after", Expression: fmt.Sprintf(tainted, "object")},
		},
		validations: []admissionv1.Validation{{
			Expression: `variables.after || (request.operation == "UPDATE" && !variables.before)`,
			Message:    "taint " + v1alpha1.UntrustedTaint + ":NoSchedule is on every node until policy-sync takes it off",
			Reason:     ptr(metav1.StatusReasonForbidden),
		}},
	})
}

// notBadFor lets administrators take "untrusted" off besides: it keeps policy-sync away, and where all nodes bear it nobody else could. It opens
// nothing, and policy-sync writes it again.
func notBadFor(admins []string, v admissionv1.Validation) admissionv1.Validation {
	label := v1alpha1.NodeVerdictLabel + "=" + string(v1alpha1.VerdictUntrusted)
	v.Expression = fmt.Sprintf(`(%s) || (has(request.userInfo.groups) && request.userInfo.groups.exists(g, g in %s) &&
variables.before.all(l, l in variables.after || l == %q) && variables.after.all(l, l in variables.before))`, v.Expression, cel(admins), label)
	return v
}

// taintOnCreate puts the taint on a Node that is created without it: kubelets register
// without it unless they are told.
func taintOnCreate() []runtime.Object {
	taint := fmt.Sprintf(`{"key": %q, "effect": "NoSchedule"}`, v1alpha1.UntrustedTaint)
	expression := fmt.Sprintf(`has(object.spec.taints) && size(object.spec.taints) > 0 ?
[JSONPatch{op: "add", path: "/spec/taints/-", value: %[1]s}] :
[JSONPatch{op: "add", path: "/spec/taints", value: [%[1]s]}]`, taint)
	const name, why = "node-taint-on-create", "a new node is not trusted"
	m := check{rules: []admissionv1.NamedRuleWithOperations{on("", creates, "nodes")}}.match()
	policy := &admissionv1.MutatingAdmissionPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: admissionv1.SchemeGroupVersion.String(), Kind: "MutatingAdmissionPolicy"},
		ObjectMeta: meta(name, why),
		Spec: admissionv1.MutatingAdmissionPolicySpec{
			FailurePolicy: ptr(admissionv1.Fail), ReinvocationPolicy: admissionv1.NeverReinvocationPolicy, MatchConstraints: m,
			MatchConditions: []admissionv1.MatchCondition{{Name: "without-taint", Expression: "!(" + fmt.Sprintf(tainted, "object") + ")"}},
			Mutations:       []admissionv1.Mutation{{PatchType: admissionv1.PatchTypeJSONPatch, JSONPatch: &admissionv1.JSONPatch{Expression: expression}}},
		},
	}
	binding := &admissionv1.MutatingAdmissionPolicyBinding{
		TypeMeta:   metav1.TypeMeta{APIVersion: admissionv1.SchemeGroupVersion.String(), Kind: "MutatingAdmissionPolicyBinding"},
		ObjectMeta: meta(name, why), Spec: admissionv1.MutatingAdmissionPolicyBindingSpec{PolicyName: prefix + name},
	}
	return []runtime.Object{policy, binding}
}

// networkGuards: Calico's selectors match the labels of sets and host endpoints as they
// match pods'. Both of Calico's API groups are named: the aggregated one evaluates
// admission policies itself (calico-apiserver --enable-validating-admission-policy).
// policy-sync needs no trust label there, so nobody is left alone. The label of its own
// set of revoked addresses is its alone to write, but for Calico's API server, which
// stores for it what that API has been asked.
func networkGuards(p Params) []check {
	return slices.Concat(setGuards(p), objectGuards(p))
}

// setGuards are about labels of sets and host endpoints.
func setGuards(p Params) []check {
	sets := []string{"networksets", "globalnetworksets", "hostendpoints", "workloadendpoints"}
	handMade := []string{"networksets", "globalnetworksets", "hostendpoints"} // a WorkloadEndpoint bears Calico's labels by right
	writers := slices.Concat([]string{p.PolicySync}, p.CalicoAPIServers)
	return []check{
		{
			name: "network-set-trust-labels", why: "Calico takes the addresses of a set or host endpoint with a trust label for attested pods",
			rules:     []admissionv1.NamedRuleWithOperations{on("projectcalico.org", writes, sets...), on("crd.projectcalico.org", writes, sets...)},
			variables: []admissionv1.Variable{keys("after", "object", `(`+trustKey+`) && k != "`+v1alpha1.RevokedLabel+`"`)},
			validations: []admissionv1.Validation{{
				Expression: "size(variables.after) == 0", Reason: ptr(metav1.StatusReasonForbidden),
				Message: "a trust label on a network set or endpoint would make Calico take its addresses for attested pods",
			}},
		},
		{
			name: "network-set-calico-labels", why: "rules that are meant for pods tell them by Calico's own labels, which a set or host endpoint must not forge",
			rules:     []admissionv1.NamedRuleWithOperations{on("projectcalico.org", writes, handMade...), on("crd.projectcalico.org", writes, handMade...)},
			variables: []admissionv1.Variable{keys("before", "oldObject", podsOwnKey), keys("after", "object", podsOwnKey)},
			validations: []admissionv1.Validation{{
				Expression: "variables.after.all(l, l in variables.before)", Reason: ptr(metav1.StatusReasonForbidden),
				Message: "labels pcns.…, pcsa.… and projectcalico.org/orchestrator, namespace and serviceaccount are Calico's own: on a network set or host endpoint they would have Calico take its addresses for pods",
			}},
		},
		{
			name: "network-set-revoked-label", why: "the first policy of Keelson's tier denies the addresses of every set with this label, DNS and all: with one that holds 0.0.0.0/0 nothing enrolled would talk",
			rules:     []admissionv1.NamedRuleWithOperations{on("projectcalico.org", writes, sets...), on("crd.projectcalico.org", writes, sets...)},
			when:      []admissionv1.MatchCondition{notUsers("not-policy-sync", writers...)},
			variables: []admissionv1.Variable{keys("after", "object", `k == "`+v1alpha1.RevokedLabel+`"`)},
			validations: []admissionv1.Validation{{
				Expression: "size(variables.after) == 0", Reason: ptr(metav1.StatusReasonForbidden),
				Message: "label " + v1alpha1.RevokedLabel + " is policy-sync's alone: what bears it is denied in every enrolled namespace",
			}},
		},
	}
}

// objectGuards are about the objects that policy-sync writes.
func objectGuards(p Params) []check {
	policies := []string{"tiers", "networkpolicies", "globalnetworkpolicies", "stagednetworkpolicies", "stagedglobalnetworkpolicies", "globalnetworksets"}
	istio := []string{"authorizationpolicies", "peerauthentications"}
	owners := notUsers("not-policy-sync", slices.Concat([]string{p.PolicySync}, p.CalicoAPIServers, system)...)
	const ours = `%[1]s != null && has(%[1]s.metadata.labels) && "` + v1alpha1.OwnerLabel + `" in %[1]s.metadata.labels && %[1]s.metadata.labels["` + v1alpha1.OwnerLabel + `"] == "` + v1alpha1.OwnerValue + `"`
	const inTier = `%[1]s != null && (%[1]s.metadata.name == "` + v1alpha1.CalicoTier + `" || has(%[1]s.spec) && has(%[1]s.spec.tier) && %[1]s.spec.tier == "` + v1alpha1.CalicoTier + `")`
	return []check{
		{
			name: "calico-objects", why: "nobody but policy-sync changes Keelson's Calico objects or adds to its tier",
			rules:     []admissionv1.NamedRuleWithOperations{on("projectcalico.org", allWrites, policies...), on("crd.projectcalico.org", allWrites, policies...)},
			when:      []admissionv1.MatchCondition{owners},
			variables: []admissionv1.Variable{{Name: "ours", Expression: fmt.Sprintf(ours, "object") + " || " + fmt.Sprintf(ours, "oldObject")}, {Name: "tier", Expression: fmt.Sprintf(inTier, "object") + " || " + fmt.Sprintf(inTier, "oldObject")}},
			validations: []admissionv1.Validation{{
				Expression: "!variables.ours && !variables.tier", Reason: ptr(metav1.StatusReasonForbidden),
				Message: "this object or its tier is Keelson's: change the TrustPolicy that it was made for",
			}},
		},
		{
			name: "istio-objects", why: "nobody but policy-sync changes Keelson's Istio objects",
			rules:     []admissionv1.NamedRuleWithOperations{on("security.istio.io", allWrites, istio...)},
			when:      []admissionv1.MatchCondition{owners},
			variables: []admissionv1.Variable{{Name: "ours", Expression: fmt.Sprintf(ours, "object") + " || " + fmt.Sprintf(ours, "oldObject")}},
			validations: []admissionv1.Validation{{
				Expression: "!variables.ours", Reason: ptr(metav1.StatusReasonForbidden),
				Message: "this object is Keelson's: change the TrustPolicy that it was made for",
			}},
		},
		{
			name: "peer-authentication", why: "the oldest PeerAuthentication of a namespace wins, so another one could end strict mutual TLS",
			rules: []admissionv1.NamedRuleWithOperations{on("security.istio.io", writes, "peerauthentications")}, enrolled: []string{v1alpha1.ModeEnforce},
			when: []admissionv1.MatchCondition{notUsers("not-policy-sync", p.PolicySync)},
			validations: []admissionv1.Validation{{
				Expression: `has(object.spec) && has(object.spec.mtls) && has(object.spec.mtls.mode) && object.spec.mtls.mode == "STRICT" && !has(object.spec.portLevelMtls)`,
				Message:    "in an enforced namespace mutual TLS is strict, on every port", Reason: ptr(metav1.StatusReasonForbidden),
			}},
		},
	}
}

// apiGuards: verdicts come from SPIRE servers, enrolment and the release of a binding
// from admins.
func apiGuards(p Params) []check {
	modeKey := fmt.Sprintf("k == %q", v1alpha1.ModeLabel)
	forbidden := func(message string) admissionv1.Validation {
		return admissionv1.Validation{Expression: "false", Message: message, Reason: ptr(metav1.StatusReasonForbidden)}
	}
	return []check{
		{
			name: "nodetrust-writes", why: "only SPIRE servers write verdicts",
			rules:       []admissionv1.NamedRuleWithOperations{on(v1alpha1.Group, writes, "nodetrusts")},
			when:        []admissionv1.MatchCondition{notUsers("not-a-spire-server", p.SPIREServers...)},
			validations: []admissionv1.Validation{forbidden("a NodeTrust is written by the SPIRE server's node attestor alone")},
		},
		{
			name: "nodetrust-status", why: "only policy-sync says what a verdict comes to now",
			rules:       []admissionv1.NamedRuleWithOperations{on(v1alpha1.Group, writes, "nodetrusts/status")},
			when:        []admissionv1.MatchCondition{notUsers("not-policy-sync", p.PolicySync)},
			validations: []admissionv1.Validation{forbidden("the status of a NodeTrust is written by policy-sync alone")},
		},
		{
			name: "nodetrust-deletes", why: "a NodeTrust binds a TPM to a node; only admins release it",
			rules:       []admissionv1.NamedRuleWithOperations{on(v1alpha1.Group, []admissionv1.OperationType{admissionv1.Delete}, "nodetrusts")},
			when:        []admissionv1.MatchCondition{notGroups("not-an-admin", p.Admins)},
			validations: []admissionv1.Validation{forbidden("a NodeTrust binds a TPM to its node; only an administrator releases it")},
		},
		{
			name: "namespace-mode", why: "only admins enrol a namespace or take it out",
			rules:       []admissionv1.NamedRuleWithOperations{on("", writes, "namespaces", "namespaces/status", "namespaces/finalize")},
			when:        []admissionv1.MatchCondition{notGroups("not-an-admin", p.Admins)},
			variables:   []admissionv1.Variable{keys("before", "oldObject", modeKey), keys("after", "object", modeKey)},
			validations: []admissionv1.Validation{unchanged("label " + v1alpha1.ModeLabel + " is set by administrators alone")},
		},
		{
			name: "namespace-mode-value", why: "a mode that nobody knows would leave a namespace open",
			rules: []admissionv1.NamedRuleWithOperations{on("", writes, "namespaces")},
			validations: []admissionv1.Validation{{
				Expression: fmt.Sprintf(`!has(object.metadata.labels) || !(%[1]q in object.metadata.labels) || object.metadata.labels[%[1]q] in %[2]s`, v1alpha1.ModeLabel, cel([]string{v1alpha1.ModeEnforce, v1alpha1.ModeAudit})),
				Message:    fmt.Sprintf("label %s is %s or %s", v1alpha1.ModeLabel, v1alpha1.ModeEnforce, v1alpha1.ModeAudit), Reason: ptr(metav1.StatusReasonInvalid),
			}},
		},
	}
}
