package guard_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/cel-go/cel"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/guard"
)

const (
	syncer  = "system:serviceaccount:keelson-system:policy-sync"
	spire   = "system:serviceaccount:spire:spire-server"
	kubelet = "system:node:fra-1"
	dev     = "dev@example.org"
	gc      = "system:serviceaccount:kube-system:namespace-controller"
	calico  = "system:serviceaccount:calico-apiserver:calico-apiserver" // as manifests and older operators have it
	calico2 = "system:serviceaccount:calico-system:calico-apiserver"    // as newer operators have it
)

func params() guard.Params {
	return guard.Params{PolicySync: syncer, SPIREServers: []string{spire}, CalicoAPIServers: guard.CalicoAPIServers, Taint: true, Affinity: true}
}

func objects(t *testing.T) []runtime.Object {
	t.Helper()
	out, err := guard.Objects(params())
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// request is one admission request.
type request struct {
	operation         admissionv1.OperationType
	group, resource   string // resource may be "pods/status"
	user              string
	groups            []string
	namespaceMode     string
	object, oldObject string // YAML
}

// admit evaluates every policy as the API server does: rules, namespace selector, match
// conditions, variables, validations; an expression that fails to evaluate refuses.
func admit(t *testing.T, r request) error {
	t.Helper()
	env, err := cel.NewEnv(cel.Variable("object", cel.DynType), cel.Variable("oldObject", cel.DynType), cel.Variable("request", cel.DynType), cel.Variable("variables", cel.DynType))
	if err != nil {
		t.Fatal(err)
	}
	groups := make([]any, 0, len(r.groups))
	for _, g := range r.groups {
		groups = append(groups, g)
	}
	vars := map[string]any{
		"object": parse(t, r.object), "oldObject": parse(t, r.oldObject),
		"request":   map[string]any{"operation": string(r.operation), "userInfo": map[string]any{"username": r.user, "groups": groups}},
		"variables": map[string]any{},
	}
	eval := func(expression string) (any, error) {
		ast, iss := env.Compile(expression)
		if iss.Err() != nil {
			t.Fatalf("%s: %v", expression, iss.Err())
		}
		prg, err := env.Program(ast)
		if err != nil {
			t.Fatal(err)
		}
		out, _, err := prg.Eval(vars)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", expression, err)
		}
		return out.Value(), nil
	}
	for _, o := range objects(t) {
		p, ok := o.(*admissionv1.ValidatingAdmissionPolicy)
		if !ok || !sees(t, p, r) {
			continue
		}
		if err := decide(p, vars, eval); err != nil {
			return fmt.Errorf("%s: %w", p.Name, err)
		}
	}
	return nil
}

func sees(t *testing.T, p *admissionv1.ValidatingAdmissionPolicy, r request) bool {
	t.Helper()
	sel, err := metav1.LabelSelectorAsSelector(p.Spec.MatchConstraints.NamespaceSelector)
	if err != nil {
		t.Fatal(err)
	}
	set := labels.Set{}
	if r.namespaceMode != "" {
		set[v1alpha1.ModeLabel] = r.namespaceMode
	}
	return sel.Matches(set) && slices.ContainsFunc(p.Spec.MatchConstraints.ResourceRules, func(rule admissionv1.NamedRuleWithOperations) bool {
		return slices.Contains(rule.Operations, r.operation) && slices.Contains(rule.APIGroups, r.group) && slices.Contains(rule.Resources, r.resource)
	})
}

func decide(p *admissionv1.ValidatingAdmissionPolicy, vars map[string]any, eval func(string) (any, error)) error {
	for _, c := range p.Spec.MatchConditions {
		v, err := eval(c.Expression)
		if err != nil {
			return err
		}
		if v != true {
			return nil
		}
	}
	variables := map[string]any{}
	vars["variables"] = variables
	for _, v := range p.Spec.Variables {
		out, err := eval(v.Expression)
		if err != nil {
			return err
		}
		variables[v.Name] = out
	}
	for _, v := range p.Spec.Validations {
		out, err := eval(v.Expression)
		if err != nil {
			return err
		}
		if out != true {
			return fmt.Errorf("refused: %s", v.Message)
		}
	}
	return nil
}

func parse(t *testing.T, text string) any {
	t.Helper()
	if text == "" {
		return nil
	}
	var out any
	if err := yaml.Unmarshal([]byte(text), &out); err != nil {
		t.Fatal(err)
	}
	return out
}

