package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/keelson-project/keelson/test/cluster"
	"github.com/keelson-project/keelson/test/cluster/node"
	"github.com/keelson-project/keelson/workloadattestor/image/imagetest"
)

// Times that make the demo short. A fleet has longer ones, of the same order to each other: an agent proves itself again at
// about half of agentTTL, a verdict outlives that with retries, and a workload's SVID is what is left after an eviction.
const (
	agentTTL     = 30 * time.Second
	svidTTL      = 20 * time.Second
	verdictValid = 60 * time.Second
	restartPause = 2 * time.Second
)

// images are what the pods run.
type images struct {
	pause, signed, unsigned node.Pushed
}

// startControl starts what an operator runs in the cluster, and the agents.
func (d *demo) startControl(ctx context.Context, s *Step) error {
	if err := d.pushImages(ctx, s); err != nil {
		return err
	}
	if err := d.startSpire(ctx); err != nil {
		return err
	}
	if err := d.startPolicySync(s); err != nil {
		return err
	}
	for _, m := range d.machines {
		if err := d.startNode(ctx, m); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
	}
	s.expect(true, "nodes", "each has its own %s and SPIRE agent", d.report.Containers)
	return nil
}

// pushImages pushes the workload's image twice: one that the release key signed, and one that differs by a file and that
// nobody signed.
func (d *demo) pushImages(ctx context.Context, s *Step) error {
	var err error
	if d.registry, err = node.NewRegistry(); err != nil {
		return err
	}
	workload, err := os.ReadFile(d.programs["test/demo/workload"])
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	i := node.Image{Files: map[string][]byte{"/workload": workload}, Entrypoint: []string{"/workload"}, Cmd: []string{"pause"}}
	if d.images.signed, err = d.registry.Push(ctx, "keelson/workload", i); err != nil {
		return err
	}
	d.images.pause = d.images.signed
	i.Files["/changed"] = []byte("this file is not in the released image\n")
	if d.images.unsigned, err = d.registry.Push(ctx, "keelson/unsigned", i); err != nil {
		return err
	}
	key, public, err := imagetest.NewKey()
	if err != nil {
		return err
	}
	if err := os.WriteFile(d.path("release.pub"), public, 0o600); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	if err := imagetest.Sign(ctx, d.images.signed.Repository, d.images.signed.Manifest.String(), key, name.Insecure); err != nil {
		return err
	}
	s.expect(true, "images", "%s is signed by release-key, %s by nobody", d.images.signed.Repository, d.images.unsigned.Repository)
	return nil
}

func (d *demo) startSpire(ctx context.Context) error {
	if err := os.MkdirAll(d.path("verdicts"), 0o700); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	kubeconfig, err := d.cluster.KubeconfigFor(spireServerUser, serviceAccountGroups("spire")...)
	if err != nil {
		return err
	}
	d.spire, err = cluster.StartSpireServer(ctx, d.group, cluster.SpireServerOptions{
		Dir: d.path("spire"), Log: d.out, TrustDomain: trustDomain, AgentTTL: agentTTL, X509SVIDTTL: svidTTL,
		Plugins: []cluster.Plugin{{
			Type: "NodeAttestor", Name: "keelson_tpm", Cmd: d.programs["cmd/keelson-nodeattestor-server"],
			Data: fmt.Sprintf(`
      ek_mode = "both"
      ek_roots = [%q]
      inventory = %q
      references = [%q]
      reference_signers = [%q]
      pcrs { sha256 = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14] }
      tag { signers = [%q] }
      audit_log = %q
      state_dir = %q
      kubernetes { kubeconfig = %q }
      verdict_valid_for = %q`,
				d.path("ek-root.pem"), d.path("inventory.yaml"), d.path("references"), d.path("reference-signer.pub"), d.path("tag-signer.pub"),
				d.path("audit.jsonl"), d.path("verdicts"), kubeconfig, verdictValid),
		}},
	})
	return err
}

