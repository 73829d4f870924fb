// Package guard makes the admission policies that keep trust in the right hands: nobody
// but policy-sync writes what opens doors.
//
// They are ValidatingAdmissionPolicies (and two MutatingAdmissionPolicies), which the API
// server evaluates itself, with no webhook that could be away. They fail closed, but for the
// one that helps the scheduler (affinityOnCreate). They are the first of two lines: what slips by while they are off is found and taken away
// by policy-sync (see trustgraph.TrustKey).
//
// What has to go on working does: a kubelet patches a pod's status without touching
// labels, the scheduler binds without labels, the garbage collector and the namespace
// controller delete. A guard compares trust labels before and after, so that objects
// which bear them stay writable in every other respect.
package guard

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

// Params name who may do what. User names are as the API server sees them
// ("system:serviceaccount:<namespace>:<name>").
type Params struct {
	// PolicySync is policy-sync's user; only it writes trust labels.
	PolicySync string
	// SPIREServers are the users of SPIRE servers; only they write NodeTrusts.
	SPIREServers []string
	// Admins are groups that may enrol namespaces and delete NodeTrusts; system:masters if empty.
	Admins []string
	// Kubelets are groups that report what runs in a pod; system:nodes if empty. The API server's NodeRestriction keeps
	// each of them to the pods of its own node.
	Kubelets []string
	// CalicoAPIServers are the users as whom Calico's API server writes crd.projectcalico.org on behalf of those who write
	// projectcalico.org, for whom it has asked these policies before. Nobody if empty.
	CalicoAPIServers []string
	// CalicoNodes are the users of Calico's programs on the nodes, whose credentials every node holds: Calico's own if empty.
	CalicoNodes []string
	// Taint guards the taint of untrusted nodes and puts it on when a Node is created.
	Taint bool
	// Affinity has pods of enforced namespaces placed on nodes that their TrustPolicies accept.
	Affinity bool
}

// Validate reports every problem at once.
func (p Params) Validate() error {
	var problems []error
	check := func(what, name string) {
		if name == "" || len(name) > 253 || strings.ContainsAny(name, "'\"\\\n\r") {
			problems = append(problems, fmt.Errorf("guard: %s %.80q is no user or group", what, name))
		}
	}
	check("policy-sync's user", p.PolicySync)
	if len(p.SPIREServers) == 0 {
		problems = append(problems, errors.New("guard: name the SPIRE servers' users, or nobody can write a verdict"))
	}
	for _, u := range p.SPIREServers {
		check("SPIRE server's user", u)
	}
	for _, g := range p.Admins {
		check("admin group", g)
	}
	for _, g := range p.Kubelets {
		check("group of kubelets", g)
	}
	for _, u := range p.CalicoNodes {
		check("user of Calico's on nodes", u)
	}
	for _, u := range p.CalicoAPIServers {
		check("user of Calico's API server", u)
	}
	return errors.Join(problems...)
}

func (p Params) withDefaults() Params {
	if len(p.Admins) == 0 {
		p.Admins = []string{"system:masters"}
	}
	if len(p.Kubelets) == 0 {
		p.Kubelets = []string{"system:nodes"}
	}
	if len(p.CalicoNodes) == 0 {
		p.CalicoNodes = slices.Clone(CalicoNodes)
	}
	return p
}

// CalicoNodes are the accounts that Calico's manifests (in kube-system) and its operator (in calico-system) give its programs on nodes.
var CalicoNodes = []string{
	"system:serviceaccount:calico-system:calico-node", "system:serviceaccount:calico-system:calico-cni-plugin",
	"system:serviceaccount:kube-system:calico-node", "system:serviceaccount:kube-system:calico-cni-plugin",
}

// CalicoAPIServers are the accounts that Calico's manifests and its operator give its API server: in calico-apiserver, and in
// calico-system since the operator moved it there in 2025 (tigera/operator, pull requests 3960, 3989 and 4005).
var CalicoAPIServers = []string{
	"system:serviceaccount:calico-apiserver:calico-apiserver", "system:serviceaccount:calico-system:calico-apiserver",
}

// system are the controllers that delete what belongs to a deleted namespace or owner.
var system = []string{
	"system:serviceaccount:kube-system:generic-garbage-collector",
	"system:serviceaccount:kube-system:namespace-controller",
}

// Objects makes every admission policy with its binding, in a fixed order.
func Objects(p Params) ([]runtime.Object, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	p = p.withDefaults()
	var out []runtime.Object
	for _, g := range slices.Concat(podGuards(p), nodeGuards(p), networkGuards(p), calicoNodeGuards(p), ownGuards(p), apiGuards(p), policyGuards()) {
		out = append(out, g.policy(), g.binding())
	}
	if p.Taint {
		out = append(out, taintOnCreate()...)
	}
	if p.Affinity {
		out = append(out, affinityOnCreate()...)
	}
	return out, nil
}

// check is one validating policy: what it is asked about, whom it leaves alone, what it
// demands.
type check struct {
	name string
	why  string // the package's reader and the policy's annotation
	// rules say which requests it sees.
	rules []admissionv1.NamedRuleWithOperations
	// when are CEL conditions all of which must hold for a request to be looked at.
	when []admissionv1.MatchCondition
	// enrolled limits the check to namespaces whose mode label has one of these values.
	enrolled    []string
	variables   []admissionv1.Variable
	validations []admissionv1.Validation
}

const prefix = "keelson-"