const (
	plainPod    = `{metadata: {labels: {app: api}}, spec: {}}`
	trustedPod  = `{metadata: {labels: {app: api, trust.keelson.io/attested: "true", api.policy.trust.keelson.io/attested: "true"}}, spec: {}}`
	taggedPod   = `{metadata: {labels: {trust.keelson.io/tag.country: DE}}, spec: {}}`
	policyPod   = `{metadata: {labels: {x.policy.trust.keelson.io/attested: "true"}}, spec: {}}`
	forgingPod  = `{metadata: {labels: {pcns.projectcalico.org/name: shop}}, spec: {}}`
	noLabels    = `{metadata: {}, spec: {}}`
	taintedNode = `{metadata: {labels: {a: b}}, spec: {taints: [{key: trust.keelson.io/untrusted, effect: NoSchedule}]}}`
	plainNode   = `{metadata: {labels: {a: b}}, spec: {}}`
	trustedNode = `{metadata: {labels: {a: b, keelson.node-restriction.kubernetes.io/verdict: trusted}}, spec: {}}`
	ourPolicy   = `{metadata: {name: keelson.api, labels: {app.kubernetes.io/managed-by: keelson-policy-sync}}, spec: {tier: keelson}}`
	theirPolicy = `{metadata: {name: team.api}, spec: {tier: team}}`
	intoOurTier = `{metadata: {name: keelson.zz}, spec: {tier: keelson}}`
	labelledSet = `{metadata: {name: x, labels: {trust.keelson.io/attested: "true"}}, spec: {}}`
	enrolled    = `{metadata: {labels: {trust.keelson.io/mode: enforce}}}`
	audited     = `{metadata: {labels: {trust.keelson.io/mode: audit}}}`
	misspelt    = `{metadata: {labels: {trust.keelson.io/mode: Enforce}}}`
	deployment  = `{kind: Deployment, metadata: {}, spec: {template: {metadata: {labels: {app: x, trust.keelson.io/attested: "true"}}}}}`
	innocent    = `{kind: Deployment, metadata: {}, spec: {template: {metadata: {labels: {app: x}}}}}`
	cronjob     = `{kind: CronJob, metadata: {}, spec: {jobTemplate: {spec: {template: {metadata: {labels: {trust.keelson.io/tag.country: DE}}}}}}}`
	podTemplate = `{kind: PodTemplate, metadata: {}, template: {metadata: {labels: {trust.keelson.io/attested: "true"}}}}`
	strict      = `{metadata: {name: x}, spec: {mtls: {mode: STRICT}}}`
	permissive  = `{metadata: {name: x}, spec: {mtls: {mode: PERMISSIVE}}}`
	portHole    = `{metadata: {name: x}, spec: {mtls: {mode: STRICT}, portLevelMtls: {"80": {mode: DISABLE}}}}`
)

const (
	create = admissionv1.Create
	update = admissionv1.Update
	del    = admissionv1.Delete
)

func TestThreat16_OnlyPolicySyncWritesVerdictLabelsAndLiftsTheTaint(t *testing.T) {
	run(t, map[string]attempt{
		"a kubelet registers with the taint":             {request{create, "", "nodes", kubelet, nil, "", taintedNode, ""}, true},
		"a kubelet registers without the taint":          {request{create, "", "nodes", kubelet, nil, "", plainNode, ""}, false},
		"a kubelet registers with a verdict":             {request{create, "", "nodes", kubelet, nil, "", trustedNode, ""}, false},
		"an admin writes a verdict":                      {request{update, "", "nodes", "admin", []string{"system:masters"}, "", trustedNode, plainNode}, false},
		"a kubelet writes a verdict with its status":     {request{update, "", "nodes/status", kubelet, nil, "", trustedNode, plainNode}, false},
		"somebody takes the taint off":                   {request{update, "", "nodes", dev, nil, "", plainNode, taintedNode}, false},
		"somebody puts the taint on":                     {request{update, "", "nodes", dev, nil, "", taintedNode, plainNode}, true},
		"somebody takes the verdict away":                {request{update, "", "nodes", dev, nil, "", plainNode, trustedNode}, false},
		"a kubelet's heartbeat on a tainted node":        {request{update, "", "nodes/status", kubelet, nil, "", taintedNode, taintedNode}, true},
		"a kubelet's heartbeat on a trusted node":        {request{update, "", "nodes/status", kubelet, nil, "", trustedNode, trustedNode}, true},
		"policy-sync writes a verdict and lifts a taint": {request{update, "", "nodes", syncer, nil, "", trustedNode, taintedNode}, true},
		"policy-sync changes a label of another kind":    {request{update, "", "nodes", syncer, nil, "", strings.Replace(trustedNode, "a: b", "a: c", 1), trustedNode}, false},
		"policy-sync takes a label of another kind":      {request{update, "", "nodes", syncer, nil, "", noLabels, plainNode}, false},
		"policy-sync lifts another taint":                {request{update, "", "nodes", syncer, nil, "", plainNode, strings.Replace(taintedNode, "untrusted", "other", 1)}, false},
		"policy-sync puts its taint on with NoExecute":   {request{update, "", "nodes", syncer, nil, "", strings.Replace(taintedNode, "NoSchedule", "NoExecute", 1), taintedNode}, false},
		"policy-sync cordons a node":                     {request{update, "", "nodes", syncer, nil, "", strings.Replace(trustedNode, "spec: {", "spec: {unschedulable: true", 1), trustedNode}, false},
		"policy-sync annotates a node":                   {request{update, "", "nodes", syncer, nil, "", strings.Replace(trustedNode, "{labels", "{annotations: {a: b}, labels", 1), trustedNode}, false},
		"policy-sync writes a status":                    {request{update, "", "nodes/status", syncer, nil, "", trustedNode, trustedNode}, false},
	})
}

