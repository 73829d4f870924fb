// Package virtual is a scenario: a machine whose boot nobody replayed.
package virtual

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/nodeattestor/assettag"
	"github.com/keelson-project/keelson/nodeattestor/tpmdev"
	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/test/cluster"
	"github.com/keelson-project/keelson/test/cluster/factory"
	"github.com/keelson-project/keelson/test/cluster/machine"
	"github.com/keelson-project/keelson/test/cluster/vmboot"
	"github.com/keelson-project/keelson/test/e2e/script"
	"github.com/keelson-project/keelson/test/e2e/stage"
)

// Proves is what the scenario shows.
const Proves = "a node whose proof is a virtual machine's own boot (firmware, stub and kernel measure themselves, SPIRE's agent runs in the guest): trusted as it was captured; another command line, initrd or kernel is refused by name and the node closes"

// Node is the machine, and the name of its reference set.
const Node = "vm-1"

// rig is the machine, and what the operator has of it.
type rig struct {
	s      *stage.Stage
	t      *script.Script
	kit    *vmboot.Kit
	dir    string
	tpm    *vmboot.TPM
	tag    []byte
	golden *vmboot.Image
	server *cluster.SpireServer
}

// Play plays it.
func Play(ctx context.Context, s *stage.Stage, t *script.Script) error {
	r := &rig{s: s, t: t, dir: filepath.Join(s.Dir, Node+"-guest")}
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return fmt.Errorf("virtual: %w", err)
	}
	var err error
	if r.kit, err = vmboot.Gather(ctx, os.Stderr, r.dir); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{r.make, r.find, r.admit, r.join, r.good} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return r.tampered(ctx)
}

// make is what the TPM's maker and the operator do before the first boot.
func (r *rig) make(ctx context.Context) error {
	var err error
	r.tpm, err = r.kit.MakeTPM(ctx, r.s.Group, os.Stderr, Node, r.path("tpm"), r.s.Factory.CA(), func(dev *tpmdev.Device, made *vmboot.TPM) error {
		file := r.path("tag.json")
		if err := r.s.Factory.IssueTag(ctx, file, "DE", 1, made.EKHashes...); err != nil {
			return err
		}
		if r.tag, err = os.ReadFile(file); err != nil {
			return fmt.Errorf("virtual: %w", err)
		}
		return dev.ProvisionTag(ctx, assettag.DefaultIndex, assettag.Digest(r.tag))
	})
	return err
}

func (r *rig) path(name string) string { return filepath.Join(r.dir, name) }

// find finds out where the cluster's SPIRE server is, and its bundle, as agents in the cluster get it.
func (r *rig) find(ctx context.Context) error {
	pod, err := r.s.GetPod(ctx, "spire", "spire-server-0")
	if err != nil {
		return fmt.Errorf("virtual: %w", err)
	}
	bundle, err := r.s.Kubernetes.CoreV1().ConfigMaps("spire").Get(ctx, "spire-bundle", metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("virtual: %w", err)
	}
	r.server = &cluster.SpireServer{Host: pod.Status.PodIP, Port: 8081, Bundle: r.path("bundle.pem")}
	return os.WriteFile(r.server.Bundle, []byte(bundle.Data["bundle.crt"]), 0o600)
}

// boot switches the machine on.
func (r *rig) boot(ctx context.Context, name string, image *vmboot.Image, golden bool) (*vmboot.VM, error) {
	return r.kit.Start(ctx, r.s.Group, vmboot.VMOptions{
		Name: name, Dir: r.path("vm-" + name), Image: image, TPM: r.tpm, Server: r.server, TrustDomain: stage.TrustDomain, Tag: r.tag, Golden: golden,
	})
}

// admit captures the golden machine's boot, and has the running SPIRE server know it: a set, and an EK under a node's name.
func (r *rig) admit(ctx context.Context) error {
	var err error
	if r.golden, err = r.kit.Build(ctx, r.path("image-golden"), vmboot.Changes{}); err != nil {
		return err
	}
	vm, err := r.boot(ctx, "golden", r.golden, true)
	if err != nil {
		return err
	}
	defer vm.Close()
	evidence := r.path("evidence")
	if err := os.Mkdir(evidence, 0o700); err != nil {
		return fmt.Errorf("virtual: %w", err)
	}
	waiting, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	if err := vm.Evidence(waiting, evidence); err != nil {
		return err
	}
	var trust v1alpha1.NodeTrust
	err = r.s.Client.Get(ctx, client.ObjectKey{Name: Node}, &trust)
	r.t.Expect(client.IgnoreNotFound(err) == nil && err != nil, "a TPM that the inventory does not have gets no verdict, good or bad", "%v", err)
	if err := r.s.Factory.Reference(ctx, Node, evidence); err != nil {
		return err
	}
	r.t.Say("its evidence is captured as reference set %s and signed; the inventory says whose TPM it is", Node)
	return r.s.Admit(ctx, &factory.Machine{Name: Node, EKHashes: r.tpm.EKHashes})
}

