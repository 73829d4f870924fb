package syncconfig

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

func writeKey(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "release.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const digest = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

func TestParse(t *testing.T) {
	c, err := Parse([]byte(`
trustDomain: keelson.demo
x509SVIDTTL: 20s
spire:
  socket: /run/spire/api.sock
calico: required
istio: off
maxHold: 90s
widestPodCIDR: {ipv4: 16}
images:
  registries: [registry.example.org]
  insecureRegistries: ["127.0.0.1:5000"]
  verifiers:
  - name: release-key
    publicKey: ` + writeKey(t) + `
  - name: pinned
    manifests: [` + digest + `]
listen: {metrics: "0", health: "0"}
leaderElection: {enabled: false}
`))
	if err != nil {
		t.Fatal(err)
	}
	want := snapshot.Config{TrustDomain: "keelson.demo", X509SVIDTTL: 20 * time.Second, MaxHold: 90 * time.Second, Taint: true,
		TierOrder: snapshot.DefaultTierOrder, WidestPodCIDR4: 16, WidestPodCIDR6: snapshot.DefaultWidestPodCIDR6}
	if diff := cmp.Diff(want, c.Snapshot); diff != "" {
		t.Errorf("snapshot's part (-want +got):\n%s", diff)
	}
	var verifiers []string
	for _, v := range c.Images.Checker.Verifiers {
		verifiers = append(verifiers, v.Name())
	}
	if diff := cmp.Diff([]string{"release-key", "pinned"}, verifiers); diff != "" {
		t.Errorf("verifiers (-want +got):\n%s", diff)
	}
	if c.Calico != Required || c.Istio != Off || c.SPIRE.Socket != "/run/spire/api.sock" || c.SPIRE.TrustDomain.Name() != "keelson.demo" {
		t.Errorf("got %+v", c)
	}
	if c.Resync != 30*time.Second || c.SPIRE.Timeout != 5*time.Second {
		t.Errorf("defaults: resync %s, timeout %s", c.Resync, c.SPIRE.Timeout)
	}
}

func TestParseReportsEveryProblemWithItsLine(t *testing.T) {
	const good = "trustDomain: keelson.demo\nspire: {socket: /s}\n"
	cases := map[string]struct {
		content string
		want    []string // each in the error
	}{
		"if the file is empty, say so": {"", []string{"the file is empty"}},
		"if keys are unknown and values of a wrong type, name them all": {
			good + "sipre: {}\nresync: soon\nspire2: 1\n",
			[]string{"line 3: field sipre: no such key here", "line 4: cannot unmarshal", "line 5: field spire2: no such key here"}},
		"if a key is given twice, refuse":        {good + "trustDomain: other\n", []string{"line 3:", "already"}},
		"if there are two documents, refuse":     {good + "---\n{}\n", []string{"more than one YAML document"}},
		"if it is no YAML, give the line":        {"a: [\n", []string{"line"}},
		"if the trust domain is none, refuse":    {"trustDomain: spiffe://a/b\nspire: {socket: /s}\n", []string{"line 1: trustDomain: trust domain"}},
		"if there is no SPIRE server, refuse":    {"trustDomain: a.b\n", []string{"spire: give either socket"}},
		"if there are two SPIRE servers, refuse": {"trustDomain: a.b\nspire: {socket: /s, address: 'h:1'}\n", []string{"line 2: spire: give either socket"}},
		"if a SPIRE address comes without the Workload API, refuse": {
			"trustDomain: a.b\nspire: {address: 'h:1'}\n", []string{"line 2: spire.workloadAPI: an address needs"}},
		"if a SPIRE address has no port, refuse": {
			"trustDomain: a.b\nspire: {address: h, workloadAPI: 'unix:///a'}\n", []string{"line 2: spire.address: address h: missing port"}},
		"if durations are out of range, name them all": {
			good + "x509SVIDTTL: 1s\nmaxHold: 48h\nresync: 1ms\nwidestPodCIDR: {ipv4: 4}\n",
			[]string{"line 3: x509SVIDTTL: X.509-SVID lifetime 1s", "line 4: maxHold: brake 48h", "line 5: resync: 1ms is outside", "line 6: widestPodCIDR: widest pod CIDRs /4"}},
		"if an allowed host path is relative, the root or unclean, name each": {
			good + "allowedHostPaths: [run, /, /run/x/, /run/../etc]\n",
			[]string{`line 3: allowedHostPaths: allowed host path "run"`, `allowed host path "/":`, `allowed host path "/run/x/"`, `allowed host path "/run/../etc"`}},
		"if a data plane's presence is unknown, refuse": {good + "calico: maybe\n", []string{`line 3: calico: "maybe" is neither`}},
		"if the kubeconfig is missing, refuse":          {good + "kubeconfig: /does/not/exist\n", []string{"line 3: kubeconfig: stat /does/not/exist"}},
		"if a key file is missing and another verifier has no rule, name both": {
			good + "images:\n  verifiers:\n  - name: a\n    publicKey: /no.pem\n  - name: b\n",
			[]string{"line 6: images.verifiers.0.publicKey: open /no.pem", "line 7: images.verifiers.1: verifier \"b\": give either"}},
		"if two verifiers have one name, refuse": {
			good + "images:\n  verifiers:\n  - {name: a, manifests: [" + digest + "]}\n  - {name: a, manifests: [" + digest + "]}\n",
			[]string{`line 6: images.verifiers.1: two verifiers are named "a"`}},
		"if a digest is malformed, refuse": {
			good + "images:\n  verifiers:\n  - name: a\n    configs: [latest]\n", []string{"line 6: images.verifiers.0.configs.0: digest \"latest\""}},
		"if a namespace's rule names no verifier, refuse": {
			good + "images:\n  namespaces:\n    a: {verifiers: [k]}\n    b: {registries: []}\n    c: {registry: [x]}\n",
			[]string{`line 5: images.namespaces.a: namespace "a": verifier "k" is not configured`, `line 6: images.namespaces.b: namespace "b": `, "line 7: field registry: no such key here"}},
		"if credential providers are half, refuse":       {good + "images: {credentialProviders: {config: /x}}\n", []string{"line 3: images.credentialProviders: give config and binDir"}},
		"if credential providers are missing, refuse":    {good + "images: {credentialProviders: {config: /no/file, binDir: /bin}}\n", []string{"line 3: images.credentialProviders: image: credential providers: open /no/file"}},
		"if an OCI layout is missing, refuse":            {good + "images: {ociLayouts: [/no/layout]}\n", []string{"line 3: images:", "/no/layout"}},
		"if a listen address is none, refuse":            {good + "listen: {metrics: here}\n", []string{`line 3: listen.metrics: "here" is neither`}},
		"if a lease has a name that no role has, refuse": {good + "leaderElection: {name: other}\n", []string{"line 3: leaderElection.name: \"other\" is not keelson-policy-sync"}},
		"if a lease has no namespace, refuse":            {good + "leaderElection: {namespace: ''}\n", []string{"line 3: leaderElection: a lease needs"}},
		"if the file is far too large, say so":           {strings.Repeat("#", maxFile+1), []string{"more than"}},
		"if an unnamed service is half, refuse":          {good + "dns: {namespace: x}\n", []string{"line 3: dns: service DNS"}},
		"if a further DNS service is half, refuse":       {good + "moreDNS: [{namespace: x}]\n", []string{"line 3: moreDNS: DNS service 2"}},
		"if a DNS address is none, refuse":               {good + "dnsNets: [here]\n", []string{`line 3: dnsNets: DNS address "here"`}},
		"if a DNS block is everything, refuse":           {good + "dnsNets: [0.0.0.0/0]\n", []string{`line 3: dnsNets: DNS block "0.0.0.0/0"`}},
		"if a DNS port is none, refuse":                  {good + "dnsPorts: [0]\n", []string{"line 3: dnsPorts: DNS port 0"}},
		"if the root namespace is no name, refuse":       {good + "istioRootNamespace: A_b\n", []string{"line 3: istioRootNamespace: Istio's root namespace"}},
		"if older nodes alone are tainted, refuse":       {good + "taint: false\ntaintExisting: true\n", []string{"line 4: taintExisting: nodes that were there before"}},
		"if the share of deletes is off, refuse":         {good + "maxDeletePercent: 101\n", []string{"line 3: maxDeletePercent:"}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := Parse([]byte(tc.content))
			if err == nil {
				t.Fatal("accepted")
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got\n%v\nwant it to hold %q", err, want)
				}
			}
		})
	}
}