func meta(name, why string) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name:        prefix + name,
		Labels:      map[string]string{v1alpha1.OwnerLabel: v1alpha1.OwnerValue},
		Annotations: map[string]string{v1alpha1.Group + "/why": why},
	}
}

func (c check) match() *admissionv1.MatchResources {
	m := &admissionv1.MatchResources{ResourceRules: c.rules, MatchPolicy: ptr(admissionv1.Equivalent), NamespaceSelector: &metav1.LabelSelector{}, ObjectSelector: &metav1.LabelSelector{}}
	if len(c.enrolled) > 0 {
		m.NamespaceSelector.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: v1alpha1.ModeLabel, Operator: metav1.LabelSelectorOpIn, Values: c.enrolled}}
	}
	return m
}

func (c check) policy() runtime.Object {
	return &admissionv1.ValidatingAdmissionPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: admissionv1.SchemeGroupVersion.String(), Kind: "ValidatingAdmissionPolicy"},
		ObjectMeta: meta(c.name, c.why),
		Spec: admissionv1.ValidatingAdmissionPolicySpec{
			FailurePolicy: ptr(admissionv1.Fail), MatchConstraints: c.match(), MatchConditions: c.when, Variables: c.variables, Validations: c.validations,
		},
	}
}

func (c check) binding() runtime.Object {
	return &admissionv1.ValidatingAdmissionPolicyBinding{
		TypeMeta:   metav1.TypeMeta{APIVersion: admissionv1.SchemeGroupVersion.String(), Kind: "ValidatingAdmissionPolicyBinding"},
		ObjectMeta: meta(c.name, c.why),
		Spec: admissionv1.ValidatingAdmissionPolicyBindingSpec{
			PolicyName: prefix + c.name, ValidationActions: []admissionv1.ValidationAction{admissionv1.Deny},
		},
	}
}

func ptr[T any](v T) *T { return &v }

// on names requests: operations on resources of one group, in every version.
func on(group string, operations []admissionv1.OperationType, resources ...string) admissionv1.NamedRuleWithOperations {
	return admissionv1.NamedRuleWithOperations{RuleWithOperations: admissionv1.RuleWithOperations{
		Operations: operations,
		Rule:       admissionv1.Rule{APIGroups: []string{group}, APIVersions: []string{"*"}, Resources: resources, Scope: ptr(admissionv1.AllScopes)},
	}}
}

var (
	writes    = []admissionv1.OperationType{admissionv1.Create, admissionv1.Update}
	creates   = []admissionv1.OperationType{admissionv1.Create}
	allWrites = []admissionv1.OperationType{admissionv1.Create, admissionv1.Update, admissionv1.Delete}
)

// cel writes texts as a CEL list.
func cel(texts []string) string {
	quoted := make([]string, 0, len(texts))
	for _, t := range texts {
		quoted = append(quoted, strconv.Quote(t))
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// notUsers leaves the requests of some users alone.
func notUsers(name string, users ...string) admissionv1.MatchCondition {
	return admissionv1.MatchCondition{Name: name, Expression: fmt.Sprintf("!(request.userInfo.username in %s)", cel(users))}
}

// users looks at the requests of some users alone.
func users(name string, of []string) admissionv1.MatchCondition {
	return admissionv1.MatchCondition{Name: name, Expression: fmt.Sprintf("request.userInfo.username in %s", cel(of))}
}

// notGroups leaves the requests of members of some groups alone.
func notGroups(name string, groups []string) admissionv1.MatchCondition {
	return admissionv1.MatchCondition{Name: name, Expression: fmt.Sprintf("!(has(request.userInfo.groups) && request.userInfo.groups.exists(g, g in %s))", cel(groups))}
}

// keys is a variable that holds the labels of one object (by its CEL path) which fulfil a
// condition on their key k, as a list of "key=value".
func keys(name, object, condition string) admissionv1.Variable {
	return admissionv1.Variable{Name: name, Expression: fmt.Sprintf(
		`%[1]s != null && has(%[1]s.metadata) && has(%[1]s.metadata.labels) ? %[1]s.metadata.labels.map(k, %[2]s, k + "=" + %[1]s.metadata.labels[k]) : []`, object, condition)}
}

// facts is a variable that holds what the status of one pod (by its CEL path) says of its addresses and images, as a list of
// texts. Felix takes a pod's addresses from there (libcalico-go, conversion.go: getPodIPs), policy-sync its images.
func facts(name, object string) admissionv1.Variable {
	parts := []string{fmt.Sprintf(`(has(%[1]s.status.podIP) ? ["ip " + %[1]s.status.podIP] : [])`, object),
		fmt.Sprintf(`(has(%[1]s.status.podIPs) ? %[1]s.status.podIPs.map(i, "of all " + i.ip) : [])`, object)}
	for _, list := range []string{"initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"} {
		parts = append(parts, fmt.Sprintf(`(has(%[1]s.status.%[2]s) ? %[1]s.status.%[2]s.map(c, "%[2]s " + c.name + " " + c.image + " " + c.imageID) : [])`, object, list))
	}
	return admissionv1.Variable{Name: name, Expression: fmt.Sprintf("%[1]s != null && has(%[1]s.status) ? %[2]s : []", object, strings.Join(parts, " + "))}
}

// unchanged demands that the variables before and after hold the same.
func unchanged(message string) admissionv1.Validation {
	return admissionv1.Validation{
		Expression: "variables.before.all(l, l in variables.after) && variables.after.all(l, l in variables.before)",
		Message:    message, Reason: ptr(metav1.StatusReasonForbidden),
	}
}
