// Package arch holds the import rules of the project as a test. A new direction needs a
// new rule here, with its reason, and is discussed as such.
package arch

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/keelson-project/keelson/"

// pkg is what `go list -json` says of a package.
type pkg struct {
	ImportPath   string
	Imports      []string
	Deps         []string
	TestImports  []string
	XTestImports []string
}

func load(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,Deps,TestImports,XTestImports", "./...")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	if len(pkgs) < 20 {
		t.Fatalf("go list found %d packages only", len(pkgs))
	}
	return pkgs
}

// matches reports whether an import path is in a list of patterns: a path, or a prefix
// with /... at its end. Patterns without a dot in their first element and not in the
// standard library are the project's own.
func matches(importPath string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		if base, ok := strings.CutSuffix(p, "/..."); ok {
			return importPath == base || strings.HasPrefix(importPath, base+"/")
		}
		return importPath == p
	})
}

func own(names ...string) []string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = module + n
	}
	return out
}

// never is a rule: packages in From must not import To, directly or (Deep) at all.
type never struct {
	from   []string
	to     []string
	except []string
	deep   bool
	reason string
}

var pureNode = own("nodeattestor/nodeclaim", "nodeattestor/evidence", "nodeattestor/ek", "nodeattestor/ak", "nodeattestor/quote",
	"nodeattestor/dsse", "nodeattestor/eventlog", "nodeattestor/ima", "nodeattestor/imasig", "nodeattestor/assettag", "nodeattestor/reference", "nodeattestor/grubscript", "nodeattestor/predict", "nodeattestor/appraise", "nodeattestor/verify")

var purePolicy = own("policy-sync/snapshot", "policy-sync/trustgraph", "policy-sync/desired", "policy-sync/calico", "policy-sync/istio",
	"policy-sync/registration", "policy-sync/plan", "policy-sync/guard", "policy-sync/flows")

// serverNode is what a server needs beside the decision: who may come in, what it remembers, what time it is.
var serverNode = own("nodeattestor/admission", "nodeattestor/machinestate", "nodeattestor/trustclock")