func TestThreat17_OnlyPolicySyncWritesPodTrustLabels(t *testing.T) {
	cases := map[string]attempt{
		"a pod without labels":                          {request{create, "", "pods", dev, nil, "enforce", noLabels, ""}, true},
		"a pod with labels of its own":                  {request{create, "", "pods", dev, nil, "enforce", plainPod, ""}, true},
		"a kubelet patches the status of a trusted pod": {request{update, "", "pods/status", kubelet, nil, "enforce", trustedPod, trustedPod}, true},
		"its owner relabels a trusted pod":              {request{update, "", "pods", dev, nil, "enforce", strings.Replace(trustedPod, "app: api", "app: b", 1), trustedPod}, true},
		"its owner takes trust away":                    {request{update, "", "pods", dev, nil, "enforce", plainPod, trustedPod}, false},
		"policy-sync labels a pod":                      {request{update, "", "pods", syncer, nil, "enforce", trustedPod, plainPod}, true},
		"policy-sync unlabels a pod":                    {request{update, "", "pods", syncer, nil, "enforce", plainPod, trustedPod}, true},
		"a deployment of a trusted template":            {request{create, "apps", "deployments", dev, nil, "", deployment, ""}, false},
		"a deployment of any other template":            {request{create, "apps", "deployments", dev, nil, "", innocent, ""}, true},
		"a stateful set is changed to a trusted one":    {request{update, "apps", "statefulsets", dev, nil, "", deployment, innocent}, false},
		"a job of a trusted template":                   {request{create, "batch", "jobs", dev, nil, "", deployment, ""}, false},
		"a cron job of a trusted template":              {request{create, "batch", "cronjobs", dev, nil, "", cronjob, ""}, false},
		"a pod template with trust":                     {request{create, "", "podtemplates", dev, nil, "", podTemplate, ""}, false},
		"a pod that forges its Calico namespace":        {request{create, "", "pods", dev, nil, "enforce", forgingPod, ""}, false},
		"such a pod in an audited namespace":            {request{create, "", "pods", dev, nil, "audit", forgingPod, ""}, false},
		"such a pod where nobody asked Keelson":         {request{create, "", "pods", dev, nil, "", forgingPod, ""}, true},
	}
	for _, resource := range []string{"pods", "pods/status", "pods/ephemeralcontainers", "pods/resize"} {
		for name, pod := range map[string]string{"attested": trustedPod, "a tag": taggedPod, "a policy's label": policyPod} {
			cases["somebody updates "+resource+" with "+name] = attempt{request{update, "", resource, dev, nil, "enforce", pod, plainPod}, false}
			cases["a kubelet updates "+resource+" with "+name] = attempt{request{update, "", resource, kubelet, nil, "", pod, noLabels}, false}
		}
	}
	for name, pod := range map[string]string{"attested": trustedPod, "a tag": taggedPod, "a policy's label": policyPod} {
		cases["somebody creates a pod with "+name] = attempt{request{create, "", "pods", dev, nil, "", pod, ""}, false}
		cases["an admin creates a pod with "+name] = attempt{request{create, "", "pods", "admin", []string{"system:masters"}, "", pod, ""}, false}
	}
	run(t, cases)
}

