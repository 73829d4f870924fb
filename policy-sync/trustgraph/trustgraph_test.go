package trustgraph_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

func build(t *testing.T, s snapshot.Snapshot) trustgraph.Graph {
	t.Helper()
	g, err := trustgraph.Build(s)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// podFra and friends are indices into the demo's pods.
const (
	apiFra = iota
	frontFra
	strangerFra
	apiPar
	frontPar
)

func TestTheDemoClusterIsJudgedAsItsPolicySays(t *testing.T) {
	g := build(t, snapshottest.Demo())
	for key, want := range map[string]bool{
		"payments/api-fra-1": true, "payments/api-par-1": false, "payments/api-evil-1": false,
		"shop/frontend-fra-1": true, "shop/frontend-par-1": true, "shop/frontend-evil-1": false,
	} {
		ns, name, _ := strings.Cut(key, "/")
		p, ok := g.Pod(ns, name)
		if !ok || p.Attested != want {
			t.Errorf("%s: attested %v, want %v (%v)", key, p.Attested, want, p.Why)
		}
	}
	if _, ok := g.Pod("other", "stranger-fra-1"); ok {
		t.Error("a pod of a namespace that is not enrolled is in the graph")
	}
	p, _ := g.Pod("payments", "api-par-1")
	if want := "node par-1 has tag country=FR, policy api asks for DE"; strings.Join(p.Why, "; ") != want {
		t.Errorf("reason is %q, want %q", p.Why, want)
	}
	p, _ = g.Pod("payments", "api-evil-1")
	if !strings.Contains(strings.Join(p.Why, "; "), "kernel command line is \"quiet debug\"") {
		t.Errorf("the reason does not name the kernel command line: %q", p.Why)
	}
}

// TestRefusals: every way in which payments/api on fra-1, attested in the demo, is not.
func TestRefusals(t *testing.T) {
	cases := map[string]struct {
		change func(s *snapshot.Snapshot)
		why    string
	}{
		"the node has no NodeTrust":                           {func(s *snapshot.Snapshot) { s.NodeTrusts = s.NodeTrusts[1:] }, "has no NodeTrust: it never proved itself, or an administrator deleted it"},
		"the proof is about an earlier Node of the same name": {func(s *snapshot.Snapshot) { s.Nodes[0].UID = "new" }, "about an earlier Node"},
		"the proof names no UID":                              {func(s *snapshot.Snapshot) { s.NodeTrusts[0].Spec.NodeUID = "" }, "names no Node UID"},
		"the proof has expired":                               {func(s *snapshot.Snapshot) { s.At = s.At.Add(time.Minute) }, "its proof ended at"},
		"the proof has no end":                                {func(s *snapshot.Snapshot) { s.NodeTrusts[0].Spec.ValidUntil = metav1.MicroTime{} }, "ended before it began"},
		"the proof is of the future": {func(s *snapshot.Snapshot) {
			s.NodeTrusts[0].Spec.AttestedAt = metav1.NewMicroTime(s.At.Add(6 * time.Minute))
		}, "lies in the future"},
		"the proof has no date":                   {func(s *snapshot.Snapshot) { s.NodeTrusts[0].Spec.AttestedAt = metav1.MicroTime{} }, "is no date"},
		"the verdict is a word that nobody knows": {func(s *snapshot.Snapshot) { s.NodeTrusts[0].Spec.Verdict = "Trusted" }, "which is no verdict"},
		"the verdict is empty":                    {func(s *snapshot.Snapshot) { s.NodeTrusts[0].Spec.Verdict = "" }, "which is no verdict"},
		"the verdict is untrusted":                {func(s *snapshot.Snapshot) { s.NodeTrusts[0].Spec.Verdict = v1alpha1.VerdictUntrusted }, "is proved bad"},
		"the EK hash is no hash":                  {func(s *snapshot.Snapshot) { s.NodeTrusts[0].Spec.EKHash = "abc" }, "is not readable"},
		"the agent is another EK's":               {func(s *snapshot.Snapshot) { s.NodeTrusts[0].Spec.AgentID = snapshottest.AgentID("par-1") }, "names agent"},
		"the agent is of another trust domain": {func(s *snapshot.Snapshot) {
			s.NodeTrusts[0].Spec.AgentID = strings.Replace(s.NodeTrusts[0].Spec.AgentID, "demo.example", "evil.example", 1)
		}, "names agent"},
		"two nodes claim one EK": {func(s *snapshot.Snapshot) {
			s.NodeTrusts[1].Spec.EKHash, s.NodeTrusts[1].Spec.AgentID = s.NodeTrusts[0].Spec.EKHash, s.NodeTrusts[0].Spec.AgentID
		}, "its EK is claimed by several nodes"},
		"the node matched no reference set":      {func(s *snapshot.Snapshot) { s.NodeTrusts[0].Spec.Reference = "" }, "matches no reference set"},
		"the node matched another reference set": {func(s *snapshot.Snapshot) { s.NodeTrusts[0].Spec.Reference = "canary" }, "matches reference set canary, policy api asks for prod"},
		"the node has no tag":                    {func(s *snapshot.Snapshot) { s.NodeTrusts[0].Spec.Tags = nil }, "has no proved tag country"},
		"the node's tag differs by case":         {func(s *snapshot.Snapshot) { s.NodeTrusts[0].Spec.Tags["country"] = "de" }, "has tag country=de"},
		"the node is elsewhere":                  {func(s *snapshot.Snapshot) { s.NodeTrusts[0].Spec.Tags["country"] = "FR" }, "policy api asks for DE"},
		"the pod is on no node":                  {func(s *snapshot.Snapshot) { s.Pods[apiFra].Spec.NodeName = "" }, "not on a node yet"},
		"the pod's node does not exist":          {func(s *snapshot.Snapshot) { s.Pods[apiFra].Spec.NodeName = "gone" }, "node gone does not exist"},
		"the pod uses its node's network":        {func(s *snapshot.Snapshot) { s.Pods[apiFra].Spec.HostNetwork = true }, "uses its node's network"},
		"the pod shares its node's processes":    {func(s *snapshot.Snapshot) { s.Pods[apiFra].Spec.HostPID = true }, "hostPID=true"},
		"the pod shares its node's IPC":          {func(s *snapshot.Snapshot) { s.Pods[apiFra].Spec.HostIPC = true }, "hostIPC=true"},
		"the pod mounts a path of its node": {func(s *snapshot.Snapshot) {
			s.Config.AllowedHostPaths = []string{"/run/spire/agent"}
			mount(s, "/run/spire/agent-sockets")
		}, "volume host is /run/spire/agent-sockets of the node, which is not among the allowed host paths"},
		"a container is privileged": {func(s *snapshot.Snapshot) { secure(s).Privileged = ptr(true) }, `level restricted forbids: privileged (container "main" must not set securityContext.privileged=true)`},
		"a container adds a capability": {func(s *snapshot.Snapshot) {
			secure(s).Capabilities = &corev1.Capabilities{Add: []corev1.Capability{"NET_ADMIN"}}
		}, `must not include "NET_ADMIN" in securityContext.capabilities.add`},
		"a container is a Windows host process": {func(s *snapshot.Snapshot) {
			secure(s).WindowsOptions = &corev1.WindowsSecurityContextOptions{HostProcess: ptr(true)}
		}, "hostProcess"},
		"the pod is a Windows host process": {func(s *snapshot.Snapshot) {
			s.Pods[apiFra].Spec.SecurityContext = &corev1.PodSecurityContext{WindowsOptions: &corev1.WindowsSecurityContextOptions{HostProcess: ptr(true)}}
		}, "hostProcess"},
		"the pod has ended": {func(s *snapshot.Snapshot) { s.Pods[apiFra].Status.Phase = corev1.PodFailed }, "has ended"},
		"the namespace is not enrolled": {func(s *snapshot.Snapshot) {
			delete(s.Namespaces[0].Labels, v1alpha1.ModeLabel)
			s.Pods[apiFra].Labels[v1alpha1.PodAttestedLabel] = "true"
		}, "is not enrolled"},
		"the namespace's mode is misspelt": {func(s *snapshot.Snapshot) {
			s.Namespaces[0].Labels[v1alpha1.ModeLabel] = "Enforce"
			s.Pods[apiFra].Labels[v1alpha1.PodAttestedLabel] = "true"
		}, "is not enrolled"},
		"no policy selects the pod":               {func(s *snapshot.Snapshot) { s.Policies = s.Policies[1:] }, "no TrustPolicy selects the pod"},
		"the pod forges a Calico namespace":       {func(s *snapshot.Snapshot) { s.Pods[apiFra].Labels["pcns.projectcalico.org/name"] = "shop" }, "could forge a namespace"},
		"the pod forges a Calico service account": {func(s *snapshot.Snapshot) { s.Pods[apiFra].Labels["projectcalico.org/serviceaccount"] = "frontend" }, "could forge a namespace or a service account"},
		"no status reports the container":         {func(s *snapshot.Snapshot) { s.Pods[apiFra].Status.ContainerStatuses = nil }, "app container main: its node has not reported which image it runs"},
		"the status has no image":                 {func(s *snapshot.Snapshot) { s.Pods[apiFra].Status.ContainerStatuses[0].ImageID = "" }, "has not reported which image"},
		"the status reports the container twice": {func(s *snapshot.Snapshot) {
			st := &s.Pods[apiFra].Status
			st.ContainerStatuses = append(st.ContainerStatuses, st.ContainerStatuses[0])
		}, "has not reported which image"},
		"the status reports a container too many": {func(s *snapshot.Snapshot) {
			st := &s.Pods[apiFra].Status
			st.ContainerStatuses = append(st.ContainerStatuses, snapshottest.Status("extra", "api"))
		}, "spec has none of that name"},
		"an init container's image is not verified":  {func(s *snapshot.Snapshot) { initContainer(s, "evil") }, "init container setup: image"},
		"an init container is not reported":          {func(s *snapshot.Snapshot) { initContainer(s, "api"); s.Pods[apiFra].Status.InitContainerStatuses = nil }, "init container setup: its node has not reported"},
		"an ephemeral container's image is unsigned": {func(s *snapshot.Snapshot) { ephemeral(s, "debugger") }, "ephemeral container debug: image"},
		"the spec changed after the status":          {func(s *snapshot.Snapshot) { s.Pods[apiFra].Generation, s.Pods[apiFra].Status.ObservedGeneration = 2, 1 }, "spec has changed"},
		"the image was not examined":                 {func(s *snapshot.Snapshot) { s.Images = nil }, "has not been examined"},
		"the image was examined for another platform": {func(s *snapshot.Snapshot) {
			s.Nodes[0].Status.NodeInfo = corev1.NodeSystemInfo{OperatingSystem: "linux", Architecture: "arm64"}
		}, "has not been examined"},
		"the image's registry is away": {func(s *snapshot.Snapshot) {
			image(s, func(i *snapshot.Image) { i.Manifests, i.Problem = nil, "registry is away" })
		}, "registry is away"},
		"the verifier was not asked": {func(s *snapshot.Snapshot) { image(s, func(i *snapshot.Image) { i.Verifiers = nil }) }, "release-key was not asked"},
		"the verifier refuses the image": {func(s *snapshot.Snapshot) {
			image(s, func(i *snapshot.Image) { i.Verifiers["release-key"] = snapshot.Verification{Reason: "no signature"} })
		}, "release-key says: no signature"},
		"the verifier's answer has expired": {func(s *snapshot.Snapshot) {
			image(s, func(i *snapshot.Image) {
				i.Verifiers["release-key"] = snapshot.Verification{Accepted: true, ValidUntil: s.At}
			})
		}, "acceptance has expired"},
		"another verifier accepts the image": {func(s *snapshot.Snapshot) { s.Policies[0].Spec.Require.Image.VerifiedBy = []string{"other-key"} }, "other-key was not asked"},
		"the image is not among the digests": {func(s *snapshot.Snapshot) {
			s.Policies[0].Spec.Require.Image.Digests = []string{snapshottest.Digest("else")}
		}, "is not among the digests"},
		"the runtime requirement is unknown":          {func(s *snapshot.Snapshot) { s.Policies[0].Spec.Require.Runtime = "tight" }, "is none of baseline, restricted and any"},
		"the policy's selector is not readable":       {func(s *snapshot.Snapshot) { s.Policies[0].Spec.Workloads = v1alpha1.Workloads{Selector: badSelector()} }, "policy api is not readable"},
		"the policy selects nothing by name or label": {func(s *snapshot.Snapshot) { s.Policies[0].Spec.Workloads = v1alpha1.Workloads{} }, "name a serviceAccount or a selector"},
		"a second policy is not met": {func(s *snapshot.Snapshot) {
			second := snapshottest.API()
			second.Name, second.UID, second.Spec.Require.Node.Tags = "second", "second", map[string][]string{"rack": {"7"}}
			s.Policies = append(s.Policies, second)
		}, "has no proved tag rack, policy second asks for 7"},
		"its service account is shared, and that is refused": {func(s *snapshot.Snapshot) {
			s.Config.RefuseSharedServiceAccounts = true
			s.Policies[0].Spec.Workloads.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": "api"}}
			s.Pods[apiPar].Labels = nil
		}, "is shared with pods outside of every policy"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s := snapshottest.Demo()
			c.change(&s)
			p, ok := build(t, s).Pod("payments", "api-fra-1")
			if !ok {
				t.Fatal("the pod is not in the graph")
			}
			if p.Attested {
				t.Fatal("attested")
			}
			if got := strings.Join(p.Why, "; "); !strings.Contains(got, c.why) {
				t.Errorf("reason is %q, want one with %q", got, c.why)
			}
		})
	}
}

