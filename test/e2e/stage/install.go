package stage

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/test/cluster"
	"github.com/keelson-project/keelson/test/cluster/factory"
	"github.com/keelson-project/keelson/test/cluster/mesh"
	"github.com/keelson-project/keelson/test/parts"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Namespace is where policy-sync runs, Release what Helm calls it.
const (
	Namespace = "keelson-system"
	Release   = "keelson"
)

// install installs everything of an operator's, before any node is there: so that the first node is tainted as the last one is.
func (s *Stage) install(ctx context.Context) error {
	root, err := parts.ModuleRoot()
	if err != nil {
		return err
	}
	if err := s.Cluster.Apply(ctx, []byte(namespaces), fmt.Appendf(nil, volume, s.options.Machines[0].Name)); err != nil {
		return err
	}
	if err := s.Helm(ctx, "install", s.values()); err != nil {
		return err
	}
	if err := s.installSPIRE(ctx, filepath.Join(root, "examples", "spire")); err != nil {
		return err
	}
	return s.installMesh(ctx)
}

// Helm does something with Keelson's chart: "install" or "upgrade" with values, "uninstall" with none.
func (s *Stage) Helm(ctx context.Context, action string, values map[string]any) error {
	root, err := parts.ModuleRoot()
	if err != nil {
		return err
	}
	helmctl, err := parts.CommandOf(ctx, s.options.Log, "test/charts", "cmd/helmctl")
	if err != nil {
		return err
	}
	args := []string{action, "--kubeconfig", s.Cluster.AdminKubeconfig(), "--namespace", Namespace}
	if values != nil {
		args = append(args, "--chart", filepath.Join(root, "charts", "keelson"), "--values", "-")
	}
	text, err := json.Marshal(values)
	if err != nil {
		return fmt.Errorf("stage: helm: %w", err)
	}
	cmd := exec.CommandContext(ctx, helmctl, append(args, Release)...) // #nosec G204 -- our own program
	cmd.Stdin = bytes.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("stage: helm %s: %w: %s", action, err, out)
	}
	return nil
}

// values are the chart's, as an operator sets them.
func (s *Stage) values() map[string]any {
	image := func(name string) map[string]any { return map[string]any{"repository": name, "tag": "latest"} }
	return map[string]any{
		"image": map[string]any{"registry": s.Registry.Host},
		"policySync": map[string]any{
			"image": image("keelson-policy-sync"),
			"spire": map[string]any{"access": "csi", "socketName": Socket},
			"config": map[string]any{
				"trustDomain": TrustDomain, "x509SVIDTTL": SVIDTTL.String(), "resync": "5s",
				"spire":  map[string]any{"address": "spire-server.spire:443", "adminNodes": s.adminNodes()},
				"calico": "required", "istio": "required",
				"images": map[string]any{
					"insecureRegistries": []any{s.Registry.Host}, "recheck": "2s",
					"verifiers": []any{map[string]any{"name": "release-key", "publicKey": "release-key.pem"}},
				},
				"leaderElection": map[string]any{"leaseDuration": "7s"},
			},
			"verifierKeys": map[string]any{"release-key.pem": string(s.public)},
		},
		"node":   map[string]any{"image": image("keelson-node")},
		"spire":  map[string]any{"servers": []any{map[string]any{"namespace": "spire", "serviceAccount": "spire-server"}}, "agents": []any{map[string]any{"namespace": "spire", "serviceAccount": "spire-agent"}}},
		"guards": map[string]any{"calicoAPIServerUsers": []any{cluster.CalicoAPIServerUser}},
	}
}