// TestThreat17_OnlyKubeletsReportAddressesAndImages: a pod's status decides which addresses Felix takes for the pod and which
// images policy-sync takes for running. An app team with every right in its namespace may write it, and so may Calico's CNI
// plugin, whose token lies on every node, the bad ones included.
func TestThreat17_OnlyKubeletsReportAddressesAndImages(t *testing.T) {
	const (
		running = `{metadata: {name: x}, status: {podIP: 10.1.0.10, podIPs: [{ip: 10.1.0.10}], initContainerStatuses: [{name: s, image: i, imageID: r@a}],
  containerStatuses: [{name: m, image: i, imageID: r@b}], ephemeralContainerStatuses: [{name: e, image: i, imageID: r@c}]}}`
		cni = "system:serviceaccount:calico-system:calico-cni-plugin"
	)
	nodes := []string{"system:nodes"}
	by := func(user string, groups []string, mode, after string) request {
		return request{update, "", "pods/status", user, groups, mode, after, running}
	}
	changed := func(from, to string) string { return strings.Replace(running, from, to, 1) }
	cases := map[string]attempt{
		"a kubelet reports a new address":                 {by(kubelet, nodes, "enforce", strings.ReplaceAll(running, "10.1.0.10", "10.1.0.11")), true},
		"a kubelet reports the first status":              {request{update, "", "pods/status", kubelet, nodes, "enforce", running, plainPod}, true},
		"an admin writes a status":                        {by("admin", []string{"system:masters"}, "enforce", changed("r@b", "r@x")), true},
		"Calico's plugin annotates the pod":               {by(cni, nil, "enforce", changed("name: x", "name: x, annotations: {cni.projectcalico.org/podIP: 10.1.0.10/32}")), true},
		"a controller sets a condition and the phase":     {by("system:serviceaccount:kube-system:pod-garbage-collector", nil, "enforce", changed("status: {", "status: {phase: Failed, conditions: [{type: DisruptionTarget}], ")), true},
		"an app team where nobody asked Keelson":          {by(dev, nil, "", changed("r@b", "r@x")), true},
		"an app team writes the first status":             {request{update, "", "pods/status", dev, nil, "enforce", running, plainPod}, false},
		"an app team takes the whole status away":         {by(dev, nil, "enforce", plainPod), false},
		"a kubelet's name without its group":              {by(kubelet, nil, "enforce", changed("r@b", "r@x")), false},
		"Calico's plugin adds an address":                 {by(cni, nil, "enforce", changed("podIPs: [", "podIPs: [{ip: 10.3.0.9}, ")), false},
		"an app team takes addresses away":                {by(dev, nil, "enforce", changed("podIPs: [{ip: 10.1.0.10}], ", "")), false},
		"an app team writes an address of another node":   {by(dev, nil, "audit", changed("podIP: 10.1.0.10", "podIP: 10.3.0.9")), false},
		"an app team names a signed image":                {by(dev, nil, "enforce", changed("r@b", "r@x")), false},
		"an app team names a signed init image":           {by(dev, nil, "enforce", changed("r@a", "r@x")), false},
		"an app team names a signed debugger":             {by(dev, nil, "enforce", changed("r@c", "r@x")), false},
		"an app team moves a status to another container": {by(dev, nil, "enforce", changed("name: m", "name: z")), false},
	}
	run(t, cases)
}

func TestThreat27_ABindingCarriesNoTrustLabels(t *testing.T) {
	cases := map[string]attempt{}
	for _, resource := range []string{"pods/binding", "bindings"} {
		cases["the scheduler binds through "+resource] = attempt{request{create, "", resource, "system:kube-scheduler", nil, "enforce", `{kind: Binding, metadata: {name: x}, target: {name: n}}`, ""}, true}
		cases["a binding with a trust label through "+resource] = attempt{request{create, "", resource, "system:kube-scheduler", nil, "enforce", `{kind: Binding, metadata: {name: x, labels: {trust.keelson.io/attested: "true"}}}`, ""}, false}
		cases["a binding with topology labels through "+resource] = attempt{request{create, "", resource, "system:kube-scheduler", nil, "enforce", `{kind: Binding, metadata: {name: x, labels: {topology.kubernetes.io/zone: a}}}`, ""}, true}
	}
	run(t, cases)
}

