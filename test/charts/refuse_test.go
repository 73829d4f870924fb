package charts

import (
	"fmt"
	"strings"
	"testing"

	"github.com/keelson-project/keelson/test/charts/helm"
)

// TestBadValuesAreRefused: each with an error that says where, and what is allowed there.
func TestBadValuesAreRefused(t *testing.T) {
	verifier := func(keys string) string {
		return "policySync: {config: {images: {verifiers: [{name: k, " + keys + "}]}}}"
	}
	for name, tc := range map[string]struct {
		values string
		want   []string
	}{
		"if nobody says where images are, refuse":               {"image: {registry: ''}", []string{"/image/registry", "minLength: got 0, want 1"}},
		"if there is no trust domain, refuse":                   {"policySync: {config: {trustDomain: ''}}", []string{"/policySync/config/trustDomain", "minLength"}},
		"if the trust domain is an ID, refuse":                  {"policySync: {config: {trustDomain: 'spiffe://example.org'}}", []string{"/policySync/config/trustDomain", "does not match pattern"}},
		"if a value is unknown, refuse":                         {"replicas: 3", []string{"additional properties 'replicas' not allowed"}},
		"if a value of the configuration is unknown, refuse":    {"policySync: {config: {x509SvidTTL: 5m}}", []string{"/policySync/config", "additional properties 'x509SvidTTL' not allowed"}},
		"if a value deep down is unknown, refuse":               {verifier("publicKeyPath: /k"), []string{"/policySync/config/images/verifiers/0", "additional properties 'publicKeyPath' not allowed"}},
		"if a duration has no unit, refuse":                     {"policySync: {config: {x509SVIDTTL: '300'}}", []string{"/policySync/config/x509SVIDTTL", "does not match pattern"}},
		"if a duration is a number, refuse":                     {"policySync: {config: {resync: 30}}", []string{"/policySync/config/resync", "got number, want string"}},
		"if no replica is wanted, refuse":                       {"policySync: {replicas: 0}", []string{"/policySync/replicas", "minimum: got 0, want 1"}},
		"if Calico's presence is a word of its own, refuse":     {"policySync: {config: {calico: maybe}}", []string{"/policySync/config/calico", "must be one of 'required', 'optional', 'off'"}},
		"if an allowed host path is the node's root, refuse":    {"policySync: {config: {allowedHostPaths: [/]}}", []string{"/policySync/config/allowedHostPaths/0", "does not match pattern"}},
		"if a presence is YAML's true, refuse":                  {"policySync: {config: {istio: on}}", []string{"/policySync/config/istio", "must be one of"}},
		"if a digest is a tag, refuse":                          {"policySync: {image: {digest: latest}}", []string{"/policySync/image/digest", "does not match pattern"}},
		"if an accepted image is named by tag, refuse":          {verifier("manifests: [latest]"), []string{"/policySync/config/images/verifiers/0/manifests/0", "does not match pattern"}},
		"if a key is no public key, refuse":                     {"policySync: {verifierKeys: {a.pem: '-----BEGIN PRIVATE KEY-----'}}", []string{"/policySync/verifierKeys/a.pem", "does not match pattern", "BEGIN PUBLIC KEY"}},
		"if a key's name leaves its folder, refuse":             {"policySync: {verifierKeys: {../a.pem: '-----BEGIN PUBLIC KEY-----'}}", []string{"/policySync/verifierKeys", "additional properties '../a.pem' not allowed"}},
		"if a user would break out of a CEL text, refuse":       {`guards: {adminGroups: ['x"] || true || ["']}`, []string{"/guards/adminGroups/0", "does not match pattern"}},
		"if a user holds an expression of Helm's, refuse":       {`guards: {calicoAPIServerUsers: ['{{ .x }}']}`, []string{"/guards/calicoAPIServerUsers/0", "does not match pattern"}},
		"if a service account would break out, refuse":          {`policySync: {serviceAccountName: 'a"b'}`, []string{"/policySync/serviceAccountName", "does not match pattern"}},
		"if a SPIRE server's namespace would break out, refuse": {`spire: {servers: [{namespace: 'a"', serviceAccount: b}]}`, []string{"/spire/servers/0/namespace", "does not match pattern"}},
		"if nobody may write verdicts, refuse":                  {"spire: {servers: []}", []string{"/spire/servers", "minItems: got 0, want 1"}},
		"if nobody is an admin, refuse":                         {"guards: {adminGroups: []}", []string{"/guards/adminGroups", "minItems"}},
		"if SPIRE is to be reached in no known way, refuse":     {"policySync: {spire: {access: tcp}}", []string{"/policySync/spire/access", "must be one of 'csi', 'hostPath', 'serverSocket'"}},
		"if the address has no port, refuse":                    {"policySync: {config: {spire: {address: spire-server}}}", []string{"/policySync/config/spire/address", "does not match pattern"}},
		"if the address is missing, say what it looks like":     {"policySync: {config: {spire: {address: ''}}}", []string{"policySync.config.spire.address is missing: give host:port of the SPIRE server's TCP API, such as spire-server.spire-server:443"}},
		"if older nodes alone are to be tainted, refuse":        {"policySync: {config: {taint: false, taintExisting: true}}", []string{"policySync.config.taintExisting is true although policySync.config.taint is false"}},
		"if the server is to be reached in two ways, refuse":    {"policySync: {spire: {access: serverSocket}}", []string{"policySync.config.spire.address is given although policySync.spire.access is serverSocket"}},
		"if a verifier's key is nowhere, say where it belongs":  {verifier("publicKey: a.pem"), []string{`verifier "k" names key "a.pem", but policySync.verifierKeys has none of that name: add its PEM text there`}},
		"if a trusted root is nowhere, say where it belongs":    {verifier("keyless: {issuer: a, subject: b, trustedRoot: r.json}"), []string{`verifier "k" names trusted root "r.json", but policySync.trustedRoots has none of that name`}},
		"if a keyless verifier has no trusted root, refuse":     {verifier("keyless: {issuer: a, subject: b}"), []string{"/policySync/config/images/verifiers/0/keyless", "trustedRoot"}},
		"if a registry's CA is nowhere, say where it belongs":   {"policySync: {config: {images: {registryCAs: {r.example: ca.pem}}}}", []string{`registry "r.example" names "ca.pem", but policySync.registryCAs has none of that name`}},
		"if a CA is a key, refuse":                              {"policySync: {registryCAs: {a.pem: '-----BEGIN PRIVATE KEY-----'}}", []string{"/policySync/registryCAs/a.pem", "does not match pattern"}},
		"if a mirror is no list, refuse":                        {"policySync: {config: {images: {mirrors: {docker.io: m.example}}}}", []string{"/policySync/config/images/mirrors/docker.io", "got string, want array"}},
		"if a namespace's rule is for a pattern, refuse":        {"policySync: {config: {images: {namespaces: {'team-*': {verifiers: [a]}}}}}", []string{"/policySync/config/images/namespaces", "'team-*' not allowed"}},
		"if a namespace's rule says nothing, refuse":            {"policySync: {config: {images: {namespaces: {a: {}}}}}", []string{"/policySync/config/images/namespaces/a", "minProperties"}},
		"if a namespace's list is empty, refuse":                {"policySync: {config: {images: {namespaces: {a: {verifiers: []}}}}}", []string{"/policySync/config/images/namespaces/a/verifiers", "minItems"}},
		"if secrets are to be read in a pattern, refuse":        {"pullSecrets: {namespaces: ['*']}", []string{"/pullSecrets/namespaces/0", "does not match pattern"}},
		"if a broker is no SPIFFE ID, refuse":                   {"spire: {brokers: [{id: ztunnel}]}", []string{"/spire/brokers/0/id", "does not match pattern"}},
		"if a broker's namespace is a pattern, refuse":          {"spire: {brokers: [{id: 'spiffe://a/b', namespaces: ['*']}]}", []string{"/spire/brokers/0/namespaces/0", "does not match pattern"}},
		"if what a removal takes is no truth value, refuse":     {"uninstall: {removeObjects: 'yes'}", []string{"/uninstall/removeObjects", "got string, want boolean"}},
		"if a port is none, refuse":                             {"node: {ports: {metrics: 70000}}", []string{"/node/ports/metrics", "maximum: got 70,000, want 65,535"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := helm.Render(t.Context(), chart, release, namespace, kubeVersion, parse(t, minimal, tc.values))
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

// TestAnOldKubernetesIsRefused: without an API that guards need, there would be no guards.
func TestAnOldKubernetesIsRefused(t *testing.T) {
	const validating, mutating = "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy", "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy"
	for name, tc := range map[string]struct {
		served []string
		values string
		want   string
	}{
		"if both kinds are served, accept":                           {[]string{validating, mutating}, "", ""},
		"if new nodes could not be tainted, refuse":                  {[]string{validating}, "", "does not serve admissionregistration.k8s.io/v1 MutatingAdmissionPolicy, which the guards need: use 1.36 or later"},
		"if pods could get no affinity, refuse":                      {[]string{validating}, "policySync: {config: {taint: false}}", "MutatingAdmissionPolicy"},
		"if neither taint nor affinity is wanted, accept":            {[]string{validating}, "policySync: {config: {taint: false}}\nguards: {affinity: false}", ""},
		"if nothing could be guarded, refuse":                        {nil, "policySync: {config: {taint: false}}\nguards: {affinity: false}", "ValidatingAdmissionPolicy"},
		"if nothing is to be guarded, accept, and the notes warn it": {nil, "guards: {enabled: false}", ""},
	} {
		t.Run(name, func(t *testing.T) {
			err := helm.RenderFor(chart, release, namespace, append(tc.served, "v1/Pod"), parse(t, minimal, tc.values))
			if tc.want == "" && err != nil || tc.want != "" && !strings.Contains(fmt.Sprint(err), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}