// installSPIRE applies the example with what is this computer's own: the registry, the short times, and a TPM behind a socket.
func (s *Stage) installSPIRE(ctx context.Context, dir string) error {
	replace := strings.NewReplacer(
		"registry.example.org/keelson/keelson-plugins:0.1.0", s.Image("keelson-plugins").Reference(),
		"ghcr.io/spiffe/spire-server:1.15.3", s.Image("spire-server").Reference(),
		"ghcr.io/spiffe/spire-agent:1.15.3", s.Image("spire-agent").Reference(),
		`registries = ["registry.example.org"]`, fmt.Sprintf(`insecure_registries = [%q]`, s.Registry.Host),
		`agent_ttl = "10m"`, fmt.Sprintf(`agent_ttl = %q`, AgentTTL),
		`default_x509_svid_ttl = "5m"`, fmt.Sprintf(`default_x509_svid_ttl = %q`, SVIDTTL),
		`verdict_valid_for = "15m"`, fmt.Sprintf(`verdict_valid_for = %q`, VerdictValid),
		"experimental {\n        auth_opa", "experimental {\n        cache_reload_interval = \"1s\"\n        auth_opa",
		`data_dir = "/run/spire/data"`+"\n      log_level = \"INFO\"\n    }\n    plugins {\n      # In memory",
		`data_dir = "/run/spire/data"`+"\n      log_level = \"INFO\"\n      experimental { sync_interval = \"1s\" }\n    }\n    plugins {\n      # In memory",
		`tpm          = "/dev/tpmrm0"`, `tpm          = "/run/tpm/tpm.sock"`, "/dev/tpmrm0", "/run/tpm",
		`command_line = "/proc/cmdline"`, `command_line = "/var/lib/keelson/cmdline"`,
	)
	for _, name := range []string{"server.yaml", "agent.yaml"} {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return fmt.Errorf("stage: %w", err)
		}
		if err := s.Cluster.Apply(ctx, []byte(replace.Replace(string(content)))); err != nil {
			return err
		}
	}
	if err := s.InstallCSI(ctx, filepath.Join(dir, "csi.yaml")); err != nil {
		return err
	}
	return s.writeAttestation(ctx)
}

// writeAttestation writes the ConfigMaps with the operator's own files. more are machines that the stage does not run.
func (s *Stage) writeAttestation(ctx context.Context, more ...*factory.Machine) error {
	files, err := s.Factory.Files()
	if err != nil {
		return err
	}
	references, err := s.Factory.References()
	if err != nil {
		return err
	}
	machines := more
	for _, m := range s.options.Machines {
		machines = append(machines, s.Machines[m.Name])
	}
	files["inventory.yaml"] = factory.Inventory(machines...)
	var documents [][]byte
	for name, data := range map[string]map[string]string{
		"keelson-node-attestation": files, "keelson-references": references, "keelson-workload-attestation": {"release-key.pem": string(s.public)},
	} {
		document, err := json.Marshal(map[string]any{
			"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": name, "namespace": "spire"}, "data": data,
		})
		if err != nil {
			return fmt.Errorf("stage: %w", err)
		}
		documents = append(documents, document)
	}
	return s.Cluster.Apply(ctx, documents...)
}

// Admit does what an operator does when another class of machines arrives: its reference set (see Factory.Reference) and its machine go
// into the ConfigMaps of the SPIRE server, which runs on. It reads the files again when they change; the annotation spares
// the kubelet's minute until it looks for changes.
func (s *Stage) Admit(ctx context.Context, m *factory.Machine) error {
	if err := s.writeAttestation(ctx, m); err != nil {
		return err
	}
	patch := fmt.Appendf(nil, `{"metadata":{"annotations":{"example.org/admitted":%q}}}`, m.Name)
	if _, err := s.Kubernetes.CoreV1().Pods("spire").Patch(ctx, "spire-server-0", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("stage: %w", err)
	}
	const file = "/etc/keelson/inventory.yaml"
	return s.Until(ctx, 2*time.Minute, "the SPIRE server's pod has the new files", func(ctx context.Context) error {
		object, err := s.GetPod(ctx, "spire", "spire-server-0")
		if err != nil {
			return err
		}
		// As the kubelet sees it.
		root := fmt.Sprintf("/proc/%d/root", s.Node(object.Spec.NodeName).Services["kubelet"].Process().PID())
		content, err := os.ReadFile(filepath.Join(root, "var/lib/kubelet/pods", string(object.UID), "volumes/kubernetes.io~configmap/keelson", filepath.Base(file)))
		if err == nil && !strings.Contains(string(content), m.Name) {
			err = fmt.Errorf("%s does not name %s yet", file, m.Name)
		}
		return err
	})
}

func (s *Stage) installMesh(ctx context.Context) error {
	var err error
	if s.authority, err = mesh.NewAuthority(); err != nil {
		return err
	}
	options := mesh.IstiodOptions{TrustDomain: TrustDomain, Image: s.Image(istiod).Reference(), Authority: s.authority}
	if s.options.IstiodValidates {
		options.Validation = s.Network.Machine(1)
	}
	objects, err := mesh.IstiodObjects(options)
	if err != nil {
		return err
	}
	cni, err := mesh.CNIObjects()
	if err != nil {
		return err
	}
	return s.Cluster.ApplyObjects(ctx, append(objects, cni...)...)
}