func TestThreat26_NoSetOrEndpointBearsATrustLabelThroughEitherGroup(t *testing.T) {
	cases := map[string]attempt{}
	for _, group := range []string{"projectcalico.org", "crd.projectcalico.org"} {
		for _, resource := range []string{"networksets", "globalnetworksets", "hostendpoints", "workloadendpoints"} {
			for _, user := range []string{dev, syncer, calico, calico2} {
				cases[fmt.Sprintf("%s labels %s.%s", user, resource, group)] = attempt{request{create, group, resource, user, nil, "", labelledSet, ""}, false}
				cases[fmt.Sprintf("%s makes %s.%s", user, resource, group)] = attempt{request{create, group, resource, user, nil, "", strings.Replace(labelledSet, "trust.keelson.io/attested", "app", 1), ""}, true}
			}
		}
		cases["policy-sync writes the set of revoked addresses in "+group] = attempt{request{create, group, "globalnetworksets", syncer, nil, "", `{metadata: {name: keelson.revoked, labels: {trust.keelson.io/revoked: "true", app.kubernetes.io/managed-by: keelson-policy-sync}}, spec: {}}`, ""}, true}
	}
	run(t, cases)
}

// TestThreat26_OnlyPolicySyncMarksAddressesAsRevoked: a set of everybody's that bears the label and holds every address would cut
// all enrolled namespaces off.
func TestThreat26_OnlyPolicySyncMarksAddressesAsRevoked(t *testing.T) {
	const (
		marked   = `{metadata: {name: x, labels: {trust.keelson.io/revoked: "true"}}, spec: {nets: [0.0.0.0/0]}}`
		unmarked = `{metadata: {name: x, labels: {team: a}}, spec: {nets: [0.0.0.0/0]}}`
	)
	cases := map[string]attempt{}
	for _, group := range []string{"projectcalico.org", "crd.projectcalico.org"} {
		for _, resource := range []string{"networksets", "globalnetworksets", "hostendpoints", "workloadendpoints"} {
			for user, allowed := range map[string]bool{dev: false, "admin": false, kubelet: false, spire: false, gc: false, syncer: true, calico: true, calico2: true} {
				cases[fmt.Sprintf("%s creates a marked %s.%s", user, resource, group)] = attempt{request{create, group, resource, user, []string{"system:masters"}, "", marked, ""}, allowed}
				cases[fmt.Sprintf("%s marks a %s.%s", user, resource, group)] = attempt{request{update, group, resource, user, nil, "", marked, unmarked}, allowed}
				cases[fmt.Sprintf("%s widens a marked %s.%s", user, resource, group)] = attempt{request{update, group, resource, user, nil, "", marked, strings.Replace(marked, "0.0.0.0/0", "192.0.2.0/24", 1)}, allowed}
				cases[fmt.Sprintf("%s takes the mark off a %s.%s", user, resource, group)] = attempt{request{update, group, resource, user, nil, "", unmarked, marked}, true}
			}
		}
	}
	cases["with another value"] = attempt{request{create, "projectcalico.org", "globalnetworksets", dev, nil, "", strings.Replace(marked, `"true"`, `"false"`, 1), ""}, false}
	run(t, cases)
}

func TestOnlyPolicySyncChangesItsObjects(t *testing.T) {
	cases := map[string]attempt{}
	for _, group := range []string{"projectcalico.org", "crd.projectcalico.org"} {
		for user, allowed := range map[string]bool{dev: false, syncer: true, gc: true, calico: true, calico2: true, "admin": false} {
			cases[user+" deletes our policy in "+group] = attempt{request{del, group, "networkpolicies", user, nil, "", "", ourPolicy}, allowed}
			cases[user+" changes our policy in "+group] = attempt{request{update, group, "networkpolicies", user, nil, "", theirPolicy, ourPolicy}, allowed}
			cases[user+" adds to our tier in "+group] = attempt{request{create, group, "networkpolicies", user, nil, "", intoOurTier, ""}, allowed}
			cases[user+" deletes our tier in "+group] = attempt{request{del, group, "tiers", user, nil, "", "", `{metadata: {name: keelson}, spec: {}}`}, allowed}
			cases[user+" writes a policy elsewhere in "+group] = attempt{request{create, group, "globalnetworkpolicies", user, nil, "", theirPolicy, ""}, true}
		}
	}
	for user, allowed := range map[string]bool{dev: false, syncer: true, gc: true} {
		cases[user+" deletes our AuthorizationPolicy"] = attempt{request{del, "security.istio.io", "authorizationpolicies", user, nil, "", "", ourPolicy}, allowed}
		cases[user+" takes the owner label away"] = attempt{request{update, "security.istio.io", "authorizationpolicies", user, nil, "", theirPolicy, ourPolicy}, allowed}
	}
	cases["a team writes an AuthorizationPolicy of its own"] = attempt{request{create, "security.istio.io", "authorizationpolicies", dev, nil, "enforce", theirPolicy, ""}, true}
	run(t, cases)
}

