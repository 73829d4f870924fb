package guard

import (
	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// startup are the settings that calico-node writes when it starts (calico, node/pkg/lifecycle/startup: ensureDefaultConfig).
const startup = `["reportingInterval", "logSeverityScreen"]`

// calicoNodeGuards: Calico's manifests let its programs on nodes write the whole cluster's settings of Felix, for what they do at
// their start (charts/calico, calico-node-rbac.yaml). Every node holds those credentials, a bad one too; and Felix obeys: told
// that pods' interfaces have another name, it polices none of them, on any node; told that the datastore is not ready, it waits and
// takes no policy any more, the set of revoked addresses included. What the programs need at their start stays open.
func calicoNodeGuards(p Params) []check {
	const (
		felix = "felixconfigurations"
		info  = "clusterinformations"
	)
	spec := func(name, object string) admissionv1.Variable {
		return admissionv1.Variable{Name: name, Expression: object + " != null && has(" + object + ".spec) ? " + object + ".spec : {}"}
	}
	both := []admissionv1.Variable{spec("before", "oldObject"), spec("after", "object")}
	on := func(resource string) []admissionv1.NamedRuleWithOperations {
		return []admissionv1.NamedRuleWithOperations{on("projectcalico.org", writes, resource), on("crd.projectcalico.org", writes, resource)}
	}
	only := []admissionv1.MatchCondition{users("calico-on-nodes", p.CalicoNodes)}
	return []check{
		{
			name: "calico-node-pools", why: "with Calico's credentials on a node, blocks outside of the cluster's IP pools would bind addresses that are others'",
			rules: on("ippools"), when: only,
			validations: []admissionv1.Validation{{
				Expression: "false",
				Message:    "Calico's programs on nodes make and change no IP pools, since pools say which addresses a node may have: make them as an administrator, or with Calico's operator",
				Reason:     ptr(metav1.StatusReasonForbidden),
			}},
		},
		{
			name: "calico-node-felix", why: "with Calico's credentials on a node, Felix could be told to police nothing, on every node",
			rules: on(felix), when: only, variables: both,
			validations: []admissionv1.Validation{{
				Expression: `object.metadata.name == "default" &&
variables.after.all(k, k in ` + startup + ` || (k in variables.before && variables.before[k] == variables.after[k])) &&
variables.before.all(k, k in ` + startup + ` || k in variables.after)`,
				Message: "Calico's programs on nodes set reportingInterval and logSeverityScreen of FelixConfiguration default, and nothing else: change Felix's settings as an administrator",
				Reason:  ptr(metav1.StatusReasonForbidden),
			}},
		},
		{
			name: "calico-node-readiness", why: "with Calico's credentials on a node, Felix could be told to take no more policies, on every node",
			rules: on(info), when: only, variables: both,
			validations: []admissionv1.Validation{{
				Expression: `"datastoreReady" in variables.after ? variables.after.datastoreReady == true : !("datastoreReady" in variables.before)`,
				Message:    "Calico's programs on nodes set datastoreReady to true only: close the datastore as an administrator",
				Reason:     ptr(metav1.StatusReasonForbidden),
			}},
		},
	}
}