var rules = []never{
	{from: serverNode, to: []string{"os", "net", "net/http", "os/exec", "log", "log/slog"},
		reason: "who may come in and what time it is needs no file, network or log; the one file of serials goes through boundedfile"},
	{from: serverNode, deep: true,
		to:     append(own("nodeattestor/serverplugin", "nodeattestor/verdict", "nodeattestor/audit"), "google.golang.org/grpc/...", "github.com/hashicorp/...", "github.com/spiffe/...", "k8s.io/..."),
		reason: "each is tested without SPIRE, Kubernetes, an audit log or the plugin that uses it"},
	{from: own("nodeattestor/admission", "nodeattestor/trustclock"), to: own("nodeattestor/evidence", "nodeattestor/ek", "nodeattestor/appraise", "nodeattestor/verify", "nodeattestor/machinestate"), deep: true,
		reason: "they know no evidence: who asks says what was proved"},
	{from: own("nodeattestor/...", "cmd/..."), to: serverNode, except: append(own("nodeattestor/serverplugin"), serverNode...),
		reason: "what one server remembers and admits is the server plugin's alone; verify is given it as arguments"},
	{from: own("nodeattestor/serverconfig"), to: append(own("nodeattestor/serverplugin", "nodeattestor/audit"), serverNode...), deep: true,
		reason: "a configuration can be read and judged without opening anything that it names but files"},
	{from: own("boundedfile", "spireplugin/..."), to: own("nodeattestor/...", "workloadattestor/...", "policy-sync/...", "cmd/..."), deep: true,
		reason: "files are read, replaced and watched the same way everywhere, whatever is in them"},
	{from: pureNode, to: []string{"os", "net", "net/http", "os/exec", "log", "log/slog"},
		reason: "an appraisal is a function of bytes, time, randomness and policy: no file, no network, no log"},
	{from: pureNode, to: []string{"google.golang.org/grpc/...", "github.com/hashicorp/...", "github.com/spiffe/spire-plugin-sdk/...", "k8s.io/...", "sigs.k8s.io/controller-runtime/...", "github.com/google/go-tpm/tpm2/transport/linuxtpm", "github.com/google/go-tpm/tpm2/transport/linuxudstpm"}, deep: true,
		reason: "the decision must be usable and testable without SPIRE, Kubernetes or a device"},
	{from: own("nodeattestor/nodeclaim"), to: []string{"github.com/..."}, deep: true,
		reason: "the vocabulary depends on the standard library alone, so that anybody may import it"},
	{from: own("nodeattestor/..."), to: []string{"github.com/google/go-tpm/tpm2/transport/..."}, except: own("nodeattestor/tpmdev"),
		reason: "tpmdev is the only door to a TPM"},
	{from: own("nodeattestor/agentplugin", "nodeattestor/tpmdev", "cmd/keelson-nodeattestor-agent"), to: own("nodeattestor/verify", "nodeattestor/reference", "nodeattestor/predict", "nodeattestor/appraise", "nodeattestor/verdict"), deep: true,
		reason: "a node decides nothing about itself and carries no reference values"},
	{from: own("nodeattestor/serverplugin", "cmd/keelson-nodeattestor-server"), to: own("nodeattestor/tpmdev", "nodeattestor/agentplugin"), deep: true,
		reason: "a verifier opens no TPM: it judges what other machines send"},
	{from: own("policy-sync/syncconfig"), to: own("policy-sync/kube", "policy-sync/spireapi", "policy-sync/syncer"), deep: true,
		reason: "a configuration can be read and judged without reaching for anything"},
	{from: own("nodeattestor/..."), to: own("workloadattestor/..."), deep: true,
		reason: "node attestation knows no workloads"},
	{from: own("nodeattestor/..."), to: own("policy-sync/..."), except: own("policy-sync/api/v1alpha1"), deep: true,
		reason: "nothing imports policy-sync but its API types, which the verdict sink writes"},
	{from: own("workloadattestor/..."), to: own("policy-sync/..."), deep: true,
		reason: "nothing imports policy-sync but its API types"},
	{from: own("workloadattestor/..."), to: own("nodeattestor/ek", "nodeattestor/ak", "nodeattestor/quote", "nodeattestor/verify", "nodeattestor/tpmdev", "nodeattestor/serverplugin", "nodeattestor/agentplugin", "nodeattestor/verdict"), deep: true,
		reason: "workload attestation knows no TPM"},
	{from: own("workloadattestor/image", "workloadattestor/workloadclaim"), to: []string{"github.com/spiffe/spire-plugin-sdk/...", "k8s.io/cri-api/..."}, deep: true,
		reason: "policy-sync judges images with the same code, without a runtime or SPIRE's plugin machinery"},
	{from: purePolicy, to: []string{"os", "net", "net/http", "os/exec", "log", "log/slog"},
		reason: "from snapshot to plan is a function: the same snapshot gives the same bytes"},
	{from: purePolicy, to: []string{"k8s.io/client-go/kubernetes/...", "k8s.io/client-go/dynamic/...", "k8s.io/client-go/rest", "sigs.k8s.io/controller-runtime/...", "google.golang.org/grpc"},
		reason: "the pipeline reads and writes nothing; kube and spireapi do"},
	{from: own("policy-sync/calico"), to: own("policy-sync/istio"), deep: true, reason: "renderers do not know each other"},
	{from: own("policy-sync/istio"), to: own("policy-sync/calico"), deep: true, reason: "renderers do not know each other"},
	{from: own("policy-sync/kube", "policy-sync/spireapi"), to: own("policy-sync/trustgraph", "policy-sync/desired", "policy-sync/calico", "policy-sync/istio"),
		reason: "adapters carry data; they do not decide"},
	{from: own("cmd/keelson-node", "policy-sync/flows", "policy-sync/conntrack", "policy-sync/cutter", "policy-sync/revocations"), deep: true,
		to:     append(own("policy-sync/kube", "policy-sync/spireapi", "policy-sync/syncer", "policy-sync/snapshot", "policy-sync/trustgraph", "policy-sync/plan"), "sigs.k8s.io/controller-runtime/...", "google.golang.org/grpc"),
		reason: "what runs on every node with CAP_NET_ADMIN acts on one set of addresses and carries nothing that judges trust or writes"},
	{from: own("policy-sync/conntrack", "policy-sync/flows"), to: []string{"k8s.io/...", "sigs.k8s.io/..."}, deep: true,
		reason: "which entries of the kernel's table go is decided and done without Kubernetes' code"},
	{from: own("policy-sync/cutter"), to: own("policy-sync/conntrack", "policy-sync/revocations"), deep: true,
		reason: "the loop is told what the API says and is given a table, so that it is tested without either"},
	{from: own("nodeattestor/...", "workloadattestor/...", "policy-sync/...", "cmd/..."), to: []string{"github.com/vishvananda/..."}, except: own("policy-sync/conntrack"),
		reason: "one package of what ships changes the kernel's network state"},
	{from: own("policy-sync/..."), to: own("nodeattestor/..."), except: own("nodeattestor/nodeclaim"), deep: true,
		reason: "policy-sync acts on verdicts; it never appraises"},
	{from: own("nodeattestor/...", "workloadattestor/...", "policy-sync/...", "cmd/..."), to: append(own("test/..."), "github.com/google/go-tpm-tools/...", "github.com/google/go-tpm/tpm2/transport/simulator"), deep: true,
		reason: "nothing that ships contains a simulator, a test helper or a fake"},
	{from: own("nodeattestor/...", "workloadattestor/...", "policy-sync/...", "cmd/..."), to: []string{"testing"},
		reason: "nothing that ships contains a test helper; digitorus/pkcs7, which reads RFC 3161 timestamps, links testing by itself"},
	{from: own("charts"), to: own("policy-sync/...", "nodeattestor/...", "workloadattestor/...", "cmd/..."), deep: true,
		reason: "embedded files have no logic; what makes them from Go code is charts/generate, which does not ship"},
	{from: own("nodeattestor/...", "workloadattestor/...", "policy-sync/..."), to: own("cmd/..."), deep: true,
		reason: "commands are imported by nobody"},
}