func ptr[T any](v T) *T { return &v }

func badSelector() *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "app", Operator: "Like", Values: []string{"x"}}}}
}

func TestAPodMayMountWhatTheAdministratorAllows(t *testing.T) {
	s := snapshottest.Demo()
	s.Config.AllowedHostPaths = []string{"/run/spire/agent"}
	mount(&s, "/run/spire/agent/public/")
	g, err := trustgraph.Build(s)
	if err != nil {
		t.Fatal(err)
	}
	name := s.Pods[apiFra].Name
	if i := slices.IndexFunc(g.Pods(), func(p *trustgraph.Pod) bool { return p.Name == name }); i < 0 || !g.Pods()[i].Attested {
		t.Errorf("pod %s is not attested: %+v", name, g.Pods())
	}
}

func mount(s *snapshot.Snapshot, path string) {
	s.Pods[apiFra].Spec.Volumes = []corev1.Volume{{Name: "host", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: path}}}}
}

func secure(s *snapshot.Snapshot) *corev1.SecurityContext {
	s.Pods[apiFra].Spec.Containers[0].SecurityContext = &corev1.SecurityContext{}
	return s.Pods[apiFra].Spec.Containers[0].SecurityContext
}

func image(s *snapshot.Snapshot, change func(i *snapshot.Image)) {
	c := s.Pods[apiFra].Status.ContainerStatuses[0]
	key := snapshot.ImageKey{Image: c.Image, ImageID: c.ImageID}
	i := s.Images[key]
	change(&i)
	s.Images[key] = i
}