// TestRegistryCredentials: policy-sync takes the file that the workload attestor takes, and refuses it with the same words.
func TestRegistryCredentials(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.json")
	config := []byte("trustDomain: keelson.demo\nspire: {socket: /s}\nimages:\n  registryAuth: " + path + "\n")
	for content, want := range map[string]string{
		`{"auths":{"registry.example.org":{"auth":"dTpw"}}}`:   "",
		"{\"auths\":{\n\"registry.example.org\":{}}}":          `line 4: images.registryAuth: ` + path + `: image: credentials: line 2: "registry.example.org": the entry has no credentials`,
		`{"auths":{"registry.example.org":{"auth":"dTpw"}}} x`: "line 4: images.registryAuth",
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := Parse(config)
		if want == "" && (err != nil || c.Images.Credentials == nil || c.Images.Checker.Keychain != c.Images.Credentials) {
			t.Errorf("%s: %v", content, err)
		}
		if want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: got\n%v\nwant it to hold %q", content, err, want)
		}
	}
	if _, err := Parse(bytes.ReplaceAll(config, []byte("config.json"), []byte("none"))); err == nil || !strings.Contains(err.Error(), "line 4: images.registryAuth") {
		t.Errorf("no file: %v", err)
	}
}

// TestWhoseImagesAreToldApart: by namespace where rules are, by account where pull secrets count.
func TestWhoseImagesAreToldApart(t *testing.T) {
	const good = "trustDomain: keelson.demo\nspire: {socket: /s}\n"
	for text, want := range map[string]snapshot.ImageOwners{
		"":                              snapshot.ImagesOfAll,
		"images: {pullSecrets: true}\n": snapshot.ImagesOfAccounts,
		"images:\n  verifiers: [{name: a, manifests: [" + digest + "]}]\n  namespaces: {x: {verifiers: [a]}}\n": snapshot.ImagesOfNamespaces,
	} {
		c, err := Parse([]byte(good + text))
		if err != nil || c.Snapshot.ImageOwners != want || c.Images.PullSecrets != (want == snapshot.ImagesOfAccounts) ||
			(len(c.Images.Checker.Namespaces) == 1) != (want == snapshot.ImagesOfNamespaces) {
			t.Errorf("%q: %q, %v", text, c.Snapshot.ImageOwners, err)
		}
	}
}

func TestLoadNamesTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.yaml")
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("missing file: %v", err)
	}
	if err := os.WriteFile(path, []byte("x: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "line 1: field x") {
		t.Errorf("bad file: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("trustDomain: keelson.demo\nspire: {socket: /s}\n"))
	f.Add([]byte("a: &a [*a]\n"))
	f.Add([]byte("images:\n  verifiers:\n  - name: a\n    configs: [latest]\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		c, err := Parse(content)
		if err == nil && (c.SPIRE.TrustDomain.IsZero() || c.Snapshot.Validate() != nil) {
			t.Errorf("accepted an invalid configuration: %q", content)
		}
	})
}

// TestPendingGrace: none is a choice, and saying nothing is the default.
func TestPendingGrace(t *testing.T) {
	for text, want := range map[string]time.Duration{"": snapshot.DefaultPendingGrace, "pendingGrace: 0s\n": snapshot.NoPendingGrace, "pendingGrace: 90s\n": 90 * time.Second} {
		c, err := Parse([]byte("trustDomain: keelson.demo\nspire: {address: \"spire:443\", workloadAPI: \"unix:///x\"}\n" + text))
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if got := c.Snapshot.WithDefaults().PendingGrace; got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
	if _, err := Parse([]byte("pendingGrace: 1h\n")); err == nil || !strings.Contains(err.Error(), "pendingGrace") {
		t.Errorf("an hour: %v", err)
	}
}

// TestTheREADMENamesEveryKey: what can be configured is written down.
func TestTheREADMENamesEveryKey(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	var look func(reflect.Type)
	look = func(of reflect.Type) {
		for of.Kind() == reflect.Pointer || of.Kind() == reflect.Slice {
			of = of.Elem()
		}
		if of.Kind() != reflect.Struct {
			return
		}
		for i := range of.NumField() {
			key := of.Field(i).Tag.Get("yaml")
			if !regexp.MustCompile(`\b` + regexp.QuoteMeta(key) + `\b`).Match(readme) {
				t.Errorf("README.md does not name the key %s", key)
			}
			look(of.Field(i).Type)
		}
	}
	look(reflect.TypeFor[file]())
}
