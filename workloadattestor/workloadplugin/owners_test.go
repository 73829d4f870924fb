package workloadplugin_test

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// TestPodsPullSecrets: a private registry is asked with what the pod is pulled with, if the operator says so.
func TestPodsPullSecrets(t *testing.T) {
	config := fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, "REGISTRY", base64.StdEncoding.EncodeToString([]byte("robot:secret")))
	for name, c := range map[string]struct {
		pod, account, hcl string
		want              bool
	}{
		"the pod names one":                {`"imagePullSecrets":[{"name":"pull"}],`, `{}`, "pull_secrets = true\n", true},
		"its account names one":            {``, `{"imagePullSecrets":[{"name":"pull"}]}`, "pull_secrets = true\n", true},
		"the pod names one that is absent": {`"imagePullSecrets":[{"name":"gone"}],`, `{"imagePullSecrets":[{"name":"pull"}]}`, "pull_secrets = true\n", false},
		"neither does":                     {``, `{}`, "pull_secrets = true\n", false},
		"they are switched off":            {`"imagePullSecrets":[{"name":"pull"}],`, `{"imagePullSecrets":[{"name":"pull"}]}`, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.password.Store("secret")
			pod := strings.Replace(apiPod, `"spec":{`, `"spec":{`+c.pod, 1)
			w.api.Store(&pod)
			data := base64.StdEncoding.EncodeToString([]byte(strings.Replace(string(config), "REGISTRY", w.registry, 1)))
			w.objects.Store("/api/v1/namespaces/payments/secrets/pull", `{"kind":"Secret","apiVersion":"v1","type":"kubernetes.io/dockerconfigjson","data":{".dockerconfigjson":"`+data+`"}}`)
			w.objects.Store("/api/v1/namespaces/payments/serviceaccounts/api", `{"kind":"ServiceAccount","apiVersion":"v1",`+strings.TrimPrefix(c.account, "{"))
			if c.account == "{}" {
				w.objects.Store("/api/v1/namespaces/payments/serviceaccounts/api", `{"kind":"ServiceAccount","apiVersion":"v1"}`)
			}
			w.configure(w.hcl() + c.hcl)
			got, err := w.attest(42)
			if err != nil || slices.Contains(got, "signed-by:release-key") != c.want {
				t.Errorf("%v, %v", got, err)
			}
		})
	}
}

func TestRulesOfNamespaces(t *testing.T) {
	for name, c := range map[string]struct {
		hcl  string
		want bool
	}{
		"the verifier counts":            {`namespaces "payments" { verifiers = ["release-key"] }`, true},
		"another one counts":             {`namespaces "payments" { verifiers = ["other"] }`, false},
		"it counts elsewhere":            {`namespaces "shop" { verifiers = ["release-key"] }` + "\n" + `namespaces "*" { verifiers = ["other"] }`, false},
		"the rule is another one's":      {`namespaces "shop" { verifiers = ["other"] }`, true},
		"a registry that does not count": {`namespaces "payments" { registries = ["registry.example/x"] }`, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			digest := "sha256:" + strings.Repeat("0a", 32)
			w.configure(w.hcl() + fmt.Sprintf("verifiers \"other\" { manifests = [%q] }\nregistries = [\"registry.example\"]\n%s\n", digest, c.hcl))
			got, err := w.attest(42)
			if err != nil || slices.Contains(got, "signed-by:release-key") != c.want {
				t.Errorf("%v, %v", got, err)
			}
		})
	}
}
