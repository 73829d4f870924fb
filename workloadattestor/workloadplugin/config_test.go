package workloadplugin_test

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func (w *world) validate(hcl string) *configv1.ValidateResponse {
	w.t.Helper()
	answer, err := w.config.Validate(w.t.Context(), &configv1.ValidateRequest{
		CoreConfiguration: &configv1.CoreConfiguration{TrustDomain: "example.org"}, HclConfiguration: hcl,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return answer
}

func TestConfigurationsThatAreRefused(t *testing.T) {
	w := newWorld(t)
	w.write("large.pub", strings.Repeat("x", 64<<10+1))
	key := func(path string) string { return fmt.Sprintf("public_key_path = %q", filepath.Join(w.dir, path)) }
	good := w.hcl()
	cases := map[string]struct{ hcl, want string }{
		"unknown key":                                 {good + "\ncri_sokcet = \"x\"\n", "line 12: cri_sokcet: unknown key"},
		"unknown key of a verifier":                   {strings.Replace(good, "public_key_path", "public_key", 1), "verifiers.release-key.public_key: unknown key"},
		"a key twice":                                 {good + "node_name = \"x\"\n", "stands in line 2 already"},
		"no HCL":                                      {"node_name = [", "not HCL"},
		"no node name":                                {without1(good, "node_name"), "node_name: the Kubernetes name of this node is required"},
		"a node name that is none":                    {strings.Replace(good, "fra-1", "FRA 1", 1), "line 2: node_name"},
		"two node names":                              {good + "node_name_env = \"HOME\"\n", "line 11: node_name_env: give node_name or node_name_env, not both"},
		"a variable that is not set":                  {without1(good, "node_name") + "node_name_env = \"KEELSON_NO_SUCH\"\n", "node_name_env: the Kubernetes name of this node is required"},
		"a variable with no node's name":              {without1(good, "node_name") + "node_name_env = \"PATH\"\n", "node_name_env: the Kubernetes name of this node is required"},
		"no socket":                                   {without1(good, "cri_socket"), "cri_socket"},
		"a relative socket":                           {strings.Replace(good, w.dir, ".", 1), "line 3: cri_socket"},
		"a relative kubelet's folder":                 {good + "kubelet_root = \"kubelet\"", "line 11: kubelet_root"},
		"a relative host path":                        {good + "allowed_host_paths = [\"/run/x\", \"run\"]", "line 11: allowed_host_paths: \"run\""},
		"the node's root as a host path":              {good + "allowed_host_paths = [\"/\"]", "want the absolute path of a folder or file of the node"},
		"a host path that holds the runtime's socket": {good + fmt.Sprintf("allowed_host_paths = [%q]", w.dir), "holds the container runtime's socket"},
		"a host path that holds all pods":             {good + "allowed_host_paths = [\"/var/lib\"]", "holds the kubelet's folder"},
		"a relative proc file system":                 {without1(good, "proc_root") + "proc_root = \"proc\"", "proc_root"},
		"a kubeconfig that is not there":              {strings.Replace(good, "kubeconfig\"", "nothing\"", 1), "kubeconfig"},
		"kubeconfig and in_cluster":                   {good + "in_cluster = true\n", "not both"},
		"in_cluster outside of a cluster":             {without1(good, "kubeconfig") + "in_cluster = true\n", "kubeconfig: unable to load in-cluster"},
		"a registry that is none":                     {good + "registries = [\"a b\"]\n", `"a b"`},
		"credentials that are not there":              {good + "registry_auth_path = \"/nonexistent\"\n", "registry_auth_path"},
		"credentials that are none":                   {good + fmt.Sprintf("registry_auth_path = %q\n", filepath.Join(w.dir, "release.pub")), "credentials are not JSON"},
		"credential providers without plugins":        {good + "credential_provider_config_path = \"/x\"\n", "line 11: credential_provider_config_path: give credential_provider_config_path and credential_provider_bin_dir"},
		"credential providers that are not there":     {good + "credential_provider_config_path = \"/nonexistent\"\ncredential_provider_bin_dir = \"/bin\"\n", "line 11: credential_provider_config_path"},
		"pull secrets without the API":                {without1(good, "kubeconfig") + "pull_secrets = true\n", "pull_secrets: needs kubeconfig or in_cluster"},
		"a namespace's unknown verifier":              {good + "namespaces \"a\" { verifiers = [\"x\"] }\n", `namespace "a": verifier "x" is not configured`},
		"a namespace's unknown key":                   {good + "namespaces \"a\" { verifier = [\"x\"] }\n", "namespaces.a.verifier: unknown key"},
		"a namespace's empty list":                    {good + "namespaces \"a\" { verifiers = [] }\n", "an empty list"},
		"a layout that is not there":                  {good + "oci_layouts = [\"/nonexistent\"]\n", "/nonexistent"},
		"a duration that is none":                     {good + "cache_ttl = \"soon\"\n", "cache_ttl"},
		"a duration that is not positive":             {good + "cri_timeout = \"0s\"\n", "cri_timeout"},
		"a key file that is not there":                {good + "verifiers \"b\" { public_key_path = \"/nonexistent\" }\n", "verifiers.b"},
		"a key file larger than allowed":              {good + "verifiers \"b\" { " + key("large.pub") + " }\n", "larger than 65536"},
		"a key file without a key":                    {good + "verifiers \"b\" { " + key("kubeconfig") + " }\n", "no PEM block"},
		"a verifier of nothing":                       {good + "verifiers \"b\" {}\n", "verifiers.b"},
		"a verifier of two kinds":                     {good + "verifiers \"b\" { " + key("release.pub") + " manifests = [\"x\"] }\n", "make two verifiers"},
		"a digest that is none":                       {good + "verifiers \"b\" { manifests = [\"sha256:x\"] }\n", "want 64 hex digits"},
		"a config digest that is none":                {good + "verifiers \"b\" { configs = [\"latest\"] }\n", `start with "sha256:"`},
		"a verifier's name that is no name":           {good + "verifiers \"B b\" { " + key("release.pub") + " }\n", "verifier's name"},
		"metrics for everybody":                       {good + "metrics { listen = \"0.0.0.0:9468\" }\n", "metrics.listen: 0.0.0.0:9468 can be reached from elsewhere"},
		"a verifier's name twice":                     {good + "verifiers \"release-key\" { " + key("release.pub") + " }\n", "already"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			answer := w.validate(tc.hcl)
			if notes := strings.Join(answer.GetNotes(), "\n"); answer.GetValid() || !strings.Contains(notes, tc.want) {
				t.Errorf("valid %v, notes:\n%s\nwant %q", answer.GetValid(), notes, tc.want)
			}
			_, err := w.config.Configure(t.Context(), &configv1.ConfigureRequest{HclConfiguration: tc.hcl})
			if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Configure: %v", err)
			}
		})
	}
}