func TestImportRules(t *testing.T) {
	pkgs := load(t)
	for _, r := range rules {
		used := false
		for _, p := range pkgs {
			if !matches(p.ImportPath, r.from) || matches(p.ImportPath, r.except) {
				continue
			}
			used = true
			imports := p.Imports
			if r.deep {
				imports = p.Deps
			}
			for _, imp := range imports {
				if matches(imp, r.to) && !matches(imp, r.except) {
					t.Errorf("%s imports %s: %s", p.ImportPath, imp, r.reason)
				}
			}
		}
		if !used {
			t.Errorf("no package is in %v; the rule %q guards nothing", r.from, r.reason)
		}
	}
}

func TestEveryRuleHasAReason(t *testing.T) {
	for _, r := range rules {
		if len(r.reason) < 20 {
			t.Errorf("rule from %v to %v lacks a reason", r.from, r.to)
		}
	}
}

// drawers are names of packages that gather whatever has no place.
var drawers = []string{"util", "utils", "common", "shared", "helpers", "consts", "misc", "types", "internal", "pkg", "docs", "controllers", "services", "models"}

func TestNoPackageIsADrawer(t *testing.T) {
	for _, p := range load(t) {
		for _, part := range strings.Split(strings.TrimPrefix(p.ImportPath, module), "/") {
			if slices.Contains(drawers, part) {
				t.Errorf("%s: %q says where things were put, not what the package knows", p.ImportPath, part)
			}
		}
	}
}

func TestLeafNamesAreUnique(t *testing.T) {
	seen := map[string]string{}
	for _, p := range load(t) {
		if strings.HasPrefix(p.ImportPath, module+"cmd/") || strings.HasPrefix(p.ImportPath, module+"test/") {
			continue
		}
		leaf := path.Base(p.ImportPath)
		if other, taken := seen[leaf]; taken {
			t.Errorf("%s and %s have the same leaf name: call sites would need an alias", other, p.ImportPath)
		}
		seen[leaf] = p.ImportPath
	}
}