func (d *demo) startPolicySync(s *Step) error {
	kubeconfig, err := d.cluster.KubeconfigFor(policySyncUser, serviceAccountGroups("keelson-system")...)
	if err != nil {
		return err
	}
	config := fmt.Sprintf(`kubeconfig: %q
trustDomain: %s
x509SVIDTTL: %s
spire: {socket: %q}
calico: required
istio: required
resync: 2s
images:
  insecureRegistries: [%q]
  recheck: 2s
  verifiers:
  - {name: release-key, publicKey: %q}
listen: {metrics: "0", health: "0"}
leaderElection: {enabled: true, namespace: keelson-system, leaseDuration: 15s}
`, kubeconfig, trustDomain, svidTTL, d.spire.Socket, d.registry.Host, d.path("release.pub"))
	if err := os.WriteFile(d.path("policy-sync.yaml"), []byte(config), 0o600); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	d.sync, err = d.group.Start(cluster.Command{
		Name: "policy-sync", Path: d.programs["cmd/keelson-policy-sync"],
		Args: []string{"--config", d.path("policy-sync.yaml"), "--log-level", "debug"},
	})
	if err != nil {
		return err
	}
	s.expect(true, "policy-sync", "runs as %s", policySyncUser)
	return nil
}

// startNode starts the machine's container runtime and SPIRE agent.
func (d *demo) startNode(ctx context.Context, m *machine) error {
	var err error
	procRoot := "/proc"
	if d.standin {
		if m.runtime, m.standin, err = node.StartStandin(d.group, node.StandinOptions{Name: m.name, Number: m.number, Dir: m.path("standin")}); err != nil {
			return err
		}
		procRoot = m.standin.ProcRoot
	} else {
		m.runtime, err = node.StartContainerd(ctx, d.group, node.ContainerdOptions{
			Name: m.name, Number: m.number, Dir: m.path("cri"), Sockets: d.path(fmt.Sprintf("s%d", m.number)), Network: d.network, Registry: d.registry, Pause: d.images.pause, Log: d.out,
		})
		if err != nil {
			return err
		}
	}
	// The attestor asks the API for Pods as this node's kubelet may: those that are bound to the node.
	kubeconfig, err := d.cluster.KubeconfigFor("system:node:"+m.name, "system:nodes")
	if err != nil {
		return err
	}
	m.agent, err = cluster.StartSpireAgent(ctx, d.group, cluster.SpireAgentOptions{
		Name: "spire-agent-" + m.name, Dir: m.path("agent"), Log: d.out, Server: d.spire, Restart: restartPause,
		Plugins: []cluster.Plugin{
			{Type: "NodeAttestor", Name: "keelson_tpm", Cmd: d.programs["cmd/keelson-nodeattestor-agent"], Data: m.attestorConfig()},
			{
				Type: "WorkloadAttestor", Name: "keelson", Cmd: d.programs["cmd/keelson-workloadattestor"],
				Data: fmt.Sprintf(`
      node_name = %q
      cri_socket = %q
      proc_root = %q
      kubelet_root = %q
      allowed_host_paths = [%q, %q]
      kubeconfig = %q
      insecure_registries = [%q]
      verifiers "release-key" { public_key_path = %q }`,
					m.name, m.runtime.Socket, procRoot, m.runtime.KubeletRoot(), m.path("agent", "public"), d.path("allow"), kubeconfig, d.registry.Host, d.path("release.pub")),
			},
		},
	})
	return err
}

func (m *machine) attestorConfig() string {
	var b strings.Builder
	for _, setting := range [][2]string{
		{"tpm", m.tpm.Socket}, {"data_dir", m.path("agent")}, {"event_log", m.path("binary_bios_measurements")},
		{"ima_log", m.path("binary_runtime_measurements")}, {"command_line", m.path("cmdline.txt")}, {"tag_document", m.path("tag.json")},
	} {
		fmt.Fprintf(&b, "\n      %s = %q", setting[0], setting[1])
	}
	return b.String()
}

// alive tells whether the parts that have to run still do.
func (d *demo) alive() error {
	return errors.Join(d.sync.Err(), d.spire.Process.Err())
}