func initContainer(s *snapshot.Snapshot, image string) {
	p := s.Pods[apiFra]
	p.Spec.InitContainers = []corev1.Container{{Name: "setup", SecurityContext: snapshottest.Hardened()}}
	p.Status.InitContainerStatuses = []corev1.ContainerStatus{snapshottest.Status("setup", image)}
}

func ephemeral(s *snapshot.Snapshot, image string) {
	p := s.Pods[apiFra]
	p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug", SecurityContext: snapshottest.Hardened()}}}
	p.Status.EphemeralContainerStatuses = []corev1.ContainerStatus{snapshottest.Status("debug", image)}
}

// TestPolicyProblems: what cannot be turned into objects is not accepted, and says where.
func TestPolicyProblems(t *testing.T) {
	long := strings.Repeat("a", 63)
	cases := map[string]struct {
		change func(p *v1alpha1.TrustPolicy)
		want   string
	}{
		"a reserved name":                      {func(p *v1alpha1.TrustPolicy) { p.Name = "default-deny" }, "is reserved"},
		"a name too long for a label":          {func(p *v1alpha1.TrustPolicy) { p.Name = strings.Repeat("a", 201) }, "at most 200 fit"},
		"a service account that is no name":    {func(p *v1alpha1.TrustPolicy) { p.Spec.Workloads.ServiceAccount = "a'b" }, "is not a name"},
		"a service account too long":           {func(p *v1alpha1.TrustPolicy) { p.Spec.Workloads.ServiceAccount = long }, "at most 62"},
		"an empty reference":                   {func(p *v1alpha1.TrustPolicy) { p.Spec.Require.Node.References = []string{""} }, "no name of a reference set"},
		"a tag key that is no label key":       {func(p *v1alpha1.TrustPolicy) { p.Spec.Require.Node.Tags = map[string][]string{"a b": {"x"}} }, "cannot be part of a label"},
		"a tag that accepts no value":          {func(p *v1alpha1.TrustPolicy) { p.Spec.Require.Node.Tags = map[string][]string{"a": {}} }, "accepts no value"},
		"a tag value with a quote":             {func(p *v1alpha1.TrustPolicy) { p.Spec.Require.Node.Tags = map[string][]string{"a": {"'x"}} }, "cannot be a label's value"},
		"a verifier that is no name":           {func(p *v1alpha1.TrustPolicy) { p.Spec.Require.Image.VerifiedBy = []string{"Release Key"} }, "no verifier's name"},
		"a digest that is none":                {func(p *v1alpha1.TrustPolicy) { p.Spec.Require.Image.Digests = []string{"sha256:00"} }, "require.image.digests"},
		"too many alternatives":                {func(p *v1alpha1.TrustPolicy) { p.Spec.Require.Node.Tags = manyTags() }, "more than 256 alternatives"},
		"a rule for no peer":                   {func(p *v1alpha1.TrustPolicy) { p.Spec.Ingress[0].From = nil }, "0 peers"},
		"a peer without a service account":     {func(p *v1alpha1.TrustPolicy) { p.Spec.Ingress[0].From[0].ServiceAccount = "" }, "name a serviceAccount"},
		"a peer's service account too long":    {func(p *v1alpha1.TrustPolicy) { p.Spec.Ingress[0].From[0].ServiceAccount = long }, "at most 62"},
		"a peer's namespace that is no name":   {func(p *v1alpha1.TrustPolicy) { p.Spec.Ingress[0].From[0].Namespace = "a.b" }, "no namespace's name"},
		"a peer's selector that is not one":    {func(p *v1alpha1.TrustPolicy) { p.Spec.Ingress[0].From[0].PodSelector = badSelector() }, "podSelector"},
		"a port that is none":                  {func(p *v1alpha1.TrustPolicy) { p.Spec.Ingress[0].Ports = []int32{70000} }, "70000 is no TCP port"},
		"port zero":                            {func(p *v1alpha1.TrustPolicy) { p.Spec.Ingress[0].Ports = []int32{0} }, "0 is no TCP port"},
		"an HTTP rule that matches everything": {func(p *v1alpha1.TrustPolicy) { p.Spec.Ingress[0].HTTP = []v1alpha1.HTTPRule{{}} }, "name methods or paths"},
		"an HTTP method in lower case":         {func(p *v1alpha1.TrustPolicy) { p.Spec.Ingress[0].HTTP[0].Methods = []string{"get"} }, "no HTTP method"},
		"an HTTP path without its slash":       {func(p *v1alpha1.TrustPolicy) { p.Spec.Ingress[0].HTTP[0].Paths = []string{"charge"} }, "does not begin with /"},
		"an egress rule for no peer":           {func(p *v1alpha1.TrustPolicy) { p.Spec.Egress = []v1alpha1.EgressRule{{}} }, "egress[0].to: 0 peers"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s := snapshottest.Demo()
			c.change(&s.Policies[0])
			g := build(t, s)
			p, ok := g.Policy("payments", s.Policies[0].Name)
			if !ok || p.Accepted || !strings.Contains(strings.Join(p.Problems, "; "), c.want) {
				t.Fatalf("accepted %v, problems %q, want one with %q", p.Accepted, p.Problems, c.want)
			}
			for _, pod := range g.Pods() {
				if pod.ServiceAccount == "api" && pod.Attested {
					t.Errorf("%s is attested under a policy that is not accepted", pod.Key())
				}
			}
			if st := g.Status(p, nil); st.Conditions[0].Status != metav1.ConditionFalse || st.Conditions[1].Status != metav1.ConditionFalse {
				t.Errorf("conditions %v", st.Conditions)
			}
		})
	}
}

