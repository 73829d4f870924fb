// Package charts tests the Helm charts: what they render, what they refuse, and what a real Kubernetes API makes of them.
package charts

import (
	"bytes"
	_ "embed" // files of charts' values
	"errors"
	"flag"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/keelson-project/keelson/policy-sync/guard"
	"github.com/keelson-project/keelson/policy-sync/kube"
	"github.com/keelson-project/keelson/policy-sync/syncconfig"
	"github.com/keelson-project/keelson/test/charts/helm"
)

var update = flag.Bool("update", false, "write the golden files anew")

const (
	chart       = "../../charts/keelson"
	release     = "keelson"
	namespace   = "keelson-system"
	kubeVersion = "v1.36.3"
)

// key is some public key.
const key = `-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEcEdKmZHThodmGHyp8NqNIhYorjgR
iLr4uZ5+CZYeTWFWzU37wyo3a5ukZKqV70OkNvPsG+MHMLAXy6Alrhgryg==
-----END PUBLIC KEY-----
`

var (
	// authority is a CA's certificate, and trustedRoot one of a Sigstore instance that nobody has.
	//go:embed testdata/files/registry.pem
	authority string
	//go:embed testdata/files/trusted_root.json
	trustedRoot string
)

// parse reads values as people write them.
func parse(t testing.TB, texts ...string) map[string]any {
	t.Helper()
	out := map[string]any{}
	for _, text := range texts {
		more := map[string]any{}
		if err := yaml.Unmarshal([]byte(text), &more); err != nil {
			t.Fatal(err)
		}
		merge(out, more)
	}
	return out
}

func merge(into, from map[string]any) {
	for k, v := range from {
		mine, isMap := into[k].(map[string]any)
		theirs, wasMap := v.(map[string]any)
		if isMap && wasMap {
			merge(mine, theirs)
			continue
		}
		into[k] = v
	}
}

const minimal = `
image: {registry: registry.example.org/keelson}
policySync: {config: {trustDomain: example.org, spire: {address: "spire-server.spire-server:443"}}}
`

// values of every option away from its default.
const everything = `
image: {registry: "registry.example.org:5000/k", pullSecrets: [{name: pull}]}
policySync:
  image: {digest: "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", pullPolicy: Always}
  replicas: 1
  serviceAccountName: sync
  logLevel: debug
  config:
    trustDomain: example.org
    x509SVIDTTL: 90s
    spire: {address: "[2001:db8::1]:8081", timeout: 2s}
    calico: required
    istio: off
    tierOrder: 20.5
    maxHold: 10m
    maxDeletePercent: 30
    taint: true
    taintExisting: true
    refuseSharedServiceAccounts: true
    dns: {namespace: dns, label: app, value: coredns}
    istiod: {namespace: mesh, label: app, value: pilot}
    images:
      registries: [registry.example.org]
      insecureRegistries: ["10.0.0.1:5000"]
      mirrors: {docker.io: ["mirror.example.org/dockerhub"]}
      registryCAs: {registry.example.org: registry.pem}
      redirectHosts: ["*.blobs.example.org"]
      signatureRepository: registry.example.org/signatures
      namespaces: {payments: {registries: [registry.example.org/payments], verifiers: [release-key, ci]}, "*": {verifiers: [pinned]}}
      platform: {os: linux, architecture: arm64, variant: v8}
      recheck: 20s
      ttl: 1h
      failureTTL: 5s
      timeout: 30s
      verifiers:
      - {name: release-key, publicKey: release-key.pem}
      - {name: ci, keyless: {issuer: "https://token.example.org", subjectPattern: ".*@example[.]org", trustedRoot: sigstore.json}}
      - {name: pinned, manifests: ["sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"]}
    leaderElection: {leaseDuration: 6s}
    resync: 1m
    debounce: 50ms
  verifierKeys: {release-key.pem: KEY}
  trustedRoots: {sigstore.json: ROOT}
  registryCAs: {registry.pem: CA}
  registryAuthSecret: registry
  spire: {access: hostPath, csiDriver: other.csi.spiffe.io, hostPath: /run/agents, socketName: agent.sock}
  ports: {metrics: 9080, health: 9081}
  resources: {requests: {cpu: 1}}
  priorityClassName: ""
  nodeSelector: {kubernetes.io/os: linux}
  tolerations: [{key: node-role.kubernetes.io/control-plane, operator: Exists}]
  affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: a, operator: Exists}]}]}}}
  podAnnotations: {a: b}
  podLabels: {c: d}
  extraEnv: [{name: HTTPS_PROXY, value: "http://proxy.example.org:3128"}]
  extraVolumes: [{name: layout, persistentVolumeClaim: {claimName: layout}}]
  extraVolumeMounts: [{name: layout, mountPath: /layout}]
node:
  image: {tag: v2, pullPolicy: Never}
  namespace: nodes
  serviceAccountName: cutter
  ports: {metrics: 19465, health: 19466}
  resources: {}
  nodeSelector: {kubernetes.io/os: linux}
  podAnnotations: {a: b}
  podLabels: {c: d}
plugins: {image: {tag: v3}}
spire:
  servers: [{namespace: a, serviceAccount: one}, {namespace: b, serviceAccount: two}]
  agents: [{namespace: c, serviceAccount: three}, {namespace: d, serviceAccount: four}]
  brokers: [{id: "spiffe://example.org/ztunnel"}, {id: "spiffe://example.org/gateway", namespaces: [payments, shop]}]
pullSecrets: {policySync: true, agents: true, namespaces: [payments, shop]}
guards: {adminGroups: [platform, "oidc:sec ops"], kubeletGroups: ["system:nodes", virtual], calicoAPIServerUsers: [], calicoNodeUsers: [canal]}
networkPolicy:
  enabled: true
  metricsFrom: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}]
  apiServer: {to: [{ipBlock: {cidr: 10.0.0.1/32}}], ports: [6443]}
  spireServer: {to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: spire-server}}}], ports: [8081]}
serviceMonitor: {enabled: true, interval: 10s, labels: {release: prometheus}}
dashboard: {enabled: true, labels: {grafana: "yes"}}
uninstall: {removeObjects: true, spireEntries: false}
`