func TestThreat32_MutualTLSStaysStrictInEnforcedNamespaces(t *testing.T) {
	run(t, map[string]attempt{
		"a strict one":                    {request{create, "security.istio.io", "peerauthentications", dev, nil, "enforce", strict, ""}, true},
		"a permissive one":                {request{create, "security.istio.io", "peerauthentications", dev, nil, "enforce", permissive, ""}, false},
		"one with a hole for a port":      {request{update, "security.istio.io", "peerauthentications", dev, nil, "enforce", portHole, strict}, false},
		"one that says nothing":           {request{create, "security.istio.io", "peerauthentications", dev, nil, "enforce", `{metadata: {}, spec: {}}`, ""}, false},
		"a permissive one in audit mode":  {request{create, "security.istio.io", "peerauthentications", dev, nil, "audit", permissive, ""}, true},
		"a permissive one somewhere else": {request{create, "security.istio.io", "peerauthentications", dev, nil, "", permissive, ""}, true},
	})
}

func TestThreat20_VerdictsAreTheSPIREServersAndBindingsTheAdmins(t *testing.T) {
	trust := `{metadata: {name: fra-1}, spec: {verdict: trusted}}`
	run(t, map[string]attempt{
		"the SPIRE server writes a verdict":   {request{create, v1alpha1.Group, "nodetrusts", spire, nil, "", trust, ""}, true},
		"somebody writes a verdict":           {request{create, v1alpha1.Group, "nodetrusts", dev, nil, "", trust, ""}, false},
		"policy-sync writes a verdict":        {request{update, v1alpha1.Group, "nodetrusts", syncer, nil, "", trust, trust}, false},
		"an admin writes a verdict":           {request{update, v1alpha1.Group, "nodetrusts", "admin", []string{"system:masters"}, "", trust, trust}, false},
		"an admin releases a binding":         {request{del, v1alpha1.Group, "nodetrusts", "admin", []string{"system:masters"}, "", "", trust}, true},
		"the SPIRE server releases a binding": {request{del, v1alpha1.Group, "nodetrusts", spire, []string{"system:serviceaccounts"}, "", "", trust}, false},
		"somebody releases a binding":         {request{del, v1alpha1.Group, "nodetrusts", dev, nil, "", "", trust}, false},
	})
}

func TestThreat34_OnlyAdminsEnrolNamespaces(t *testing.T) {
	admins := []string{"system:masters"}
	run(t, map[string]attempt{
		"a team makes a namespace":             {request{create, "", "namespaces", dev, nil, "", noLabels, ""}, true},
		"a team enrols its namespace":          {request{update, "", "namespaces", dev, []string{"team"}, "", enrolled, noLabels}, false},
		"a team un-enrols its namespace":       {request{update, "", "namespaces", dev, nil, "enforce", noLabels, enrolled}, false},
		"a team asks for audit mode only":      {request{update, "", "namespaces", dev, nil, "enforce", audited, enrolled}, false},
		"through the status":                   {request{update, "", "namespaces/status", dev, nil, "enforce", noLabels, enrolled}, false},
		"through finalize":                     {request{update, "", "namespaces/finalize", dev, nil, "enforce", noLabels, enrolled}, false},
		"a team labels its enrolled namespace": {request{update, "", "namespaces", dev, nil, "enforce", strings.Replace(enrolled, "labels: {", "labels: {a: b, ", 1), enrolled}, true},
		"an admin enrols":                      {request{update, "", "namespaces", "admin", admins, "", enrolled, noLabels}, true},
		"an admin un-enrols":                   {request{update, "", "namespaces", "admin", admins, "enforce", noLabels, enrolled}, true},
		"an admin misspells the mode":          {request{update, "", "namespaces", "admin", admins, "", misspelt, noLabels}, false},
	})
}

type attempt struct {
	request request
	allowed bool
}

func run(t *testing.T, cases map[string]attempt) {
	t.Helper()
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if err := admit(t, c.request); (err == nil) != c.allowed {
				t.Errorf("allowed %v (%v), want %v", err == nil, err, c.allowed)
			}
		})
	}
}