func TestAllProblemsAtOnce(t *testing.T) {
	w := newWorld(t)
	answer := w.validate("node_name = \"X\"\ncache_ttl = \"x\"\nregistries = [\"a b\"]\nverifiers \"b\" {}\n")
	notes := strings.Join(answer.GetNotes(), "\n")
	for _, want := range []string{"line 1: node_name", "cri_socket", "line 2: cache_ttl", `"a b"`, "line 4: verifiers.b"} {
		if !strings.Contains(notes, want) {
			t.Errorf("no word of %q in:\n%s", want, notes)
		}
	}
}

func TestGoodConfigurationIsValid(t *testing.T) {
	w := newWorld(t)
	if answer := w.validate(w.hcl()); !answer.GetValid() || len(answer.GetNotes()) != 0 {
		t.Errorf("got %v", answer)
	}
	answer := w.validate(without1(w.hcl(), "kubeconfig"))
	if !answer.GetValid() || !strings.Contains(strings.Join(answer.GetNotes(), " "), "no selector sa") {
		t.Errorf("without API: got %v", answer)
	}
}

func TestTheNodesNameFromTheEnvironment(t *testing.T) {
	t.Setenv("KEELSON_TEST_NODE", "fra-1")
	w := newWorld(t)
	w.configure(without1(w.hcl(), "node_name") + "node_name_env = \"KEELSON_TEST_NODE\"\n")
	if got, err := w.attest(42); err != nil || !slices.Equal(got, w.selectors()) {
		t.Errorf("got %v, %v; want the selectors of node fra-1: %v", got, err, w.selectors())
	}
}

func TestBadConfigurationLeavesTheOldOneInPlace(t *testing.T) {
	w := newWorld(t)
	w.configure(w.hcl())
	if _, err := w.config.Configure(t.Context(), &configv1.ConfigureRequest{HclConfiguration: "x"}); err == nil {
		t.Fatal("accepted")
	}
	if got, err := w.attest(42); err != nil || len(got) != len(w.selectors()) {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestReconfiguringDoesNotDisturbCallsUnderWay(t *testing.T) {
	w := newWorld(t)
	w.configure(w.hcl())
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				if got, err := w.attest(42); err != nil || len(got) != len(w.selectors()) {
					t.Errorf("got %v, %v", got, err)
				}
			}
		})
	}
	for range 10 {
		w.configure(w.hcl())
	}
	wg.Wait()
}