// full are the values of everything, with the key.
func full(t testing.TB) map[string]any {
	t.Helper()
	v := parse(t, everything)
	p := v["policySync"].(map[string]any)
	p["verifierKeys"] = map[string]any{"release-key.pem": key}
	p["registryCAs"] = map[string]any{"registry.pem": authority}
	p["trustedRoots"] = map[string]any{"sigstore.json": trustedRoot}
	return v
}

func render(t testing.TB, values map[string]any) helm.Rendered {
	t.Helper()
	r, err := helm.Render(t.Context(), chart, release, namespace, kubeVersion, values)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestLint(t *testing.T) {
	for name, values := range map[string]map[string]any{"minimal": parse(t, minimal), "everything": full(t)} {
		if err := helm.Lint(chart, values); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// source finds the template that each document of a manifest comes from.
var source = regexp.MustCompile(`(?m)^# Source: keelson/templates/(\S+)$`)

// TestGolden shows what people get. Roles and guards, which are long and compared with the Go code, are in one file only.
func TestGolden(t *testing.T) {
	for name, tc := range map[string]struct {
		values map[string]any
		all    bool
	}{
		"minimal":       {parse(t, minimal), true},
		"everything":    {full(t), false},
		"server-socket": {parse(t, minimal, "policySync: {config: {spire: {address: ''}}, spire: {access: serverSocket, hostPath: /run/spire/server, socketName: api.sock}}\nnode: {enabled: false}\nguards: {enabled: false}"), false},
		"doors-stay":    {parse(t, minimal, "uninstall: {removeObjects: false}\npolicySync: {config: {taint: false}}"), false},
	} {
		t.Run(name, func(t *testing.T) {
			r := render(t, tc.values)
			var out strings.Builder
			for _, d := range strings.Split("\n"+r.Manifest, "\n---\n") {
				m := source.FindStringSubmatch(d)
				if tc.all || m != nil && !slices.Contains([]string{"guards.yaml", "rbac-policy-sync.yaml", "rbac-node.yaml"}, m[1]) {
					out.WriteString("---\n" + strings.TrimSpace(d) + "\n")
				}
			}
			for _, h := range r.Hooks {
				out.WriteString("---\n# Hook\n" + strings.TrimSpace(h) + "\n")
			}
			for _, line := range strings.Split(strings.TrimSpace(r.Notes), "\n") {
				out.WriteString(strings.TrimRight("# NOTES: "+line, " ") + "\n")
			}
			// Helm leaves blanks at the ends of lines where an expression was empty.
			got := regexp.MustCompile(`(?m)[ \t]+$`).ReplaceAllString(out.String(), "")
			golden(t, filepath.Join("testdata", name+".yaml"), got)
		})
	}
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("run the test with -update and read the change (-want +got):\n%s", diff)
	}
}

// objects parses YAML documents.
func objects(t testing.TB, documents ...string) []*unstructured.Unstructured {
	t.Helper()
	var out []*unstructured.Unstructured
	for _, d := range documents {
		decoder := utilyaml.NewYAMLOrJSONDecoder(bytes.NewReader([]byte(d)), 4096)
		for {
			o := &unstructured.Unstructured{}
			if err := decoder.Decode(&o.Object); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			if len(o.Object) > 0 {
				out = append(out, o)
			}
		}
	}
	return out
}

// TestTheCleanupMayDeleteWhatPolicySyncKeeps: every ConfigMap that it writes, by name, and no other.
func TestTheCleanupMayDeleteWhatPolicySyncKeeps(t *testing.T) {
	for _, o := range objects(t, render(t, parse(t, minimal)).Hooks...) {
		if o.GetKind() != "Role" || o.GetName() != "keelson-cleanup" {
			continue
		}
		rules, _, _ := unstructured.NestedSlice(o.Object, "rules")
		for _, r := range rules {
			rule := r.(map[string]any)
			if resources, _, _ := unstructured.NestedStringSlice(rule, "resources"); !slices.Equal(resources, []string{"configmaps"}) {
				continue
			}
			got, _, _ := unstructured.NestedStringSlice(rule, "resourceNames")
			want := kube.MemoryNames()
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("it may delete %v, want %v", got, want)
			}
			return
		}
	}
	t.Error("no role of the cleanup names ConfigMaps")
}

// TestRolesAndGuardsAreTheCodes compares what Helm renders with what the Go code says, whatever the values are.
func TestRolesAndGuardsAreTheCodes(t *testing.T) {
	for name, tc := range map[string]struct {
		values   map[string]any
		params   guard.Params
		node     [2]string
		account  string
		noGuards bool
	}{
		"minimal": {values: parse(t, minimal), account: "keelson-policy-sync", node: [2]string{"keelson-node", "keelson-node"}, params: guard.Params{
			SPIREServers: []string{"system:serviceaccount:spire-server:spire-server"}, CalicoAPIServers: guard.CalicoAPIServers, Taint: true, Affinity: true}},
		"everything": {values: full(t), account: "sync", node: [2]string{"nodes", "cutter"}, params: guard.Params{
			SPIREServers: []string{"system:serviceaccount:a:one", "system:serviceaccount:b:two"}, Admins: []string{"platform", "oidc:sec ops"},
			Kubelets: []string{"system:nodes", "virtual"}, CalicoNodes: []string{"canal"}, Taint: true, Affinity: true}},
		"without the taint": {values: parse(t, minimal, "policySync: {config: {taint: false}}"), account: "keelson-policy-sync", node: [2]string{"keelson-node", "keelson-node"}, params: guard.Params{
			SPIREServers: []string{"system:serviceaccount:spire-server:spire-server"}, CalicoAPIServers: guard.CalicoAPIServers, Affinity: true}},
		"without affinity": {values: parse(t, minimal, "guards: {affinity: false}"), account: "keelson-policy-sync", node: [2]string{"keelson-node", "keelson-node"}, params: guard.Params{
			SPIREServers: []string{"system:serviceaccount:spire-server:spire-server"}, CalicoAPIServers: guard.CalicoAPIServers, Taint: true}},
		"without guards and keelson-node": {values: parse(t, minimal, "guards: {enabled: false}\nnode: {enabled: false}"), account: "keelson-policy-sync", noGuards: true},
	} {
		t.Run(name, func(t *testing.T) {
			want := append(kube.RBAC(namespace, tc.account), kube.TeamRBAC()...)
			if name == "everything" {
				want = append(want, kube.PullSecretRBAC(namespace, tc.account, []string{"payments", "shop"})...)
			}
			if tc.node[0] != "" {
				want = append(want, kube.NodeRBAC(tc.node[0], tc.node[1])...)
			}
			if !tc.noGuards {
				tc.params.PolicySync = "system:serviceaccount:" + namespace + ":" + tc.account
				guards, err := guard.Objects(tc.params)
				if err != nil {
					t.Fatal(err)
				}
				want = append(want, guards...)
			}
			got := map[string]string{}
			for _, o := range objects(t, render(t, tc.values).Manifest) {
				group := o.GroupVersionKind().Group
				if group == "admissionregistration.k8s.io" || group == "rbac.authorization.k8s.io" && !strings.HasPrefix(o.GetName(), "keelson-spire-") {
					got[id(o)] = essence(t, o.Object)
				}
			}
			wanted := map[string]string{}
			for _, o := range want {
				content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
				if err != nil {
					t.Fatal(err)
				}
				wanted[id(&unstructured.Unstructured{Object: content})] = essence(t, content)
			}
			if diff := cmp.Diff(wanted, got); diff != "" {
				t.Errorf("(-code +chart):\n%s", diff)
			}
			if diff := cmp.Diff(slices.Sorted(maps.Keys(wanted)), slices.Sorted(maps.Keys(got))); diff != "" {
				t.Errorf("objects (-code +chart):\n%s", diff)
			}
		})
	}
}

func id(o *unstructured.Unstructured) string {
	return o.GetAPIVersion() + " " + o.GetKind() + " " + o.GetNamespace() + "/" + o.GetName()
}

// essence is an object without labels, which the chart has its own of.
func essence(t *testing.T, object map[string]any) string {
	t.Helper()
	o := (&unstructured.Unstructured{Object: object}).DeepCopy()
	unstructured.RemoveNestedField(o.Object, "metadata", "labels")
	unstructured.RemoveNestedField(o.Object, "metadata", "creationTimestamp")
	unstructured.RemoveNestedField(o.Object, "status")
	out, err := yaml.Marshal(o.Object)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// TestTheProgramReadsTheConfiguration gives what the ConfigMap holds to policy-sync's own reader, which refuses unknown keys.
func TestTheProgramReadsTheConfiguration(t *testing.T) {
	for name, values := range map[string]map[string]any{"minimal": parse(t, minimal), "everything": full(t),
		"server socket": parse(t, minimal, "policySync: {config: {spire: {address: ''}}, spire: {access: serverSocket}}")} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "release-key.pem"), []byte(key), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(`{"auths":{"registry.example.org":{"auth":"dTpw"}}}`), 0o600); err != nil {
			t.Fatal(err)
		}
		for file, content := range map[string]string{"registry.pem": authority, "sigstore.json": trustedRoot} {
			if err := os.WriteFile(filepath.Join(dir, file), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		text := strings.NewReplacer("/etc/keelson/keys", dir, "/etc/keelson/roots", dir, "/etc/keelson/cas", dir, "/etc/keelson/registry", dir).Replace(configuration(t, render(t, values).Manifest))
		c, err := syncconfig.Parse([]byte(text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !c.LeaderElection.Enabled || c.LeaderElection.Namespace != namespace || c.Metrics == "0" || strings.HasPrefix(c.Health, "127.") {
			t.Errorf("%s: lease %+v, listens on %s and %s", name, c.LeaderElection, c.Metrics, c.Health)
		}
	}
}

// configuration is policy-sync.yaml in a manifest.
func configuration(t testing.TB, manifest string) string {
	t.Helper()
	for _, o := range objects(t, manifest) {
		if text, ok, _ := unstructured.NestedString(o.Object, "data", "policy-sync.yaml"); ok {
			return text
		}
	}
	t.Fatal("no configuration in the manifest")
	return ""
}