// IstiodValidates tells whether istiod's validating webhook is in force.
func (s *Stage) IstiodValidates() bool { return s.options.IstiodValidates }

// adminNodes are the machines that may hold policy-sync's own identity: those that the cluster begins with, so that policy-sync can leave
// one of them that is tampered with.
func (s *Stage) adminNodes() []any {
	var out []any
	for _, m := range s.options.Machines {
		if !m.Later {
			out = append(out, m.Name)
		}
	}
	return out
}

// firstEntries registers what nobody else can: policy-sync's own identity, through the SPIRE server's own program, as
// examples/spire tells an operator to.
func (s *Stage) firstEntries(ctx context.Context) error {
	if err := s.PodReady(ctx, "spire", "spire-server-0", 90*time.Second); err != nil {
		return err
	}
	class := "spiffe://" + TrustDomain + "/keelson/control-plane"
	entries := [][]string{{
		"-parentID", class, "-spiffeID", "spiffe://" + TrustDomain + "/ns/" + Namespace + "/sa/keelson-policy-sync",
		"-selector", "keelson:ns:" + Namespace, "-selector", "keelson:sa:keelson-policy-sync", "-selector", "keelson:signed-by:release-key",
	}}
	for _, name := range s.adminNodes() {
		entries = append(entries, []string{"-node", "-spiffeID", class, "-selector", fmt.Sprint("keelson_tpm:node:", name), "-selector", "keelson_tpm:ref:" + factory.Reference})
	}
	for _, args := range entries {
		if _, err := s.SPIREServer(ctx, append([]string{"entry", "create"}, args...)...); err != nil {
			return err
		}
	}
	return nil
}

// SPIREServer runs the SPIRE server's own program beside it, as its operator does ("entry", "show"), and returns what it printed.
func (s *Stage) SPIREServer(ctx context.Context, args ...string) (string, error) {
	command := append([]string{"/opt/spire/bin/spire-server"}, args...)
	out, err := s.Exec(ctx, "spire", "spire-server-0", "spire-server", append(command, "-socketPath", "/run/spire/private/api.sock")...)
	if err == nil && out.ExitCode != 0 {
		err = fmt.Errorf("exit %d: %s%s", out.ExitCode, out.Stdout, out.Stderr)
	}
	if err != nil {
		return "", fmt.Errorf("stage: spire-server %s: %w", strings.Join(args, " "), err)
	}
	return out.Stdout, nil
}

// UntilTrusted waits until policy-sync has labelled a node.
func (s *Stage) UntilTrusted(ctx context.Context, name string) error {
	err := s.Until(ctx, 90*time.Second, name+" is trusted", func(ctx context.Context) error {
		n, err := s.GetNode(ctx, name)
		if err != nil {
			return err
		}
		if got := n.Labels[v1alpha1.NodeVerdictLabel]; got != string(v1alpha1.VerdictTrusted) {
			var trust v1alpha1.NodeTrust
			if err := s.Client.Get(ctx, client.ObjectKey{Name: name}, &trust); err != nil {
				return err
			}
			return fmt.Errorf("its NodeTrust says %s %v, its label %q", trust.Spec.Verdict, trust.Spec.Reasons, got)
		}
		return nil
	})
	if err != nil {
		err = fmt.Errorf("%w; policy-sync's last words:\n%s", err, s.lastWords(ctx))
	}
	return err
}

// namespaces are labelled as the README tells operators.
const namespaces = `
apiVersion: v1
kind: Namespace
metadata: {name: ` + Namespace + `, labels: {` + podSecurityLabel + `: restricted}}
---
apiVersion: v1
kind: Namespace
metadata: {name: keelson-node, labels: {` + podSecurityLabel + `: privileged}}
`

// serverDisk is where that node has it.
const serverDisk = "/var/lib/spire-server"

// volume is the disk that the SPIRE server's claim is bound to: a folder of one node, which the kubelet gives to the pod's fsGroup.
const volume = `
apiVersion: v1
kind: PersistentVolume
metadata: {name: spire-server}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  local: {path: ` + serverDisk + `}
  claimRef: {namespace: spire, name: data-spire-server-0}
  nodeAffinity:
    required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [%s]}]}]}
`