// join gives the machine its kubelet. No agent can attest there: the TPM is in the guest.
func (r *rig) join(ctx context.Context) error {
	if _, err := r.s.AddNode(ctx, machine.Options{Name: Node}); err != nil {
		return err
	}
	if err := r.s.Ready(ctx); err != nil {
		return err
	}
	n, err := r.s.GetNode(ctx, Node)
	if err != nil {
		return fmt.Errorf("virtual: %w", err)
	}
	r.t.Expect(stage.Tainted(n), "the node is tainted before the guest has proved anything", "%v", n.Spec.Taints)
	return nil
}

func (r *rig) good(ctx context.Context) error {
	vm, err := r.boot(ctx, "good", r.golden, false)
	if err != nil {
		return err
	}
	defer vm.Close()
	if err := r.verdict(ctx, vm, v1alpha1.VerdictTrusted); err != nil {
		return err
	}
	if err := r.s.UntilTrusted(ctx, Node); err != nil {
		return err
	}
	n, err := r.s.GetNode(ctx, Node)
	if err != nil {
		return fmt.Errorf("virtual: %w", err)
	}
	labels := n.Labels
	r.t.Expect(!stage.Tainted(n) && labels[v1alpha1.NodeReferenceLabel] == Node && labels[v1alpha1.NodeTagPrefix+"country"] == "DE",
		"the same boot again: the node is trusted, by the guest's proof", "reference set %s, country %s", labels[v1alpha1.NodeReferenceLabel], labels[v1alpha1.NodeTagPrefix+"country"])
	return nil
}

// verdict waits for the verdict on what has booted just now.
func (r *rig) verdict(ctx context.Context, vm *vmboot.VM, want v1alpha1.Verdict) error {
	begun := time.Now()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute) // half a minute on an idle machine
	defer cancel()
	return vm.Wait(ctx, func(ctx context.Context) error {
		var trust v1alpha1.NodeTrust
		if err := r.s.Client.Get(ctx, client.ObjectKey{Name: Node}, &trust); err != nil {
			return err
		}
		if trust.Spec.AttestedAt.Time.Before(begun) {
			return errors.New("no verdict on this boot yet")
		}
		if trust.Spec.Verdict != want {
			return fmt.Errorf("the verdict is %s: %v", trust.Spec.Verdict, trust.Spec.Reasons)
		}
		return nil
	})
}

// tampered boots what was tampered with, one after the other, in the same machine.
func (r *rig) tampered(ctx context.Context) error {
	for _, c := range []struct {
		name, check string
		changes     vmboot.Changes
		says        func(*vmboot.Image) string
	}{
		{"cmdline", "kernel.cmdline", vmboot.Changes{CommandLine: "evil=1"}, func(*vmboot.Image) string { return `added: "evil=1"` }},
		{"initrd", "kernel.initrd", vmboot.Changes{Files: map[string]string{"etc/evil": "one more file\n"}}, func(i *vmboot.Image) string { return fmt.Sprintf("sha256:%x", i.InitrdSHA256) }},
		{"kernel", "kernel.digest", vmboot.Changes{Kernel: []byte{'!'}}, func(i *vmboot.Image) string { return fmt.Sprintf("sha256:%x", i.KernelSHA256) }},
	} {
		if err := r.refused(ctx, c.name, c.check, c.changes, c.says); err != nil {
			return err
		}
	}
	return nil
}

func (r *rig) refused(ctx context.Context, name, check string, changes vmboot.Changes, says func(*vmboot.Image) string) error {
	image, err := r.kit.Build(ctx, r.path("image-"+name), changes)
	if err != nil {
		return err
	}
	vm, err := r.boot(ctx, name, image, false)
	if err != nil {
		return err
	}
	defer vm.Close()
	if err := r.verdict(ctx, vm, v1alpha1.VerdictUntrusted); err != nil {
		return err
	}
	var trust v1alpha1.NodeTrust
	if err := r.s.Client.Get(ctx, client.ObjectKey{Name: Node}, &trust); err != nil {
		return fmt.Errorf("virtual: %w", err)
	}
	named := false
	for _, reason := range trust.Spec.Reasons {
		named = named || reason.Check == check && strings.Contains(reason.Reason, says(image))
	}
	r.t.Expect(named, "another "+name+" is refused by name", "%v", trust.Spec.Reasons)
	return r.s.Until(ctx, 20*time.Second, "the node closes", func(ctx context.Context) error {
		n, err := r.s.GetNode(ctx, Node)
		if err != nil {
			return err
		}
		if !stage.Tainted(n) || n.Labels[v1alpha1.NodeVerdictLabel] != string(v1alpha1.VerdictUntrusted) {
			return fmt.Errorf("taints %v, labels %v", n.Spec.Taints, n.Labels)
		}
		r.t.Expect(true, "the node bears the taint and the verdict untrusted", "")
		return nil
	})
}