func manyTags() map[string][]string {
	values := strings.Split("a b c d e f g", " ")
	return map[string][]string{"a": values, "b": values, "c": values}
}

func TestSnapshotsThatAllowNoPlan(t *testing.T) {
	cases := map[string]struct {
		change func(s *snapshot.Snapshot)
		want   string
	}{
		"a list could not be read whole": {func(s *snapshot.Snapshot) { s.Unread = []string{"pods: timeout"} }, "not read: pods: timeout"},
		"no time":                        {func(s *snapshot.Snapshot) { s.At = time.Time{} }, "no time"},
		"a pod was read twice":           {func(s *snapshot.Snapshot) { s.Pods = append(s.Pods, s.Pods[0]) }, "Pod payments/api-fra-1 was read twice"},
		"a policy was read twice":        {func(s *snapshot.Snapshot) { s.Policies = append(s.Policies, s.Policies[0]) }, "was read twice"},
		"a node was read twice":          {func(s *snapshot.Snapshot) { s.Nodes = append(s.Nodes, s.Nodes[0]) }, "was read twice"},
		"a SPIRE entry was read twice": {func(s *snapshot.Snapshot) {
			s.SPIRE.Entries = []snapshot.Entry{{ID: "x"}, {ID: "x"}}
		}, "SPIRE entry x was read twice"},
		"no trust domain":            {func(s *snapshot.Snapshot) { s.Config.TrustDomain = "" }, "trust domain"},
		"a trust domain as an ID":    {func(s *snapshot.Snapshot) { s.Config.TrustDomain = "spiffe://demo.example" }, "trust domain"},
		"an endless SVID":            {func(s *snapshot.Snapshot) { s.Config.X509SVIDTTL = 25 * time.Hour }, "X.509-SVID lifetime"},
		"an SVID of a blink":         {func(s *snapshot.Snapshot) { s.Config.X509SVIDTTL = time.Second }, "X.509-SVID lifetime"},
		"a brake that never lets go": {func(s *snapshot.Snapshot) { s.Config.MaxHold = 25 * time.Hour }, "brake"},
		"a share beyond all":         {func(s *snapshot.Snapshot) { s.Config.MaxDeletePercent = 101 }, "101%"},
		"half a service":             {func(s *snapshot.Snapshot) { s.Config.DNS = snapshot.Service{Namespace: "dns"} }, "service DNS"},
		"a negative tier order":      {func(s *snapshot.Snapshot) { s.Config.TierOrder = -1 }, "tier order"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s := snapshottest.Demo()
			c.change(&s)
			if _, err := trustgraph.Build(s); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}
